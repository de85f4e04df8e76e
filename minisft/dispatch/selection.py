"""How an operation finds its implementation: the first of its list whose conditions all hold.

The lists stand in `operations.py`; this file knows none of them. `choose` says which implementation
a call gets, `explain` why each of the others does not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np

from minisft.backend import array
from minisft.backend.cpu import jit
from minisft.backend.gpu import cuda

FORMULA = "formula"     # the last of every list: it takes every argument

# {operation, or None for all: names of implementations}
_only: ContextVar[dict[str | None, tuple[str, ...]] | None] = ContextVar("only", default=None)

# hears of the name of an operation, "forward" or "backward", and what it gave
See = Callable[[str, str, Any], None]
_watcher: ContextVar[See | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(see: See) -> Iterator[None]:
    """Within it see(operation, "forward" or "backward", what it gave) is called after each one."""
    token = _watcher.set(see)
    try:
        yield
    finally:
        _watcher.reset(token)


def _seen(operation, direction, given):
    if (see := _watcher.get()) is not None:
        see(operation, direction, given)
    return given


@contextmanager
def only(*names: str, operations: tuple[str, ...] | None = None) -> Iterator[None]:
    """Within it, operations (default: all) run as one of these implementations, or as the formula.

        with dispatch.only("formula"): ...
        with dispatch.only("row blocks", operations=("gelu",)): ...
    """
    chosen = dict.fromkeys(operations or (None,), names)
    token = _only.set(chosen if operations is None else (_only.get() or {}) | chosen)
    try:
        yield
    finally:
        _only.reset(token)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a call runs, and what may run there."""

    kernels: str       # which CUDA kernels run on its arrays: fused, naive or off
    compiled: bool     # whether Numba's loops do
    float32: bool      # whether all its arrays of floats are float32, the only type they take
    on_cpu: bool       # whether its arrays are NumPy's


def site_of(arguments: dict[str, Any]) -> Site:
    """The arguments of a call by name -> Site."""
    cupy_array = () if array.cupy is None else array.cupy.ndarray
    first, float32, arrays_here, floats_here = None, True, True, True
    for a in arguments.values():     # one pass: every operation of a step comes here
        here = isinstance(a, np.ndarray)
        if not (here or isinstance(a, cupy_array)):
            continue
        arrays_here &= here
        if a.dtype.kind == "f":
            first = a if first is None else first
            float32 &= a.dtype == np.float32
            floats_here &= here
    # lengths and starts of sequences stay on the CPU, whatever asks for them
    on_cpu = arrays_here if first is None else floats_here
    return _site(cuda.version_for(first) if first is not None and cuda.possible() else "off",
                 on_cpu and jit.enabled(), first is not None and float32, on_cpu)


_site = lru_cache(Site)     # there are few


# Says why an implementation does not take a call, or "" where it does.
Condition = Callable[[Site, dict[str, Any]], str]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    `load` gives what has its `forward` and `backward`. Modules that import Numba are imported when
    it is called, not before.
    """

    name: str
    conditions: tuple[Condition, ...]
    load: Callable[[], Any]

    def why_not(self, site: Site, arguments: dict[str, Any]) -> str:
        """-> the first condition that does not hold, in words; "" where all do."""
        for condition in self.conditions:
            if reason := condition(site, arguments):
                return reason
        return ""


class Cache(tuple):
    """What a forward keeps for the backward of the implementation that made it."""

    implementation: Implementation
    entries: tuple          # the same tuple, as that implementation made it
    shape: tuple | None     # of y, and so of the dy that its backward takes; None: y is no array

    def __new__(cls, entries, implementation, y):
        made = super().__new__(cls, entries)
        made.implementation, made.entries = implementation, entries
        made.shape = getattr(y, "shape", None)
        return made

    def with_entry(self, place: int, entry: Any) -> "Cache":
        """-> the same with another entry at this place."""
        entries = (*self.entries[:place], entry, *self.entries[place + 1:])
        made = Cache(entries, self.implementation, None)
        made.shape = self.shape
        return made


class Operation:
    """An operation of `minisft/ops` as layers call it: the first implementation that applies.

    `check(**arguments)` raises ValueError for shapes that do not go together: the one check that
    all implementations rely on. `options`: names of further arguments that only choose.
    """

    def __init__(self, name: str, forward: Callable, implementations: list[Implementation],
                 check: Callable = lambda **_: None, options: tuple[str, ...] = ()):
        self.name, self.implementations, self.check = name, implementations, check
        self._parameters, self._options = tuple(signature(forward).parameters), options
        assert implementations[-1].name == FORMULA and not implementations[-1].conditions

    def __repr__(self) -> str:
        return f"<operation {self.name}: {', '.join(i.name for i in self.implementations)}>"

    def arguments(self, *args: Any, **options: Any) -> dict[str, Any]:
        """-> the arguments of a call by name."""
        return dict(zip(self._parameters, args, strict=False)) | options

    def choose(self, *args: Any, **options: Any) -> Implementation:
        """-> the implementation that `forward` runs for these arguments."""
        return self.first(site_of(given := self.arguments(*args, **options)), given)

    def first(self, site: Site, given: dict[str, Any]) -> Implementation:
        """-> the first implementation that applies there to these arguments."""
        allowed = _only.get()
        names = allowed.get(self.name, allowed.get(None)) if allowed else None
        for implementation in self.implementations[:-1]:
            if (names is None or implementation.name in names) and \
                    not implementation.why_not(site, given):
                return implementation
        return self.implementations[-1]

    def explain(self, site: Site, arguments: dict[str, Any]) -> list[tuple[str, str]]:
        """-> (name, why it does not apply, "" where it does) of each implementation, in order."""
        return [(i.name, i.why_not(site, arguments)) for i in self.implementations]

    def forward(self, *args: Any, **options: Any) -> tuple[Any, Cache]:
        """As the formula's: inputs -> y, cache. Raises ValueError for shapes that do not fit."""
        given = self.arguments(*args, **options)
        self.check(**given)
        chosen = self.first(site_of(given), given)
        for name in self._options:
            options.pop(name, None)
        y, entries = chosen.load().forward(*args, **options)
        _seen(self.name, "forward", y)
        return y, Cache(entries, chosen, y)

    def backward(self, dy: Any, cache: Cache, *args: Any, **options: Any) -> Any:
        """As the formula's: dy, the cache of `forward` -> gradients.

        Raises ValueError for a dy of another shape than y, TypeError for a foreign cache.
        """
        if not isinstance(cache, Cache):
            raise TypeError(f"{self.name}.backward: the cache is a {type(cache).__name__}, "
                            f"expected what {self.name}.forward of minisft.dispatch returned")
        if cache.shape is not None and getattr(dy, "shape", None) != cache.shape:
            raise ValueError(f"{self.name}.backward: dy has shape {getattr(dy, 'shape', None)}, "
                             f"expected y's, {cache.shape}")
        return _seen(self.name, "backward", cache.implementation.load().backward(
            dy, cache.entries, *args, **options))


class Function(Operation):
    """An operation without a gradient: `load` gives the function itself."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _seen(self.name, "forward",
                     self.choose(*args, **options).load()(*args, **options))
