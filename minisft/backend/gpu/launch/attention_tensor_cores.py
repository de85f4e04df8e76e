"""Launches kernels/attention_tensor_cores.cu; the calls of minisft/ops/attention.py in 16 bits.

Arrays are bfloat16, which NumPy has no type for (uint16, the upper halves of float32 numbers), or
float16. Gradients come out in float32 or, where asked for, in the same 16 bits.
"""

from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array
from minisft.backend.bfloat16 import from_bfloat16
from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch import packed
from minisft.backend.gpu.launch.bfloat16 import to_bfloat16

THREADS, BLOCK_ROWS, WIDEST = 128, 64, 128


def forward(q: Array, k: Array, v: Array, cu_seqlens: Array, key_starts: Array, key_lengths: Array,
            causal: bool = True,
            drop: tuple[float, random.Scores] | None = None) -> tuple[Array, tuple]:
    """q (Nq,H,D), k and v (Nk,H,D), queries' cu_seqlens (B+1,), keys' (B,) -> y (Nq,H,D), cache.

    Raises ValueError for heads whose channels are no multiple of 16, or more than 128, and for
    rows that do not begin at multiples of 16 bytes.
    """
    if q.shape[-1] % 16 or q.shape[-1] > WIDEST:
        raise ValueError(f"heads of {q.shape[-1]} channels, expected a multiple of 16 up to "
                         f"{WIDEST}")
    at = packed.Packed(q, k, cu_seqlens, key_starts, key_lengths, causal, drop)
    y, lse = at.xp.empty(q.shape, dtype=q.dtype), at.xp.empty(q.shape[:2], dtype=np.float32)
    _launch("forward", at, q, k, v, at.queries, y=_words(y), lse=lse)
    return y, (q, k, v, y, lse, at)


def backward(dy: Array, cache: tuple, out: tuple[Array, Array, Array] | None = None) -> \
        tuple[Array, Array, Array]:
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D) in float32.

    `out`: where they go, in float32 or in the type of q. Raises ValueError for 16 bits where
    sequences share keys, whose gradients are added up.
    """
    q, k, v, y, lse, at = cache
    dy = _words(at.xp.ascontiguousarray(dy))
    delta = at.xp.empty_like(lse)
    dq, dk, dv = at.gradients(np.float32, out)
    if dk.dtype != np.float32 and not at.each_key_once:
        raise ValueError("gradients of keys that belong to several sequences, or to none, are "
                         f"float32, not {dk.dtype}")
    _launch("backward_queries", at, q, k, v, at.queries, dy=dy, y=_words(y), lse=lse,
            delta=delta, **_gradient("dq", dq))
    for first, count in at.rounds():
        _launch("backward_keys", at, q, k, v, at.keys, count, dy=dy, lse=lse, delta=delta,
                **_gradient("dk", dk), **_gradient("dv", dv), first_sequence=first,
                add=int(not at.each_key_once))
    return dq, dk, dv


class _Rounding:
    """The same calls for float32 arrays, which are rounded before the kernel runs."""

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)

    def _rounded(self, x):
        return to_bfloat16(x) if self.dtype == np.uint16 else x.astype(self.dtype)

    def forward(self, q: Array, k: Array, v: Array, *rest: Any) -> tuple[Array, tuple]:
        """As `forward`, in float32."""
        y, cache = forward(*map(self._rounded, (q, k, v)), *rest)
        cache[-1].together = packed.rows_apart(k)     # rounded, they lie apart
        return from_bfloat16(y) if self.dtype == np.uint16 else y.astype(np.float32), cache

    def backward(self, dy: Array, cache: tuple) -> tuple[Array, Array, Array]:
        """As `backward`, in float32."""
        return backward(self._rounded(dy), cache)


IN_BFLOAT16, IN_FLOAT16 = _Rounding(np.uint16), _Rounding(np.float16)


def _words(x):
    """x of 16-bit numbers -> the same bytes as uint16, which kernels declare."""
    return x.view(np.uint16)


def _gradient(name, x):
    """-> the kernels' arguments for a gradient that they write, in float32 or in 16 bits."""
    low = x.dtype != np.float32
    rows = Rows(_words(x) if low else x)
    return {name: None if low else rows, f"{name}_low": rows if low else None,
            f"{name}_stride": rows.stride()}


def _launch(name, at, q, k, v, lengths, sequences=None, **arguments):
    """Runs one of the kernels on what all three take, and on `arguments`."""
    inputs = {"q": Rows(_words(q)), "k": Rows(_words(k)), "v": Rows(_words(v))}
    if not packed.begin_at_16_bytes(q, k, v, *(a for a in (arguments.get("dy"),) if a is not None)):
        raise ValueError("a row of q, k, v or dy begins at no multiple of 16 bytes, which are "
                         "copied at once")
    tiles, heads, whole = at.grid(lengths, BLOCK_ROWS)
    launch("attention_tensor_cores", f"attention_tensor_cores_{name}",
           (heads, tiles, whole if sequences is None else sequences), (THREADS,),
           defines={"HEAD_WIDTH": at.width, "DROPOUT": int(at.drops),
                    "FLOAT16": int(q.dtype == np.float16)},
           **inputs, **{f"{key}_stride": rows.stride() for key, rows in inputs.items()},
           **arguments, **at.sequences, causal=at.causal, scale=at.scale, **at.dropout)
