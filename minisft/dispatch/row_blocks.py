"""A formula whose rows do not depend on each other, run block by block of rows.

Each block is small enough to stay in a core's cache, and every core takes blocks
(`backend/cpu/row_blocks.py`). The formula is called as it stands, on slices.
"""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import numpy as np

from minisft.backend.cpu import row_blocks


class ByRow(tuple):
    """A cache made in blocks of rows; `by_row` says which of its entries have rows."""

    by_row: tuple[bool, ...]

    def __new__(cls, entries, by_row):
        made = super().__new__(cls, entries)
        made.by_row = by_row
        return made


class RowBlocks:
    """An operation of `minisft/ops`, in blocks of rows.

    split: names of the arguments that have a row for each token; sums: which results, counted from
    0, are sums over rows. A cache is split as the forward that made it was.
    """

    def __init__(self, operation, forward: tuple[str, ...], backward: tuple[str, ...],
                 forward_sums: tuple[int, ...] = (), backward_sums: tuple[int, ...] = ()):
        self.operation = operation
        self.split, self.sums = (forward, backward), (forward_sums, backward_sums)
        self.names = [list(signature(f).parameters)
                      for f in (operation.forward, operation.backward)]

    def too_few(self, site, arguments: dict[str, Any]) -> str:
        """A condition: NumPy arrays with rows enough for two blocks."""
        rowed = [arguments[name] for name in self.split[0] if arguments.get(name) is not None]
        if not all(isinstance(a, np.ndarray) and a.ndim for a in rowed):
            return "its arguments are no arrays of NumPy with rows"
        return "" if len(_parts(rowed)) > 1 else "the rows fit one block"

    def forward(self, *args, **options):
        """As the formula's."""
        given = dict(zip(self.names[0], args, strict=False)) | options
        rowed = [given[name] for name in self.split[0] if given.get(name) is not None]
        return _in_blocks(self.operation.forward, given, self.split[0], self.sums[0],
                          _parts(rowed))

    def backward(self, dy, cache, *args, **options):
        """As the formula's."""
        given = dict(zip(self.names[1], (dy, cache, *args), strict=False)) | options
        rowed = [given[name] for name in self.split[1] if given.get(name) is not None]
        rowed += [a for a, has_rows in zip(cache, cache.by_row, strict=True) if has_rows]
        return _in_blocks(self.operation.backward, given, self.split[1], self.sums[1],
                          _parts(rowed))


def _parts(rowed: list[np.ndarray]) -> list[slice]:
    """Arrays with a row for each token -> slices of rows, each of a block."""
    n = len(rowed[0])
    return row_blocks.blocks(n, max(a.nbytes for a in rowed) // max(n, 1))


def _in_blocks(formula, given, split, sums, parts):
    if len(parts) < 2:
        return formula(**given)
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
    row_blocks.each(lambda i: put(i, formula(**_cut(given, split, parts[i]))),
                    range(1, len(parts)))
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


def _leaves(arguments) -> Iterator[Any]:
    """Arguments by name -> their values, a cache's one by one."""
    for value in arguments.values():
        yield from value if isinstance(value, tuple) else (value,)


def _paths(nested, path=()) -> Iterator[tuple[int, ...]]:
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


def _built_like(result, leaves):
    """result of one block, (whole value, has it rows) in order -> the result of all rows."""
    if not isinstance(result, tuple):
        return next(leaves)[0]
    if len(result) == 2 and isinstance(result[1], tuple):      # (y, cache)
        y = _built_like(result[0], leaves)
        values, has_rows = zip(*leaves, strict=True)
        return y, ByRow(values, has_rows)
    return tuple(_built_like(part, leaves) for part in result)
