"""Launches kernels/adamw.cu: one step of AdamW over a run of the flat buffers, in float32."""

from math import sqrt

from minisft.backend.array import array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 256
NUMBERS = 1 << 14     # whose squares one block adds


def step(values, grads, m, v, t, lr, decay=0.0, betas=(0.9, 0.999), eps=1e-8, scale=1.0,
         squares=None, limit=0.0):
    """All (P,), changed in place but for grads; t counts from 1.

    `scale` multiplies the gradients; with squares (1,), what `squares` returned of all gradients,
    they are clipped besides to a norm of `limit`, and the CPU need not wait for the norm.
    """
    b1, b2 = betas
    launch("adamw", "adamw_step", (ceil_div(len(values), THREADS),), (THREADS,), values, grads, m,
           v, squares, len(values), scale, limit, 1 - lr * decay, b1, 1 - b1, b2, 1 - b2,
           lr / (1 - b1**t), 1 / sqrt(1 - b2**t), eps)


def squares(grads):
    """grads (P,) -> the sum of their squares (1,), always added in the same order."""
    xp = array_module(grads)
    parts = xp.empty(ceil_div(len(grads), NUMBERS), dtype=grads.dtype)
    out = xp.zeros(1, dtype=grads.dtype)
    launch("adamw", "adamw_squares", (len(parts),), (THREADS,), grads, parts, len(grads), NUMBERS)
    launch("adamw", "adamw_squares_sum", (1,), (THREADS,), parts, out, len(parts))
    return out
