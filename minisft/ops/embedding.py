"""Embedding: a row of a table for each token (Bengio et al. 2003, section 2).

    (1) y[n] = w[ids[n]]                          one-hot(ids) @ w, without the product
    (2) dw[v] = sum over tokens n with ids[n] = v of dy[n]

The same operation serves token ids and positions. The sum in (2) is taken in the order of the
tokens, so equal inputs give equal bits.
"""

from minisft.backend.array import array_module


def forward(ids, w):
    """ids (N,), w (V,C) -> y (N,C), cache."""
    return w[ids], (ids, w.shape)                                 # (1)


def backward(dy, cache, out=None):
    """dy (N,C) -> dw (V,C); with `out` (V,C), dw is added to it: few of its rows are touched."""
    ids, shape = cache
    xp = array_module(dy)
    dw = xp.zeros(shape, dtype=dy.dtype) if out is None else out
    order = xp.argsort(ids, kind="stable")    # equal ids side by side, in the tokens' order
    ids = ids[order]
    first = xp.flatnonzero(xp.concatenate([xp.ones(1, dtype=bool), ids[1:] != ids[:-1]]))
    dw[ids[first]] += xp.add.reduceat(dy[order], first, axis=0)    # (2)
    return dw
