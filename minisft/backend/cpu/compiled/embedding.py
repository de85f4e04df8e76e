"""The embedding's backward as a compiled loop: gradients are added where they lie, on all cores.

Equation (2) is that of ops/embedding.py, and so is the order of the sums.
"""

from typing import Any

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, row_blocks

SHARES = 4     # of a thread: some rows have more tokens than others


def backward(dy: np.ndarray, cache: Any, out: np.ndarray | None = None) -> np.ndarray:
    """dy (N,C) -> dw (V,C); with `out` (V,C), dw is added to it."""
    ids, shape = cache
    dw = np.zeros(shape, dy.dtype) if out is None else out
    if not len(dy):
        return dw
    dy, order = np.ascontiguousarray(dy), np.argsort(ids, kind="stable")     # in the tokens' order
    ids = np.asarray(ids)[order]
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1], True])
    step = ceil_div(len(first) - 1, SHARES * row_blocks.threads())
    row_blocks.each(lambda start: _add(dy, order, ids, first[start:start + step + 1], dw),
                    range(0, len(first) - 1, step))
    return dw


@jit.loop()
def _add(dy, order, ids, first, dw):
    """Where rows of one id begin, and the last of them ends."""
    sums = np.empty(dy.shape[1], dy.dtype)
    for i in range(len(first) - 1):
        sums[:] = dy[order[first[i]]]
        for n in order[first[i] + 1:first[i + 1]]:
            row = dy[n]
            for j in range(row.size):
                sums[j] += row[j]
        to = dw[ids[first[i]]]
        for j in range(to.size):
            to[j] += sums[j]                                      # (2)
