"""minisft/ops/dropout.py as compiled loops: words are not stored, the mask takes bytes."""

import numpy as np

from minisft.backend import random
from minisft.backend.cpu import jit
from minisft.backend.cpu.compiled.exp import ZERO, F
from minisft.backend.cpu.compiled.philox import U, philox


def forward(x: np.ndarray, words: random.Tokens, rate: float) -> tuple[np.ndarray, tuple]:
    """x (N,C), words: a random.Tokens, rate in [0, 1) -> y (N,C), cache."""
    x = np.ascontiguousarray(x)
    y, keep, mask = np.empty_like(x), np.empty(x.shape, dtype=bool), mask_of(words, rate)
    jit.each(lambda start, stop: _forward(x, y, keep, *mask, start, stop), *_rows(x))
    return y, (keep, mask[-1])


def backward(dy: np.ndarray, cache: tuple) -> np.ndarray:
    """dy (N,C) -> dx (N,C)."""
    keep, scale = cache
    dy = np.ascontiguousarray(dy)
    dx = np.empty_like(dy)
    jit.each(lambda start, stop: _backward(dy, keep, scale, dx, start, stop), *_rows(dy))
    return dx


def mask_of(words: random.Tokens, rate: float) -> tuple:
    """-> what loops make the mask of, the scale as the last."""
    return (np.asarray(words.example_ids).astype(U), np.asarray(words.positions).astype(U),
            U(words.stream.step & random.WORD), U(words.stream.seed & random.WORD),
            U(words.layer << 16 | words.site), U(int(rate * 2**32)), F(1 / (1 - rate)))


def _rows(x):
    return len(x), x.shape[1] * x.itemsize


@jit.loop()
def _forward(x, y, keep, example_ids, positions, step, k0, k1, limit, scale, start, stop):
    words = np.empty(4 * -(-x.shape[1] // 4), dtype=np.uint32)
    for i in range(start, stop):
        row, out, kept = x[i], y[i], keep[i]
        draw(words, step, example_ids[i], positions[i], k0, k1)
        for j in range(row.size):
            kept[j] = words[j] >= limit
        for j in range(row.size):
            out[j] = row[j] * (scale if words[j] >= limit else ZERO)     # (1), (2)


@jit.loop(part="own")
def draw(words, step, text, position, k0, k1):
    """Fills words (a multiple of four,) with those of a token."""
    for j in range(words.size // 4):
        words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3] = philox(
            step, text, position, U(j), k0, k1)


@jit.loop()
def _backward(dy, keep, scale, dx, start, stop):
    for i in range(start, stop):
        row, kept, out = dy[i], keep[i], dx[i]
        for j in range(row.size):
            out[j] = row[j] * (scale if kept[j] else ZERO)               # (3)
