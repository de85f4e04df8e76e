"""The linear map in 16 bits: factors rounded to bfloat16 or float16, sums and results in float32.

Equations (1) to (4) are those of ops/linear.py, and this is the only place where precision is
given away (Micikevicius et al. 2018, "Mixed precision training", section 3): the weights that are
trained stay float32 beside their rounded copy, gradients are added in float32, and everything but
matrix products and the attention kernel computes in float32. `matmul.py` multiplies and rounds.
"""

from minisft.dispatch.matmul import matmul, rounded


def forward(x, w, b=None):
    """x (N,C) float32, w (C,M) in 16 bits, b (M,) float32 or None -> y (N,M) float32, cache."""
    x = rounded(x, w.dtype)
    y = matmul(x, w)                                              # (1)
    if b is not None:
        y += b
    return y, (x, w)


def backward(dy, cache, bias=True, out=None):
    """dy (N,M) float32 -> dx (N,C), dw (C,M), db (M,) or, without `bias`, None; all float32.

    `out` (C,M): where dw goes.
    """
    x, w = cache
    db = dy.sum(axis=0) if bias else None                         # (4)
    dy = rounded(dy, w.dtype)
    return matmul(dy, w.T), matmul(x.T, dy, out), db              # (2), (3)
