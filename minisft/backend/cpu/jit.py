"""Whether compiled loops run on the CPU, and how Numba compiles them.

`minisft/backend/cpu/compiled/` holds the loops (extra `fast`), float32 only, one file an operation.
They run wherever Numba is installed, unless MINISFT_COMPILED=off or `with compiled(False)` says
otherwise. Numba is imported when the first of them is called.
"""

import os
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from minisft.backend.cpu import row_blocks
from minisft.errors import UserError

# What the compiler may do: nothing; a * b + c in one rounding; sums in vectors. Never NaN and inf.
NONE, EXACT = frozenset(), frozenset({"contract"})
SUMS = frozenset({"reassoc", "contract", "nsz", "arcp"})

_wanted = ContextVar("compiled", default=True)


@contextmanager
def compiled(wanted):
    """Within it, operations run as compiled loops where there are any (True), or never (False)."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def chosen():
    """-> whether compiled loops run, here; cheap, as every operation asks."""
    return _wanted.get() and _allowed() and numba() is not None


def _allowed():
    wish = os.environ.get("MINISFT_COMPILED", "")
    if wish not in ("", "off"):
        raise UserError(f"MINISFT_COMPILED is {wish!r}, expected off or nothing")
    return not wish


@cache
def numba():
    """-> the module, or None where it is not installed or does not go with this NumPy."""
    if find_spec("numba") is None:
        return None
    try:
        return import_module("numba")
    except ImportError:     # its way to refuse a NumPy that is too new
        return None


def loop(flags=EXACT, part=None):
    """Decorates a function over arrays: compiled on its first call and kept on disk for others.

    `part`: it is a part of loops: "own" keeps its flags there, "pasted" takes the loop's, and its
    tuple of results costs nothing. After a change of a part delete the folders `__pycache__`: what
    is kept on disk knows only the file of the loop itself.
    """
    def decorate(function):
        if numba() is None:     # nobody will call it, but the file can be imported and documented
            return function
        options = {"nogil": True, "fastmath": set(flags), "error_model": "numpy"}
        if part is not None:
            how = {"inline": "always"} if part == "pasted" else {"forceinline": True}
            return numba().njit(**how, **options)(function)
        try:
            return numba().njit(cache=True, **options)(function)
        except RuntimeError:     # no folder that may be written to
            return numba().njit(**options)(function)
    return decorate


def each(work, n, row_bytes):
    """work(start, stop) for blocks of n rows, on all threads -> results in the order of rows."""
    # larger than those of NumPy: a loop holds few arrays, and every call costs microseconds
    parts = row_blocks.blocks(n, row_bytes // 4)
    return row_blocks.each(lambda part: work(part.start, part.stop), parts)
