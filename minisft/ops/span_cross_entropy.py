"""Where an answer begins and ends: cross-entropy over the tokens of each text.

A packed batch of texts has K scores a token (K = 2: begins here, ends here). For text b with tokens
T_b and column k, y the token that is right:
    (1) p[t,k] = exp(z[t,k] - m[b,k]) / e[b,k]     over the tokens t of T_b,
        m[b,k] = max over T_b of z[t,k],   e[b,k] = sum over T_b of exp(z[t,k] - m[b,k])
    (2) loss = - sum over b, k of log p[y[b,k],k],   denominator = how many y there are
    (3) dz[t,k] = p[t,k] - [t = y[b,k]]

It is the softmax of the classes with tokens for classes, whose number differs from text to text:
no token of another text and no padding takes part. A column of a text whose y is `ignore` adds
nothing. Devlin et al. 2019, section 4.2.
"""

import numpy as np

from minisft.backend.array import array_module
from minisft.backend.constants import IGNORE


def forward(z, cu_seqlens, labels, ignore=IGNORE):
    """z (N,K), cu_seqlens (B+1,) on the CPU, labels (B,K): tokens counted from the text's first
    -> (loss, denominator), cache."""
    xp = array_module(z)
    starts, lengths = np.asarray(cu_seqlens[:-1]), np.diff(cu_seqlens)
    text = xp.asarray(np.repeat(np.arange(len(lengths)), lengths))              # (N,)
    m = xp.full((len(lengths), z.shape[1]), -np.inf, dtype=z.dtype)
    xp.maximum.at(m, text, z)
    p = xp.exp(z - m[text])
    e = xp.add.reduceat(p, xp.asarray(starts), axis=0)                          # (B,K)
    p /= e[text]                                                                # (1)
    counted = labels != ignore
    columns = xp.arange(z.shape[1])[None]
    y = xp.where(counted, labels, 0) + xp.asarray(starts)[:, None]              # row of z
    logp = z[y, columns] - m - xp.log(e)
    loss = -xp.where(counted, logp, 0).sum()                                    # (2)
    return (loss, counted.sum()), (p, y, counted, text)


def backward(dloss, cache):
    """dloss () -> dz (N,K)."""
    p, y, counted, text = cache
    xp = array_module(p)
    dloss = xp.asarray(dloss, dtype=p.dtype)     # a float64 scalar would widen the result
    dz = xp.where(counted[text], p, 0) * dloss
    dz[y, xp.arange(p.shape[1])[None]] -= xp.where(counted, dloss, 0)           # (3)
    return dz
