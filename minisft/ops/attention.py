"""Scaled dot-product attention over packed sequences (Vaswani et al. 2017, eq. 1).

For each sequence and head, with D channels a head:
    (1) S = Q K^T / sqrt(D),   S[i, j] = -inf where j > i + Tk - Tq   (causal)
    (2) P = softmax(S)                          each row sums to one
    (3) Y = (P * M) V                           M: dropout's scaled mask, or 1
    (4) dV = (P * M)^T dY
    (5) dP = (dY V^T) * M
    (6) dS = P * (dP - rowsum(dP * P))          P without M: the softmax never saw the mask
    (7) dQ = dS K / sqrt(D),   dK = dS^T Q / sqrt(D)

The causal mask is aligned to the end: the last query sees every key. So the same operation serves
training (Tq = Tk), a block of which only the last rows are wanted, and one new token against a
cache of past keys. Keys are given by start and length; in a packed batch that is `cu_seqlens`.
"""

from math import sqrt

from minisft.backend.array import array_module
from minisft.ops import dropout, softmax


def forward(q, k, v, cu_seqlens, key_starts, key_lengths, causal=True, drop=None,
            softmax=softmax):
    """q (Nq,H,D), k and v (Nk,H,D), queries' cu_seqlens (B+1,), keys' (B,) -> y (Nq,H,D), cache.

    drop: None or (rate, words) where words(b, tk) gives the random words (H,Tq,Tk) of sequence b.
    softmax: what computes (2). Raises ValueError for more queries than keys under a causal mask.
    """
    xp = array_module(q)
    y = xp.empty(q.shape, dtype=q.dtype)
    kept = []
    for b, (queries, keys) in enumerate(ranges(cu_seqlens, key_starts, key_lengths, causal)):
        p = _probabilities(q[queries], k[keys], causal, softmax)                  # (1), (2)
        m = _mask(drop, b, p)
        y[queries] = merge((p if m is None else p * m) @ split(v[keys]))        # (3)
        kept.append((p, m))
    return y, (q, k, v, cu_seqlens, key_starts, key_lengths, causal, kept)


def backward(dy, cache):
    """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
    q, k, v, cu_seqlens, key_starts, key_lengths, causal, kept = cache
    xp = array_module(dy)
    dq = xp.empty(q.shape, dtype=dy.dtype)
    dk, dv = xp.zeros(k.shape, dtype=dy.dtype), xp.zeros(v.shape, dtype=dy.dtype)
    scale = 1 / sqrt(q.shape[-1])
    for b, (queries, keys) in enumerate(ranges(cu_seqlens, key_starts, key_lengths, causal)):
        p, m = kept[b]                                                            # (H,Tq,Tk)
        dy_b = split(dy[queries])                                                # (H,Tq,D)
        dv[keys] += merge(transpose(p if m is None else p * m) @ dy_b)           # (4)
        dp = dy_b @ transpose(split(v[keys]))
        if m is not None:
            dp *= m                                                               # (5)
        ds = softmax.backward(dp, (p,))                                           # (6)
        dq[queries] = merge(ds @ split(k[keys])) * scale                        # (7)
        dk[keys] += merge(transpose(ds) @ split(q[queries])) * scale
    return dq, dk, dv


def _probabilities(q, k, causal, softmax):
    """q (Tq,H,D), k (Tk,H,D) -> p (H,Tq,Tk)."""
    xp = array_module(q)
    s = split(q) @ transpose(split(k)) * (1 / sqrt(q.shape[-1]))
    if causal and len(q) > 1:     # a single query, the last, sees every key
        i, j = xp.arange(len(q))[:, None], xp.arange(len(k))
        s[:, j > i + len(k) - len(q)] = -xp.inf                                   # (1)
    return softmax.forward(s)[0]                                                  # (2)


def _mask(drop, b, p):
    """-> M (H,Tq,Tk) of sequence b, or None without dropout."""
    if drop is None:
        return None
    rate, words = drop
    return dropout.mask(words(b, p.shape[-1]), rate, p.dtype)


def ranges(cu_seqlens, key_starts, key_lengths, causal):
    """-> for each sequence its rows among the queries and among the keys."""
    cu_seqlens, key_starts, key_lengths = (
        [int(n) for n in a] for a in (cu_seqlens, key_starts, key_lengths))
    for b, (start, length) in enumerate(zip(key_starts, key_lengths, strict=True)):
        queries = slice(cu_seqlens[b], cu_seqlens[b + 1])
        if causal and queries.stop - queries.start > length:
            raise ValueError(f"sequence {b}: {queries.stop - queries.start} queries but "
                             f"{length} keys under a causal mask")
        yield queries, slice(start, start + length)


def split(x):
    """(T,H,D) -> (H,T,D)."""
    return x.transpose(1, 0, 2)


def merge(x):
    """(H,T,D) -> (T,H,D)."""
    return x.transpose(1, 0, 2)


def transpose(x):
    """(...,M,N) -> (...,N,M)."""
    return x.swapaxes(-1, -2)
