"""bfloat16 numbers in loops: the upper half of a float32, as backend/bfloat16.py has them."""

import numpy as np

from minisft.backend.cpu import jit

U = np.uint32
HALF, LAST, UP, SIZE, INFINITE = U(16), U(1), U(0x7FFF), U(0x7FFFFFFF), U(0x7F800000)
NAN = np.uint16(0x7FFF)


@jit.loop(part="own")
def rounded(x):
    """x float32 -> the nearest bfloat16."""
    b = np.float32(x).view(np.uint32)
    nearest = U(U(b + UP) + U(U(b >> HALF) & LAST)) >> HALF
    return NAN if U(b & SIZE) > INFINITE else np.uint16(nearest)


@jit.loop(part="own")
def widened(x):
    """x bfloat16 -> float32."""
    return U(U(x) << HALF).view(np.float32)
