"""Launches kernels/layer_norm.cu; the same calls as minisft/ops/layer_norm.py, in float32."""

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch
from minisft.backend.gpu.launch import column_sums

BLOCKS = 512     # of the backward; each writes a part of dw and db
MOST_THREADS = 256
WIDEST = 64 * MOST_THREADS     # a thread keeps its channels in registers


def forward(x: Array, w: Array, b: Array, eps: float = 1e-5) -> tuple[Array, tuple]:
    """x (N,C), w (C,), b (C,) -> y (N,C), cache."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    mean, rstd = (xp.empty((len(x), 1), dtype=x.dtype) for _ in range(2))
    sizes = sizes_of(x.shape[-1])
    launch("layer_norm", "layer_norm_forward", (len(x),), (sizes["THREADS"],),
           x=x, w=w, b=b, y=y, mean=mean, rstd=rstd, eps=eps, defines=sizes)
    return y, (x, w, mean, rstd)


def backward(dy: Array, cache: tuple,
             out: tuple[Array, Array] | None = None) -> tuple[Array, Array, Array]:
    """dy (N,C) -> dx (N,C), dw (C,), db (C,); `out`: where dw and db go."""
    x, w, mean, rstd = cache
    xp = array_module(dy)
    dy = xp.ascontiguousarray(dy)
    (n, width), sizes = dy.shape, sizes_of(dy.shape[-1])
    rows = max(4, ceil_div(n, BLOCKS))
    parts = xp.empty((ceil_div(n, rows), 2 * width), dtype=dy.dtype)
    dx = xp.empty_like(dy)
    dw, db = (xp.empty(width, dtype=dy.dtype) for _ in range(2)) if out is None else out
    launch("layer_norm", "layer_norm_backward", (len(parts),), (sizes["THREADS"],),
           dy=dy, x=x, w=w, mean=mean, rstd=rstd, dx=dx, parts=parts, n=n, rows=rows,
           defines=sizes)
    column_sums.into(parts, (dw, db))
    return dx, dw, db


def sizes_of(width):
    """-> the kernel's -D options: whole warps, about four channels for each thread."""
    return {"WIDTH": width, "THREADS": min(MOST_THREADS, 32 * ceil_div(width, 128))}
