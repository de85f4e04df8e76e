"""Launches kernels/column_sums.cu: sums of columns, in float32, always in the same order."""

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

COLUMNS = 32        # of a block
AT_ONCE = 2048      # rows that one launch sums
THREADS = 1024, 256     # of a block with all rows; of one with a piece of them
BLOCKS, LEAST_ROWS = 1024, 64     # of the first of two launches: about so many; rows of each


def column_sums(x: Array, out: Array | None = None, add: bool = False) -> Array:
    """x (N,M) -> its sums over the rows (M,).

    `out` (M,): where they go; with `add` what it holds is added to.
    """
    if out is None:
        out = array_module(x).empty(x.shape[1], dtype=x.dtype)
    into(x, out, None, add)
    return out


def into(x: Array, out: Array, rest: Array | None, add: bool = False) -> None:
    """x (N,M) -> its sums: the first columns' into `out`, the others' into `rest`."""
    xp = array_module(x)
    x, (n, width) = xp.ascontiguousarray(x), x.shape
    groups = ceil_div(width, COLUMNS)
    if n > AT_ONCE:
        rows = max(LEAST_ROWS, ceil_div(n, ceil_div(BLOCKS, groups)))
        parts = xp.empty((ceil_div(n, rows), width), dtype=x.dtype)
        _launch((groups, len(parts)), THREADS[1], x, parts, None, rows, False)
        x = parts
    # two warps for a few rows are enough
    threads = min(THREADS[0], COLUMNS * max(2, ceil_div(len(x), 8)))
    _launch((groups, 1), threads, x, out, rest, max(len(x), 1), add)


def _launch(grid, threads, x, out, rest, rows, add):
    n, width = x.shape
    launch("column_sums", "column_sums", grid, (threads,), x=x, out=out, rest=rest, n=n,
           width=width, split=width if rest is None else out.shape[-1], rows=rows, add=int(add))
