"""The gradients of minisft/ops/lora.py behind merged maps, as compiled loops.

Reading x and dy from memory is most of what products with so few rows or columns, r, take. Here a
few rows of both serve (1), (3), (4) and (5) before the next ones are read, those of x the factors
of all maps. FOUR of r are computed at a time: rows of zeros fill A and B^T up to a multiple of it.
"""

from collections.abc import Sequence

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.compiled.exp import ZERO, F

FOUR = 4
ROWS = 64      # of x and dy at a time: they stay in a core's cache
PARTS = 8      # of the rows, at most: the sums do not depend on the number of threads

Factors = tuple[np.ndarray, np.ndarray, float]     # A (r,C), B (M,r), scale


def factor_gradients(dy: np.ndarray, x: np.ndarray,
                     factors: Sequence[Factors]) -> list[tuple[np.ndarray, np.ndarray]]:
    """dy (N, sum of M), x (N,C), the factors of maps side by side -> dA (r,C), dB (M,r) of each."""
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    step = max(ROWS, FOUR * ceil_div(len(x), FOUR * PARTS))
    starts = range(0, len(x), step)
    maps, left = [], 0
    for a, b, scale in factors:
        a, b = _padded(a), _padded(b.T)
        sums = [np.zeros((len(starts), *f.shape), np.float32) for f in (a, b)]
        maps.append((left, a, b, F(scale), *sums))
        left += b.shape[1]

    def work(i):
        rows = slice(starts[i], starts[i] + step)
        for *one, da, db in maps:     # x comes from memory for the first of them only
            _factor_gradients(dy[rows], x[rows], *one, da[i], db[i])

    row_blocks.each(work, range(len(starts)))
    return [(da.sum(axis=0)[:len(a)], db.sum(axis=0)[:len(a)].T)
            for (a, _, _), (*_, da, db) in zip(factors, maps, strict=True)]


def _padded(x):
    """x (r,n) -> (r rounded up to a multiple of FOUR, n), contiguous."""
    padded = np.zeros((FOUR * ceil_div(len(x), FOUR), x.shape[1]), np.float32)
    padded[:len(x)] = x
    return padded


@jit.loop()
def _factor_gradients(dy, x, left, a, b, scale, da, db):
    """dy (N,...), whose columns from `left` on count, x (N,C), a (r,C), b (r,M): is added to da
    (r,C), db (r,M)."""
    u = np.empty((ROWS, len(a)), np.float32)
    du = np.empty_like(u)
    for start in range(0, len(x), ROWS):
        stop = min(start + ROWS, len(x))
        _products(x, start, stop, 0, a, scale, u)                                # (1)
        _products(dy, start, stop, left, b, scale, du)                           # (4)
        _add_outer(u, dy, start, stop, left, db)                                 # (3)
        _add_outer(du, x, start, stop, 0, da)                                    # (5)


@jit.loop(jit.SUMS, part="own")
def _products(x, start, stop, left, a, scale, u):
    """Rows `start` to `stop` of x from column `left` on, a (r,M) -> u (rows,r), scaled."""
    m, last = a.shape[1], stop - 1
    for i in range(start, stop, 2):
        j = min(i + 1, last)     # of an odd number the last one twice
        x0, x1 = x[i, left:left + m], x[j, left:left + m]
        for k in range(0, len(a), FOUR):
            a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = ZERO
            for c in range(m):
                v, w = x0[c], x1[c]
                f0, f1, f2, f3 = a0[c], a1[c], a2[c], a3[c]
                s0 += v * f0
                s1 += v * f1
                s2 += v * f2
                s3 += v * f3
                t0 += w * f0
                t1 += w * f1
                t2 += w * f2
                t3 += w * f3
            for row, (p0, p1, p2, p3) in ((i, (s0, s1, s2, s3)), (j, (t0, t1, t2, t3))):
                out = u[row - start, k:k + FOUR]
                out[0], out[1], out[2], out[3] = scale * p0, scale * p1, scale * p2, scale * p3


@jit.loop(part="own")
def _add_outer(u, x, start, stop, left, sums):
    """u (rows,r), rows `start` to `stop` of x (.., M) from column `left` on: u^T x is added to sums
    (r,M)."""
    m, whole = sums.shape[1], stop - (stop - start) % FOUR
    for i in range(start, whole, FOUR):
        x0, x1 = x[i, left:left + m], x[i + 1, left:left + m]
        x2, x3 = x[i + 2, left:left + m], x[i + 3, left:left + m]
        u0, u1, u2, u3 = u[i - start], u[i - start + 1], u[i - start + 2], u[i - start + 3]
        for k in range(0, len(sums), FOUR):
            s0, s1, s2, s3 = sums[k], sums[k + 1], sums[k + 2], sums[k + 3]
            a0, a1, a2, a3 = u0[k], u0[k + 1], u0[k + 2], u0[k + 3]
            b0, b1, b2, b3 = u1[k], u1[k + 1], u1[k + 2], u1[k + 3]
            c0, c1, c2, c3 = u2[k], u2[k + 1], u2[k + 2], u2[k + 3]
            d0, d1, d2, d3 = u3[k], u3[k + 1], u3[k + 2], u3[k + 3]
            for j in range(m):
                p, q, r, s = x0[j], x1[j], x2[j], x3[j]
                s0[j] += a0 * p + b0 * q + c0 * r + d0 * s
                s1[j] += a1 * p + b1 * q + c1 * r + d1 * s
                s2[j] += a2 * p + b2 * q + c2 * r + d2 * s
                s3[j] += a3 * p + b3 * q + c3 * r + d3 * s
    for i in range(whole, stop):
        row = x[i, left:left + m]
        for k in range(len(sums)):
            to, f = sums[k], u[i - start, k]
            for j in range(m):
                to[j] += f * row[j]
