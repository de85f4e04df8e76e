"""Launches kernels/bfloat16.cu: float32 to bfloat16, as minisft/backend/bfloat16.py."""

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 256


def to_bfloat16(x: Array) -> Array:
    """x (...) float32 -> the nearest bfloat16 (...) uint16."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y = xp.empty(x.shape, dtype=np.uint16)
    launch("bfloat16", "bfloat16_round", (ceil_div(x.size, THREADS),), (THREADS,),
           x=x, y=y, n=x.size)
    return y
