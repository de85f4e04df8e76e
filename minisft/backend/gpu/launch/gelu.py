"""Launches kernels/gelu.cu; the calls of minisft/ops/gelu.py, with an optional bias.

Arrays are float32, or bfloat16 (uint16) or float16, but for the bias and its gradient, which are
float32 in any case.
"""

import numpy as np

from minisft.backend.array import Array, address, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch
from minisft.backend.gpu.launch.column_sums import column_sums

FORMS = {"tanh": 0, "erf": 1}
THREADS, ROWS = 128, 4     # threads and rows of a block
# Of the backward with a bias: each writes a part of its gradient, and too few let a card wait.
BLOCKS = {2: 1024, 4: 2048}     # by the bytes of a number


def forward(x: Array, form: str = "tanh", bias: Array | None = None) -> tuple[Array, tuple]:
    """x (...,C), bias (C,) or None -> y (...,C), cache: GELU of x + bias."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    n, width = _shape(x)
    rows = _rows(n, ROWS)
    launch("gelu", f"gelu{_suffix(x)}_forward", _grid(x, n, width, rows), (THREADS,), x=_words(x),
           b=bias, y=_words(y), n=n, width=width, rows=rows, defines=_defines(form, x, y))
    return y, (x, bias, form)


def backward(dy: Array, cache: tuple, out: Array | None = None) -> Array | tuple[Array, Array]:
    """dy (...,C) -> dx (...,C); with a bias dx, db (C,); `out`: where db goes."""
    x, bias, form = cache
    xp = array_module(dy)
    dy = xp.ascontiguousarray(dy)
    dx = xp.empty_like(dy)
    n, width = _shape(dy)
    across = _grid(x, n, width, max(n, 1))[0]
    rows = _rows(n, ROWS if bias is None else max(ROWS, ceil_div(n * across, BLOCKS[x.itemsize])))
    grid = _grid(x, n, width, rows)
    parts = None if bias is None else xp.empty((grid[1], width), dtype=bias.dtype)
    launch("gelu", f"gelu{_suffix(x)}_backward", grid, (THREADS,), dy=_words(dy), x=_words(x),
           b=bias, dx=_words(dx), parts=parts, n=n, width=width, rows=rows,
           defines=_defines(form, x, dy, dx))
    return dx if parts is None else (dx, column_sums(parts, out))


def _suffix(x):
    return "" if x.dtype == np.float32 else "_16_bits"


def _words(a):
    """float16 as the words that kernels declare; others as they are."""
    return a.view(np.uint16) if a.dtype == np.float16 else a


def _defines(form, *arrays):
    """Arrays of one shape and type -> the kernel's -D options."""
    begins = [a.shape[-1] * a.itemsize for a in arrays] + [address(a) for a in arrays]
    return {"FORM": FORMS[form], "FLOAT16": int(arrays[0].dtype == np.float16),
            "ALIGNED": int(not any(begin % 16 for begin in begins))}


def _shape(x):
    return x.size // max(x.shape[-1], 1), x.shape[-1]


def _rows(n, rows):
    return max(rows, ceil_div(n, 65535))     # a grid is at most 65535 blocks high


def _grid(x, n, width, rows):
    columns = 16 // x.itemsize     # of a thread
    return ceil_div(width, THREADS * columns), ceil_div(n, rows)
