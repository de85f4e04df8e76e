"""minisft/ops/layer_norm.py as compiled loops: each row is read from memory once."""

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.compiled.bits import rounded
from minisft.backend.cpu.compiled.exp import ONE, ZERO, F

ROWS = 64     # rows added one after another for dw and db: longer sums would lose precision


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float = 1e-5,
            round_y: bool = False) -> tuple[np.ndarray, tuple]:
    """x (N,C), w (C,), b (C,) -> y (N,C), float32 or with `round_y` bfloat16, cache."""
    x = np.ascontiguousarray(x)
    mean, rstd = np.empty((2, len(x)), dtype=x.dtype)
    y, loop = ((aligned(x.shape, np.uint16), forward_rows_rounded) if round_y else
               (np.empty_like(x), forward_rows))
    jit.each(lambda start, stop: loop(x, w, b, np.float32(eps), y, mean, rstd, start, stop),
             *_rows(x))
    return y, (x, w, mean, rstd)


def backward(dy: np.ndarray, cache: tuple,
             residual: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (N,C) -> dx (N,C), with `residual` (N,C) added, dw (C,), db (C,)."""
    x, w, mean, rstd = cache
    dy = np.ascontiguousarray(dy)
    dx = np.empty_like(dy)
    more = dy[:0] if residual is None else np.ascontiguousarray(residual)

    def work(start, stop):
        parts = np.zeros((ceil_div(stop - start, ROWS), 2, len(w)), dtype=dy.dtype)
        backward_rows(dy, x, w, mean, rstd, more, dx, parts, start, stop)
        return parts.sum(axis=0)

    sums = jit.each(work, *_rows(dy))
    dw, db = sum(sums[1:], start=sums[0])
    return dx, dw, db


def _rows(x):
    return len(x), x.shape[1] * x.itemsize


@jit.loop(jit.NONE)
def forward_rows(x, w, b, eps, y, mean, rstd, start, stop):
    """Rows `start` to `stop` of x (N,C) -> those of y, mean (N,), rstd (N,)."""
    for i in range(start, stop):
        row, out = x[i], y[i]
        middle, slope = mean[i], rstd[i] = _mean_and_rstd(row, eps)
        for c in range(row.size):
            out[c] = (row[c] - middle) * slope * w[c] + b[c]            # (1), (2)


@jit.loop(jit.NONE)
def forward_rows_rounded(x, w, b, eps, y, mean, rstd, start, stop):
    """The same, y in bfloat16."""
    for i in range(start, stop):
        row, out = x[i], y[i]
        middle, slope = mean[i], rstd[i] = _mean_and_rstd(row, eps)
        for c in range(row.size):
            out[c] = rounded((row[c] - middle) * slope * w[c] + b[c])   # (1), (2)


@jit.loop(jit.NONE, part="own")
def _mean_and_rstd(row, eps):
    middle, var = _mean_and_variance(row)
    return middle, ONE / np.sqrt(var + eps)


@jit.loop(jit.SUMS, part="own")
def _mean_and_variance(row):
    total = ZERO
    for c in range(row.size):
        total += row[c]
    middle = total / F(row.size)
    total = ZERO
    for c in range(row.size):
        centred = row[c] - middle
        total += centred * centred
    return middle, total / F(row.size)


@jit.loop(jit.NONE)
def backward_rows(dy, x, w, mean, rstd, residual, dx, parts, start, stop):
    """Rows `start` to `stop` of dy, x and, if it has any, residual (N,C) -> those of dx; parts
    (sums of ROWS rows, 2, C) of dw and db, none where nobody wants them."""
    for i in range(start, stop):
        up, row, out, middle, slope = dy[i], x[i], dx[i], mean[i], rstd[i]
        of_g, of_gn = _means(up, row, w, middle, slope)
        for c in range(row.size):
            n = (row[c] - middle) * slope
            out[c] = slope * (up[c] * w[c] - of_g - n * of_gn)          # (3)
        if residual.size:
            more = residual[i]
            for c in range(row.size):
                out[c] = more[c] + out[c]
        if not len(parts):
            continue
        part = (i - start) // ROWS
        dw, db = parts[part, 0], parts[part, 1]
        for c in range(row.size):     # its own loop: with too many arrays it is not vectorised
            dw[c] += up[c] * ((row[c] - middle) * slope)                # (4)
        for c in range(row.size):
            db[c] += up[c]


@jit.loop(jit.SUMS, part="own")
def _means(up, row, w, middle, slope):
    """-> the means of g and of g * n in (3)."""
    of_g = of_gn = ZERO
    for c in range(row.size):
        g = up[c] * w[c]
        of_g += g
        of_gn += g * ((row[c] - middle) * slope)
    return of_g / F(row.size), of_gn / F(row.size)
