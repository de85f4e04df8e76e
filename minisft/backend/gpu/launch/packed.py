"""What all attention launchers need: where sequences lie, and the numbers of their dropout."""

from functools import lru_cache
from math import sqrt
from types import ModuleType
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, address, array_module, to_cpu
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.launch import dropout


class Layout:
    """Where the sequences of a batch lie: the kernels' arguments that follow from it.

    Raises ValueError as minisft/ops/attention.py does, and for a sequence without keys.
    """

    def __init__(self, xp: ModuleType, cu_seqlens: np.ndarray, starts: np.ndarray,
                 keys: np.ndarray, causal: bool):
        self.starts, self.keys, self.queries = starts, keys, np.diff(cu_seqlens)
        for b, (n, m) in enumerate(zip(self.queries.tolist(), keys.tolist(), strict=True)):
            if causal and n > m:
                raise ValueError(f"sequence {b}: {n} queries but {m} keys under a causal mask")
            if n and not m:
                raise ValueError(f"sequence {b}: {n} queries but no key")
        self.last_query = int(cu_seqlens[-1]) if len(keys) else 0
        self.last_key = int((starts + keys).max(initial=0))
        self.sequences = {
            name: xp.asarray(a.astype(np.int32)) for name, a in (
                ("cu_seqlens", cu_seqlens), ("key_starts", starts), ("key_lengths", keys))}
        order = np.argsort(starts, kind="stable")
        ends = np.maximum.accumulate((starts + keys)[order])
        self.shares_keys = bool((starts[order][1:] < ends[:-1]).any())
        self.total_keys = int(keys.sum())
        self.rounds = ([(b, 1) for b in range(len(keys))] if self.shares_keys else
                       [(0, len(keys))])


class Placed:
    """Whole numbers of B sequences, or their edges (B+1,), that a card alone has, int32: recorded
    launches find other sequences there each time.

    `total`: of all tokens. `longest`: no sequence has more of them.
    """

    def __init__(self, there: Array, total: int, longest: int):
        self.there, self.total, self.longest = there, total, longest

    def __len__(self) -> int:
        return len(self.there)


class PlacedLayout:
    """As `Layout`, of sequences of which each token is a key once."""

    shares_keys = False

    def __init__(self, cu_seqlens: Placed, starts: Placed, keys: Placed):
        self.queries, self.keys = cu_seqlens, keys
        self.last_query = cu_seqlens.total
        self.last_key = self.total_keys = keys.total
        self.sequences = {"cu_seqlens": cu_seqlens.there, "key_starts": starts.there,
                          "key_lengths": keys.there}
        self.rounds = [(0, len(keys))]


