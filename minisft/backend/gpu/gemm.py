"""Matrix products of 16-bit factors on a card: cuBLAS's gemmEx, sums in float32."""

import numpy as np

from minisft.backend import array
from minisft.backend.array import Array

_FACTORS = np.array([1, 0], np.float32)
ONE, ZERO = _FACTORS.ctypes.data, _FACTORS.ctypes.data + 4     # where cuBLAS reads them


def gemm_ex(a: Array, b: Array, out: Array | None = None) -> Array:
    """a (N,C), b (C,M), CuPy's, both bfloat16 (uint16) or both float16 -> (N,M) float32.

    `out` (N,M), contiguous, float32 or of the factors' type: where it goes. cuBLAS stores matrices
    by columns, so it computes y^T = b^T a^T.
    """
    cupy = array.cupy
    (n, k), m = a.shape, b.shape[1]
    y = cupy.empty((n, m), dtype=np.float32) if out is None else out
    if not (n and k and m):
        y[...] = 0
        return y
    cublas, runtime = cupy.cuda.cublas, cupy.cuda.runtime
    kind = runtime.CUDA_R_16BF if a.dtype == np.uint16 else runtime.CUDA_R_16F
    (a, transpose_a, lda), (b, transpose_b, ldb) = _by_columns(a), _by_columns(b)
    modes = [cublas.CUBLAS_OP_T if transpose else cublas.CUBLAS_OP_N
             for transpose in (transpose_b, transpose_a)]
    cublas.gemmEx(cupy.cuda.get_cublas_handle(), *modes, m, n, k, ONE,
                  b.data.ptr, kind, ldb, a.data.ptr, kind, lda, ZERO,
                  y.data.ptr, runtime.CUDA_R_32F if y.dtype == np.float32 else kind, m,
                  cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT)
    return y


def multiplies_bfloat16() -> bool:
    """-> whether the card has tensor cores for bfloat16: compute capability 8.0 (Ampere) or more.
    """
    return int(array.cupy.cuda.Device().compute_capability) >= 80


def _by_columns(a):
    """-> the matrix, copied if neither its rows nor its columns are contiguous; whether cuBLAS,
    which reads it by columns, must transpose it; the leading dimension.
    """
    item = a.itemsize
    if a.strides[1] == item and a.strides[0] >= a.shape[1] * item:
        return a, False, a.strides[0] // item
    if a.strides[0] == item and a.strides[1] >= a.shape[0] * item:
        return a, True, a.strides[1] // item
    return array.cupy.array(a, order="C"), False, a.shape[1]
