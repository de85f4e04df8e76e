"""Launches kernels/residual_layer_norm.cu: a residual sum, and the layer normalisation of it.

    u = x + dropout(more + bias),   y = layer_norm(u)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, address, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch
from minisft.backend.gpu.launch import column_sums, dropout
from minisft.backend.gpu.launch.layer_norm import BLOCKS, sizes_of

NO_DROPOUT = {"example_ids": None, "positions": None, "threshold": 0, "keep": 1.0, "seed": 0,
              "step": None, "site": 0}


def forward(x: Array, w: Array, b: Array, eps: float = 1e-5, more: Array | None = None,
            bias: Array | None = None, drop: tuple[float, random.Tokens] | None = None,
            dtype: Any = None) -> tuple[Array, Array, tuple]:
    """x (N,C), w, b (C,), more (N,C), bias (C,) or None -> u (N,C), y (N,C), cache.

    Without `more` u is x. `drop`: rate and words. `dtype`: y's, of 16 bits; None for float32.
    """
    xp = array_module(x)
    x, more, bias, w, b = (a if a is None else _ready(a) for a in (x, more, bias, w, b))
    y = xp.empty(x.shape, dtype=x.dtype if dtype is None else dtype)
    mean, rstd = (xp.empty((len(x), 1), dtype=x.dtype) for _ in range(2))
    u = x if more is None else xp.empty_like(x)
    mask = NO_DROPOUT if drop is None else dropout.mask_of(xp, drop[1], drop[0])
    defines = sizes_of(x.shape[-1]) | {"FLOAT16": int(dtype == np.float16)}
    launch("residual_layer_norm", "residual_layer_norm_forward", (len(x),), (defines["THREADS"],),
           x=x, more=more, bias=bias, w=w, b=b,
           u=None if more is None else u, **_rounded_or_not(y, "low", "y"), mean=mean, rstd=rstd,
           eps=eps, defines=defines, **mask)
    return u, y, (u, w, mean, rstd, mask, defines)


def backward(dy: Array, cache: tuple, residual: Array | None = None, dtype: Any = None,
             outs: Sequence[Array | None] = (None, None), add: bool = False,
             more: bool = False) -> tuple[Array, Array | None]:
    """dy (N,C), residual (N,C) or None -> dx (N,C), the gradient of `more` (N,C) or, if not `more`,
    None.

    dx is the gradient of u, the residual's added, and of x. `outs`: where dw, db and, as a third,
    the gradient of the bias go, or with `add` are added; None for one that nobody wants. `dtype`:
    that of more's gradient, of 16 bits; None for float32.
    """
    u, w, mean, rstd, mask, defines = cache
    xp = array_module(dy)
    dy, (n, width) = _ready(dy), dy.shape
    rows = max(4, ceil_div(n, BLOCKS))
    parts = xp.empty((ceil_div(n, rows), len(outs) * width), dtype=dy.dtype)
    dx = xp.empty_like(dy)
    if not more or (dtype is None and mask is NO_DROPOUT):
        dmore = dx if more else None
        copies = {"copy": None, "low": None}
    else:
        dmore = xp.empty(dy.shape, dtype=dy.dtype if dtype is None else dtype)
        copies = _rounded_or_not(dmore, "low", "copy")
    launch("residual_layer_norm", "residual_layer_norm_backward", (ceil_div(n, rows),),
           (defines["THREADS"],), dy=dy, x=u, w=w, mean=mean, rstd=rstd,
           residual=None if residual is None else _ready(residual), dx=dx,
           parts=parts, sums=len(outs), n=n, rows=rows,
           defines=defines | {"FLOAT16": int(dtype == np.float16)}, **copies, **mask)
    if any(out is not None for out in outs):
        column_sums.into(parts, outs, add)
    return dx, dmore


def _ready(a):
    """-> the array, contiguous and at a multiple of 16 bytes: so parameters lie on a card, but not
    on a CPU."""
    a = array_module(a).ascontiguousarray(a)
    return a.copy() if address(a) % 16 else a


def _rounded_or_not(a, rounded, plain):
    """-> the arguments of these two names, of which the other is null."""
    return {rounded: None, plain: a} if a.dtype == np.float32 else {
        rounded: a.view(np.uint16), plain: None}
