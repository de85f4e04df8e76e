"""Compiles and launches the kernels in `kernels/`, on a GPU through CuPy, else in the emulator.

    cuda.launch("softmax", "softmax_forward", grid, block, s=s, p=p, n=n, m=m)

Arguments go by the names of the kernel's parameters, which a launch reads from its source: arrays
must have their type and lie contiguous in memory, numbers are cast. Sizes that a kernel must know
when it is compiled are `defines` and become -D options. A kernel is compiled on first use.
`device.cuh` is pasted in front of the file, since CuPy's disk cache would not notice an edit of an
included file.

`with kernels("naive")` and MINISFT_CUDA=emulate say which version of the kernels may run;
`minisft/dispatch` reads it here.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minisft.backend import array
from minisft.backend.array import Array
from minisft.backend.gpu import emulator
from minisft.errors import UserError

VERSIONS = ("fused", "naive", "off")
TYPES = {"float": np.float32, "int": np.int32, "uint32_t": np.uint32,
         "uint16_t": np.uint16, "long long": np.int64}
C_TYPES = {np.float32: ctypes.c_float, np.int32: ctypes.c_int, np.uint32: ctypes.c_uint,
           np.int64: ctypes.c_longlong}
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?'
                    r'(\w+)\(([^)]*)\)')
GRID_LIMIT = 2**31 - 1, 65535, 65535

_version = ContextVar("version", default="fused")


@contextmanager
def kernels(version: str) -> Iterator[None]:
    """Within it, operations run as their fused kernels, naive ones where there are any, or off."""
    if version not in VERSIONS:
        raise UserError(f"kernels are {version!r}, expected one of {', '.join(VERSIONS)}")
    token = _version.set(version)
    try:
        yield
    finally:
        _version.reset(token)


def version_for(x: Array) -> str:
    """array -> the version of the kernels that runs on it: fused, naive or off."""
    return _version.get() if array.array_module(x) is not np or emulated() else "off"


def possible() -> bool:
    """-> whether any kernel could run; cheap, since every operation calls it."""
    return array.cupy is not None or bool(os.environ.get("MINISFT_CUDA"))


def runs_on(x: Array) -> bool:
    """array -> whether operations on it run as kernels."""
    return possible() and x.dtype == np.float32 and version_for(x) != "off"


def emulated() -> bool:
    """-> whether MINISFT_CUDA=emulate asks for the kernels on the CPU."""
    value = os.environ.get("MINISFT_CUDA", "")
    if value not in ("", "emulate"):
        raise UserError(f"MINISFT_CUDA is {value!r}, expected emulate or nothing")
    return bool(value)


class Rows:
    """An array whose rows need not be adjacent, such as q within the output of one product.

    Raises ValueError when a row is not contiguous.
    """

    __slots__ = "array", "_stride"

    def __init__(self, array: Array):
        self.array = array
        inner, contiguous = array.itemsize, True     # bytes of a row, from its last axis on
        for size, stride in zip(array.shape[:0:-1], array.strides[:0:-1], strict=True):
            contiguous &= stride == inner or size < 2
            inner *= size
        between = array.strides[0] if len(array) > 1 else inner
        if (array.size and not contiguous) or between < inner:
            raise ValueError(f"an array of shape {array.shape} and strides {array.strides}: each "
                             "row must be contiguous")
        self._stride = between // array.itemsize

    def stride(self) -> int:
        """-> distance of two rows in numbers."""
        return self._stride


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel; `written` says that it is a pointer and not const."""

    name: str
    type: type
    pointer: bool
    written: bool


