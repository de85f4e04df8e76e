"""Dropout (Srivastava et al. 2014), inverted: the kept values are scaled, prediction does nothing.

    (1) m = 1 / (1 - rate) where words >= floor(rate * 2^32), else 0
    (2) y = x * m
    (3) dx = dy * m

The random words are handed in (see `minisft/backend/random.py`), so the operation itself is pure.
"""

from minisft.backend.array import array_module


def mask(words, rate, dtype):
    """words (...) uint32, rate in [0, 1) -> m (...)."""
    xp = array_module(words)
    keep = words >= xp.uint32(int(rate * 2**32))
    return keep.astype(dtype) * xp.asarray(1 / (1 - rate), dtype=dtype)     # (1)


def forward(x, words, rate):
    """x (...,C), words (...,C) uint32 or words(C) that makes them, rate in [0, 1) -> y, cache."""
    m = mask(words(x.shape[-1]) if callable(words) else words, rate, x.dtype)
    return x * m, (m,)                                # (2)


def backward(dy, cache):
    """dy (...) -> dx (...)."""
    (m,) = cache
    return dy * m                                     # (3)
