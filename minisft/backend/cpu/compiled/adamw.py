"""One step of AdamW over a part of the flat buffers, in one compiled loop.

As minisft/training/optim.py.
"""

from math import sqrt

import numpy as np

from minisft.backend.cpu import jit


def step(values: np.ndarray, grads: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, lr: float,
         decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
         scale: float = 1.0) -> None:
    """All (P,) float32, values, m and v are changed in place; t counts from 1."""
    b1, b2 = betas
    numbers = [np.float32(a) for a in (scale, 1 - lr * decay, b1, 1 - b1, b2, 1 - b2,
                                       1 / sqrt(1 - b2**t), eps, lr / (1 - b1**t))]
    jit.each(lambda start, stop: _loop(*[a[start:stop] for a in (values, grads, m, v)], *numbers),
             len(values), values.itemsize)


@jit.loop()
def _loop(values, grads, m, v, scale, decay, b1, rest1, b2, rest2, correct, eps, lr):
    for i in range(values.size):
        g = grads[i] * scale
        m[i] = m[i] * b1 + rest1 * g                                        # (2)
        v[i] = v[i] * b2 + rest2 * (g * g)
        values[i] = values[i] * decay - lr * (m[i] / (np.sqrt(v[i]) * correct + eps))   # (4), (3)
