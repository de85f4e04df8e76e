"""TF32, the float32 whose last 13 bits a card's tensor cores do not read, as uint32: the bits.

    (1) b = (bits + 0x1000) & ~0x1FFF      to the nearest 10 bits of mantissa, ties away from zero

NVIDIA A100 white paper 2020; the rounding is PTX's cvt.rna.tf32. float32's range, float16's
precision. A card rounds as it loads the factors, and its arrays stay as they are.
"""

import numpy as np

from minisft.backend.array import Array, array_module


def to_tf32(x: Array) -> Array:
    """x (...) float32 -> (...) uint32: on a CPU the nearest TF32 numbers, on a card the same bits.
    """
    bits = x.view(np.uint32)
    if array_module(x) is not np:
        return bits
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)                # (1)
    return np.where(np.isfinite(x), rounded, bits)     # a NaN stays one


def from_tf32(x: Array) -> Array:
    """x (...) uint32 -> the same in float32 (...), no copy."""
    return x.view(np.float32)
