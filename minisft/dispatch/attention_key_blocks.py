"""The same attention in blocks of keys: memory grows with the length of a text, not its square.

Equations (1) to (7) are those of ops/attention.py. A block of keys J is scored at a time, and the
softmax follows as it goes (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1), for each
query with the largest score so far m, the sum l and the unfinished output a:
    (8)  m' = max(m, max(S_J)),   l' = l exp(m - m') + sum(exp(S_J - m'))
         a' = a exp(m - m') + (exp(S_J - m') * M_J) V_J
    (9)  Y = a / l,   lse = m + log(l)             at the end; lse is all that is kept of the scores
    (10) P_J = exp(S_J - lse)                      the backward scores each block anew
    (11) rowsum(dP * P) = rowsum(dY * Y)           so (6) needs no other block
Each core takes texts, or heads where there are fewer texts than cores.
"""

from math import sqrt

import numpy as np

from minisft.backend.array import array_module
from minisft.backend.constants import ceil_div
from minisft.backend.cpu import row_blocks
from minisft.ops import dropout
from minisft.ops.attention import merge, ranges, split, transpose

KEYS = 128      # keys of a block; its scores fit the cache of a core
SHORT = 256     # texts of so many tokens are cheaper with their scores kept than scored again


def forward(q, k, v, cu_seqlens, key_starts, key_lengths, causal=True, drop=None):
    """As ops/attention.py: q (Nq,H,D), k and v (Nk,H,D) -> y (Nq,H,D), cache.

    drop: None or (rate, words), where words(b, tk, block, queries) gives the random words of
    sequence b for a block of its tk keys and a slice of its queries. Raises ValueError as there.
    """
    xp = array_module(q)
    y = xp.empty_like(q)
    lse = xp.empty(q.shape[:2], dtype=q.dtype)                                       # (Nq,H)

    def attend(part):
        b, queries, keys, heads = part
        q_b, k_b, v_b = (split(x[tokens, heads]) for x, tokens in (
            (q, queries), (k, keys), (v, keys)))                                     # (H,T,D)
        m = xp.full((*q_b.shape[:2], 1), -xp.inf, dtype=q.dtype)
        total, a = xp.zeros_like(m), xp.zeros_like(q_b)
        for rows, block in _blocks(q_b.shape[1], k_b.shape[1], causal):
            s = _scores(q_b, k_b, rows, block, causal)                               # (1)
            highest = xp.maximum(m[:, rows], s.max(axis=-1, keepdims=True))          # (8)
            shrink = xp.exp(m[:, rows] - highest)
            s -= highest
            p = xp.exp(s, out=s)
            total[:, rows] = total[:, rows] * shrink + p.sum(axis=-1, keepdims=True)
            if drop is not None:
                p *= _mask(drop, b, k_b.shape[1], block, rows, p.dtype)
            a[:, rows] = a[:, rows] * shrink + p @ v_b[:, block]
            m[:, rows] = highest
        y[queries, heads] = merge(a / total)                                             # (9)
        lse[queries, heads] = (m + xp.log(total))[..., 0].T

    _each(attend, xp, q.shape[1], cu_seqlens, key_starts, key_lengths, causal, drop)
    return y, (q, k, v, y, lse, cu_seqlens, key_starts, key_lengths, causal, drop)


def backward(dy, cache):
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
    q, k, v, y, lse, cu_seqlens, key_starts, key_lengths, causal, drop = cache
    xp = array_module(dy)
    dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
    scale = 1 / sqrt(q.shape[-1])

    def attend_backward(part):
        b, queries, keys, heads = part
        q_b, k_b, v_b, dy_b, y_b = (split(x[tokens, heads]) for x, tokens in (
            (q, queries), (k, keys), (v, keys), (dy, queries), (y, queries)))
        row_sum = (dy_b * y_b).sum(axis=-1, keepdims=True)                           # (11)
        lse_b, dq_b = lse[queries, heads].T[..., None], xp.zeros_like(q_b)
        for rows, block in _blocks(q_b.shape[1], k_b.shape[1], causal):
            s = _scores(q_b, k_b, rows, block, causal)
            s -= lse_b[:, rows]
            p = xp.exp(s, out=s)                                                     # (10)
            dp = dy_b[:, rows] @ transpose(v_b[:, block])
            kept = p
            if drop is not None:
                mask = _mask(drop, b, k_b.shape[1], block, rows, p.dtype)
                kept, dp = p * mask, dp * mask                                       # (5)
            dv[keys, heads][block] += merge(transpose(kept) @ dy_b[:, rows])         # (4)
            dp -= row_sum[:, rows]
            ds = xp.multiply(p, dp, out=dp)                                          # (6)
            ds *= scale
            dq_b[:, rows] += ds @ k_b[:, block]                                      # (7)
            dk[keys, heads][block] += merge(transpose(ds) @ q_b[:, rows])
        dq[queries, heads] = merge(dq_b)

    _each(attend_backward, xp, q.shape[1], cu_seqlens, key_starts, key_lengths, causal, drop)
    return dq, dk, dv


def _each(work, xp, n_head, cu_seqlens, key_starts, key_lengths, causal, drop):
    """work((sequence, its queries, its keys, heads)) for all, on all cores."""
    found = list(enumerate(ranges(cu_seqlens, key_starts, key_lengths, causal)))
    # the words of a block are drawn for all heads at once
    groups = min(row_blocks.threads(), n_head) if drop is None else 1
    step = n_head if len(found) >= groups else ceil_div(n_head, groups)
    parts = [(b, queries, keys, slice(first, first + step)) for b, (queries, keys) in found
             for first in range(0, n_head, step)]
    if xp is np:
        row_blocks.each_product(work, parts)
    else:
        for part in parts:
            work(part)


def _blocks(tq, tk, causal):
    """-> for each block of keys the queries that see any of it, and the block."""
    for start in range(0, tk, KEYS):
        # the last query sees every key, so key j is seen from query j - (tk - tq) on
        first = max(0, start - (tk - tq)) if causal else 0
        yield slice(first, tq), slice(start, min(start + KEYS, tk))


def _scores(q, k, rows, block, causal):
    """q (H,Tq,D), k (H,Tk,D) -> s (H,rows,block), equation (1)."""
    xp = array_module(q)
    s = q[:, rows] @ transpose(k[:, block])
    s *= 1 / sqrt(q.shape[-1])
    if causal:
        late = k.shape[1] - q.shape[1]
        i = xp.arange(rows.start, min(block.stop - late, rows.stop))[:, None]
        s[:, :len(i)][:, xp.arange(block.start, block.stop) > i + late] = -xp.inf
    return s


def _mask(drop, b, tk, block, rows, dtype):
    rate, words = drop
    return dropout.mask(words(b, tk, block, rows), rate, dtype)
