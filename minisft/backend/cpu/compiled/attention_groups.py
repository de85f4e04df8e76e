"""What minisft/dispatch/attention_groups.py does between its products, as compiled loops.

The scores of a padding query get probability and gradient zero, and no random words are drawn for
masked scores. One core computes a group, so nothing here uses several threads.
"""

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array
from minisft.backend.cpu import jit
from minisft.backend.cpu.compiled.exp import ZERO, F
from minisft.backend.cpu.compiled.philox import U, philox
from minisft.backend.cpu.compiled.softmax import exponentials, normalise, shift

VECTOR = 16     # a row's words are drawn in whole vectors; those beyond its end are not used

Drop = tuple[float, random.GroupScores] | None     # rate, words


def pad(x: np.ndarray, cu_seqlens: np.ndarray, group: tuple[list[int], int]) -> np.ndarray:
    """x (N,H,D) -> its rows of a group (G,H,T,D), zeros after a shorter sequence; a view of one."""
    indices, length = group
    if len(indices) == 1:
        return x[cu_seqlens[indices[0]]:cu_seqlens[indices[0] + 1]].transpose(1, 0, 2)[None]
    padded = np.empty((len(indices), x.shape[1], length, x.shape[2]), dtype=x.dtype)
    _pad(_in_fours(x), cu_seqlens, np.array(indices), _in_fours(padded))
    return padded


def unpad(x: np.ndarray, padded: np.ndarray, cu_seqlens: np.ndarray, indices: list[int]) -> None:
    """The inverse of `pad`: writes the group's rows of x."""
    _unpad(_in_fours(x), cu_seqlens, _in_fours(padded), np.array(indices))


def _in_fours(x):
    """-> x for loops that only copy: four float32 at once, which no loop knows to lie side by side.
    """
    side_by_side = x.shape[-1] % 4 == 0 and x.strides[-1] == x.itemsize and x.itemsize == 4
    return x.view(np.complex128) if side_by_side else x


def probabilities(s: np.ndarray, indices: list[int], lengths: np.ndarray, scale: float,
                  causal: bool, drop: Drop) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """s (G,H,T,T) -> p, taking its place, keep (G,H,T,T) bool or None, p * M (G,H,T,T)."""
    _softmax(s, lengths, F(scale), causal)
    if drop is None:
        return s, None, s
    rate, words = drop
    keep, kept = np.empty(s.shape, dtype=bool), np.empty_like(s)
    stream = words.stream
    _drop(s, keep, kept, lengths, causal, np.asarray(words.example_ids)[indices].astype(U),
          U(stream.step & random.WORD), U(stream.seed & random.WORD),
          U(words.layer << 16 | random.SCORES), U(int(rate * 2**32)), F(1 / (1 - rate)))
    return s, keep, kept


def dropped(p: np.ndarray, keep: Array,
            drop: Drop) -> np.ndarray:
    """p (G,H,T,T), keep of that shape or None -> p * M (G,H,T,T)."""
    if drop is None:
        return p
    kept = np.empty_like(p)
    _masked(p.ravel(), keep.ravel(), F(1 / (1 - drop[0])), kept.ravel())
    return kept


def scores_backward(dp: np.ndarray, p: np.ndarray, keep: Array, scale: float,
                    drop: Drop) -> np.ndarray:
    """dp (G,H,T,T) behind the mask -> ds, taking its place."""
    width = p.shape[-1]
    rows = dp.reshape(-1, width), p.reshape(-1, width)
    if drop is None:
        _back(*rows, F(scale))
    else:
        _dropped_back(*rows, keep.reshape(-1, width), F(1 / (1 - drop[0])), F(scale))
    return dp


@jit.loop()
def _pad(x, cu_seqlens, indices, padded):
    for g in range(indices.size):
        start = cu_seqlens[indices[g]]
        used = cu_seqlens[indices[g] + 1] - start
        for i in range(used):     # in the order in which x lies in memory
            for h in range(x.shape[1]):
                row, out = x[start + i, h], padded[g, h, i]
                for d in range(out.size):
                    out[d] = row[d]
        padded[g, :, used:] = ZERO


@jit.loop()
def _unpad(x, cu_seqlens, padded, indices):
    for g in range(indices.size):
        start = cu_seqlens[indices[g]]
        for i in range(cu_seqlens[indices[g] + 1] - start):
            for h in range(x.shape[1]):
                row, out = padded[g, h, i], x[start + i, h]
                for d in range(row.size):
                    out[d] = row[d]


@jit.loop()
def _softmax(s, lengths, scale, causal):
    groups, heads, length, _ = s.shape
    for g in range(groups):
        for h in range(heads):
            head, used = s[g, h], min(lengths[g], length)
            for i in range(used):
                shift(head[i], head[i], i + 1 if causal else used, scale)        # (1)
            exponentials(head[:used].reshape(-1))     # of short rows together: whole vectors
            for i in range(used):
                normalise(head[i])                                               # (2)
            head[used:] = ZERO


@jit.loop()
def _drop(p, keep, kept, lengths, causal, example_ids, step, k0, k1, limit, scale):
    groups, heads, length, _ = p.shape
    most = -(-length // (4 * VECTOR)) * VECTOR
    words = np.empty(4 * most, dtype=np.uint32)
    for g in range(groups):
        for h in range(heads):
            for i in range(length):
                n = 0 if i >= lengths[g] else i + 1 if causal else lengths[g]
                needed = -(-n // (4 * VECTOR)) * VECTOR
                for j in range(needed):
                    words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3] = philox(
                        step, example_ids[g], U(i), U(U(h << 20) + U(j)), k0, k1)
                row, into, out = p[g, h, i], keep[g, h, i], kept[g, h, i]
                for j in range(n):
                    into[j] = words[j] >= limit
                    out[j] = row[j] * (scale if words[j] >= limit else ZERO)     # (3)
                into[n:] = False
                out[n:] = ZERO


@jit.loop()
def _masked(p, keep, scale, kept):
    for j in range(p.size):
        kept[j] = p[j] * (scale if keep[j] else ZERO)


@jit.loop(jit.SUMS)
def _back(dp, p, scale):
    for i in range(len(p)):
        up, row = dp[i], p[i]
        total = ZERO
        for j in range(row.size):
            total += up[j] * row[j]
        for j in range(row.size):
            up[j] = row[j] * (up[j] - total) * scale                            # (6)


@jit.loop(jit.SUMS)
def _dropped_back(dp, p, keep, factor, scale):
    for i in range(len(p)):
        up, row, kept = dp[i], p[i], keep[i]
        total = ZERO
        for j in range(row.size):
            up[j] = up[j] * (factor if kept[j] else ZERO)                       # (5)
            total += up[j] * row[j]
        for j in range(row.size):
            up[j] = row[j] * (up[j] - total) * scale                            # (6)
