"""Launches kernels/attention.cu; the same calls as minisft/ops/attention.py, in float32."""

from minisft.backend import random
from minisft.backend.array import Array
from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch import packed

THREADS, WARPS, KEYS, WIDEST = 128, 4, 32, 128


def forward(q: Array, k: Array, v: Array, cu_seqlens: Array, key_starts: Array, key_lengths: Array,
            causal: bool = True,
            drop: tuple[float, random.Scores] | None = None) -> tuple[Array, tuple]:
    """q (Nq,H,D), k and v (Nk,H,D), queries' cu_seqlens (B+1,), keys' (B,) -> y (Nq,H,D), cache.

    Raises ValueError for heads of more than 128 channels.
    """
    if q.shape[-1] > WIDEST:
        raise ValueError(f"heads of {q.shape[-1]} channels, expected at most {WIDEST}")
    at = packed.Packed(q, k, cu_seqlens, key_starts, key_lengths, causal, drop)
    y = at.xp.empty(q.shape, dtype=q.dtype)
    lse = at.xp.empty(q.shape[:2], dtype=q.dtype)
    launch("attention", "attention_forward", at.grid(at.queries, _queries(at.width, 8, 4)),
           (THREADS,), y=y, lse=lse, **_shared(at, q, k, v), defines={"HEAD_WIDTH": at.width})
    return y, (q, k, v, y, lse, at)


def backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
    q, k, v, y, lse, at = cache
    xp = at.xp
    dy = xp.ascontiguousarray(dy)
    dq, delta = xp.empty(q.shape, dtype=dy.dtype), xp.empty_like(lse)
    dk, dv = xp.zeros(k.shape, dtype=dy.dtype), xp.zeros(v.shape, dtype=dy.dtype)
    shared, defines = _shared(at, q, k, v), {"HEAD_WIDTH": at.width}
    launch("attention", "attention_backward_queries",
           at.grid(at.queries, _queries(at.width, 8, 2)), (THREADS,),
           dy=dy, y=y, lse=lse, delta=delta, dq=dq, **shared, defines=defines)
    tiles, heads, _ = at.grid(at.keys, KEYS)
    for first, count in at.rounds():
        launch("attention", "attention_backward_keys", (tiles, heads, count), (THREADS,),
               dy=dy, lse=lse, delta=delta, dk=dk, dv=dv, **shared, first_sequence=first,
               defines=defines)
    return dq, dk, dv


def _queries(width, rows, rows_of_wide_heads):
    """-> the queries of a tile; as attention.cu defines them."""
    return WARPS * (rows if width <= 64 else rows_of_wide_heads)


def _shared(at, q, k, v):
    """-> the arguments that all three kernels take, by name."""
    q, k, v = Rows(q), Rows(k), Rows(v)
    return {"q": q, "k": k, "v": v, "q_stride": q.stride(), "k_stride": k.stride(),
            "v_stride": v.stride(), **at.sequences, "causal": at.causal, "scale": at.scale,
            **at.dropout}
