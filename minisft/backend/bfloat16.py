"""bfloat16, which NumPy has no type for: uint16, the upper halves of float32 numbers.

    (1) b = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16      to the nearest, ties to even
    (2) bits = b << 16

Kalamkar et al. 2019, "A study of bfloat16 for deep learning training". A NaN stays one.
"""

import numpy as np

from minisft.backend.array import Array, array_module


def to_bfloat16(x: Array) -> Array:
    """x (...) float32 -> the nearest bfloat16 (...) uint16."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return array_module(x).where(x == x, rounded, 0x7FFF).astype(np.uint16)     # (1)


def from_bfloat16(x: Array) -> Array:
    """x (...) uint16 -> the same in float32 (...)."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)              # (2)
