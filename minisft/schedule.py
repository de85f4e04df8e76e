"""The one place that decides how a formula runs: as it stands, in blocks of rows, as a kernel, or
as its compiled twin.

`@by_kernel` marks an operation that has a kernel in `kernels/`, launched by the function of the
same name in `minisft/launch/`. `@by_rows` marks one of which, besides, every row of the result
depends on the same row of its arguments alone. Where no kernel runs and Numba is installed, the
function of the same name in `minisft/compiled/` takes their place, if there is one; a part of an
operation that has nothing else is marked `@by_twin`. A reader may leave a decorator out: it changes
no value beyond rounding. The plain formula stays callable as `function.formula`.
"""

from functools import lru_cache, wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import signature

import numpy as np

from minisft import cuda, jit, rows
from minisft.array import array_module


class Cache(tuple):
    """A cache made in blocks of rows; `by_row` says which of its entries have rows."""

    def __new__(cls, entries, by_row):
        made = super().__new__(cls, entries)
        made.by_row = by_row
        return made


class KernelCache(tuple):
    """A cache that a kernel made; `launcher` is the module with the backward that takes it."""

    def __new__(cls, entries, launcher):
        made = super().__new__(cls, entries)
        made.launcher = launcher
        return made


def by_twin(formula):
    """A part of an operation that runs as its compiled twin where there is Numba."""
    names = list(signature(formula).parameters)

    @wraps(formula)
    def scheduled(*args):
        if not jit.chosen():
            return formula(*args)
        given = dict(zip(names, args, strict=True))
        floats = [a for a in args if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
        twin = _suited(compiled_module(formula.__module__), formula, given) \
            if all(a.dtype == np.float32 for a in floats) else None
        return (formula if twin is None else getattr(twin, formula.__name__))(*args)

    scheduled.formula = formula
    return scheduled


def by_kernel(formula):
    """An operation that runs as its kernel on a GPU or the emulator, or as its compiled twin."""
    names = list(signature(formula).parameters)

    @wraps(formula)
    def scheduled(*args, **options):
        given = dict(zip(names, args, strict=False)) | options
        if launcher := _launcher(formula, given):
            return _launched(launcher, formula, given)
        return formula(*args, **options)

    scheduled.formula = formula
    return scheduled


def _launcher(formula, given):
    """-> the module of minisft/launch that does what this formula would, here; None without."""
    if isinstance(kept := given.get("cache"), KernelCache):
        return kept.launcher
    kernels, compiled = cuda.possible(), jit.chosen()
    if not kernels and not compiled:
        return None
    floats = [a for a in given.values() if _is_array(a) and a.dtype.kind == "f"]
    if not floats or any(a.dtype != np.float32 for a in floats):
        return None
    version = cuda.chosen(floats[0]) if kernels else "off"
    found = None if version == "off" else _suited(
        _launch_module(formula.__module__, version), formula, given)
    if found is None and compiled and all(isinstance(a, np.ndarray) for a in floats):
        found = _suited(compiled_module(formula.__module__), formula, given)
    return found


def _suited(launcher, formula, given):
    """-> the module, if it has this formula and takes these arguments; else None."""
    does = getattr(launcher, formula.__name__, None)
    # a cache of the plain forward is for the plain backward, unless only the backward has a kernel
    if does is None or ("cache" in given and hasattr(launcher, "forward")):
        return None
    return launcher if getattr(launcher, "fits", lambda **_: True)(**given) else None


def _launched(launcher, formula, given):
    result = getattr(launcher, formula.__name__)(**given)
    if formula.__name__ == "forward":
        y, made = result
        return y, KernelCache(made, launcher)
    return result


@lru_cache
def _launch_module(operation, version):
    """minisft.ops.softmax, naive -> the module minisft.launch.softmax_naive, else .softmax."""
    home, _, stem = operation.rpartition(".")
    if home != "minisft.ops":
        return None
    for name in (f"{stem}_naive", stem) if version == "naive" else (stem,):
        if find_spec(f"minisft.launch.{name}"):
            return import_module(f"minisft.launch.{name}")
    return None


@lru_cache
def compiled_module(operation):
    """minisft.ops.softmax, or softmax -> minisft.compiled.softmax, None where there is none."""
    name = f"minisft.compiled.{operation.rpartition('.')[2]}"
    return import_module(name) if find_spec(name) else None


def _is_array(a):
    return isinstance(a, np.ndarray) or array_module(a) is not np


def by_rows(*split, sums=()):
    """`split`: names of the arguments with a row for each token; `sums`: which of the results,
    counted from 0, are sums over rows.

    A `cache` argument is split as the forward that made it was.
    """
    def decorate(formula):
        names = list(signature(formula).parameters)

        @wraps(formula)
        def scheduled(*args, **options):
            given = dict(zip(names, args, strict=False)) | options
            if launcher := _launcher(formula, given):
                return _launched(launcher, formula, given)
            cache = given.get("cache")
            rowed = [given[name] for name in split if given.get(name) is not None]
            if isinstance(cache, Cache):
                rowed += [a for a, has_rows in zip(cache, cache.by_row, strict=True) if has_rows]
            elif cache is not None:      # of a forward that ran as it stands
                return formula(*args, **options)
            if not all(isinstance(a, np.ndarray) and a.ndim for a in rowed):
                return formula(*args, **options)
            n = len(rowed[0])
            parts = rows.blocks(n, max(a.nbytes for a in rowed) // max(n, 1))
            if len(parts) < 2:
                return formula(*args, **options)
            return _in_blocks(formula, given, split, sums, parts)

        scheduled.formula = formula
        return scheduled
    return decorate


def _in_blocks(formula, given, split, sums, parts):
    n = parts[-1].stop
    arguments = _cut(given, split, parts[0])
    first = formula(**arguments)
    # what a formula hands on as it came is not copied: {a block of it: the whole}
    same = {id(block): whole for block, whole in zip(
        _leaves(arguments), _leaves(given), strict=True)}
    whole, copied, added = [], [], [[] for _ in parts]
    paths = list(_paths(first))
    for place, path in enumerate(paths):
        leaf = _at(first, path)
        if place in sums or not isinstance(leaf, np.ndarray) or id(leaf) in same:
            whole.append(same.get(id(leaf), leaf))
        elif leaf.shape[:1] != (parts[0].stop,):
            raise ValueError(f"{formula.__name__}: a result of shape {leaf.shape} has no row for "
                             f"each of {parts[0].stop}, and `sums` does not name it")
        else:
            whole.append(np.empty((n, *leaf.shape[1:]), dtype=leaf.dtype))
            copied.append(place)

    def put(i, result):
        for place in copied:
            whole[place][parts[i]] = _at(result, paths[place])
        added[i] = [_at(result, paths[place]) for place in sums]

    put(0, first)
    rows.each(lambda i: put(i, formula(**_cut(given, split, parts[i]))), range(1, len(parts)))
    for place, terms in zip(sums, zip(*added, strict=True), strict=True):
        whole[place] = sum(terms[1:], start=terms[0])
    has_rows = [place in copied or whole[place] is not _at(first, path)
                for place, path in enumerate(paths)]
    return _built_like(first, iter(zip(whole, has_rows, strict=True)))


def _cut(given, split, part):
    """Arguments by name -> the same of these rows only."""
    cut = {name: a[part] if name in split and a is not None else a for name, a in given.items()}
    if cache := given.get("cache"):
        cut["cache"] = tuple(a[part] if has_rows else a
                             for a, has_rows in zip(cache, cache.by_row, strict=True))
    return cut


def _leaves(arguments):
    """Arguments by name -> their values, a cache's one by one."""
    for value in arguments.values():
        yield from value if isinstance(value, tuple) else (value,)


def _paths(nested, path=()):
    """A tuple of tuples -> where its leaves lie, in order."""
    if not isinstance(nested, tuple):
        yield path
        return
    for i, part in enumerate(nested):
        yield from _paths(part, (*path, i))


def _at(nested, path):
    for i in path:
        nested = nested[i]
    return nested


def _built_like(result, found):
    """result of one block, (whole value, has it rows) in order -> the result of all rows."""
    if not isinstance(result, tuple):
        return next(found)[0]
    if len(result) == 2 and isinstance(result[1], tuple):      # (y, cache)
        y = _built_like(result[0], found)
        values, has_rows = zip(*found, strict=True)
        return y, Cache(values, has_rows)
    return tuple(_built_like(part, found) for part in result)
