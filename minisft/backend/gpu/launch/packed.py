"""What all attention launchers need: where sequences lie, and the numbers of their dropout."""

from functools import lru_cache
from math import sqrt

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, array_module, to_cpu
from minisft.backend.constants import ceil_div


class Packed:
    """Queries and keys of a batch, checked on the CPU; the kernels' arguments that follow from it.

    Raises ValueError as minisft/ops/attention.py does, and for a sequence without keys.
    """

    def __init__(self, q: Array, k: Array, cu_seqlens: Array, key_starts: Array,
                 key_lengths: Array, causal: bool, drop: tuple[float, random.Scores] | None):
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
        self.sequences = {
            name: _int32_array(self.xp, a.astype(np.int32).tobytes()) for name, a in (
                ("cu_seqlens", cu_seqlens), ("key_starts", self.starts),
                ("key_lengths", self.keys))}
        self.causal, self.scale = int(causal), 1 / sqrt(self.width)
        self.dropout = self._dropout(drop)

    def _dropout(self, drop):
        """-> what ScoreDropout of kernels/device.cuh holds, by name."""
        if drop is None:
            return {"example_ids": None, "threshold": 0, "keep": 1.0, "seed": 0, "step": 0,
                    "site": 0}
        rate, words = drop
        example_ids = self.xp.asarray(np.asarray(to_cpu(words.example_ids)).astype(np.uint32))
        stream = words.stream
        return {"example_ids": example_ids, "threshold": int(rate * 2**32),
                "keep": 1 / (1 - rate), "seed": stream.seed & random.WORD,
                "step": stream.step & random.WORD, "site": words.layer << 16 | random.SCORES}

    def grid(self, lengths: np.ndarray, numbers_a_block: int) -> tuple[int, int, int]:
        """-> (pieces of the longest, heads, sequences)."""
        return ceil_div(int(lengths.max(initial=0)), numbers_a_block), self.heads, len(lengths)

    def rounds(self) -> list[tuple[int, int]]:
        """-> (first sequence, how many) of each launch that adds to the keys' gradients.

        Sequences that share a key get a launch each; usually no two do.
        """
        n = len(self.keys)
        order = np.argsort(self.starts, kind="stable")
        ends = np.maximum.accumulate((self.starts + self.keys)[order])
        if (self.starts[order][1:] < ends[:-1]).any():
            return [(b, 1) for b in range(n)]
        return [(0, n)]


@lru_cache(maxsize=64)
def _int32_array(xp, numbers):
    """Bytes of int32 -> the array on the device, cached: all layers of a step need the same."""
    return xp.asarray(np.frombuffer(numbers, dtype=np.int32))
