"""Launches kernels/column_sums.cu: sums of columns, always in the same order.

Numbers are float32, bfloat16 (uint16) or float16, sums float32.
"""

from collections.abc import Sequence

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

COLUMNS = 32        # of a block; twice as many in 16 bits
AT_ONCE = 2048      # rows that one launch sums
THREADS = 1024, 256     # of a block with all rows; of one with a piece of them
BLOCKS, LEAST_ROWS = 1024, 64     # of the first of two launches: about so many; rows of each


def column_sums(x: Array, out: Array | None = None, add: bool = False) -> Array:
    """x (N,M) -> its sums over the rows (M,), float32. Raises ValueError for an odd M in 16 bits.

    `out` (M,): where they go; with `add` what it holds is added to.
    """
    if out is None:
        out = array_module(x).empty(x.shape[1], dtype=np.float32)
    into(x, [out], add)
    return out


def into(x: Array, outs: Sequence[Array | None], add: bool = False) -> None:
    """x (N, up to three times M) -> the sums of each M columns into one of `outs` (M,).

    None: nobody wants these.
    """
    xp = array_module(x)
    x, (n, width) = xp.ascontiguousarray(x), x.shape
    low = x.dtype != np.float32
    if low and width % 2:
        raise ValueError(f"{width} columns in 16 bits, expected an even number")
    groups = ceil_div(width, COLUMNS << low)
    if n > AT_ONCE:
        rows = max(LEAST_ROWS, ceil_div(n, ceil_div(BLOCKS, groups)))
        parts = xp.empty((ceil_div(n, rows), width), dtype=np.float32)
        _launch((groups, len(parts)), THREADS[1], x, [parts], width, rows, False)
        x, groups = parts, ceil_div(width, COLUMNS)
    # two warps for a few rows are enough
    threads = min(THREADS[0], COLUMNS * max(2, ceil_div(len(x), 8)))
    _launch((groups, 1), threads, x, outs, width // len(outs), max(len(x), 1), add)


def _launch(grid, threads, x, outs, share, rows, add):
    out, second, third = [*outs, None, None][:3]
    low = x.dtype != np.float32
    launch("column_sums", "column_sums_16_bits" if low else "column_sums", grid, (threads,),
           defines={"FLOAT16": int(x.dtype == np.float16)}, x=x.view(np.uint16) if low else x,
           out=out, second=second, third=third, n=len(x), width=x.shape[1], share=share, rows=rows,
           add=int(add))
