"""Whether compiled loops run on the CPU, and how Numba compiles them.

`minisft/backend/cpu/compiled/` holds the loops (extra `fast`), one file an operation; they are for
float32, products of bfloat16 factors apart.
They run wherever Numba is installed, unless MINISFT_COMPILED=off or `with compiled(False)` says
otherwise. Numba is imported when the first of them is called.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

from minisft.backend.cpu import row_blocks
from minisft.errors import UserError

# What fastmath allows: nothing; a * b + c in one rounding; sums in vectors. NaN and inf stay exact.
NONE: frozenset[str] = frozenset()
EXACT = frozenset({"contract"})
SUMS = frozenset({"reassoc", "contract", "nsz", "arcp"})

Result = TypeVar("Result")

_wanted = ContextVar("compiled", default=True)


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Within it, operations with a compiled loop use it (True), or none does (False)."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def enabled() -> bool:
    """-> whether compiled loops run; cheap, since every operation calls it."""
    return _wanted.get() and _allowed() and numba() is not None


def _allowed():
    value = os.environ.get("MINISFT_COMPILED", "")
    if value not in ("", "off"):
        raise UserError(f"MINISFT_COMPILED is {value!r}, expected off or nothing")
    return not value


@cache
def numba() -> ModuleType | None:
    """-> the module, or None where it is not installed or refuses this version of NumPy."""
    if find_spec("numba") is None:
        return None
    try:
        return import_module("numba")
    except ImportError:     # so it refuses a NumPy that is too new
        return None


def loop(flags: frozenset[str] = EXACT, part: str | None = None) -> Callable[[Callable], Callable]:
    """Decorates a function over arrays: compiled on its first call and cached on disk.

    `part` is for a function that loops call: "own" compiles it with its own flags, "pasted" inlines
    it with the loop's flags, so that returning a tuple costs nothing. After changing a part delete
    the folders `__pycache__`: Numba's disk cache checks only the file of the loop itself.
    """
    def decorate(function):
        if numba() is None:     # never called, but the module can be imported and documented
            return function
        options = {"nogil": True, "fastmath": set(flags), "error_model": "numpy"}
        if part is not None:
            inlining = {"inline": "always"} if part == "pasted" else {"forceinline": True}
            return numba().njit(**inlining, **options)(function)
        try:
            return numba().njit(cache=True, **options)(function)
        except RuntimeError:     # no writable folder for the cache
            return numba().njit(**options)(function)
    return decorate


def assembly(text: list[str], used: list[str], operands: int = 5) -> Callable | None:
    """Lines of assembly (AT&T, operands `$0`, `$1`, ...) -> what a loop calls with so many int64.

    `used`: the registers that it changes. LLVM compiles it with the loop, so no compiler has to be
    there. The text must stand in the file of the loops: Numba's disk cache checks no other.
    """
    if numba() is None:
        return None
    from llvmlite import binding, ir
    from numba import types
    from numba.extending import intrinsic
    binding.initialize_native_asmparser()     # without it LLVM takes no assembly
    constraints = ",".join(["r"] * operands + [f"~{{{register}}}" for register in used])

    @intrinsic
    def run(context, *values):
        def generate(context, builder, signature, args):
            values = [builder.extract_value(args[0], i) for i in range(operands)]
            builder.asm(ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * operands),
                        "\n".join(text), constraints, values, True)
            return context.get_dummy_value()
        return types.void(types.StarArgUniTuple(types.int64, operands)), generate
    return run


def prefetching() -> Callable | None:
    """-> what a loop calls with the address (int64) of a line that it is going to read: the cache
    fetches it meanwhile. On every processor, and for any address."""
    if numba() is None:
        return None
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import get_or_insert_function
    from numba.extending import intrinsic
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    to_read, into_all_caches, data = (ir.Constant(number, n) for n in (0, 3, 1))

    @intrinsic
    def run(context, address):
        def generate(context, builder, signature, args):
            function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
            builder.call(function, [builder.inttoptr(args[0], pointer), to_read, into_all_caches,
                                    data])
            return context.get_dummy_value()
        return types.void(types.int64), generate
    return run


def each(work: Callable[[int, int], Result], n: int, row_bytes: int) -> list[Result]:
    """work(start, stop) for blocks of n rows, on all threads -> results in the order of rows."""
    # larger blocks than NumPy's: a loop uses few arrays, and each call costs microseconds
    parts = row_blocks.blocks(n, row_bytes // 4)
    return row_blocks.each(lambda part: work(part.start, part.stop), parts)
