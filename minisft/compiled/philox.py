"""The random words of minisft/random.py in compiled loops, bit for bit the same."""

import numpy as np

from minisft import jit

U, W = np.uint32, np.uint64
M0, M1, HALF = W(0xD2511F53), W(0xCD9E8D57), W(32)
WEYL_0, WEYL_1 = U(0x9E3779B9), U(0xBB67AE85)
ROUNDS = 10


@jit.loop(inline=True)
def philox(c0, c1, c2, c3, k0, k1):
    """Four words of counter, two of key, all uint32 -> four words."""
    for _ in range(ROUNDS):
        product0, product1 = W(c0) * M0, W(c2) * M1
        c0, c1, c2, c3 = (U(U(product1 >> HALF) ^ c1 ^ k0), U(product1),
                          U(U(product0 >> HALF) ^ c3 ^ k1), U(product0))
        k0, k1 = U(k0 + WEYL_0), U(k1 + WEYL_1)
    return c0, c1, c2, c3


@jit.loop()
def fill(words, step, texts, positions, heads, first, k0, k1, start, stop):
    """words (R,4*L) uint32, texts, positions and heads (R,): writes the rows start to stop."""
    for i in range(start, stop):
        text, position, last, row = texts[i], positions[i], U(heads[i] + first), words[i]
        for j in range(row.size // 4):
            a, b, c, d = philox(step, text, position, U(last + U(j)), k0, k1)
            row[4 * j], row[4 * j + 1], row[4 * j + 2], row[4 * j + 3] = a, b, c, d
