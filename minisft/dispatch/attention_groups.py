"""The same self-attention for many short texts: texts of like length side by side, on all cores.

Equations (1) to (7) are those of ops/attention.py. A group's texts are padded to its longest with
zeros, here and nowhere else on a CPU: a padding key is masked, and a padding query has neither a
reader nor a gradient. One product then serves all texts and heads of the group.
"""

import sys
from math import sqrt
from types import ModuleType

import numpy as np

from minisft.backend.cpu import row_blocks
from minisft.ops.attention import transpose

NUMBERS = 1 << 18     # scores of a group at most: they stay in a core's cache


class Groups:
    """The operation as `minisft/ops/attention.py` has it, for keys that are the batch's own.

    `parts`: who does what stands between the products: this module in NumPy, or compiled loops,
    `backend/cpu/compiled/attention_groups.py`.
    """

    def __init__(self, parts: ModuleType | None = None):
        self.parts = parts or sys.modules[__name__]

    def forward(self, q, k, v, cu_seqlens, key_starts=None, key_lengths=None, causal=True,
                drop=None):
        """q, k, v (N,H,D), cu_seqlens (B+1,) -> y (N,H,D), cache.

        drop: None or (rate, words), where words.of_groups()(sequences, length) gives random words
        (G,H,length,length) of some sequences.
        """
        parts, drop = self.parts, drop and (drop[0], drop[1].of_groups())
        lengths = np.diff(cu_seqlens)
        groups, scale = groups_of(lengths, q.shape[1]), 1 / sqrt(q.shape[-1])
        y = np.empty_like(q)

        def work(group):
            indices = group[0]
            s = parts.pad(q, cu_seqlens, group) @ transpose(
                parts.pad(k, cu_seqlens, group))                                 # (G,H,T,T)
            p, keep, kept = parts.probabilities(s, indices, lengths[indices], scale, causal, drop)
            parts.unpad(y, kept @ parts.pad(v, cu_seqlens, group), cu_seqlens, indices)   # (3)
            return p, keep

        return y, (q, k, v, cu_seqlens, drop, groups, row_blocks.each_product(work, groups))

    def backward(self, dy, cache):
        """dy (N,H,D) -> dq, dk, dv (N,H,D), side by side in memory where q, k and v are."""
        parts, (q, k, v, cu_seqlens, drop, groups, kept) = self.parts, cache
        dq, dk, dv = (map(np.empty_like, (q, k, v)) if q.flags.c_contiguous else
                      np.empty((len(q), 3, *q.shape[1:]), q.dtype).swapaxes(0, 1))

        def work(place):
            group, (p, keep) = groups[place], kept[place]
            dy_g = parts.pad(dy, cu_seqlens, group)                              # (G,H,T,D)
            parts.unpad(dv, transpose(parts.dropped(p, keep, drop)) @ dy_g, cu_seqlens,
                        group[0])                                                # (4)
            ds = parts.scores_backward(dy_g @ transpose(parts.pad(v, cu_seqlens, group)), p, keep,
                                       1 / sqrt(q.shape[-1]), drop)
            parts.unpad(dq, ds @ parts.pad(k, cu_seqlens, group), cu_seqlens, group[0])   # (7)
            parts.unpad(dk, transpose(ds) @ parts.pad(q, cu_seqlens, group), cu_seqlens, group[0])

        row_blocks.each_product(work, range(len(groups)))
        return dq, dk, dv


def probabilities(s, indices, lengths, scale, causal, drop):
    """s (G,H,T,T) of sequences `indices` -> p, taking its place, keep (G,H,T,T) or None, p * M."""
    s *= scale
    steps = np.arange(s.shape[-1])
    if causal:
        s[..., steps > steps[:, None]] = -np.inf                                     # (1)
    else:
        for i, n in enumerate(lengths):
            s[i, ..., n:] = -np.inf
    s -= s.max(axis=-1, keepdims=True)
    p = np.exp(s, out=s)
    p /= p.sum(axis=-1, keepdims=True)                                               # (2)
    keep = None if drop is None else drop[1](indices, len(steps)) >= np.uint32(
        int(drop[0] * 2**32))
    return p, keep, dropped(p, keep, drop)


def scores_backward(dp, p, keep, scale, drop):
    """dp (G,H,T,T) behind the mask, p, keep -> ds, with the `scale` of (7)."""
    dp = dropped(dp, keep, drop)                                                     # (5)
    dp -= (dp * p).sum(axis=-1, keepdims=True)
    dp *= p                                                                          # (6)
    dp *= scale
    return dp


def dropped(x, keep, drop):
    """x (G,H,T,T) * M, with M = 1 / (1 - rate) where `keep`; x itself without dropout."""
    if drop is None:
        return x
    kept = x * keep
    kept *= x.dtype.type(1 / (1 - drop[0]))
    return kept


def groups_of(lengths, heads):
    """Lengths of the sequences (B,) -> for each group its sequences and its longest length.

    At most a fifth of a group's rows is padding.
    """
    groups = []
    for n in np.argsort(-lengths, kind="stable"):
        length = int(lengths[n])
        if groups and length >= 0.8 * groups[-1][1] and \
                (len(groups[-1][0]) + 1) * heads * groups[-1][1] ** 2 <= NUMBERS:
            groups[-1][0].append(int(n))
        else:
            groups.append(([int(n)], length))
    return groups


def pad(x, cu_seqlens, group):
    """x (N,H,D) -> its rows of a group (G,H,T,D), zeros after a shorter sequence; a view of one."""
    indices, length = group
    if len(indices) == 1:
        return x[cu_seqlens[indices[0]]:cu_seqlens[indices[0] + 1]].transpose(1, 0, 2)[None]
    padded = np.empty((len(indices), x.shape[1], length, x.shape[2]), dtype=x.dtype)
    for i, n in enumerate(indices):
        part = x[cu_seqlens[n]:cu_seqlens[n + 1]]
        padded[i, :, :len(part)] = part.transpose(1, 0, 2)
        padded[i, :, len(part):] = 0
    return padded


def unpad(x, padded, cu_seqlens, indices):
    """The other way round: writes the group's rows of x."""
    for i, n in enumerate(indices):
        part = x[cu_seqlens[n]:cu_seqlens[n + 1]]
        part[...] = padded[i, :, :len(part)].transpose(1, 0, 2)
