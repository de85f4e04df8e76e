"""exp and the maximum of a row, written so that the compiler vectorises them.

The polynomial and the two parts of log 2 are those of S. Moshier's Cephes library (expf).
"""

import numpy as np

from minisft.backend.cpu import jit

F, I = np.float32, np.int32     # noqa: E741  in loops every constant must have its type
MIN_INPUT, MAX_INPUT = F(-87.3), F(88)     # between them exp is a normal number
LOG2_E = F(1.44269504)
LOG_2_HIGH, LOG_2_LOW = F(0.693359375), F(-2.12194440e-4)
P0, P1, P2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
P3, P4, P5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
ROUND = F(1.5 * 2**23)     # so large that adding it leaves an integer in the last bits
ONE_BITS, MANTISSA, SIGN, FLIP = I(127 << 23), I(23), I(31), I(0x7FFFFFFF)
ZERO, ONE, INFINITY = F(0), F(1), F(np.inf)


@jit.loop(part="own")
def exp(x):
    """x -> exp(x), within 2 units in the last place; 0 below MIN_INPUT, exp(MAX_INPUT) above."""
    z = MAX_INPUT if x > MAX_INPUT else x     # not min: NaN stays NaN
    z = MIN_INPUT if z < MIN_INPUT else z
    shifted = F(z * LOG2_E + ROUND)
    n = shifted - ROUND                   # z = n log 2 + r
    r = z - n * LOG_2_HIGH
    r = r - n * LOG_2_LOW
    p = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    p = p * r * r + r + ONE
    power = I(I(F(shifted).view(np.int32) << MANTISSA) + ONE_BITS)     # 2^n
    y = p * I(power).view(np.float32)
    return ZERO if x < MIN_INPUT else y


@jit.loop(part="own")
def ordered(x):
    """x -> an integer in the same order, NaN above inf."""
    b = F(x).view(np.int32)
    return I(b ^ I(I(b >> SIGN) & FLIP))


@jit.loop(part="own")
def unordered(b):
    """The inverse of `ordered`."""
    return I(I(b) ^ I(I(b >> SIGN) & FLIP)).view(np.float32)


@jit.loop(part="own")
def largest(row, n):
    """The first n numbers of row (M,) -> the largest; comparisons of integers vectorise."""
    top = ordered(row[0])
    for j in range(1, n):
        b = ordered(row[j])
        top = b if b > top else top
    return unordered(top)
