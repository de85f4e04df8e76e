"""Sums over the rows of a matrix as a compiled loop: each row is read from memory once."""

import numpy as np

from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.compiled.bits import rounded
from minisft.backend.cpu.compiled.exp import ZERO

ROWS = 128     # of a part: sums do not depend on the number of threads


def column_sums(x: np.ndarray, out: np.ndarray | None = None, add: bool = False) -> np.ndarray:
    """x (N,M) float32 -> its sums over the rows (M,); `out` (M,): where they go, or are added."""
    return _into(out, _each_part(_sums, np.ascontiguousarray(x)), add)


def rounded_and_summed(x: np.ndarray, out: np.ndarray, add: bool = False) -> np.ndarray:
    """x (N,M) float32 -> the nearest bfloat16 (N,M) uint16; its sums go to `out` (M,), or are
    added there."""
    x = np.ascontiguousarray(x)
    low = aligned(x.shape, np.uint16)
    _into(out, _each_part(_round_and_sum, x, low), add)
    return low


def _each_part(loop, x, *more):
    starts = range(0, len(x), ROWS)
    parts = np.empty((len(starts), x.shape[1]), np.float32)

    def work(i):
        rows = slice(starts[i], starts[i] + ROWS)
        loop(x[rows], parts[i], *[a[rows] for a in more])

    row_blocks.each(work, range(len(starts)))
    return parts.sum(axis=0)


def _into(out, sums, add):
    if out is None:
        return sums
    out[...] = out + sums if add else sums
    return out


@jit.loop()
def _sums(x, sums):
    sums[:] = ZERO
    for i in range(len(x)):
        row = x[i]
        for j in range(row.size):
            sums[j] += row[j]


@jit.loop()
def _round_and_sum(x, sums, low):
    sums[:] = ZERO
    for i in range(len(x)):
        row, to = x[i], low[i]
        for j in range(row.size):
            sums[j] += row[j]
            to[j] = rounded(row[j])
