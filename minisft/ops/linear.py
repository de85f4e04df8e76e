"""Linear map of each token (weights as GPT-2 stores them: (in, out)).

    (1) y = x @ w + b
    (2) dx = dy @ w^T
    (3) dw = x^T @ dy
    (4) db = sum over tokens of dy

The gradients are matrix products, not element-wise ones (Goodfellow et al. 2016, section 6.5.6).
"""

from minisft.backend.array import array_module


def forward(x, w, b=None):
    """x (N,C), w (C,M), b (M,) or None -> y (N,M), cache."""
    y = x @ w                                                     # (1)
    if b is not None:
        y += b
    return y, (x, w)


def backward(dy, cache, bias=True, out=None):
    """dy (N,M) -> dx (N,C), dw (C,M), db (M,) or, without `bias`, None.

    `out` (C,M): where dw goes.
    """
    x, w = cache
    dx = dy @ w.T                                                 # (2)
    dw = array_module(x).matmul(x.T, dy, out=out)                 # (3)
    return dx, dw, dy.sum(axis=0) if bias else None               # (4)
