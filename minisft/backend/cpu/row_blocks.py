"""Work on rows, block by block: a block stays in a core's cache, and every core takes blocks.

NumPy's functions let other threads run while they compute. The blocks follow from the sizes alone,
and what is summed over rows is summed in the order of the blocks: the number of threads changes no
bit of a result.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache

from threadpoolctl import ThreadpoolController

BLOCK = 1 << 17     # bytes of one array in a block; a formula holds some five arrays at once

_inside = threading.local()


@cache
def threads():
    """-> how many threads to use: OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, or all processors."""
    # in the order in which OpenBLAS asks; it takes no more than the processors it may use
    if hasattr(os, "sched_getaffinity"):     # Linux
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if (found := os.environ.get(name, "").split(",")[0].strip()).isdecimal() and int(found):
            return min(int(found), available)
    return available


@cache
def _pool(n):
    return ThreadPoolExecutor(n, thread_name_prefix="minisft-rows")


def blocks(n, row_bytes):
    """n rows of so many bytes each -> slices of rows, each of about BLOCK bytes."""
    step = max(1, BLOCK // max(row_bytes, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


@cache
def _blas():
    return ThreadpoolController()


def each_product(work, items):
    """As `each`, for work that multiplies matrices: BLAS then gives each product one thread.

    Products that several threads ask for and BLAS spreads over the same cores wait for one another:
    attention over texts of 100 tokens takes twice as long. BLAS keeps one number for the whole
    process; threadpoolctl lets one thread of a program set it and leaves the others as they are.
    """
    if min(threads(), len(items)) < 2:
        return each(work, items)
    with _blas().limit(limits=1, user_api="blas"):
        return each(work, items)


def each(work, items):
    """work(item) for every item, on all threads -> results in the order of the items."""
    n = min(threads(), len(items))
    if n < 2 or getattr(_inside, "share", False):     # shares of shares could wait for themselves
        return [work(item) for item in items]
    results = [None] * len(items)

    def share(first):     # every n-th item: blocks of one array take equally long
        _inside.share = True
        try:
            for i in range(first, len(items), n):
                results[i] = work(items[i])
        finally:
            _inside.share = False

    # the context carries np.errstate over to the other threads
    others = [_pool(threads() - 1).submit(copy_context().run, share, first)
              for first in range(1, n)]
    try:
        share(0)
    finally:
        for other in others:
            other.result()
    return results
