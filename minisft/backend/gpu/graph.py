"""CUDA graphs: what a card is asked to do is recorded once, and asked for again by one call.

A step of some hundred launches of a few microseconds each waits for the CPU, which needs tens of
microseconds for a launch. A recorded step is one launch.

    recorder = Recorder()
    recorder.run(key, work)     # work() as it is; the second time it is recorded; then replayed

What is recorded are launches with the addresses and numbers that they had. So work() asks a card
for nothing but kernels, copies on the card and products by cuBLASLt. It reads what changes from
arrays that stay where they are, writes what it finds into such arrays, and whatever else it depends
on (sizes, numbers of the CPU, addresses) belongs into the key. It must not wait for the card, bring
an array over or fetch one, nor call a product of CuPy's: each of these raises while it is recorded,
a forgotten number does not. tests/standin_cupy.py finds such a number without a card.

MINISFT_CUDA_GRAPHS=off turns recording off.
"""

import gc
import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any

from minisft.backend import array
from minisft.errors import UserError

MOST = 24     # recorded at a time: each needs some memory, and more of them hardly come again
STALE = 8     # times as many runs without it, and a recording gives its place to another


def enabled() -> bool:
    """-> whether work on a card is recorded."""
    value = os.environ.get("MINISFT_CUDA_GRAPHS", "")
    if value not in ("", "off"):
        raise UserError(f"MINISFT_CUDA_GRAPHS is {value!r}, expected off or nothing")
    return array.cupy is not None and not value


class Recorder:
    """Recorded work by its key, with one pool of memory for all of it.

    Replays follow one another, so that all find the memory between their launches in the same
    pool; nobody else gets it. Once a recording has failed, that work is run as it is, and a
    RuntimeWarning says why.
    """

    def __init__(self, most: int = MOST):
        self.most = most
        # None: run already, to be recorded next time; False: it cannot be recorded
        self.graphs: dict[Hashable, Any] = {}
        self.replays = self._runs = 0
        self._last_runs: dict[Hashable, int] = {}     # of each recording
        self._stream: Any = None
        self._pool: Any = None

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Does work(), which may be any time before the current stream needs what it wrote."""
        if not enabled():
            work()
            return
        if self._stream is None:
            cupy = array.cupy
            self._stream = _stream(cupy, threading.get_ident())
            # not of a method: a pool in a circle would keep its memory
            self._pool = cupy.cuda.MemoryPool(partial(_allocate, self.graphs))
        self._runs += 1
        graph = self.graphs.get(key)
        if graph is None and key in self.graphs and self._has_room():
            graph = self._recorded(key, work)
        if graph:
            self._last_runs[key] = self._runs
            graph.launch()
            self.replays += 1
            return
        # compiles and plans what recording must not, and leaves the pool as large as it needs
        with self._aside():
            work()
        self.graphs.setdefault(key, None)

    def _has_room(self):
        """-> whether one more may be recorded, in the place of one that has not come for long."""
        recorded = [key for key, graph in self.graphs.items() if graph]
        if len(recorded) < self.most:
            return True
        oldest = min(recorded, key=self._last_runs.__getitem__)
        if self._runs - self._last_runs[oldest] <= STALE * self.most:
            return False
        self.graphs[oldest] = None
        return True

    def total_bytes(self) -> int:
        """-> bytes of the card that its pool holds."""
        return self._pool.total_bytes() if self._pool is not None else 0

    def _recorded(self, key, work):
        """-> the graph; False where it cannot be recorded."""
        collects = gc.isenabled()
        gc.disable()     # what it would destroy may ask for more than launches
        graph: Any = False
        try:
            with self._aside():
                self._stream.begin_capture()
                try:
                    work()
                except BaseException:     # Ctrl-C, too
                    with suppress(Exception):     # it says that the recording is void
                        self._stream.end_capture()
                    raise
                graph = self._stream.end_capture()
        except Exception as error:
            warnings.warn(f"a step is not recorded as a CUDA graph: {error}", RuntimeWarning,
                          stacklevel=3)
        finally:
            if collects:
                gc.enable()
        if key not in self.graphs:     # the pool had to give its memory back meanwhile
            return False
        self.graphs[key] = graph
        return graph

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within it the card's work goes to the own stream, in order with that of the current one,
        and arrays come from the own pool."""
        cupy = array.cupy
        current = cupy.cuda.get_current_stream()
        self._stream.wait_event(current.record())
        try:
            with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
                yield
        finally:
            current.wait_event(self._stream.record())


@cache     # one for all of a thread: cuBLASLt keeps memory for each stream
def _stream(cupy, thread):
    return cupy.cuda.Stream(non_blocking=True)


def _allocate(graphs, size):
    """What a pool grows by. A pool that gets nothing gives its free blocks back to the card: the
    graphs, which need them, go first."""
    cuda = array.cupy.cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError:
        array.cupy.get_default_memory_pool().free_all_blocks()
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError:
        graphs.clear()
        raise
