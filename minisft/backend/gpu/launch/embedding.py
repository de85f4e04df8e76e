"""Launches kernels/embedding.cu; the calls of minisft/ops/embedding.py, in float32."""

import numpy as np

from minisft.backend.array import Array, address, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

PIECE = 16     # tokens of a block, as in the kernel
MOST_THREADS = 256


def forward(ids: Array, w: Array) -> tuple[Array, tuple]:
    """ids (N,), w (V,C) -> y (N,C), cache; a row that the table has not is NaN."""
    xp = array_module(w)
    w, (size, width) = xp.ascontiguousarray(w), w.shape
    y = xp.empty((len(ids), width), dtype=w.dtype)
    launch("embedding", "embedding_forward", (len(ids),), (_threads(width),), w=w,
           ids=_whole(xp, ids), y=y, size=size, width=width, aligned=_aligned(width, w, y))
    return y, (ids, w.shape)


def backward(dy: Array, cache: tuple, out: Array | None = None,
             order: Array | None = None) -> Array:
    """dy (N,C) -> dw (V,C); with `out` (V,C), dw is added to it.

    `order` (N,): the tokens by their ids, equal ids in their order; None: it is found here.
    """
    ids, shape = cache
    xp = array_module(dy)
    dy, dw = xp.ascontiguousarray(dy), xp.zeros(shape, dtype=dy.dtype) if out is None else out
    ids = _whole(xp, ids)
    if order is None:
        order = xp.argsort(ids, kind="stable")
    order = order.astype(np.int32, copy=False)
    (n, width), pieces = dy.shape, ceil_div(len(dy), PIECE)
    parts = xp.empty((pieces, 2, width), dtype=dy.dtype)
    threads = _threads(width)
    some = {"ids": ids, "order": order, "dw": dw, "parts": parts, "n": n, "width": width,
            "aligned": _aligned(width, dy, dw, parts)}
    across = ceil_div(width, 4 * threads)
    launch("embedding", "embedding_backward", (pieces, across), (threads,), dy=dy, **some)
    launch("embedding", "embedding_backward_joined", (max(pieces - 1, 0), across), (threads,),
           **some)
    return dw


def _whole(xp, ids):
    return xp.ascontiguousarray(xp.asarray(ids).astype(np.int32, copy=False))


def _threads(width):
    return min(MOST_THREADS, 32 * ceil_div(width, 128))


def _aligned(width, *arrays):
    """-> whether every row of theirs begins at 16 bytes, as kernels take it."""
    return int(width % 4 == 0 and not any(address(a) % 16 for a in arrays))
