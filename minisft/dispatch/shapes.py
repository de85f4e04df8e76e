"""The one check of arguments that every implementation of an operation relies on.

NumPy's formulas spread a smaller array over a larger one, and compiled loops and kernels would read
past its end: what does not fit is refused here, before any of them runs. Raises ValueError that
names the operation, the argument, what was found and what was expected.
"""

from typing import Any

import numpy as np

from minisft.backend.constants import IGNORE
from minisft.backend.gpu.launch.packed import Placed


def _expect(operation: str, name: str, found: tuple, expected: tuple) -> None:
    if found != expected:
        raise ValueError(f"{operation}: {name} has shape {found}, expected {expected}")


def linear(x: Any, w: Any, b: Any = None, round_y: bool = False) -> None:
    """x (N,C), w (C,M), b (M,) or None, in 16 bits where y is to have them."""
    if x.ndim != 2 or w.ndim != 2:
        raise ValueError(f"linear: x has shape {x.shape} and w {w.shape}, expected (N,C) and (C,M)")
    _expect("linear", "w", w.shape, (x.shape[1], w.shape[1]))
    if b is not None:
        _expect("linear", "b", b.shape, (w.shape[1],))
        if round_y and b.itemsize != 2:
            raise ValueError(f"linear: b is {b.dtype}, but y is to have 16 bits; expected as many")


def lora(x: Any, a: Any, b: Any, scale: float) -> None:
    """x (N,C), a (r,C), b (M,r)."""
    if x.ndim != 2 or a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"lora: x has shape {x.shape}, a {a.shape} and b {b.shape}, expected "
                         "(N,C), (r,C) and (M,r)")
    _expect("lora", "a", a.shape, (a.shape[0], x.shape[1]))
    _expect("lora", "b", b.shape, (b.shape[0], a.shape[0]))


def layer_norm(x: Any, w: Any, b: Any, eps: float = 1e-5, round_y: bool = False) -> None:
    """x (N,C), w (C,), b (C,)."""
    if x.ndim != 2:
        raise ValueError(f"layer_norm: x has shape {x.shape}, expected (N,C)")
    _expect("layer_norm", "w", w.shape, x.shape[1:])
    _expect("layer_norm", "b", b.shape, x.shape[1:])


def gelu(x: Any, form: str = "tanh", bias: Any = None) -> None:
    """x (...,C), bias (C,) or None; form tanh or erf."""
    if form not in ("tanh", "erf"):
        raise ValueError(f"gelu: form is {form!r}, expected tanh or erf")
    if bias is not None:
        _expect("gelu", "bias", bias.shape, x.shape[-1:])


def dropout(x: Any, words: Any, rate: float) -> None:
    """x (...,C), words of the same shape or what makes them, rate in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}, expected a number in [0, 1)")
    if not callable(words):
        _expect("dropout", "words", words.shape, x.shape)
    elif hasattr(words, "positions"):
        _expect("dropout", "x", x.shape[:1], words.positions.shape)


def embedding(ids: Any, w: Any) -> None:
    """ids (N,), w (V,C)."""
    if ids.ndim != 1 or w.ndim != 2:
        raise ValueError(f"embedding: ids have shape {ids.shape} and w {w.shape}, expected (N,) "
                         "and (V,C)")


def cross_entropy(z: Any, labels: Any, weights: Any = None, smoothing: float = 0.0,
                  ignore: int = 0) -> None:
    """z (N,K), labels (N,), weights (K,) of at least 0 or None, smoothing from 0 to 1.

    A negative weight would turn the loss around; what is computed then is each library's own.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"cross_entropy: smoothing is {smoothing}, expected a number from 0 to 1")
    if z.ndim != 2:
        raise ValueError(f"cross_entropy: z has shape {z.shape}, expected (N,K)")
    _expect("cross_entropy", "labels", labels.shape, z.shape[:1])
    if weights is not None:
        _expect("cross_entropy", "weights", weights.shape, z.shape[1:])
        # NaN too; of weights on a card the question would wait for the card in every step
        if isinstance(weights, np.ndarray) and not (weights >= 0).all():
            raise ValueError(f"cross_entropy: the smallest weight is {weights.min()}, expected "
                             "weights of at least 0")


def span_cross_entropy(z: Any, cu_seqlens: Any, labels: Any, ignore: int = IGNORE) -> None:
    """z (N,K), cu_seqlens (B+1,) that rise, labels (B,K): tokens of the texts, or `ignore`."""
    if z.ndim != 2:
        raise ValueError(f"span_cross_entropy: z has shape {z.shape}, expected (N,K)")
    edges = np.asarray(cu_seqlens)
    if edges[0] != 0 or edges[-1] != len(z) or (np.diff(edges) < 1).any():
        raise ValueError(f"span_cross_entropy: cu_seqlens ends at {edges[-1]}, z has {len(z)} "
                         "rows; expected edges that rise from 0 to the number of rows")
    _expect("span_cross_entropy", "labels", labels.shape, (len(edges) - 1, z.shape[1]))
    if isinstance(labels, np.ndarray):     # to ask a card would wait for it
        wrong = (labels != ignore) & ((labels < 0) | (labels >= np.diff(edges)[:, None]))
        if wrong.any():
            b, k = np.argwhere(wrong)[0]
            raise ValueError(f"span_cross_entropy: the label {labels[b, k]} of text {b}, which has "
                             f"{edges[b + 1] - edges[b]} tokens")


def attention(q: Any, k: Any, v: Any, cu_seqlens: Any, key_starts: Any, key_lengths: Any,
              causal: bool = True, drop: Any = None, compute_dtype: Any = None) -> None:
    """q (Nq,H,D), k and v (Nk,H,D), cu_seqlens (B+1,), key_starts and key_lengths (B,)."""
    if q.ndim != 3:
        raise ValueError(f"attention: q has shape {q.shape}, expected (Nq,H,D)")
    _expect("attention", "k", k.shape, (*k.shape[:1], *q.shape[1:]))
    _expect("attention", "v", v.shape, k.shape)
    if isinstance(cu_seqlens, Placed):     # checked before they went to the card
        return
    # lists: of some dozens of sequences they are several times as fast as NumPy
    edges, starts, lengths = _list(cu_seqlens), _list(key_starts), _list(key_lengths)
    _expect("attention", "key_starts", (len(starts),), (len(edges) - 1,))
    _expect("attention", "key_lengths", (len(lengths),), (len(edges) - 1,))
    if edges[0] != 0 or edges[-1] != len(q):
        raise ValueError(f"attention: cu_seqlens go from {edges[0]} to {edges[-1]}, expected 0 to "
                         f"{len(q)}, the number of queries")
    for b, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        queries = edges[b + 1] - edges[b]
        if queries < 0:
            raise ValueError(f"attention: cu_seqlens fall from {edges[b]} to {edges[b + 1]}")
        if start < 0 or length < 0 or start + length > len(k):
            raise ValueError(f"attention: the keys of sequence {b} go from {start} to "
                             f"{start + length}, but there are {len(k)}")
        if causal and queries > length:
            raise ValueError(f"sequence {b}: {queries} queries but {length} keys under a causal "
                             "mask")


def _list(a: Any) -> list[int]:
    return a.tolist() if isinstance(a, np.ndarray) else [int(n) for n in a]


def adamw(values: Any, grads: Any, m: Any, v: Any) -> None:
    """Four arrays (P,)."""
    for name, a in (("grads", grads), ("m", m), ("v", v)):
        _expect("adamw", name, a.shape, values.shape)
