"""Low-rank adaptation of a linear map (Hu et al. 2022, "LoRA", section 4.1), as PEFT stores it.

    (1) u = x @ A^T
    (2) y = s u @ B^T            to be added to what the frozen map gives, x @ w + b
    (3) dB = s dy^T @ u
    (4) du = s dy @ B
    (5) dA = du^T @ x
    (6) dx = du @ A              to be added to the frozen map's, dy @ w^T
    (7) w' = w + s (B @ A)^T     merged: one map that gives the sum, and the sum of (6)

A (r,C) and B (M,r) have so few rows and columns, r, that they are a small part of w (C,M). The
scale s is alpha / r. x may have gone through dropout before: the frozen map takes it as it was.
"""

from minisft.backend.array import array_module


def forward(x, a, b, scale):
    """x (N,C), a (r,C), b (M,r), scale -> y (N,M), cache."""
    u = x @ a.T                                                   # (1)
    return scale * u @ b.T, (x, a, b, scale, u)                   # (2)


def backward(dy, cache):
    """dy (N,M) -> dx (N,C), da (r,C), db (M,r)."""
    x, a, b, scale, u = cache
    db = scale * (u.T @ dy).T                                     # (3)
    du = scale * (dy @ b)                                         # (4)
    return du @ a, du.T @ x, db                                   # (6), (5)


def factor_gradients(dy, x, a, b, scale):
    """dy (N,M), x (N,C), a (r,C), b (M,r), scale -> da (r,C), db (M,r), behind a merged map."""
    u = x @ a.T                                                   # (1)
    du = scale * (dy @ b)                                         # (4)
    return du.T @ x, scale * (u.T @ dy).T                         # (5), (3)


def merge(w, a, b, scale, out=None):
    """w (C,M), a (r,C), b (M,r), scale -> w' (C,M); `out` (C,M): where it goes."""
    merged = array_module(w).matmul((scale * a).T, b.T, out=out)
    merged += w                                                   # (7)
    return merged
