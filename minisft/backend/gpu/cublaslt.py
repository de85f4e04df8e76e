"""Matrix products on a card by cuBLASLt, called through ctypes.

CuPy's cuBLAS asks for an algorithm anew for each product, some 30 us of the CPU, and knows neither
a bias nor a stream that is recorded. Here a product of one shape is planned once: what cuBLASLt is
told of it, and the algorithm that its heuristic gave. CuPy has loaded the library already, as what
its cuBLAS needs.

Names and numbers are those of cublasLt.h (CUDA 12 and 13). It stores matrices by columns, where
y (N,M) = a (N,C) b (C,M) is y^T (M,N) = b^T a^T: its A is our b, its B our a, its bias one of M.
"""

import ctypes
from ctypes import byref, c_int, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache, lru_cache
from typing import Any

import numpy as np

from minisft.backend import array
from minisft.backend.array import Array

# bfloat16 is uint16; TF32 is uint32, float32's bits
KINDS = {np.dtype(np.float32): 0, np.dtype(np.uint32): 0, np.dtype(np.float16): 2,
         np.dtype(np.uint16): 14}
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8     # of a product's description
WORKSPACE_BYTES, ALIGNMENT = 1, (5, 6, 7, 8)     # of what the heuristic is told: A, B, C, D
DEFAULT, BIAS = 1, 4     # epilogues
WORKSPACE = 32 << 20