class Packed:
    """Queries and keys of a batch, checked on the CPU; the kernels' arguments that follow from it.

    Raises ValueError as `Layout`, and for sequences that reach beyond q or k.
    """

    def __init__(self, q: Array, k: Array, cu_seqlens: Array, key_starts: Array,
                 key_lengths: Array, causal: bool, drop: tuple[float, random.Scores] | None):
        self.xp, (self.n_queries, self.heads, self.width) = array_module(q), q.shape
        self.n_keys, self.together = len(k), rows_apart(k)
        at = (PlacedLayout(cu_seqlens, key_starts, key_lengths) if isinstance(cu_seqlens, Placed)
              else _layout(self.xp, *map(_bytes, (cu_seqlens, key_starts, key_lengths)),
                           bool(causal)))
        if at.last_query > len(q) or at.last_key > len(k):
            raise ValueError(f"sequences reach to query {at.last_query} of {len(q)} and key "
                             f"{at.last_key} of {len(k)}")
        self.layout, self.queries, self.keys = at, at.queries, at.keys
        self.sequences = at.sequences
        self.causal, self.scale = int(causal), 1 / sqrt(self.width)
        self.drops = drop is not None
        self.dropout = self._dropout(drop)

    def _dropout(self, drop):
        """-> what ScoreDropout of kernels/device.cuh holds, by name."""
        if drop is None:
            return {"example_ids": None, "threshold": 0, "keep": 1.0, "seed": 0, "step": None,
                    "site": 0, "from_start": 0}
        rate, words = drop
        ids = words.example_ids
        return {"example_ids": (ids.there.view(np.uint32) if isinstance(ids, Placed) else
                                _words(self.xp, _bytes(ids))),
                "threshold": int(rate * 2**32), "keep": 1 / (1 - rate),
                "seed": words.stream.seed & random.WORD,
                "step": dropout.step_of(self.xp, words.stream),
                "site": words.layer << 16 | random.SCORES, "from_start": int(words.from_start)}

    def grid(self, lengths: Any, numbers_a_block: int) -> tuple[int, int, int]:
        """-> (pieces of the longest, heads, sequences); lengths (B,), or Placed."""
        longest, n = ((lengths.longest, len(self.keys)) if isinstance(lengths, Placed) else
                      (int(lengths.max(initial=0)), len(lengths)))
        return ceil_div(longest, numbers_a_block), self.heads, n

    @property
    def each_key_once(self) -> bool:
        """Whether each key belongs to one sequence: then its gradients need no zeros before."""
        return not self.layout.shares_keys and self.layout.total_keys == self.n_keys

    def gradients(self, dtype: Any, out: Any = None) -> tuple[Array, Array, Array]:
        """-> dq (Nq,H,D), dk and dv (Nk,H,D), where the kernels are to write.

        They lie side by side as q, k and v do, or k and v, where one product made these. dk and dv
        are zero where kernels add to them. `out`: those to take.
        """
        heads, xp = (self.heads, self.width), self.xp
        if out is not None:
            dq, dk, dv = out
        elif self.together == 3 and self.n_queries == self.n_keys:
            dq, dk, dv = xp.empty((self.n_keys, 3, *heads), dtype=dtype).swapaxes(0, 1)
        else:
            dq = xp.empty((self.n_queries, *heads), dtype=dtype)
            dk, dv = (xp.empty((self.n_keys, 2, *heads), dtype=dtype).swapaxes(0, 1)
                      if self.together == 2 else
                      (xp.empty((self.n_keys, *heads), dtype=dtype) for _ in range(2)))
        if not self.each_key_once:
            dk[...] = dv[...] = 0
        return dq, dk, dv

    def rounds(self) -> list[tuple[int, int]]:
        """-> (first sequence, how many) of each launch for the keys' gradients.

        Sequences that share a key get a launch each; usually no two do.
        """
        return self.layout.rounds


def rows_apart(x: Array) -> int:
    """x (N,H,D) -> how many times its own length lies between two rows: 3 for k of (N,3,H,D)."""
    _, heads, width = x.shape
    return x.strides[0] // (heads * width * x.itemsize)


def begin_at_16_bytes(*arrays: Array) -> bool:
    """Whether all rows of the arrays do, so that kernels may load as much at once."""
    return all(address(a) % 16 == 0 and (len(a) == 1 or a.strides[0] % 16 == 0) for a in arrays)


def _bytes(a: Any) -> bytes:
    """Whole numbers on either side -> the bytes of the same as int64."""
    return np.asarray(to_cpu(a) if not isinstance(a, np.ndarray) else a, dtype=np.int64).tobytes()


# All layers of a step attend over the same sequences: what is made of them is made once, and the
# device gets it once.

@lru_cache(maxsize=64)
def _layout(xp, cu_seqlens, starts, keys, causal):
    """-> Layout of the bytes of three int64 arrays."""
    return Layout(xp, *(np.frombuffer(a, dtype=np.int64) for a in (cu_seqlens, starts, keys)),
                  causal)


@lru_cache(maxsize=64)
def _words(xp, numbers):
    """Bytes of int64 -> their lower halves, uint32 on the device."""
    return xp.asarray(np.frombuffer(numbers, dtype=np.int64).astype(np.uint32))
