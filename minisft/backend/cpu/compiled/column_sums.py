"""Sums over the rows of a matrix as a compiled loop: each row is read from memory once."""

import numpy as np

from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.compiled.exp import ZERO

ROWS = 128     # of a part: sums do not depend on the number of threads


def column_sums(x: np.ndarray, out: np.ndarray | None = None, add: bool = False) -> np.ndarray:
    """x (N,M) float32 -> its sums over the rows (M,); `out` (M,): where they go, or are added."""
    x = np.ascontiguousarray(x)
    starts = range(0, len(x), ROWS)
    parts = np.empty((len(starts), x.shape[1]), np.float32)
    row_blocks.each(lambda i: _sums(x[starts[i]:starts[i] + ROWS], parts[i]), range(len(starts)))
    sums = parts.sum(axis=0)
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
