"""Launches kernels/adamw.cu: one step of AdamW over a part of the flat buffers, in float32."""

from math import sqrt

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 256
NUMBERS = 1 << 14     # gradients whose squares one block adds


def step(values: Array, grads: Array, m: Array, v: Array, t: int, lr: float, decay: float = 0.0,
         betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, scale: float = 1.0,
         squares: Array | None = None, limit: float = 0.0) -> None:
    """All (P,); values, m and v are changed in place; t counts from 1.

    `scale` multiplies the gradients. With squares (1,), what `squares` returned for all gradients,
    they are also clipped to a norm of `limit`, and the CPU does not wait for the norm.
    """
    b1, b2 = betas
    launch("adamw", "adamw_step", (ceil_div(len(values), THREADS),), (THREADS,),
           values=values, grads=grads, m=m, v=v, squares=squares, n=len(values), scale=scale,
           limit=limit, shrink=1 - lr * decay, b1=b1, rest1=1 - b1, b2=b2, rest2=1 - b2,
           m_rate=lr / (1 - b1**t), v_root=1 / sqrt(1 - b2**t), eps=eps)


def squares(grads: Array) -> Array:
    """grads (P,) -> the sum of their squares (1,), always added in the same order."""
    xp = array_module(grads)
    parts = xp.empty(ceil_div(len(grads), NUMBERS), dtype=grads.dtype)
    out = xp.zeros(1, dtype=grads.dtype)
    launch("adamw", "adamw_squares", (len(parts),), (THREADS,),
           grads=grads, parts=parts, n=len(grads), numbers=NUMBERS)
    launch("adamw", "adamw_squares_sum", (1,), (THREADS,),
           parts=parts, squares=out, pieces=len(parts))
    return out
