"""Launches kernels/cross_entropy.cu; the calls of minisft/ops/cross_entropy.py, in float32.

`train` is both in one launch, and takes 16 bits as well.
"""

import numpy as np

from minisft.backend.array import Array, address, array_module
from minisft.backend.constants import IGNORE, ceil_div
from minisft.backend.gpu.cuda import Rows, launch

MOST_THREADS = 256
MOST_OF_TRAIN, KEPT = 512, 13     # threads; accesses of 16 bytes that each keeps, as in the kernel


def forward(z: Array, labels: Array, weights: Array | None = None, smoothing: float = 0.0,
            ignore: int = IGNORE) -> tuple[tuple[Array, Array], tuple]:
    """z (N,K), labels (N,), weights (K,) or None -> (loss, denominator), cache."""
    xp = array_module(z)
    if z.strides[1] != z.itemsize or z.strides[0] < z.shape[1] * z.itemsize:
        z = xp.ascontiguousarray(z)     # logits may be columns of a wider array
    labels = xp.ascontiguousarray(labels.astype(np.int32, copy=False))
    if weights is not None:
        weights = xp.ascontiguousarray(xp.asarray(weights, dtype=z.dtype))
    losses, masses, totals, maxima, sums = (xp.empty(len(z), dtype=z.dtype) for _ in range(5))
    out = xp.empty(2, dtype=z.dtype)
    rows = Rows(z)
    launch("cross_entropy", "cross_entropy_forward", (len(z),), (_threads(z.shape[1]),),
           z=rows, stride=rows.stride(), labels=labels, weights=weights,
           losses=losses, masses=masses, totals=totals, maxima=maxima, sums=sums, k=z.shape[1],
           smoothing=smoothing, ignore=ignore)
    launch("cross_entropy", "cross_entropy_sum", (1,), (MOST_THREADS,),
           losses=losses, masses=masses, out=out, n=len(z))
    return (out[0], out[1]), (z, labels, weights, totals, maxima, sums, smoothing, ignore)


def backward(dloss: Array, cache: tuple, out: Array | None = None) -> Array:
    """dloss () -> dz (N,K); `out` may be z itself if nothing reads z afterwards."""
    z, labels, weights, totals, maxima, sums, smoothing, ignore = cache
    dz = array_module(z).empty_like(z) if out is None else out
    rows, drows = Rows(z), Rows(dz)
    launch("cross_entropy", "cross_entropy_backward", (len(z),), (_threads(z.shape[1]),),
           z=rows, stride=rows.stride(), dz=drows, dz_stride=drows.stride(), labels=labels,
           weights=weights, totals=totals, maxima=maxima, sums=sums, k=z.shape[1],
           dloss=float(dloss), smoothing=smoothing, ignore=ignore)
    return dz


def train(z: Array, labels: Array, dloss: float = 1.0,
          ignore: int = IGNORE) -> tuple[Array, Array]:
    """z (N,K), float32 or of 16 bits, labels (N,) -> loss, denominator; z becomes dz."""
    xp = array_module(z)
    labels = xp.ascontiguousarray(labels.astype(np.int32, copy=False))
    losses, masses = (xp.empty(len(z), dtype=np.float32) for _ in range(2))
    out, low = xp.empty(2, dtype=np.float32), z.dtype != np.float32
    rows = Rows(z.view(np.uint16) if z.dtype == np.float16 else z)
    many = 16 // z.itemsize
    threads = min(MOST_OF_TRAIN, 32 * ceil_div(z.shape[1], 32 * many * KEPT))
    launch("cross_entropy", "cross_entropy_train" + "_16_bits" * low, (len(z),), (threads,),
           z=rows, labels=labels, losses=losses, masses=masses, k=z.shape[1],
           stride=rows.stride(), at_once=int(rows.stride() % many == 0 and address(z) % 16 == 0),
           dloss=float(dloss), ignore=ignore, defines={"FLOAT16": int(z.dtype == np.float16)})
    launch("cross_entropy", "cross_entropy_sum", (1,), (MOST_THREADS,),
           losses=losses, masses=masses, out=out, n=len(z))
    return out[0], out[1]


def _threads(classes):
    return min(MOST_THREADS, 32 * ceil_div(classes, 32))
