"""Layer normalisation over the channels of each token (Ba, Kiros, Hinton 2016, eq. 4).

    (1) n = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps)
    (2) y = n * w + b
    (3) dx = rstd * (g - mean(g) - n * mean(g * n)),   g = dy * w
    (4) dw = sum over tokens of dy * n,   db = sum over tokens of dy
"""

from minisft.backend.array import array_module


def forward(x, w, b, eps=1e-5):
    """x (N,C), w (C,), b (C,) -> y (N,C), cache."""
    xp = array_module(x)
    mean = x.mean(axis=-1, keepdims=True)                          # (N,1)
    centred = x - mean
    rstd = 1 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)     # (N,1)
    y = centred * rstd * w + b                                     # (1), (2)
    return y, (x, w, mean, rstd)


def backward(dy, cache):
    """dy (N,C) -> dx (N,C), dw (C,), db (C,)."""
    x, w, mean, rstd = cache
    n = (x - mean) * rstd     # recomputed: mean and rstd are C times smaller to keep
    g = dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True)
                 - n * (g * n).mean(axis=-1, keepdims=True))       # (3)
    return dx, (dy * n).sum(axis=0), dy.sum(axis=0)                # (4)
