"""minisft/ops/softmax.py as compiled loops: each row is read from memory once."""

import numpy as np

from minisft import jit
from minisft.compiled.exp import ONE, ZERO, exp, largest


def fits(**given):
    """Whether there are rows."""
    return "s" not in given or (given["s"].ndim > 0 and given["s"].size > 0)


def forward(s):
    """s (...,M) -> p (...,M), cache."""
    s = np.ascontiguousarray(s)
    p = np.empty_like(s)
    rows = s.reshape(-1, s.shape[-1]), p.reshape(-1, s.shape[-1])
    jit.each(lambda start, stop: _forward(*rows, start, stop), len(rows[0]),
             s.shape[-1] * s.itemsize)
    return p, (p,)


def backward(dp, cache):
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
        softmax(s[i], p[i], s.shape[1], ONE)


@jit.loop(jit.SUMS, inline=True)
def softmax(row, out, n, scale):
    """row (M,) -> out (M,): the softmax of its first n numbers times `scale` > 0."""
    m = largest(row, n)                                   # (1)
    total = ZERO
    for j in range(n):
        e = exp((row[j] - m) * scale)                     # (2)
        out[j] = e
        total += e
    factor = ONE / total
    for j in range(n):
        out[j] *= factor                                  # (3)


@jit.loop(jit.SUMS)
def _backward(dp, p, ds, start, stop):
    for i in range(start, stop):
        up, kept, out = dp[i], p[i], ds[i]
        total = ZERO
        for j in range(up.size):
            total += up[j] * kept[j]
        for j in range(up.size):
            out[j] = kept[j] * (up[j] - total)            # (4)
