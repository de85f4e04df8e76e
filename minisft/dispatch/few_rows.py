"""The linear map of a few rows in float32, as a generated token of each of some texts is.

Equation (1) is that of ops/linear.py; backend/cpu/compiled/matmul_few_rows.py multiplies.
"""

from importlib import import_module
from typing import Any

from minisft import ops
from minisft.backend.constants import ceil_div
from minisft.backend.cpu import processor, row_blocks
from minisft.dispatch.selection import Site

FEWEST, MOST = 2, 16     # one row BLAS multiplies as fast, and many it was made for
# numbers of w: what is smaller stays in a core's cache, and BLAS finds it there
SMALLEST = 1 << 19
# as the loops take w: numbers of a row, or how many columns of a multiple of how many numbers
NARROWEST, FEWEST_COLUMNS, LANES = 384, 12, 16

backward = ops.linear.backward


def forward(x, w, b=None):
    """x (N,C), w (C,M), b (M,) or None -> y (N,M), cache."""
    y = import_module("minisft.backend.cpu.compiled.matmul_few_rows").matmul(x, w)    # (1)
    if b is not None:
        y += b
    return y, (x, w)


def takes(site: Site, arguments: dict[str, Any]) -> str:
    """A condition: a few rows of x, and w large enough, in rows or in columns."""
    x, w = arguments["x"], arguments["w"]
    if not FEWEST <= len(x) <= MOST:
        return f"{len(x)} rows, it takes {FEWEST} to {MOST}"
    if w.size < SMALLEST:
        return f"{w.size:,} weights stay in a core's cache"
    (k, n), (down, right), item = w.shape, w.strides, w.itemsize
    if right == item and down >= n * item and n >= NARROWEST:
        groups, threads = ceil_div(n, NARROWEST), row_blocks.threads()
        return "" if threads <= 2 * groups else (
            f"{groups} groups of columns for {threads} threads, which BLAS shares better")
    if down == item and right >= k * item and n >= FEWEST_COLUMNS and k % LANES == 0:
        return ""
    return (f"w lies neither in rows of at least {NARROWEST} numbers nor in {FEWEST_COLUMNS} or "
            f"more columns of a multiple of {LANES}")


def on_this_processor(site: Site, arguments: dict[str, Any]) -> str:
    """A condition: the processor has the instructions."""
    return processor.why_not_avx512()
