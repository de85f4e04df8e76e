"""The linear map in 16 bits: factors rounded to bfloat16 or float16, sums and results in float32.

Equations (1) to (4) are those of ops/linear.py, and this is the only place where precision is
given away (Micikevicius et al. 2018, "Mixed precision training", section 3): the weights that are
trained stay float32 beside their rounded copy, gradients are added in float32, and everything but
matrix products and the attention kernel computes in float32.

On a card cuBLAS multiplies on tensor cores, through `gemmEx`, since `cupy.matmul` would round the
result too and knows no bfloat16. NumPy has neither: here the rounded factors are widened again.
Products of two 16-bit numbers fit float32, so that is the same arithmetic but for the order of the
sums.
"""

import numpy as np

from minisft import array, cuda
from minisft.bfloat16 import from_bfloat16, to_bfloat16
from minisft.launch import bfloat16 as kernel

BFLOAT16, FLOAT16 = np.dtype(np.uint16), np.dtype(np.float16)
FORMATS = {"float32": None, "bfloat16": BFLOAT16, "float16": FLOAT16}


def rounded(x, dtype):
    """x (...) float32, the dtype of a factor -> x in that format; unchanged unless it has 16 bits.

    What is too large for float16 becomes infinite.
    """
    if dtype == FLOAT16:
        return x.astype(FLOAT16)
    if dtype == BFLOAT16:
        return kernel.to_bfloat16(x) if cuda.runs_on(x) else to_bfloat16(
            array.array_module(x).ascontiguousarray(x))
    return x


def product(a, b, out=None):
    """a (N,C), b (C,M), both in one format -> (N,M): float32 where that has 16 bits.

    `out` (N,M), contiguous: where it goes.
    """
    xp = array.array_module(a)
    if a.dtype not in (BFLOAT16, FLOAT16):
        return xp.matmul(a, b, out=out)
    if xp is not np:
        return _gemm_ex(a, b, out)
    return np.matmul(_widened(a), _widened(b), out=out)


def forward(x, w, b=None):
    """x (N,C) float32, w (C,M) in 16 bits, b (M,) float32 or None -> y (N,M) float32, cache."""
    x = rounded(x, w.dtype)
    y = product(x, w)                                             # (1)
    if b is not None:
        y += b
    return y, (x, w)


def backward(dy, cache, bias=True, out=None):
    """dy (N,M) float32 -> dx (N,C), dw (C,M), db (M,) or, without `bias`, None; all float32.

    `out` (C,M): where dw goes.
    """
    x, w = cache
    db = dy.sum(axis=0) if bias else None                         # (4)
    dy = rounded(dy, w.dtype)
    return product(dy, w.T), product(x.T, dy, out), db            # (2), (3)


def _widened(x):
    return from_bfloat16(x) if x.dtype == BFLOAT16 else x.astype(np.float32)


def _gemm_ex(a, b, out):
    """As `product`, by cuBLAS, which stores matrices by columns: y^T = b^T a^T is what it makes."""
    cupy = array.cupy
    (n, k), m = a.shape, b.shape[1]
    y = cupy.empty((n, m), dtype=np.float32) if out is None else out
    if not (n and k and m):
        y[...] = 0
        return y
    cublas, runtime = cupy.cuda.cublas, cupy.cuda.runtime
    kind = runtime.CUDA_R_16BF if a.dtype == BFLOAT16 else runtime.CUDA_R_16F
    (a, turned_a, rows_a), (b, turned_b, rows_b) = _by_columns(a), _by_columns(b)
    turns = [cublas.CUBLAS_OP_T if turned else cublas.CUBLAS_OP_N
             for turned in (turned_b, turned_a)]
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    cublas.gemmEx(cupy.cuda.get_cublas_handle(), *turns, m, n, k, one.ctypes.data,
                  b.data.ptr, kind, rows_b, a.data.ptr, kind, rows_a, zero.ctypes.data,
                  y.data.ptr, runtime.CUDA_R_32F, m, cublas.CUBLAS_COMPUTE_32F,
                  cublas.CUBLAS_GEMM_DEFAULT)
    return y


def _by_columns(a):
    """-> the matrix, copied if neither its rows nor its columns are contiguous; whether read by
    columns it must be turned to be its own transpose; how far apart the contiguous stretches lie.
    """
    item = a.itemsize
    if a.strides[1] == item and a.strides[0] >= a.shape[1] * item:
        return a, False, a.strides[0] // item
    if a.strides[0] == item and a.strides[1] >= a.shape[0] * item:
        return a, True, a.strides[1] // item
    return array.cupy.array(a, order="C"), False, a.shape[1]
