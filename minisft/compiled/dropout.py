"""minisft/ops/dropout.py as one compiled loop: no word of Philox and no mask goes to memory."""

import numpy as np

from minisft import jit, random
from minisft.compiled.exp import ZERO
from minisft.compiled.philox import U, philox


def fits(**given):
    """Whether the words are made here, for rows of channels."""
    return "words" not in given or (isinstance(given["words"], random.Tokens)
                                    and given["x"].ndim == 2)


def forward(x, words, rate):
    """x (N,C), words: a random.Tokens, rate in [0, 1) -> y (N,C), cache."""
    made = (np.asarray(words.texts).astype(U), np.asarray(words.positions).astype(U),
            U(words.stream.step & random.WORD), U(words.stream.seed & random.WORD),
            U(words.layer << 16 | words.site), U(int(rate * 2**32)), x.dtype.type(1 / (1 - rate)))
    return _apply(x, made), made


def backward(dy, cache):
    """dy (N,C) -> dx (N,C)."""
    return _apply(dy, cache)


def _apply(x, made):
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    jit.each(lambda start, stop: _loop(x, y, *made, start, stop), len(x), x.shape[1] * x.itemsize)
    return y


@jit.loop()
def _loop(x, y, texts, positions, step, k0, k1, limit, scale, start, stop):
    whole = x.shape[1] // 4
    for i in range(start, stop):
        text, position, row, out = texts[i], positions[i], x[i], y[i]
        for j in range(whole):
            a, b, c, d = philox(step, text, position, U(j), k0, k1)
            out[4 * j] = row[4 * j] * (scale if a >= limit else ZERO)             # (1), (2)
            out[4 * j + 1] = row[4 * j + 1] * (scale if b >= limit else ZERO)
            out[4 * j + 2] = row[4 * j + 2] * (scale if c >= limit else ZERO)
            out[4 * j + 3] = row[4 * j + 3] * (scale if d >= limit else ZERO)
        if 4 * whole < row.size:
            last = philox(step, text, position, U(whole), k0, k1)
            for j in range(4 * whole, row.size):
                out[j] = row[j] * (scale if last[j - 4 * whole] >= limit else ZERO)
