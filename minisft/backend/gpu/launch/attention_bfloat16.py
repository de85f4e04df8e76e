"""Launches kernels/attention_bfloat16.cu; the calls of minisft/ops/attention.py on bfloat16.

NumPy has no bfloat16: arrays are uint16, the upper halves of float32 numbers. Gradients come out in
float32.
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

    Raises ValueError for heads whose channels are no multiple of 16, or more than 128.
    """
    if q.shape[-1] % 16 or q.shape[-1] > WIDEST:
        raise ValueError(f"heads of {q.shape[-1]} channels, expected a multiple of 16 up to "
                         f"{WIDEST}")
    at = packed.Packed(q, k, cu_seqlens, key_starts, key_lengths, causal, drop)
    y, lse = at.xp.empty(q.shape, dtype=q.dtype), at.xp.empty(q.shape[:2], dtype=np.float32)
    launch("attention_bfloat16", "attention_bfloat16_forward", at.grid(at.queries, BLOCK_ROWS),
           (THREADS,), y=y, lse=lse, **_shared(at, q, k, v), defines={"HEAD_WIDTH": at.width})
    return y, (q, k, v, y, lse, at)


def backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D) in float32."""
    q, k, v, y, lse, at = cache
    dy = at.xp.ascontiguousarray(dy)
    dq, delta = at.xp.empty(q.shape, dtype=np.float32), at.xp.empty_like(lse)
    dk, dv = (at.xp.zeros(k.shape, dtype=np.float32) for _ in range(2))
    shared, defines = _shared(at, q, k, v), {"HEAD_WIDTH": at.width}
    launch("attention_bfloat16", "attention_bfloat16_backward_queries",
           at.grid(at.queries, BLOCK_ROWS), (THREADS,), dy=dy, y=y, lse=lse, delta=delta, dq=dq,
           **shared, defines=defines)
    tiles, heads, _ = at.grid(at.keys, BLOCK_ROWS)
    for first, count in at.rounds():
        launch("attention_bfloat16", "attention_bfloat16_backward_keys", (tiles, heads, count),
               (THREADS,), dy=dy, lse=lse, delta=delta, dk=dk, dv=dv, **shared,
               first_sequence=first, defines=defines)
    return dq, dk, dv


class Rounding:
    """The same calls for float32 arrays, which are rounded before the kernel runs."""

    @staticmethod
    def forward(q: Array, k: Array, v: Array, *rest: Any) -> tuple[Array, tuple]:
        """As `forward`, in float32."""
        y, cache = forward(*map(to_bfloat16, (q, k, v)), *rest)
        return from_bfloat16(y), cache

    @staticmethod
    def backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:
        """As `backward`, in float32."""
        return backward(to_bfloat16(dy), cache)


def _shared(at, q, k, v):
    """-> the arguments that all three kernels take, by name."""
    inputs = {"q": Rows(q), "k": Rows(k), "v": Rows(v)}
    strides = {f"{name}_stride": rows.stride() for name, rows in inputs.items()}
    if any(stride % 2 for stride in strides.values()):     # two numbers are loaded at once
        raise ValueError(f"rows {list(strides.values())} numbers apart, expected even distances")
    return {**inputs, **strides, **at.sequences, "causal": at.causal, "scale": at.scale,
            **at.dropout}
