"""One step of AdamW over the flat buffers, a compiled loop for each parameter group.

As minisft/training/optim.py.
"""

from collections.abc import Sequence
from functools import partial
from math import sqrt

import numpy as np

from minisft.backend.cpu import jit
from minisft.backend.cpu.compiled.bits import rounded
from minisft.backend.cpu.compiled.exp import ZERO


def step(values: np.ndarray, grads: np.ndarray, m: np.ndarray, v: np.ndarray, t: int,
         groups: Sequence[tuple[int, float, float]], betas: tuple[float, float] = (0.9, 0.999),
         eps: float = 1e-8, scale: float = 1.0, low: np.ndarray | None = None) -> None:
    """All (P,) float32, values, m and v are changed in place; t counts from 1.

    `groups`: (end, learning rate, decay) of each, in order; the first begins at 0. `low` (P,)
    uint16: where the new values go in bfloat16.
    """
    b1, b2 = betas
    begin = 0
    for end, lr, decay in groups:
        numbers = [np.float32(a) for a in (scale, 1 - lr * decay, b1, 1 - b1, b2, 1 - b2,
                                           1 / sqrt(1 - b2**t), eps, lr / (1 - b1**t))]
        group = [a[begin:end] for a in (values, grads, m, v, *([] if low is None else [low]))]
        jit.each(partial(_part, group, numbers), end - begin, values.itemsize)
        begin = end


def _part(group, numbers, start, stop):
    loop = _loop if len(group) == 4 else _rounding_loop
    loop(*[a[start:stop] for a in group], *numbers)


def squares(grads: np.ndarray) -> np.ndarray:
    """grads (P,) -> the sum of their squares (1,), always added in the same order."""
    return np.array([sum(jit.each(lambda start, stop: _squares(grads[start:stop]), len(grads),
                                  grads.itemsize))])


@jit.loop(jit.SUMS)
def _squares(grads):
    """Of few numbers, so that float32 is exact enough."""
    total = ZERO
    for i in range(grads.size):
        total += grads[i] * grads[i]
    return np.float64(total)


@jit.loop()
def _loop(values, grads, m, v, scale, decay, b1, rest1, b2, rest2, correct, eps, lr):
    for i in range(values.size):
        g = grads[i] * scale
        m[i] = m[i] * b1 + rest1 * g                                        # (2)
        v[i] = v[i] * b2 + rest2 * (g * g)
        values[i] = values[i] * decay - lr * (m[i] / (np.sqrt(v[i]) * correct + eps))   # (4), (3)


@jit.loop()
def _rounding_loop(values, grads, m, v, low, scale, decay, b1, rest1, b2, rest2, correct, eps, lr):
    for i in range(values.size):
        g = grads[i] * scale
        m[i] = m[i] * b1 + rest1 * g                                        # (2)
        v[i] = v[i] * b2 + rest2 * (g * g)
        value = values[i] * decay - lr * (m[i] / (np.sqrt(v[i]) * correct + eps))   # (4), (3)
        values[i], low[i] = value, rounded(value)
