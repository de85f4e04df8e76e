"""Products of float32 matrices by MKL, Intel's library, where its wheel is installed (extra `mkl`).

    (1) c[i, j] = sum over k of a[i, k] b[k, j]

On Intel's processors it multiplies faster than NumPy's OpenBLAS, most of all while the other
hyperthread of a core is busy too. Of what MKL offers this asks for

    one thread      ours take a part of c's rows or columns each: threads of its own would wait for
                    ours on the same cores
    strict sums     of its "conditional numerical reproducibility": the bits of a row then depend
                    neither on how many rows or threads there are nor on where the factors lie

The library is loaded by the first product, from the files of the wheel alone. Its symbols are then
everybody's: a PyTorch that is imported later would take them for those of the MKL within itself,
and run on one thread. So nothing is loaded before PyTorch is where it is installed.
"""

import ctypes
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import row_blocks
from minisft.errors import UserError

INSTALL = "install minisft[mkl]"
NARROWEST = 16           # rows, columns or k: of narrower products NumPy's are as fast
SMALLEST = 1 << 22       # multiplications
THREADED = 1 << 24       # multiplications from which on waking another thread is worth it
STEP = 48                # columns or rows that a thread's part is a multiple of
LONGEST = 2**31 - 1      # the library counts in int32

# of mkl_service.h and mkl_cblas.h
_LP64, _SEQUENTIAL = 0, 1
_AUTO_BRANCH, _STRICT, _SUCCESS = 2, 0x10000, 0
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112


def why_not() -> str:
    """-> why MKL multiplies nothing here; "" where it does, and its library is loaded."""
    value = os.environ.get("MINISFT_MKL", "")
    if value not in ("", "off"):
        raise UserError(f"MINISFT_MKL is {value!r}, expected off or nothing")
    if value:
        return "MINISFT_MKL is off"
    if reason := _why_not_here() or _before_torch():
        return reason
    return _library()[1]


def why_not_product(a: Any, b: Any, out: Any = None) -> str:
    """a (M,K), b (K,N), `out` (M,N) or None: where it goes -> why MKL does not multiply them."""
    arrays = (a, b) if out is None else (a, b, out)
    if any(type(x) is not np.ndarray or x.ndim != 2 or x.dtype != np.float32 for x in arrays):
        return "its arguments are not all matrices of float32"
    (m, k), (inner, n) = a.shape, b.shape
    if min(m, k, n) < NARROWEST or m * k * n < SMALLEST:
        return f"{m} x {k} x {n} is small, and NumPy's product as fast"
    if inner != k or out is not None and (out.shape != (m, n) or not out.flags.writeable):
        return "its shapes do not go together"     # which the formula says better
    if not all(any(map(_lies_in_rows, (x, x.T))) for x in (a, b)) or \
            out is not None and not _lies_in_rows(out):
        return "its matrices lie neither in rows nor in columns"
    if out is not None and (np.may_share_memory(out, a) or np.may_share_memory(out, b)):
        return "the result goes where a factor lies"
    return why_not()


def _lies_in_rows(x):
    """x (m,n) -> whether the numbers of a row lie side by side, and its rows in order."""
    apart = x.strides[0] // x.itemsize
    return (x.strides[1] == x.itemsize and x.strides[0] % x.itemsize == 0
            and x.shape[1] <= apart <= LONGEST and x.shape[0] <= LONGEST and x.flags.aligned)


@cache
def _why_not_here():
    if not sys.platform.startswith("linux"):
        return "its wheel is used on Linux alone"
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    if not {"GenuineIntel", "avx512f"} <= words:
        return "it gains on Intel's processors with AVX-512"
    if not _wheel():
        return f"it is not installed ({INSTALL})"
    return ""


def _before_torch():
    if "torch" in sys.modules or _loaded() or not _torch_is_installed():
        return ""
    return "PyTorch is installed and not yet imported, which MKL would get into"


@cache
def _torch_is_installed():
    return find_spec("torch") is not None


def _wheel() -> list[Path]:
    """-> the shared libraries of the wheel; none where it is not installed, or not whole."""
    try:
        files = [Path(str(file.locate())) for file in distribution("mkl").files or ()
                 if file.name.startswith("libmkl_") and ".so" in file.name]
    except PackageNotFoundError:
        return []
    # of one that is missing the library says so itself, and ends the process
    return files if all(map(Path.is_file, files)) else []


def _loaded():
    return _library.cache_info().currsize > 0


@cache
def _library() -> tuple[Any, str]:
    """-> cblas_sgemm and "", or None and why not."""
    paths = [path for path in _wheel() if path.name.startswith("libmkl_rt.so")]
    if not paths:
        return None, f"its wheel has no libmkl_rt.so ({INSTALL})"
    try:
        library = ctypes.CDLL(str(paths[0]))
        library.MKL_Set_Interface_Layer(_LP64)
        # both fail once somebody else has multiplied by this library
        if library.MKL_Set_Threading_Layer(_SEQUENTIAL) != _SEQUENTIAL or \
                library.MKL_CBWR_Set(_AUTO_BRANCH | _STRICT) != _SUCCESS:
            return None, "somebody else has set it up in this process"
        gemm = library.cblas_sgemm
    except (OSError, AttributeError) as error:
        return None, f"it cannot be loaded ({error})"
    number, real, place = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    gemm.restype = None
    gemm.argtypes = [number] * 6 + [real, place, number, place, number, real, place, number]
    return gemm, ""


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a (M,K), b (K,N) float32 -> (M,N); `out` (M,N): where it goes. For what `why_not_product`
    finds nothing against.
    """
    (m, k), n = a.shape, b.shape[1]
    if out is None:
        out = np.empty((m, n), np.float32)
    parts = _parts(max(m, n), m * k * n)
    if m >= n:
        row_blocks.each(lambda part: _multiply(a[part], b, out[part]), parts)
    else:
        row_blocks.each(lambda part: _multiply(a, b[:, part], out[:, part]), parts)
    return out


def _parts(length, work):
    """Rows or columns, multiplications -> a slice for each thread."""
    threads = row_blocks.threads() if work >= THREADED else 1
    step = STEP * ceil_div(length, STEP * threads)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _multiply(a, b, out):
    (m, k), n = a.shape, b.shape[1]
    (how_a, apart_a), (how_b, apart_b) = _layout(a), _layout(b)
    _library()[0](_ROW_MAJOR, how_a, how_b, m, n, k, 1.0, a.ctypes.data, apart_a, b.ctypes.data,
                  apart_b, 0.0, out.ctypes.data, out.strides[0] // out.itemsize)     # (1)


def _layout(x):
    """x (m,n) in rows or columns -> how cblas calls it, how many numbers apart they are."""
    if _lies_in_rows(x):
        return _AS_IT_IS, x.strides[0] // x.itemsize
    return _TRANSPOSED, x.strides[1] // x.itemsize
