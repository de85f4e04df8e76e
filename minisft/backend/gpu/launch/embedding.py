"""Launches kernels/embedding.cu, the backward of minisft/ops/embedding.py, in float32."""

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 128     # channels of a block


def backward(dy: Array, cache: tuple, out: Array | None = None,
             order: Array | None = None) -> Array:
    """dy (N,C) -> dw (V,C); with `out` (V,C), dw is added to it.

    `order` (N,): the tokens by their ids, equal ids in their order; None: it is found here.
    """
    ids, shape = cache
    xp = array_module(dy)
    dy, dw = xp.ascontiguousarray(dy), xp.zeros(shape, dtype=dy.dtype) if out is None else out
    ids = xp.ascontiguousarray(xp.asarray(ids).astype(np.int32, copy=False))
    if order is None:
        order = xp.argsort(ids, kind="stable")
    n, width = dy.shape
    launch("embedding", "embedding_backward", (n, ceil_div(width, THREADS)), (THREADS,),
           dy=dy, ids=ids, order=order.astype(np.int32, copy=False), dw=dw, n=n, width=width)
    return dw
