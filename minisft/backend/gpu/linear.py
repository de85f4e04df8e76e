"""Linear maps and their adapters on a card, in float32: every product by cuBLASLt, which adds the
bias in the same launch. The same calls as minisft/ops/linear.py and lora.py, whose equations these
are."""

from types import SimpleNamespace

from minisft.backend.array import Array
from minisft.backend.gpu.gemm import product


def forward(x: Array, w: Array, b: Array | None = None) -> tuple[Array, tuple[Array, Array]]:
    """x (N,C), w (C,M), b (M,) or None -> y (N,M), cache."""
    return product(x, w, bias=b), (x, w)                          # (1)


def backward(dy: Array, cache: tuple[Array, Array], bias: bool = True,
             out: Array | None = None) -> tuple[Array, Array, Array | None]:
    """dy (N,M) -> dx (N,C), dw (C,M), db (M,) or, without `bias`, None.

    `out` (C,M), contiguous: where dw goes.
    """
    x, w = cache
    dx, dw = product(dy, w.T), product(x.T, dy, out)              # (2), (3)
    return dx, dw, dy.sum(axis=0) if bias else None               # (4)


def _lora_forward(x, a, b, scale):
    """x (N,C), a (r,C), b (M,r), scale -> y (N,M), cache."""
    u = product(x, a.T)                                           # (1)
    return product(scale * u, b.T), (x, a, b, scale, u)           # (2)


def _lora_backward(dy, cache):
    """dy (N,M) -> dx (N,C), da (r,C), db (M,r)."""
    x, a, b, scale, u = cache
    db = scale * product(u.T, dy).T                               # (3)
    du = scale * product(dy, b)                                   # (4)
    return product(du, a), product(du.T, x), db                   # (6), (5)


lora = SimpleNamespace(forward=_lora_forward, backward=_lora_backward)
