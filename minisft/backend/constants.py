"""Numbers that formulas, compiled loops and kernels share, so that each stands once."""

from math import pi, sqrt

IGNORE = -100     # label of a row that has no loss, as in PyTorch

# GELU by tanh: x / 2 * (1 + tanh(SLOPE * (x + CUBIC * x^3)))
CUBIC = 0.044715
SLOPE = sqrt(2 / pi)

# Philox4x32-10 (Salmon et al. 2011, table 2): multipliers, and what each round adds to the key
PHILOX_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
PHILOX_WEYL = 0x9E3779B9, 0xBB67AE85
PHILOX_ROUNDS = 10
WORD = 0xFFFFFFFF     # the largest uint32: `& WORD` keeps the lower 32 bits


def ceil_div(n: int, k: int) -> int:
    """n, k > 0 -> n / k, rounded up."""
    return -(-n // k)
