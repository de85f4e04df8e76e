"""minisft/ops/cross_entropy.py as compiled loops: each row is read from memory once."""

import numpy as np

from minisft.backend.constants import IGNORE
from minisft.backend.cpu import jit
from minisft.backend.cpu.compiled.bits import rounded, widened
from minisft.backend.cpu.compiled.exp import ZERO, F, exp, largest


def forward(z: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None,
            smoothing: float = 0.0,
            ignore: int = IGNORE) -> tuple[tuple[np.floating, np.floating], tuple]:
    """z (N,K), labels (N,), weights (K,) or None -> (loss, denominator), cache."""
    z = np.ascontiguousarray(z)
    w = np.ones(z.shape[1], z.dtype) if weights is None else weights.astype(z.dtype)
    spread = F(smoothing) / F(len(w)) * w                              # of (2), (K,)
    y = np.where(labels != ignore, labels, -1)
    mass = np.where(y >= 0, w[y], F(0))                                # (N,)
    on_label = F(1 - smoothing) * mass
    m, e, losses = np.empty((3, len(z)), dtype=z.dtype)
    jit.each(lambda start, stop: _forward(z, y, on_label, spread, bool(smoothing), m, e, losses,
                                          start, stop), *_rows(z))
    return (losses.sum(), mass.sum()), (z, m, e, y, on_label, spread, bool(smoothing))


def backward(dloss: float, cache: tuple, out: np.ndarray | None = None) -> np.ndarray:
    """dloss () -> dz (N,K); `out` may be z itself if nothing reads z afterwards."""
    z, m, e, y, on_label, spread, smooth = cache
    dz = np.empty_like(z) if out is None else out
    if dz is not z:
        dz[...] = z     # a loop over two arrays that may be the same is not vectorised
    total = on_label + (y >= 0) * spread.sum() if smooth else on_label
    jit.each(lambda start, stop: _backward(dz, m, e, y, on_label, total, spread, smooth, F(dloss),
                                           start, stop), *_rows(z))
    return dz


def train(z: np.ndarray, labels: np.ndarray, dloss: float = 1.0,
          ignore: int = IGNORE) -> tuple[np.floating, np.floating]:
    """z (N,K) bfloat16, labels (N,) -> loss, denominator; z becomes dz."""
    y = np.where(labels != ignore, labels, -1)
    losses = np.empty(len(z), np.float32)
    jit.each(lambda start, stop: _train(z, y, F(dloss), losses, start, stop), *_rows(z))
    return losses.sum(), (y >= 0).sum(dtype=np.float32)


def _rows(z):
    return len(z), z.shape[1] * z.itemsize


@jit.loop(jit.SUMS)
def _forward(z, y, on_label, spread, smooth, m, e, losses, start, stop):
    for i in range(start, stop):
        row = z[i]
        top = largest(row, row.size)
        total = ZERO
        for k in range(row.size):
            total += exp(row[k] - top)
        log = np.log(total)                                            # (1)
        loss = ZERO
        if on_label[i] > ZERO:     # 0 * -inf is NaN
            loss -= on_label[i] * (row[y[i]] - top - log)              # (3)
        if smooth and y[i] >= 0:
            for k in range(row.size):
                if spread[k] > ZERO:
                    loss -= spread[k] * (row[k] - top - log)
        m[i], e[i], losses[i] = top, total, loss


@jit.loop(jit.SUMS)
def _train(z, y, dloss, losses, start, stop):
    wide = np.empty(z.shape[1], np.float32)
    for i in range(start, stop):
        row, label = z[i], y[i]
        if label < 0:
            row[:] = 0
            losses[i] = ZERO
            continue
        for k in range(row.size):
            wide[k] = widened(row[k])
        top = largest(wide, wide.size)
        on_label = wide[label] - top
        total = ZERO
        for k in range(row.size):
            wide[k] = exp(wide[k] - top)
            total += wide[k]
        losses[i] = np.log(total) - on_label                           # (1), (3)
        factor = dloss / total
        on_label = wide[label] * factor - dloss
        for k in range(row.size):
            row[k] = rounded(wide[k] * factor)                         # (4)
        row[label] = rounded(on_label)


@jit.loop()
def _backward(dz, m, e, y, on_label, total, spread, smooth, dloss, start, stop):
    for i in range(start, stop):
        row, top, label = dz[i], m[i], y[i]
        factor = dloss * total[i] / e[i]
        for k in range(row.size):
            row[k] = exp(row[k] - top) * factor                        # (4)
        if smooth and label >= 0:
            for k in range(row.size):
                row[k] -= dloss * spread[k]
        if label >= 0:
            row[label] -= dloss * on_label[i]
