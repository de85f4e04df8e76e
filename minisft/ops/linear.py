"""Linear map of each token (weights as GPT-2 stores them: (in, out)).

    (1) y = x @ w + b
    (2) dx = dy @ w^T
    (3) dw = x^T @ dy
    (4) db = sum over tokens of dy

The gradients are matrix products, not element-wise ones (Goodfellow et al. 2016, section 6.5.6).
"""


def forward(x, w, b=None):
    """x (N,C), w (C,M), b (M,) or None -> y (N,M), cache."""
    y = x @ w                                                     # (1)
    if b is not None:
        y += b
    return y, (x, w)


def backward(dy, cache, bias=True):
    """dy (N,M) -> dx (N,C), dw (C,M), db (M,) or, without `bias`, None."""
    x, w = cache
    return dy @ w.T, x.T @ dy, dy.sum(axis=0) if bias else None   # (2), (3), (4)
