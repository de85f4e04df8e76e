"""Launches kernels/attention_naive.cu; the same calls as minisft/ops/attention.py, in float32."""

import numpy as np

from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch import packed

THREADS = 128


def forward(q, k, v, cu_seqlens, key_starts, key_lengths, causal=True, drop=None):
    """q (Nq,H,D), k and v (Nk,H,D), queries' cu_seqlens (B+1,), keys' (B,) -> y (Nq,H,D), cache."""
    at = packed.Packed(q, k, cu_seqlens, key_starts, key_lengths, causal, drop)
    sizes = at.heads * at.queries * at.keys
    offsets = at.xp.asarray(np.cumsum(sizes) - sizes)
    p = at.xp.empty(int(sizes.sum()), dtype=q.dtype)
    y = at.xp.empty(q.shape, dtype=q.dtype)
    where = *at.where, offsets, at.width
    _launch("probabilities", at.grid(at.queries, THREADS), Rows(q), Rows(k), p, *where,
            Rows(q).stride, Rows(k).stride, at.causal, at.scale)
    _launch("output", at.grid(at.queries * at.width, THREADS), p, Rows(v), y, *where,
            Rows(v).stride, *at.dropout)
    return y, (q, k, v, p, where, at)


def backward(dy, cache):
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
    q, k, v, p, where, at = cache
    xp = at.xp
    dy = xp.ascontiguousarray(dy)
    ds, dq = xp.empty_like(p), xp.empty(q.shape, dtype=dy.dtype)
    dk, dv = xp.zeros(k.shape, dtype=dy.dtype), xp.zeros(v.shape, dtype=dy.dtype)
    _launch("score_gradients", at.grid(at.queries, THREADS), dy, Rows(v), p, ds, *where,
            Rows(v).stride, *at.dropout)
    _launch("query_gradients", at.grid(at.queries * at.width, THREADS), ds, Rows(k), dq, *where,
            Rows(k).stride, at.scale)
    pieces, heads, _ = at.grid(at.keys * at.width, THREADS)
    for first, count in at.rounds():
        _launch("key_gradients", (pieces, heads, count), ds, p, Rows(q), dy, dk, dv, *where,
                Rows(q).stride, at.scale, *at.dropout, first)
    return dq, dk, dv


def _launch(name, grid, *arguments):
    launch("attention_naive", f"attention_naive_{name}", grid, (THREADS,), *arguments)
