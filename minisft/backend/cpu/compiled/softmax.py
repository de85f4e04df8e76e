"""minisft/ops/softmax.py as compiled loops: each row is read from memory once."""

import numpy as np

from minisft.backend.cpu import jit
from minisft.backend.cpu.compiled.exp import INFINITY, ONE, ZERO, exp, largest


def forward(s: np.ndarray) -> tuple[np.ndarray, tuple]:
    """s (...,M) -> p (...,M), cache."""
    s = np.ascontiguousarray(s)
    p = np.empty_like(s)
    rows = s.reshape(-1, s.shape[-1]), p.reshape(-1, s.shape[-1])
    jit.each(lambda start, stop: _forward(*rows, start, stop), len(rows[0]),
             s.shape[-1] * s.itemsize)
    return p, (p,)


def backward(dp: np.ndarray, cache: tuple) -> np.ndarray:
    """dp (...,M) -> ds (...,M)."""
    (p,) = cache
    dp = np.ascontiguousarray(dp)
    ds = np.empty_like(dp)
    rows = [a.reshape(-1, a.shape[-1]) for a in (dp, p, ds)]
    jit.each(lambda start, stop: _backward(*rows, start, stop), len(rows[0]),
             dp.shape[-1] * dp.itemsize)
    return ds


@jit.loop(jit.SUMS)
def _forward(s, p, start, stop):
    for i in range(start, stop):
        shift(s[i], p[i], s.shape[1], ONE)
        exponentials(p[i])
        normalise(p[i])


@jit.loop(part="own")
def shift(row, out, n, scale):
    """row (M,) -> out (M,): the first n numbers less the largest, times `scale` > 0; else -inf."""
    m = largest(row, n)                       # (1)
    for j in range(n):
        out[j] = (row[j] - m) * scale
    for j in range(n, row.size):
        out[j] = -INFINITY


@jit.loop(part="own")
def exponentials(a):
    """a (M,) -> exp(a), in its place."""
    for j in range(a.size):
        a[j] = exp(a[j])                      # (2)


@jit.loop(jit.SUMS, part="own")
def normalise(row):
    """row (M,) -> row / sum(row), in its place."""
    total = ZERO
    for j in range(row.size):
        total += row[j]
    factor = ONE / total
    for j in range(row.size):
        row[j] *= factor                      # (3)


@jit.loop(jit.SUMS)
def _backward(dp, p, ds, start, stop):
    for i in range(start, stop):
        up, kept, out = dp[i], p[i], ds[i]
        total = ZERO
        for j in range(up.size):
            total += up[j] * kept[j]
        for j in range(up.size):
            out[j] = kept[j] * (up[j] - total)            # (4)
