"""Launches kernels/adamw.cu: one step of AdamW over the flat buffers, in float32."""

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import numpy as np

from minisft.backend.array import Array, address, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 256
A_THREAD = 4          # numbers of a thread, by loads of 16 bytes
NUMBERS = 1 << 14     # gradients whose squares one block adds


def step(values: Array, grads: Array, m: Array, v: Array, t: int,
         groups: Sequence[tuple[int, float, float]], betas: tuple[float, float] = (0.9, 0.999),
         eps: float = 1e-8, scale: float = 1.0, squares: Array | None = None,
         limit: float = 0.0, low: Array | None = None) -> None:
    """All (P,); values, m and v are changed in place; t counts from 1.

    `groups`: (end, learning rate, decay) of each, in order; the first begins at 0. `scale`
    multiplies the gradients. With squares (1,), what `squares` returned for all gradients, a step
    whose gradients are not finite is left out, and with `limit` they are clipped to that norm; the
    CPU does not wait for either. `low` (P,) gets the new values in its 16-bit format. Raises
    ValueError for an array that is not aligned to 16 bytes.
    """
    xp, (b1, b2) = array_module(values), betas
    for name, a in (("values", values), ("grads", grads), ("m", m), ("v", v), ("low", low)):
        if a is not None and address(a) % 16:
            raise ValueError(f"adamw: {name} begins at {address(a):#x}, expected a multiple of 16")
    launch("adamw", "adamw_step", (ceil_div(len(values), THREADS * A_THREAD),), (THREADS,),
           values=values, grads=grads, m=m, v=v, n=len(values),
           low=None if low is None else low.view(np.uint16),
           ends=_ends(xp, tuple(end for end, _, _ in groups)), groups=len(groups),
           numbers=xp.asarray(step_numbers(t, groups, betas, scale)), squares=squares, limit=limit,
           b1=b1, rest1=1 - b1, b2=b2, rest2=1 - b2, eps=eps,
           defines={"FLOAT16": int(low is not None and low.dtype == np.float16)})


def step_numbers(t: int, groups: Sequence[tuple[int, float, float]],
                 betas: tuple[float, float], scale: float) -> np.ndarray:
    """-> what changes from step to step, as the kernel reads it (2 + 2 * groups,)."""
    b1, b2 = betas
    return np.array([scale, 1 / sqrt(1 - b2**t), *(1 - lr * decay for _, lr, decay in groups),
                     *(lr / (1 - b1**t) for _, lr, _ in groups)], dtype=np.float32)


def squares(grads: Array) -> Array:
    """grads (P,) -> the sum of their squares (1,), always added in the same order."""
    xp = array_module(grads)
    parts = xp.empty(ceil_div(len(grads), NUMBERS), dtype=grads.dtype)
    out = xp.empty(1, dtype=grads.dtype)
    launch("adamw", "adamw_squares", (len(parts),), (THREADS,),
           grads=grads, parts=parts, n=len(grads), numbers=NUMBERS)
    launch("adamw", "adamw_squares_sum", (1,), (THREADS,),
           parts=parts, squares=out, pieces=len(parts))
    return out


@lru_cache(maxsize=8)
def _ends(xp, ends):
    """Ends of the groups -> the array on the device, the same in each step."""
    return xp.asarray(np.array(ends, dtype=np.int64))
