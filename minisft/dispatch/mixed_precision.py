"""The linear map in 16 bits: factors rounded to bfloat16 or float16, sums and results in float32.

Equations (1) to (4) are those of ops/linear.py, (1) to (6) of `lora` those of ops/lora.py, and this
is the only place where precision is given away (Micikevicius et al. 2018, "Mixed precision
training", section 3): the weights that are trained stay float32 beside their rounded copy,
gradients are added in float32, and everything but matrix products and the attention kernel computes
in float32. `matmul.py` multiplies and rounds. Where AMX or MKL multiplies float32 factors they
come through here too, and nothing is rounded.
"""

from types import SimpleNamespace

import numpy as np

from minisft.backend.array import array_module
from minisft.backend.cpu.allocator import aligned
from minisft.dispatch.matmul import matmul, rounded


def forward(x, w, b=None, round_y=False):
    """x (N,C) float32, or rounded already, w (C,M) in 16 bits, b (M,) float32 or None -> y (N,M)
    float32, cache. `round_y`: y in 16 bits, and so is b.
    """
    x = rounded(x, w.dtype)
    return _product(x, w, round_y, b), (x, w)                     # (1)


def backward(dy, cache, bias=True, out=None, round_dx=False):
    """dy (N,M) float32, or without `bias` rounded already -> dx (N,C), dw (C,M), db (M,) or,
    without `bias`, None; all float32, but with `round_dx` dx in 16 bits.

    `out` (C,M): where dw goes.
    """
    x, w = cache
    db = dy.sum(axis=0) if bias else None                         # (4)
    dy = rounded(dy, w.dtype)
    return _product(dy, w.T, round_dx), matmul(x.T, dy, out), db  # (2), (3)


def _product(a, b, in_16_bits, bias=None):
    xp, shape = array_module(a), (a.shape[0], b.shape[1])
    out = None if not in_16_bits else aligned(shape, a.dtype) if xp is np else \
        xp.empty(shape, dtype=a.dtype)
    return matmul(a, b, out, bias)


def _lora_forward(x, a, b, scale):
    """x (N,C) float32, or rounded already, a (r,C) and b (M,r) in 16 bits, scale -> y (N,M)
    float32, cache."""
    if x.dtype != a.dtype:
        x = rounded(x, a.dtype)
    u = rounded(matmul(x, a.T), a.dtype)                          # (1)
    return scale * matmul(u, b.T), (x, a, b, scale, u)            # (2)


def _lora_backward(dy, cache):
    """dy (N,M) float32 -> dx (N,C), da (r,C), db (M,r), all float32."""
    x, a, b, scale, u = cache
    dy = rounded(dy, a.dtype)
    db = scale * matmul(dy.T, u)                                  # (3)
    du = rounded(scale * matmul(dy, b), a.dtype)                  # (4)
    return matmul(du, a), matmul(du.T, x), db                     # (6), (5)


lora = SimpleNamespace(forward=_lora_forward, backward=_lora_backward)
