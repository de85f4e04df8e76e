"""minisft/ops/gelu.py as compiled loops; the cache holds x alone.

Between two products in bfloat16 x and dy come as the products store them, without the bias, and y
and dx are stored as the next one reads them; the bias's gradient sums what is not rounded yet.

With s the sigmoid of 2 u, (1 + tanh(u)) / 2 = s and (1 - tanh(u)^2) / 4 = s (1 - s) in (2), (3).
"""

from math import pi, sqrt

import numpy as np

from minisft.backend.constants import CUBIC, SLOPE
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.compiled.bits import rounded, widened
from minisft.backend.cpu.compiled.exp import MAX_INPUT, ONE, ZERO, F, exp
from minisft.backend.erf import LARGE_P, LARGE_Q, SMALL_P, SMALL_Q

A, A3, B, B3 = F(-2 * SLOPE), F(-2 * SLOPE * CUBIC), F(2 * SLOPE), F(6 * SLOPE * CUBIC)
HALF, ROOT, DENSITY = F(0.5), F(sqrt(0.5)), F(1 / sqrt(2 * pi))
ROWS = 32     # of a part of a matrix
SMALL, LARGE = F(0.46875), F(6)     # where Cody's second formula begins, and where erf is 1
P, Q = (tuple(map(F, c)) for c in (SMALL_P, SMALL_Q))
P1, Q1 = (tuple(map(F, c)) for c in (LARGE_P, LARGE_Q))


def forward(x: np.ndarray, form: str = "tanh",
            bias: np.ndarray | None = None) -> tuple[np.ndarray, tuple]:
    """x (...) -> y (...), cache; form is "tanh" or "erf".

    With a bias (C,) float32 x (N,C) and y are bfloat16: GELU of x + bias.
    """
    if bias is not None:
        if x.dtype != np.uint16:
            raise ValueError(f"x is {x.dtype}, expected bfloat16 (uint16) beside a bias")
        y = aligned(x.shape, x.dtype)
        _each_rows(_low_forward, x, bias, form == "tanh", y)
        return y, (x, bias, form)
    x = np.asarray(x, order="C")     # ascontiguousarray would make () to (1,)
    y, loop = np.empty_like(x), _tanh_forward if form == "tanh" else _erf_forward
    _each_part(loop, x, y)
    return y, (x, form)


def backward(dy: np.ndarray, cache: tuple,
             out: np.ndarray | None = None) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """dy (...) -> dx (...); after a bias dx (N,C) bfloat16, db (C,); `out`: where db goes."""
    if len(cache) == 3:
        x, bias, form = cache
        dx = aligned(dy.shape, dy.dtype)
        parts = _each_rows(_low_backward, x, bias, form == "tanh", dx, dy)
        return dx, np.sum(parts, axis=0, out=out)
    x, form = cache
    dy = np.asarray(dy, order="C")
    dx, loop = np.empty_like(dy), _tanh_backward if form == "tanh" else _erf_backward
    _each_part(loop, dy, x, dx)
    return dx


def _each_rows(loop, x, bias, tanh, *arrays):
    """-> (parts,C), what each part of the rows sums up; parts do not depend on the threads."""
    starts = range(0, len(x), ROWS)
    parts = np.empty((len(starts), len(bias)), np.float32)

    def work(i):
        rows = slice(starts[i], starts[i] + ROWS)
        loop(x[rows], bias, tanh, parts[i], *[a[rows] for a in arrays])

    row_blocks.each(work, range(len(starts)))
    return parts


def _each_part(loop, *arrays):
    flat = [a.ravel() for a in arrays]
    jit.each(lambda start, stop: loop(*[a[start:stop] for a in flat]), flat[0].size,
             flat[0].itemsize)


@jit.loop()
def _tanh_forward(x, y):
    for i in range(x.size):
        v = x[i]
        y[i] = v * _sigmoid(v)[0]                                      # (2)


@jit.loop()
def _tanh_backward(dy, x, dx):
    for i in range(x.size):
        v = x[i]
        s, rest = _sigmoid(v)
        dx[i] = dy[i] * (s + v * (s * rest) * (B + B3 * (v * v)))      # (3)


@jit.loop(part="pasted")
def _sigmoid(v):
    """x -> s, 1 - s."""
    minus = v * (A + A3 * (v * v))
    e = exp(minus)
    s = ZERO if minus > MAX_INPUT else ONE / (ONE + e)     # exp stops at MAX_INPUT
    return s, e * s


@jit.loop()
def _erf_forward(x, y):
    for i in range(x.size):
        v = x[i]
        y[i] = v * _phi(v)[0]                                          # (4)


@jit.loop()
def _erf_backward(dy, x, dx):
    for i in range(x.size):
        v = x[i]
        phi, e = _phi(v)
        dx[i] = dy[i] * (phi + v * (e * DENSITY))                      # (5)


@jit.loop()
def _low_forward(x, bias, tanh, _, y):
    for i in range(len(x)):
        row, to = x[i], y[i]
        if tanh:
            for j in range(row.size):
                v = widened(row[j]) + bias[j]
                to[j] = rounded(v * _sigmoid(v)[0])                    # (2)
        else:
            for j in range(row.size):
                v = widened(row[j]) + bias[j]
                to[j] = rounded(v * _phi(v)[0])                        # (4)


@jit.loop()
def _low_backward(x, bias, tanh, db, dx, dy):
    db[:] = ZERO
    for i in range(len(x)):
        row, up, to = x[i], dy[i], dx[i]
        if tanh:
            for j in range(row.size):
                v = widened(row[j]) + bias[j]
                s, rest = _sigmoid(v)
                d = widened(up[j]) * (s + v * (s * rest) * (B + B3 * (v * v)))   # (3)
                db[j] += d
                to[j] = rounded(d)
        else:
            for j in range(row.size):
                v = widened(row[j]) + bias[j]
                phi, e = _phi(v)
                d = widened(up[j]) * (phi + v * (e * DENSITY))         # (5)
                db[j] += d
                to[j] = rounded(d)


@jit.loop(part="pasted")
def _phi(v):
    """x -> Phi(x), exp(-x^2 / 2); erf as minisft/backend/erf.py has it, with one division."""
    e = exp(-HALF * v * v)
    a = abs(v) * ROOT
    a = LARGE if a > LARGE else a
    near = a <= SMALL
    z = a * a
    p = (((P[0] * z + P[1]) * z + P[2]) * z + P[3]) * z + P[4]
    q = (((Q[0] * z + Q[1]) * z + Q[2]) * z + Q[3]) * z + Q[4]
    far = (((P1[0] * a + P1[1]) * a + P1[2]) * a + P1[3]) * a + P1[4]
    far = (((far * a + P1[5]) * a + P1[6]) * a + P1[7]) * a + P1[8]
    below = (((Q1[0] * a + Q1[1]) * a + Q1[2]) * a + Q1[3]) * a + Q1[4]
    below = (((below * a + Q1[5]) * a + Q1[6]) * a + Q1[7]) * a + Q1[8]
    ratio = (p if near else far) / (q if near else below)
    erf = a * ratio if near else ONE - e * ratio
    return HALF * (ONE + (erf if v > ZERO else -erf)), e
