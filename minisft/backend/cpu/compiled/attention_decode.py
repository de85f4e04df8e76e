"""Attention of one query of each sequence to the keys in its cache, as compiled loops.

So asks a new token of each text. Equations (1) to (3) are those of ops/attention.py, whose backward
takes the cache. Keys and values are read once, token after token as they lie in memory.
"""

from math import sqrt

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.compiled.exp import ZERO, F
from minisft.backend.cpu.compiled.softmax import exponentials, normalise, shift

THREADED = 1 << 18     # numbers of the keys from which on waking another thread is worth it
AHEAD, LINE = 2, 16    # tokens that are fetched before they are read; float32 numbers of a line

_prefetch = jit.prefetching()


def forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, cu_seqlens: np.ndarray,
            key_starts: np.ndarray, key_lengths: np.ndarray, causal: bool = True,
            drop: None = None) -> tuple[np.ndarray, tuple]:
    """q (B,H,D), k and v (Nk,H,D) each in one piece -> y (B,H,D), cache."""
    _, heads, width = q.shape
    y, ends = np.empty(q.shape, np.float32), np.cumsum(key_lengths, dtype=np.int64)
    p = np.empty(heads * int(ends[-1]), np.float32)
    arrays = np.ascontiguousarray(q), k, v, np.asarray(key_starts, np.int64), ends, p, y
    row_blocks.each(lambda part: _attend(*arrays, F(1 / sqrt(width)), *part),
                    _parts(ends, heads, width))
    kept = [(p[heads * (end - n):heads * end].reshape(heads, 1, n), None)
            for n, end in zip(np.asarray(key_lengths).tolist(), ends.tolist(), strict=True)]
    return y, (q, k, v, cu_seqlens, key_starts, key_lengths, causal, kept)


def _parts(ends, heads, width):
    """-> for each thread (sequences from, to before, heads from, to before)."""
    sequences, keys = len(ends), int(ends[-1])
    threads = row_blocks.threads() if keys * heads * width >= THREADED else 1
    if sequences < threads:
        step = ceil_div(heads, threads)
        return [(0, sequences, h, min(h + step, heads)) for h in range(0, heads, step)]
    # of about as many keys each
    edges = [0, *np.searchsorted(ends, [keys * i // threads for i in range(1, threads)]).tolist(),
             sequences]
    return [(a, b, 0, heads) for a, b in zip(edges[:-1], edges[1:], strict=True) if a < b]


@jit.loop(jit.SUMS)
def _attend(q, k, v, starts, ends, p, y, scale, start, stop, first, last):
    """q, y (B,H,D), k, v (Nk,H,D), p of all sequences (H,T) end to end: sequences from `start` to
    before `stop`, of each the heads from `first` to before `last`."""
    _, heads, width = q.shape
    for b in range(start, stop):
        before = ends[b - 1] if b else 0
        n = ends[b] - before
        kept = p[heads * before:heads * ends[b]].reshape(heads, n)
        ahead = 4 * (starts[b] + AHEAD) * heads * width     # bytes
        next_k, next_v = k.ctypes.data + ahead, v.ctypes.data + ahead
        for j in range(n):
            for h in range(first, last):
                for d in range(0, width, LINE):
                    _prefetch(next_k + 4 * ((j * heads + h) * width + d))
                total = ZERO
                for d in range(width):
                    total += q[b, h, d] * k[starts[b] + j, h, d]
                kept[h, j] = total
        for h in range(first, last):
            shift(kept[h], kept[h], n, scale)                                        # (1)
            exponentials(kept[h])
            normalise(kept[h])                                                       # (2)
            y[b, h] = ZERO
        for j in range(n):
            for h in range(first, last):
                for d in range(0, width, LINE):
                    _prefetch(next_v + 4 * ((j * heads + h) * width + d))
                weight, value, out = kept[h, j], v[starts[b] + j, h], y[b, h]
                for d in range(width):
                    out[d] += weight * value[d]                                      # (3)
