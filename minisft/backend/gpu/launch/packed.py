"""What both attention launchers need: where sequences lie, and the numbers of their dropout."""

from functools import lru_cache
from math import sqrt

import numpy as np

from minisft.backend import random
from minisft.backend.array import array_module, to_cpu
from minisft.backend.constants import ceil_div


class Packed:
    """Queries and keys of a batch, checked on the CPU; the kernels' arguments that follow from it.

    Raises ValueError as minisft/ops/attention.py does, and for a sequence without keys.
    """

    def __init__(self, q, k, cu_seqlens, key_starts, key_lengths, causal, drop):
        self.xp, (_, self.heads, self.width) = array_module(q), q.shape
        cu_seqlens, self.starts, self.keys = (
            np.asarray(to_cpu(a)).astype(np.int64) for a in (cu_seqlens, key_starts, key_lengths))
        self.queries = np.diff(cu_seqlens)
        for b, (n, m) in enumerate(zip(self.queries, self.keys, strict=True)):
            if causal and n > m:
                raise ValueError(f"sequence {b}: {n} queries but {m} keys under a causal mask")
            if n and not m:
                raise ValueError(f"sequence {b}: {n} queries but no key")
        if len(self.keys) and (cu_seqlens[-1] > len(q) or (self.starts + self.keys).max() > len(k)):
            raise ValueError(f"sequences reach to query {cu_seqlens[-1]} of {len(q)} and key "
                             f"{(self.starts + self.keys).max()} of {len(k)}")
        self.where = [_beside(self.xp, a.astype(np.int32).tobytes())
                      for a in (cu_seqlens, self.starts, self.keys)]
        self.causal, self.scale = int(causal), 1 / sqrt(self.width)
        self.dropout = self._dropout(drop)

    def _dropout(self, drop):
        """-> texts, least word kept, factor, seed, step and site: what score_mask takes."""
        if drop is None:
            return None, 0, 1.0, 0, 0, 0
        rate, words = drop
        example_ids = self.xp.asarray(np.asarray(to_cpu(words.example_ids)).astype(np.uint32))
        stream = words.stream
        return (example_ids, int(rate * 2**32), 1 / (1 - rate), stream.seed & random.WORD,
                stream.step & random.WORD, words.layer << 16 | random.SCORES)

    def grid(self, lengths, numbers_a_block):
        """-> (pieces of the longest, heads, sequences)."""
        return ceil_div(int(lengths.max(initial=0)), numbers_a_block), self.heads, len(lengths)

    def rounds(self):
        """-> (first sequence, how many) of each launch that adds to the keys' gradients.

        Sequences that share a key must come one after another; mostly there are none.
        """
        n = len(self.keys)
        order = np.argsort(self.starts, kind="stable")
        ends = np.maximum.accumulate((self.starts + self.keys)[order])
        if (self.starts[order][1:] < ends[:-1]).any():
            return [(b, 1) for b in range(n)]
        return [(0, n)]


@lru_cache(maxsize=64)
def _beside(xp, numbers):
    """Bytes of int32 -> the array that a kernel reads: every layer of a step asks for the same."""
    return xp.asarray(np.frombuffer(numbers, dtype=np.int32))
