"""Matrix products on a card, of factors in 16 bits, TF32 or float32: cuBLASLt, or else cuBLAS; sums
in float32."""

import warnings
from functools import cache
from typing import Any

import numpy as np

from minisft.backend import array
from minisft.backend.array import Array
from minisft.backend.bfloat16 import from_bfloat16
from minisft.backend.gpu import cublaslt
from minisft.backend.gpu.cublaslt import KINDS, ONE, ZERO, by_columns, compute_type
from minisft.backend.gpu.launch.bfloat16 import to_bfloat16


def product(a: Array, b: Array, out: Array | None = None, bias: Array | None = None,
            add: bool = False) -> Array:
    """a (N,C), b (C,M), CuPy's, of one dtype of KINDS -> (N,M) float32.

    `out` (N,M), contiguous, float32 or of the factors' type: where it goes; with `add` it is
    added to what a float32 `out` holds. `bias` (M,), of the type of the result, is added before
    that is rounded.
    """
    y = None
    if a.size and b.size and planned(array.cupy):
        y = cublaslt.matmul(a, b, out, bias, add)
    if y is not None:
        return y
    if bias is not None and bias.dtype != np.float32:
        low = bias.dtype == np.uint16
        y = cublas(a, b) + (from_bfloat16(bias) if low else bias)
        out[...] = to_bfloat16(y) if low else y
        return out
    y = cublas(a, b, None if add else out)
    if add:
        out += y
        y = out
    if bias is not None:
        y += bias
    return y


def cublas(a: Array, b: Array, out: Array | None = None) -> Array:
    """a (N,C), b (C,M), `out`: as `product`'s -> (N,M) float32 by cuBLAS."""
    return array.cupy.matmul(a, b, out=out) if a.dtype == np.float32 else gemm_ex(a, b, out)


def gemm_ex(a: Array, b: Array, out: Array | None = None) -> Array:
    """a (N,C), b (C,M), as `product`'s but for float32 -> (N,M) float32 by gemmEx.

    `out` as there. cuBLAS stores matrices by columns, so it computes y^T = b^T a^T.
    """
    cupy = array.cupy
    (n, k), m = a.shape, b.shape[1]
    y = cupy.empty((n, m), dtype=np.float32) if out is None else out
    if not (n and k and m):
        y[...] = 0
        return y
    cublas, runtime = cupy.cuda.cublas, cupy.cuda.runtime
    kind = KINDS[a.dtype]
    (a, transpose_a, lda), (b, transpose_b, ldb) = by_columns(a), by_columns(b)
    modes = [cublas.CUBLAS_OP_T if transpose else cublas.CUBLAS_OP_N
             for transpose in (transpose_b, transpose_a)]
    cublas.gemmEx(cupy.cuda.get_cublas_handle(), *modes, m, n, k, ONE,
                  b.data.ptr, kind, ldb, a.data.ptr, kind, lda, ZERO,
                  y.data.ptr, runtime.CUDA_R_32F if y.dtype == np.float32 else kind, m,
                  compute_type(a), cublas.CUBLAS_GEMM_DEFAULT)
    return y


@cache
def planned(cupy: Any) -> bool:
    """-> whether products go to cuBLASLt: it is there, and multiplies as cuBLAS does.

    Tried once, on small products in every layout; a RuntimeWarning tells what went wrong.
    """
    if cublaslt.library(cupy) is None:
        return False
    words = np.arange(16 * 32, dtype=np.float32).reshape(16, 32) % 7 - 3
    bias = cupy.arange(16, dtype=np.float32)
    try:
        for dtype in (np.float16, np.float32):
            a, b = (cupy.asarray(x.astype(dtype)) for x in (words, words.T.copy()))
            for x in (a, b.T):
                for w in (b, a.T):
                    found = cublaslt.matmul(x, w, bias=bias)
                    low = cublaslt.matmul(x, w, cupy.empty((16, 16), dtype=dtype),
                                          bias.astype(dtype))
                    plain = cublaslt.matmul(x, w, cupy.empty((16, 16), dtype=dtype))
                    added = cublaslt.matmul(x, w, cupy.ones((16, 16), dtype=np.float32), add=True)
                    expected = cublas(x, w)     # whole numbers, which float16 holds
                    if any(y is None for y in (found, low, plain, added)) or not bool(
                            ((found == expected + bias) & (low == expected + bias)
                             & (plain == expected) & (added == expected + 1)).all()):
                        raise RuntimeError("cuBLASLt: a product differs from cuBLAS's")
    except RuntimeError as error:
        warnings.warn(f"{error}; products go to cuBLAS", RuntimeWarning, stacklevel=2)
        return False
    return True


def multiplies_bfloat16() -> bool:
    """-> whether the card has tensor cores for bfloat16: compute capability 8.0 (Ampere) or more.
    """
    return int(array.cupy.cuda.Device().compute_capability) >= 80
