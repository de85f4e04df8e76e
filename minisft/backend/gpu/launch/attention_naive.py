"""Launches kernels/attention_naive.cu; the same calls as minisft/ops/attention.py, in float32."""

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array
from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch import packed

THREADS = 128


def forward(q: Array, k: Array, v: Array, cu_seqlens: Array, key_starts: Array, key_lengths: Array,
            causal: bool = True,
            drop: tuple[float, random.Scores] | None = None) -> tuple[Array, tuple]:
    """q (Nq,H,D), k and v (Nk,H,D), queries' cu_seqlens (B+1,), keys' (B,) -> y (Nq,H,D), cache."""
    at = packed.Packed(q, k, cu_seqlens, key_starts, key_lengths, causal, drop)
    sizes = at.heads * at.queries * at.keys
    offsets = at.xp.asarray(np.cumsum(sizes) - sizes)
    p = at.xp.empty(int(sizes.sum()), dtype=q.dtype)
    y = at.xp.empty(q.shape, dtype=q.dtype)
    parts = {**at.sequences, "offsets": offsets, "d": at.width}
    _launch("probabilities", at.grid(at.queries, THREADS), q=Rows(q), k=Rows(k), p=p, **parts,
            q_stride=Rows(q).stride(), k_stride=Rows(k).stride(), causal=at.causal,
            scale=at.scale)
    _launch("output", at.grid(at.queries * at.width, THREADS), p=p, v=Rows(v), y=y, **parts,
            v_stride=Rows(v).stride(), **at.dropout)
    return y, (q, k, v, p, parts, at)


def backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
    q, k, v, p, parts, at = cache
    xp = at.xp
    dy = xp.ascontiguousarray(dy)
    ds, dq = xp.empty_like(p), xp.empty(q.shape, dtype=dy.dtype)
    dk, dv = xp.zeros(k.shape, dtype=dy.dtype), xp.zeros(v.shape, dtype=dy.dtype)
    _launch("score_gradients", at.grid(at.queries, THREADS), dy=dy, v=Rows(v), p=p, ds=ds,
            **parts, v_stride=Rows(v).stride(), **at.dropout)
    _launch("query_gradients", at.grid(at.queries * at.width, THREADS), ds=ds, k=Rows(k),
            dq=dq, **parts, k_stride=Rows(k).stride(), scale=at.scale)
    pieces, heads, _ = at.grid(at.keys * at.width, THREADS)
    for first, count in at.rounds():
        _launch("key_gradients", (pieces, heads, count), ds=ds, p=p, q=Rows(q), dy=dy,
                dk=dk, dv=dv, **parts, q_stride=Rows(q).stride(), scale=at.scale, **at.dropout,
                first_sequence=first)
    return dq, dk, dv


def _launch(name, grid, **arguments):
    launch("attention_naive", f"attention_naive_{name}", grid, (THREADS,), **arguments)
