"""The same self-attention for many short texts: texts of like length side by side, on all cores.

Equations (1) to (7) are those of ops/attention.py. A group's texts are filled up to its longest
with zeros, here and nowhere else: a filling key is masked, and a filling query has neither a
reader nor a gradient. One product then serves all texts and heads of the group.
"""

from math import sqrt

import numpy as np

from minisft import rows
from minisft.ops.attention import transpose
from minisft.schedule import by_twin

NUMBERS = 1 << 18     # scores of a group at most: they stay in a core's cache


def forward(q, k, v, cu_seqlens, causal=True, drop=None):
    """q, k, v (N,H,D), cu_seqlens (B+1,) -> y (N,H,D), cache.

    drop: None or (rate, words), where words(sequences, length) gives random words
    (G,H,length,length) of some sequences.
    """
    lengths = np.diff(cu_seqlens)
    groups, scale = groups_of(lengths, q.shape[1]), 1 / sqrt(q.shape[-1])
    y = np.empty_like(q)

    def work(group):
        numbers = group[0]
        s = fill(q, cu_seqlens, group) @ transpose(fill(k, cu_seqlens, group))     # (G,H,T,T)
        p, keep, kept = probabilities(s, numbers, lengths[numbers], scale, causal, drop)
        put(y, kept @ fill(v, cu_seqlens, group), cu_seqlens, numbers)               # (3)
        return p, keep

    return y, (q, k, v, cu_seqlens, drop, groups, rows.each_product(work, groups))


def backward(dy, cache):
    """dy (N,H,D) -> dq, dk, dv (N,H,D)."""
    q, k, v, cu_seqlens, drop, groups, kept = cache
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)

    def work(place):
        group, (p, keep) = groups[place], kept[place]
        dy_g = fill(dy, cu_seqlens, group)                                          # (G,H,T,D)
        put(dv, transpose(dropped(p, keep, drop)) @ dy_g, cu_seqlens, group[0])      # (4)
        ds = scores_back(dy_g @ transpose(fill(v, cu_seqlens, group)), p, keep,
                         1 / sqrt(q.shape[-1]), drop)
        put(dq, ds @ fill(k, cu_seqlens, group), cu_seqlens, group[0])               # (7)
        put(dk, transpose(ds) @ fill(q, cu_seqlens, group), cu_seqlens, group[0])

    rows.each_product(work, range(len(groups)))
    return dq, dk, dv


@by_twin
def probabilities(s, numbers, lengths, scale, causal, drop):
    """s (G,H,T,T) of sequences `numbers` -> p, taking its place, keep (G,H,T,T) or None, p * M."""
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
    keep = None if drop is None else drop[1](numbers, len(steps)) >= np.uint32(
        int(drop[0] * 2**32))
    return p, keep, dropped(p, keep, drop)


@by_twin
def scores_back(dp, p, keep, scale, drop):
    """dp (G,H,T,T) behind the mask, p, keep -> ds, with the `scale` of (7)."""
    dp = dropped(dp, keep, drop)                                                     # (5)
    dp -= (dp * p).sum(axis=-1, keepdims=True)
    dp *= p                                                                          # (6)
    dp *= scale
    return dp


@by_twin
def dropped(x, keep, drop):
    """x (G,H,T,T) * M, with M = 1 / (1 - rate) where `keep`; x itself without dropout."""
    if drop is None:
        return x
    kept = x * keep
    kept *= x.dtype.type(1 / (1 - drop[0]))
    return kept


def groups_of(lengths, heads):
    """Lengths of the sequences (B,) -> for each group its sequences and its longest length.

    At most a fifth of a group's rows is filling.
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


@by_twin
def fill(x, cu_seqlens, group):
    """x (N,H,D) -> its rows of a group (G,H,T,D), zeros after a shorter sequence."""
    numbers, length = group
    filled = np.empty((len(numbers), x.shape[1], length, x.shape[2]), dtype=x.dtype)
    for i, n in enumerate(numbers):
        part = x[cu_seqlens[n]:cu_seqlens[n + 1]]
        filled[i, :, :len(part)] = part.transpose(1, 0, 2)
        filled[i, :, len(part):] = 0
    return filled


@by_twin
def put(x, filled, cu_seqlens, numbers):
    """The other way round: writes the group's rows of x."""
    for i, n in enumerate(numbers):
        part = x[cu_seqlens[n]:cu_seqlens[n + 1]]
        part[...] = filled[i, :, :len(part)].transpose(1, 0, 2)
