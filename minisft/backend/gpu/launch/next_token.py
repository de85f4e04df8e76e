"""Launches kernels/next_token.cu: the most probable token of each row of logits."""

import numpy as np

from minisft.backend.array import Array
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import Rows, launch
from minisft.backend.gpu.launch.packed import begin_at_16_bytes

MOST_THREADS = 1024


def choose(logits: Array, ids: Array, chosen: Array, lengths: Array | None = None,
           capacity: int = 1, unused: Array | None = None) -> None:
    """logits (B,V) -> the first of each row's largest, in ids (B,) and chosen (B,), int32.

    `chosen` is -1 where a logit of the row is not finite. `lengths` (B,) int32 grow by one, up to
    `capacity` - 1. `unused`: of `bits`, the ids that are never chosen.
    """
    rows = Rows(logits)
    launch("next_token", "next_token", (len(logits),),
           (min(MOST_THREADS, 32 * ceil_div(logits.shape[1], 32)),), logits=rows, unused=unused,
           ids=ids, chosen=chosen, lengths=lengths, v=logits.shape[1], stride=rows.stride(),
           capacity=capacity, defines={"WIDE": int(begin_at_16_bytes(logits))})


def bits(ids: Array, size: int) -> np.ndarray:
    """ids below `size` -> words (size/32,) uint32, in which the bits of these ids are set."""
    marked = np.zeros(32 * ceil_div(size, 32), dtype=bool)
    marked[ids] = True
    return np.packbits(marked, bitorder="little").view("<u4").astype(np.uint32)