@cache
def kernel_folder() -> Path:
    """-> the folder of the .cu files: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    return package / "kernels" if (package / "kernels").is_dir() else package.parent / "kernels"


@cache
def source(file: str) -> str:
    """Stem of a .cu file -> its text behind device.cuh; errors name the lines of both."""
    return "\n".join(f'#line 1 "{path.name}"\n{path.read_text(encoding="utf-8")}' for path in
                     (kernel_folder() / "device.cuh", kernel_folder() / f"{file}.cu"))


@cache
def signatures(text: str) -> dict[str, tuple[Parameter, ...]]:
    """Source -> {kernel: (Parameter, ...)}, as it declares them."""
    return {name: tuple(map(_parameter, " ".join(parameters.split()).split(",")))
            for name, parameters in KERNEL.findall(text)}


def _parameter(declared):
    match = re.fullmatch(r"\s*(const )?([\w ]+?)(\*)?( __restrict__)? (\w+)", declared)
    if not match or match[2] not in TYPES:
        raise ValueError(f"parameter {declared.strip()!r}: expected one of {', '.join(TYPES)} or a "
                         "pointer to it")
    return Parameter(match[5], TYPES[match[2]], bool(match[3]),
                     bool(match[3]) and not match[1])


def launch(file: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], /, *,
           defines: dict[str, int] | None = None, **arguments: Any) -> None:
    """Runs a kernel of kernels/`file`.cu; arrays that it writes are changed.

    `arguments` go by the names of the kernel's parameters; None is a null pointer. Raises
    ValueError for a missing or unknown name and for a value that does not fit its parameter.
    """
    launch_source(source(file), kernel, grid, block, defines=defines, **arguments)


def launch_source(text: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], /, *,
                  defines: dict[str, int] | None = None, **arguments: Any) -> None:
    """The same for the text of a CUDA source."""
    options = tuple(sorted(defines.items())) if defines else ()
    prepared(text, kernel, options)(grid, block, arguments)


class Prepared:
    """A kernel with its -D options, what its parameters demand, and, once it has run, its code.

    All that a launch need not find out again: a training step is some hundred launches, and at
    60 us each the card waits for the CPU.
    """

    def __init__(self, text: str, kernel: str, options: tuple[tuple[str, int], ...]):
        self.text, self.kernel, self.options = text, kernel, options
        self.parameters = signatures(text)[kernel]
        self.names = frozenset(p.name for p in self.parameters)
        self.checks = [(p.name, np.dtype(p.type), p.type, p.pointer, p.written,
                        *_bounds(p.type)) for p in self.parameters]
        # CuPy, and its kernel: RawModule.get_function would look it up anew each time
        self.cupy, self.on_card = None, None

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...],
                 arguments: dict[str, Any]) -> None:
        """As `launch`."""
        grid, block = _three(grid), _three(block)
        if arguments.keys() != self.names:
            self._refuse_names(arguments)
        x, y, z = block
        if not 1 <= x * y * z <= emulator.MOST_THREADS:
            raise ValueError(f"{self.kernel}: blocks of {block} threads, expected 1 to "
                             f"{emulator.MOST_THREADS} in all")
        x, y, z = grid
        if x > GRID_LIMIT[0] or y > GRID_LIMIT[1] or z > GRID_LIMIT[2]:
            raise ValueError(f"{self.kernel}: a grid of {grid} blocks, expected at most "
                             f"{GRID_LIMIT}")
        ready, side = self._fitted(arguments)
        if 0 in grid:
            return
        if side is np:
            values = [_c_value(p, a) for p, a in zip(self.parameters, ready, strict=True)]
            emulator.run(_library(self.text, self.options), self.kernel, grid, block, values)
            return
        if self.cupy is not array.cupy:
            self.cupy = array.cupy
            self.on_card = _module(self.cupy, self.text, self.options).get_function(self.kernel)
        self.on_card(grid, block, tuple([np.uintp(0) if a is None else a for a in ready]))

    def _fitted(self, arguments):
        """-> the arguments as the kernel takes them, in its order; the module of the arrays.

        Raises ValueError for one that cannot be.
        """
        ready, side = [], None
        for name, dtype, kind, pointer, written, low, high in self.checks:
            a = arguments[name]
            if not pointer:
                ready.append(kind(a) if low is None or type(a) is int and low <= a <= high else
                             self._number(name, kind, a))
                continue
            if a is not None:
                if type(a) is Rows:
                    a = a.array
                elif not a.flags.c_contiguous:
                    raise ValueError(f"{self.kernel}: {name} has strides {a.strides} at shape "
                                     f"{a.shape}, expected a contiguous array")
                if a.dtype != dtype:
                    raise ValueError(f"{self.kernel}: {name} is {a.dtype}, expected {dtype}")
                here = np if isinstance(a, np.ndarray) else array.cupy
                if side is not None and side is not here:
                    raise ValueError(f"{self.kernel}: some arrays on the GPU, some not, expected "
                                     "all on one side")
                side = here
                if written and here is np and not a.flags.writeable:
                    raise ValueError(f"{self.kernel}: {name} is written to, but the array is "
                                     "read-only")
            ready.append(a)
        return ready, side

    def _number(self, name, kind, a):
        """-> a whole number that is no plain int, or that does not fit, in the kernel's type."""
        if kind(a) != a:
            raise ValueError(f"{self.kernel}: {name} is {a}, which {np.dtype(kind)} cannot hold")
        return kind(a)

    def _refuse_names(self, arguments):
        names = [p.name for p in self.parameters]
        missing = [name for name in names if name not in arguments]
        unknown = [name for name in arguments if name not in names]
        raise ValueError(f"{self.kernel}: " + "; ".join(
            f"{what} {', '.join(wrong)}" for what, wrong in
            (("missing", missing), ("unknown", unknown)) if wrong) +
            f"; expected {', '.join(names)}")


def _three(sizes):
    if len(sizes) == 1:
        return int(sizes[0]), 1, 1
    return tuple(map(int, sizes)) + (1,) * (3 - len(sizes))


def _bounds(kind):
    """-> the least and the greatest number of a whole type; None, None of float32."""
    return (None, None) if kind is np.float32 else (np.iinfo(kind).min, np.iinfo(kind).max)


@lru_cache(maxsize=512)
def prepared(text: str, kernel: str, options: tuple[tuple[str, int], ...] = ()) -> Prepared:
    """Source, one of its kernels, its -D options in the order of their names -> the launch."""
    return Prepared(text, kernel, options)


def _c_value(parameter, a):
    if parameter.pointer:
        return ctypes.c_void_p(None if a is None else a.ctypes.data)
    return C_TYPES[parameter.type](a)


@lru_cache(maxsize=256)
def _library(text, defines):
    return emulator.build(text, signatures(text), kernel_folder() / "emulator", dict(defines))


@lru_cache(maxsize=256)
def _module(cupy, text, defines):
    options = "-std=c++17", *(f"-D{name}={value}" for name, value in defines)
    return cupy.RawModule(code=text, options=options)
