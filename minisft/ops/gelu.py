"""Gaussian error linear unit (Hendrycks and Gimpel 2016), in its two published forms.

tanh form, GPT-2's `gelu_new` (their section 2):
    (1) u = sqrt(2 / pi) * (x + 0.044715 x^3)
    (2) y = x / 2 * (1 + tanh(u))
    (3) dx = dy * [ (1 + tanh(u)) / 2 + x / 2 * (1 - tanh(u)^2) * du/dx ],
        du/dx = sqrt(2 / pi) * (1 + 3 * 0.044715 x^2)
erf form, BERT's `gelu` (their eq. 1; Phi and phi are the normal distribution and its density):
    (4) y = x * Phi(x),   Phi(x) = (1 + erf(x / sqrt(2))) / 2
    (5) dx = dy * (Phi(x) + x * phi(x)),   phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
"""

from math import pi, sqrt

from minisft.backend.array import array_module
from minisft.backend.constants import CUBIC, SLOPE
from minisft.backend.erf import erf


def forward(x, form="tanh"):
    """x (...) -> y (...), cache; form is "tanh" or "erf"."""
    xp = array_module(x)
    if form == "tanh":
        t = xp.tanh(SLOPE * (x + CUBIC * (x * x * x)))     # (1); x**3 would call pow
        return x / 2 * (1 + t), (x, t, form)               # (2)
    phi = (1 + erf(x / sqrt(2))) / 2
    return x * phi, (x, phi, form)                         # (4)


def backward(dy, cache):
    """dy (...) -> dx (...)."""
    x, t, form = cache
    xp = array_module(x)
    if form == "tanh":
        du = SLOPE * (1 + 3 * CUBIC * (x * x))
        return dy * ((1 + t) / 2 + x / 2 * (1 - t * t) * du)     # (3)
    return dy * (t + x * (xp.exp(-x * x / 2) / sqrt(2 * pi)))    # (5)
