"""Work on rows, block by block: a block stays in a core's cache, and every core takes blocks.

NumPy's functions release the GIL while they compute. The blocks depend on the sizes alone, and sums
over rows are added in the order of the blocks, so the number of threads changes no bit of a result.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from queue import SimpleQueue
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


class _Job:
    """Work that another thread does meanwhile."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Callable[[], None] | None = work
        self.context = copy_context()     # which has np.errstate
        self.error: BaseException | None = None
        self.running = threading.Lock()
        self.running.acquire()

    def run(self) -> None:
        """In the other thread."""
        try:
            self.context.run(self.work)
        except BaseException as error:
            self.error = error
        self.work = None     # who waits may count on the memory of its arrays
        self.running.release()


def _wait(jobs):
    """Until all are done; raises what the first of them has raised."""
    for job in jobs:
        job.running.acquire()
    errors = [job.error for job in jobs if job.error is not None]
    for job in jobs:
        job.error = None
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()     # else it holds this frame, and this frame holds it


class _Workers:
    """Threads that wait for jobs. Those of concurrent.futures take 50 us more for a job, and a
    generated token has some 60 of them."""

    def __init__(self, n: int) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        for i in range(n):
            threading.Thread(target=self._work, name=f"minisft-rows-{i}", daemon=True).start()

    def _work(self):
        _inside.share = True
        while True:
            self.jobs.get().run()


_begun: dict[int, _Workers] = {}
_beginning = threading.Lock()


def _workers(n):
    if n not in _begun:
        with _beginning:     # several threads may be the first
            if n not in _begun:
                _begun[n] = _Workers(n)
    return _begun[n]


def _forget_workers():
    global _beginning
    _begun.clear()
    _beginning = threading.Lock()


def blocks(n: int, row_bytes: int) -> list[slice]:
    """n rows of so many bytes each -> slices of rows, each of about BLOCK bytes."""
    step = max(1, BLOCK // max(row_bytes, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


@cache
def _blas():
    return ThreadpoolController()


class OneBlasThread:
    """Within it BLAS multiplies with one thread, in the whole process.

    Several threads may be within at the same time; the last that leaves lifts the limit.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nobody is within."""
        self._users, self._lock = 0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._limit = _blas().limit(limits=1, user_api="blas")
                self._give_up_control()

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()
                self._give_up_control()

    def _give_up_control(self):
        # else threadpoolctl lets this thread alone set or lift limits
        for library in _blas().lib_controllers:
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread()


one_blas_thread = OneBlasThread()

if hasattr(os, "register_at_fork"):     # a forked process has the pool but not its threads
    os.register_at_fork(after_in_child=_forget_workers)
    os.register_at_fork(after_in_child=one_blas_thread.reset)


@contextmanager
def alone() -> Iterator[None]:
    """Within it this thread does all of its work itself: the others have work of their own."""
    before, _inside.share = is_alone(), True
    try:
        yield
    finally:
        _inside.share = before


def is_alone() -> bool:
    """-> whether this thread does all of its work itself."""
    return getattr(_inside, "share", False)


def each_product(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """As `each`, for work that multiplies matrices: BLAS then gives each product one thread.

    If BLAS spread the products of several threads over the same cores, they would wait for one
    another: attention over texts of 100 tokens takes twice as long. The limit of BLAS counts for
    the whole process.
    """
    if min(threads(), len(items)) < 2 or is_alone():
        return each(work, items)
    with one_blas_thread:
        return each(work, items)


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """work(item) for every item, on all threads -> results in the order of the items."""
    n = min(threads(), len(items))
    if n < 2 or is_alone():     # nested calls could deadlock
        return [work(item) for item in items]
    results: list[Any] = [None] * len(items)
    left = iter(range(len(items)))

    def share():     # whoever is free takes the next: cores are not equally fast at any time
        for i in left:
            results[i] = work(items[i])

    others, jobs = [_Job(share) for _ in range(1, n)], _workers(threads() - 1).jobs
    begun: list[_Job] = []     # Ctrl-C may come before all have
    _inside.share = True
    try:
        for other in others:
            jobs.put(other)
            begun.append(other)
        share()     # soon: a thread that wakes while this one has the GIL sleeps once more
    finally:
        _inside.share = False
        _wait(begun)
    return results
