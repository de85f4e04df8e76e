"""Launches kernels/attention.cu; the same calls as minisft/ops/attention.py, in float32."""

from minisft.backend import random
from minisft.backend.array import Array
from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch import packed

THREADS, WIDEST = 64, 128
# rows of a block, of heads of up to 64 channels and of wider ones; as attention.cu defines them
QUERIES, BACKWARD_QUERIES, KEYS = (48, 32), (48, 16), (32, 24)


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
    _launch("forward", at, q, k, v, at.grid(at.queries, QUERIES[at.width > 64]), y, y=y, lse=lse)
    return y, (q, k, v, y, lse, at)


def backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
    q, k, v, y, lse, at = cache
    dy, delta = at.xp.ascontiguousarray(dy), at.xp.empty_like(lse)
    dq, dk, dv = at.gradients(dy.dtype)
    _launch("backward_queries", at, q, k, v, at.grid(at.queries, BACKWARD_QUERIES[at.width > 64]),
            dy, y, dq, dy=dy, y=y, lse=lse, delta=delta, dq=Rows(dq), dq_stride=Rows(dq).stride())
    tiles, heads, _ = at.grid(at.keys, KEYS[at.width > 64])
    for first, count in at.rounds():
        _launch("backward_keys", at, q, k, v, (tiles, heads, count), dy, dk, dv, dy=dy,
                lse=lse, delta=delta, dk=Rows(dk), dv=Rows(dv), dk_stride=Rows(dk).stride(),
                dv_stride=Rows(dv).stride(), first_sequence=first,
                add=int(not at.each_key_once))
    return dq, dk, dv


def _launch(name, at, q, k, v, grid, *in_fours, **arguments):
    """Runs one of the kernels on what all three take, and on `arguments`.

    in_fours: what it reads or writes four numbers at once beside q, k and v.
    """
    inputs = {"q": Rows(q), "k": Rows(k), "v": Rows(v)}
    wide = at.width % 4 == 0 and packed.begin_at_16_bytes(q, k, v, *in_fours)
    launch("attention", f"attention_{name}", grid, (THREADS,),
           defines={"HEAD_WIDTH": at.width, "DROPOUT": int(at.drops), "WIDE": int(wide)},
           **inputs, **{f"{key}_stride": rows.stride() for key, rows in inputs.items()},
           **arguments, **at.sequences, causal=at.causal, scale=at.scale, **at.dropout)
