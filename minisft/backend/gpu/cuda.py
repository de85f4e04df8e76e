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


@dataclass(frozen=True)
class Rows:
    """An array whose rows need not be adjacent, such as q within the output of one product."""

    array: np.ndarray

    def stride(self) -> int:
        """-> distance of two rows in numbers; raises ValueError when a row is not contiguous."""
        a = self.array
        inner = int(np.prod(a.shape[1:])) * a.itemsize
        if (a.size and not a[0].flags.c_contiguous) or (len(a) > 1 and a.strides[0] < inner):
            raise ValueError(f"an array of shape {a.shape} and strides {a.strides}: each row must "
                             "be contiguous")
        return a.strides[0] // a.itemsize if len(a) > 1 else inner // a.itemsize


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


@cache
def _names(text):
    """Source -> {kernel: the names of its parameters}."""
    return {kernel: frozenset(p.name for p in parameters)
            for kernel, parameters in signatures(text).items()}


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
    grid, block = (tuple(map(int, size)) + (1,) * (3 - len(size)) for size in (grid, block))
    parameters = signatures(text)[kernel]
    if arguments.keys() != _names(text)[kernel]:
        names = [p.name for p in parameters]
        missing = [name for name in names if name not in arguments]
        unknown = [name for name in arguments if name not in names]
        raise ValueError(f"{kernel}: " + "; ".join(
            f"{what} {', '.join(wrong)}" for what, wrong in
            (("missing", missing), ("unknown", unknown)) if wrong) +
            f"; expected {', '.join(names)}")
    if not 1 <= np.prod(block) <= emulator.MOST_THREADS:
        raise ValueError(f"{kernel}: blocks of {block} threads, expected 1 to "
                         f"{emulator.MOST_THREADS} in all")
    if any(n > most for n, most in zip(grid, GRID_LIMIT, strict=True)):
        raise ValueError(f"{kernel}: a grid of {grid} blocks, expected at most {GRID_LIMIT}")
    ready = [_fitted(kernel, p, arguments[p.name]) for p in parameters]
    if 0 in grid:
        return
    modules = {array.array_module(a) for p, a in zip(parameters, ready, strict=True)
               if p.pointer and a is not None}
    if len(modules) > 1:
        raise ValueError(f"{kernel}: some arrays on the GPU, some not, expected all on one side")
    options = tuple(sorted((defines or {}).items()))
    if modules == {np}:
        values = [_c_value(p, a) for p, a in zip(parameters, ready, strict=True)]
        emulator.run(_library(text, options), kernel, grid, block, values)
    else:
        pointers = tuple(np.uintp(0) if a is None else a for a in ready)
        _module(text, options).get_function(kernel)(grid, block, pointers)


def _fitted(kernel, parameter, a):
    """-> the argument as the kernel takes it; raises ValueError when it cannot be."""
    what = f"{kernel}: {parameter.name}"
    if not parameter.pointer:
        number = parameter.type(a)
        if parameter.type is not np.float32 and number != a:
            raise ValueError(f"{what} is {a}, which {number.dtype} cannot hold")
        return number
    if a is None:
        return None
    if isinstance(a, Rows):
        a.stride()     # raises where rows are not contiguous
        a = a.array
    elif not a.flags.c_contiguous:
        raise ValueError(f"{what} has strides {a.strides} at shape {a.shape}, expected a "
                         "contiguous array")
    if a.dtype != parameter.type:
        raise ValueError(f"{what} is {a.dtype}, expected {np.dtype(parameter.type)}")
    if parameter.written and isinstance(a, np.ndarray) and not a.flags.writeable:
        raise ValueError(f"{what} is written to, but the array is read-only")
    return a


def _c_value(parameter, a):
    if parameter.pointer:
        return ctypes.c_void_p(None if a is None else a.ctypes.data)
    return C_TYPES[parameter.type](a)


@lru_cache(maxsize=256)
def _library(text, defines):
    return emulator.build(text, signatures(text), kernel_folder() / "emulator", dict(defines))


@lru_cache(maxsize=256)
def _module(text, defines):
    options = "-std=c++17", *(f"-D{name}={value}" for name, value in defines)
    return array.cupy.RawModule(code=text, options=options)
