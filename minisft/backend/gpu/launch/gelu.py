"""Launches kernels/gelu.cu; the calls of minisft/ops/gelu.py, float32, with an optional bias."""

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch
from minisft.backend.gpu.launch.column_sums import column_sums

FORMS = {"tanh": 0, "erf": 1}
THREADS, ROWS = 128, 8     # columns and rows of a block
BACKWARD_ROWS = 32         # with a bias: each block then writes a part of its gradient


def forward(x: Array, form: str = "tanh", bias: Array | None = None) -> tuple[Array, tuple]:
    """x (...,C), bias (C,) or None -> y (...,C), cache: GELU of x + bias."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    n, width = _shape(x)
    rows = _rows(n, ROWS)
    launch("gelu", "gelu_forward", _grid(n, width, rows), (THREADS,),
           x=x, b=bias, y=y, n=n, width=width, rows=rows, form=FORMS[form])
    return y, (x, bias, form)


def backward(dy: Array, cache: tuple) -> Array | tuple[Array, Array]:
    """dy (...,C) -> dx (...,C); with a bias dx, db (C,)."""
    x, bias, form = cache
    xp = array_module(dy)
    dy = xp.ascontiguousarray(dy)
    dx = xp.empty_like(dy)
    n, width = _shape(dy)
    rows = _rows(n, ROWS if bias is None else BACKWARD_ROWS)
    grid = _grid(n, width, rows)
    parts = None if bias is None else xp.empty((grid[1], width), dtype=dy.dtype)
    launch("gelu", "gelu_backward", grid, (THREADS,), dy=dy, x=x, b=bias, dx=dx, parts=parts,
           n=n, width=width, rows=rows, form=FORMS[form])
    if bias is None:
        return dx
    return dx, column_sums(parts)


def _shape(x):
    return x.size // max(x.shape[-1], 1), x.shape[-1]


def _rows(n, rows):
    return max(rows, ceil_div(n, 65535))     # a grid is at most 65535 blocks high


def _grid(n, width, rows):
    return ceil_div(width, THREADS), ceil_div(n, rows)
