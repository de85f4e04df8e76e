"""Launches kernels/few_rows.cu: a product with a few rows on its left, in 16 bits."""

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.bfloat16 import from_bfloat16
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch.packed import begin_at_16_bytes

MOST = 8     # rows
THREADS, COLUMNS, EIGHT = 512, 32, 8


def why_not(a: Array, b: Array) -> str:
    """a (N,C), b (C,M), both bfloat16 (uint16) or float16 -> why `product` does not take them; ""
    where it does."""
    if len(a) > MOST or not len(a):
        return f"{len(a)} rows, it takes 1 to {MOST}"
    if not a.flags.c_contiguous or b.strides[1] != b.itemsize or b.strides[0] < b.shape[1]:
        return "its factors do not lie row by row"
    if b.shape[1] % EIGHT or not b.size or not begin_at_16_bytes(b):
        return f"its rows are no multiple of {EIGHT} or do not begin at 16 bytes"
    return ""


def product(a: Array, b: Array, out: Array | None = None, bias: Array | None = None) -> Array:
    """a (N,C), b (C,M), both bfloat16 (uint16) or float16 -> (N,M) float32, for what `why_not` has
    nothing against.

    `out` (N,M), contiguous, float32 or of the factors' type: where it goes. `bias` (M,), of
    the type of the result.
    """
    (n, k), m, rows = a.shape, b.shape[1], Rows(b.view(np.uint16))
    y = array_module(a).empty((n, m), dtype=np.float32) if out is None else out
    is_low = y.dtype != np.float32
    if bias is not None and is_low:     # a few thousand numbers
        bias = from_bfloat16(bias) if bias.dtype == np.uint16 else bias.astype(np.float32)
    launch("few_rows", "few_rows", (ceil_div(m, COLUMNS),), (THREADS,), x=a.view(np.uint16),
           w=rows, bias=bias, y=None if is_low else y, low=y.view(np.uint16) if is_low else None,
           k=k, m=m, stride=rows.stride(),
           defines={"ROWS": n, "FLOAT16": int(a.dtype == np.float16)})
    return y
