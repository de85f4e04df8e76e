"""The random words of minisft/backend/random.py in compiled loops, bit for bit the same."""

import numpy as np

from minisft.backend import constants
from minisft.backend.constants import PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_WEYL
from minisft.backend.cpu import jit

U, W = np.uint32, np.uint64     # in loops every constant must have its type
(M0, M1), (WEYL_0, WEYL_1) = map(W, PHILOX_MULTIPLIERS), map(W, PHILOX_WEYL)
HALF, WORD = W(32), W(constants.WORD)


@jit.loop(part="pasted")
def philox(c0, c1, c2, c3, k0, k1):
    """Four words of counter, two of key, all uint32 -> four words."""
    # each word in 64 bits throughout: between products nothing has to move within a vector
    c0, c1, c2, c3, k0, k1 = W(c0), W(c1), W(c2), W(c3), W(k0), W(k1)
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = ((product1 >> HALF) ^ c1 ^ k0, product1 & WORD,
                          (product0 >> HALF) ^ c3 ^ k1, product0 & WORD)
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return U(c0), U(c1), U(c2), U(c3)


@jit.loop()
def fill(words, step, example_ids, positions, heads, first, k0, k1, start, stop):
    """words (R,4*L) uint32, texts, positions and heads (R,): writes the rows start to stop."""
    for i in range(start, stop):
        text, position, last, row = example_ids[i], positions[i], U(heads[i] + first), words[i]
        for j in range(row.size // 4):
            row[4 * j], row[4 * j + 1], row[4 * j + 2], row[4 * j + 3] = philox(
                step, text, position, U(last + U(j)), k0, k1)