_FACTORS = np.array([1, 0], np.float32)
ONE, ZERO = _FACTORS.ctypes.data, _FACTORS.ctypes.data + 4     # where cuBLAS reads them


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; the algorithm itself is its beginning."""

    _fields_ = [("algorithm", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int),
                ("waves", ctypes.c_float), ("reserved", c_int * 4)]


FUNCTIONS = {
    "cublasLtCreate": [c_void_p],
    "cublasLtMatmulDescCreate": [c_void_p, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatrixLayoutCreate": [c_void_p, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatmulPreferenceCreate": [c_void_p],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulDescDestroy": [c_void_p],
    "cublasLtMatrixLayoutDestroy": [c_void_p],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulAlgoGetHeuristic": [*[c_void_p] * 7, c_int, c_void_p, c_void_p],
    "cublasLtMatmul": [*[c_void_p] * 14, c_size_t, c_void_p],
}


@cache
def library(cupy: Any) -> Any:
    """CuPy -> cuBLASLt, or None where it is not to be had."""
    try:
        cupy.cuda.get_cublas_handle()     # loads cuBLAS, and this with it
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return with_types(ctypes.CDLL(f"libcublasLt.so.{major}"))
    except (OSError, AttributeError):
        return None


def with_types(loaded: Any) -> Any:
    """A loaded library -> the same, whose functions know their arguments."""
    for name, types in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, c_int
    return loaded


class Plan:
    """The product y (n,m) = a (n,k) b (k,m) of one layout: descriptions, and the algorithm, which
    is None where cuBLASLt has none.

    `ld*` are distances of rows, or of columns of what is transposed; `aligned` to how many bytes b,
    a and y are. Raises RuntimeError where cuBLASLt refuses a description. What it made of them is
    destroyed with the plan: texts of ever new lengths need ever new ones.
    """

    layouts: tuple[int, ...] = ()

    def __init__(self, lt: Any, handle: int, n: int, m: int, k: int, compute: int, kind: int,
                 kind_y: int, transposed_a: bool, transposed_b: bool, lda: int, ldb: int,
                 bias: bool, aligned: tuple[int, int, int]):
        self.lt = lt
        self.description = _made(lt.cublasLtMatmulDescCreate, compute, KINDS[np.dtype("f4")])
        for name, value in ((TRANSPOSE_A, int(transposed_b)), (TRANSPOSE_B, int(transposed_a)),
                            (EPILOGUE, BIAS if bias else DEFAULT)):
            _done(lt.cublasLtMatmulDescSetAttribute(self.description, name, byref(c_int(value)),
                                                    4))
        self.layouts = tuple(_made(lt.cublasLtMatrixLayoutCreate, *sizes) for sizes in (
            (kind, *((k, m) if transposed_b else (m, k)), ldb),
            (kind, *((n, k) if transposed_a else (k, n)), lda),
            (kind_y, m, n, m)))
        preference = _made(lt.cublasLtMatmulPreferenceCreate)
        _done(lt.cublasLtMatmulPreferenceSetAttribute(
            preference, WORKSPACE_BYTES, byref(c_size_t(WORKSPACE)), 8))
        for name, bytes_ in zip(ALIGNMENT, (*aligned, aligned[-1]), strict=True):
            _done(lt.cublasLtMatmulPreferenceSetAttribute(preference, name,
                                                          byref(ctypes.c_uint32(bytes_)), 4))
        found, count = Algorithm(), c_int()
        of_b, of_a, of_y = self.layouts
        status = lt.cublasLtMatmulAlgoGetHeuristic(
            handle, self.description, of_b, of_a, of_y, of_y, preference, 1, byref(found),
            byref(count))
        _done(lt.cublasLtMatmulPreferenceDestroy(preference))
        self.algorithm = None if status or not count.value else found

    def __del__(self) -> None:
        for made in self.layouts:
            self.lt.cublasLtMatrixLayoutDestroy(made)
        if self.layouts:     # else it was never finished
            self.lt.cublasLtMatmulDescDestroy(self.description)


def matmul(a: Array, b: Array, out: Array | None = None, bias: Array | None = None,
           add: bool = False) -> Array:
    """a (N,C), b (C,M), CuPy's, of one dtype -> (N,M) float32; None where cuBLASLt has no way.

    `out` (N,M), contiguous, float32 or of that dtype: where it goes; with `add` it is added to what
    `out` holds. `bias` (M,), of the type of the result, is added before that is rounded. Raises
    RuntimeError where cuBLASLt fails.
    """
    cupy = array.cupy
    lt = library(cupy)
    (n, k), m = a.shape, b.shape[1]
    y = cupy.empty((n, m), dtype=np.float32) if out is None else out
    (a, transposed_a, lda), (b, transposed_b, ldb) = by_columns(a), by_columns(b)
    device = cupy.cuda.runtime.getDevice()
    pointers = b.data.ptr, a.data.ptr, y.data.ptr
    plan = _plan(cupy, device, n, m, k, compute_type(a), KINDS[a.dtype], KINDS[y.dtype],
                 transposed_a, transposed_b, lda, ldb, bias is not None,
                 tuple([min(256, p & -p) for p in pointers]))
    if plan.algorithm is None:
        return None
    if bias is not None:
        _done(lt.cublasLtMatmulDescSetAttribute(plan.description, BIAS_POINTER,
                                                byref(c_void_p(bias.data.ptr)), 8))
    stream = cupy.cuda.get_current_stream().ptr
    of_b, of_a, of_y = plan.layouts
    _done(lt.cublasLtMatmul(
        _handle(cupy, device), plan.description, ONE, pointers[0], of_b, pointers[1], of_a,
        ONE if add else ZERO, pointers[2], of_y, pointers[2], of_y,
        ctypes.addressof(plan.algorithm), _workspace(cupy, device, stream).data.ptr, WORKSPACE,
        stream))
    return y


def compute_type(a: Array) -> int:
    """-> how sums of products of this factor are computed, as cuBLAS numbers it."""
    return COMPUTE_32F_FAST_TF32 if a.dtype == np.uint32 else COMPUTE_32F


def by_columns(a: Array) -> tuple[Array, bool, int]:
    """-> the matrix, copied if neither its rows nor its columns are contiguous; whether cuBLAS,
    which reads it by columns, must transpose it; the distance of its rows, or else columns."""
    item, (rows, columns) = a.itemsize, a.strides
    if columns == item and rows >= a.shape[1] * item:
        return a, False, rows // item
    if rows == item and columns >= a.shape[0] * item:
        return a, True, columns // item
    return array.cupy.array(a, order="C"), False, a.shape[1]


@lru_cache(maxsize=1024)
def _plan(cupy, device, *layout):
    return Plan(library(cupy), _handle(cupy, device), *layout)


@cache
def _handle(cupy, device):
    return _made(library(cupy).cublasLtCreate)


@cache
def _workspace(cupy, device, stream):
    return cupy.empty(WORKSPACE, dtype=np.uint8)


def _made(create, *arguments):
    """-> what a function of the library creates, whose first argument is where to put it."""
    made = c_void_p()
    _done(create(byref(made), *arguments))
    return made.value


def _done(status):
    if status:
        raise RuntimeError(f"cuBLASLt: status {status}, expected 0")
