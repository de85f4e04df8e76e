"""Batches of few sizes: a step that is recorded for a size serves every batch of that size.

What is missing is filled up with texts of their own, which no other text sees and whose labels do
not count. So loss and denominator are those of the batch alone, and the gradients get zeros added.
"""

from dataclasses import dataclass, replace

import numpy as np

from minisft.backend.constants import IGNORE, ceil_div
from minisft.data.batch import Batch

TOKENS, TEXTS, SHORTEST = 128, 8, 64     # sizes are multiples, the longest text that or its doubles
PARTS = 8     # labelled tokens are rounded up to a multiple of about the tokens over this
PADDING = 2**32 - 1     # example id of what fills up


@dataclass(frozen=True)
class Bucket:
    """A size: tokens and texts; no text is longer than `longest`; so many tokens are `labelled`, or
    0 where that does not matter.
    """

    tokens: int
    texts: int
    longest: int
    labelled: int = 0


def bucket_of(batch: Batch, most: int, counts_labels: bool = False) -> Bucket:
    """Batch, tokens that a text may have at most -> the least size that takes it.

    `counts_labels`: labels are those of tokens, and a model computes for those that have one.
    """
    n, b, longest = len(batch.ids), len(batch.lengths), SHORTEST
    while longest < batch.lengths.max():
        longest *= 2
    longest = min(longest, most)
    tokens, texts = _up(n, TOKENS), _up(b, TEXTS)
    while (tokens, texts) != (n, b):
        if tokens - n < texts - b:     # each text has a token
            tokens += TOKENS
        elif tokens - n > (texts - b) * longest:
            texts += TEXTS
        else:
            break
    return Bucket(tokens, texts, longest, 0 if not counts_labels else min(
        tokens, _up(len(batch.labelled), _up(ceil_div(tokens, PARTS), TOKENS))))


def filled(batch: Batch, bucket: Bucket, labels_of_tokens: bool = False) -> Batch:
    """Batch with labels -> the same with texts behind it, up to that size, and as many `labelled`
    tokens."""
    more, texts = bucket.tokens - len(batch.ids), bucket.texts - len(batch.lengths)
    lengths = np.ones(texts, dtype=np.int64)
    for i in reversed(range(texts)):     # the last takes as much as it may, then the one before
        lengths[i] += min(more - lengths.sum(), bucket.longest - 1)
    labels = np.asarray(batch.labels)
    of_texts = not (labels_of_tokens or bucket.labelled)
    zeros, ends = np.zeros(more, np.int64), np.cumsum(lengths)
    whole = replace(
        batch, ids=_with(batch.ids, zeros),
        positions=_with(batch.positions, np.arange(more) - np.repeat(ends - lengths, lengths)),
        cu_seqlens=_with(batch.cu_seqlens, len(batch.ids) + ends),
        example_ids=_with(batch.example_ids, np.full(texts, PADDING)),
        labels=_with(labels, np.full(texts if of_texts else more, IGNORE)),
        types=None if batch.types is None else _with(batch.types, zeros))
    if bucket.labelled == bucket.tokens:
        vars(whole)["labelled"] = np.arange(bucket.tokens)
    elif bucket.labelled:     # tokens without a label, the last first, stand in for those missing
        without = np.flatnonzero(whole.labels == IGNORE)[::-1]
        vars(whole)["labelled"] = _with(batch.labelled,
                                        without[:bucket.labelled - len(batch.labelled)])
    return whole


def _up(n, step):
    return ceil_div(n, step) * step


def _with(a, more):
    return np.concatenate([a, more])
