"""Softmax over the last axis (Bridle 1990).

    (1) m = max(s)                     p does not change when a row is shifted
    (2) e = exp(s - m)
    (3) p = e / sum(e)
    (4) ds = p * (dp - sum(dp * p))    the Jacobian diag(p) - p p^T, applied without forming it

A score of -inf gets probability and gradient zero; a row must hold one finite score.
"""

from minisft.backend.array import array_module


def forward(s):
    """s (...,M) -> p (...,M), cache."""
    xp = array_module(s)
    e = xp.exp(s - s.max(axis=-1, keepdims=True))     # (1), (2)
    p = e / e.sum(axis=-1, keepdims=True)             # (3)
    return p, (p,)


def backward(dp, cache):
    """dp (...,M) -> ds (...,M)."""
    (p,) = cache
    return p * (dp - (dp * p).sum(axis=-1, keepdims=True))     # (4)
