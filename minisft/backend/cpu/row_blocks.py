"""Work on rows, block by block: a block stays in a core's cache, and every core takes blocks.

NumPy's functions release the GIL while they compute. The blocks depend on the sizes alone, and sums
over rows are added in the order of the blocks, so the number of threads changes no bit of a result.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

BLOCK = 1 << 17     # bytes of one array in a block; a formula uses about five arrays at once

Item = TypeVar("Item")
Result = TypeVar("Result")

_inside = threading.local()


@cache
def threads() -> int:
    """-> how many threads to use: OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, or all processors."""
    # in the order in which OpenBLAS reads them; it uses at most the available processors
    if hasattr(os, "sched_getaffinity"):     # Linux
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if (value := os.environ.get(name, "").split(",")[0].strip()).isdecimal() and int(value):
            return min(int(value), available)
    return available


@cache
def _pool(n):
    return ThreadPoolExecutor(n, thread_name_prefix="minisft-rows")


if hasattr(os, "register_at_fork"):     # a forked process has the pool but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def blocks(n: int, row_bytes: int) -> list[slice]:
    """n rows of so many bytes each -> slices of rows, each of about BLOCK bytes."""
    step = max(1, BLOCK // max(row_bytes, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


@cache
def _blas():
    return ThreadpoolController()


def each_product(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """As `each`, for work that multiplies matrices: BLAS then gives each product one thread.

    If BLAS spread the products of several threads over the same cores, they would wait for one
    another: attention over texts of 100 tokens takes twice as long. The limit of BLAS counts for
    the whole process.
    """
    if min(threads(), len(items)) < 2:
        return each(work, items)
    with _blas().limit(limits=1, user_api="blas"):
        return each(work, items)


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """work(item) for every item, on all threads -> results in the order of the items."""
    n = min(threads(), len(items))
    if n < 2 or getattr(_inside, "share", False):     # nested calls could deadlock
        return [work(item) for item in items]
    results: list[Any] = [None] * len(items)

    def share(first):     # every n-th item, so that all threads get equal work
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
