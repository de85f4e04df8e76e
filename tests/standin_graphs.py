"""CUDA graphs of the stand-in for CuPy: what a capturing stream is asked for is kept, not done.

As on a card, a replay does what was recorded: kernels with the numbers and addresses that they got,
CuPy's functions on the arrays that they got. Arrays that were made meanwhile hold rubbish before
each replay, since on a card other graphs use their memory. Whatever would wait for the card, bring
an array over or fetch one raises, and so do products by CuPy's own cuBLAS.
"""

import numpy as np

# These wait for the card, or use cuBLAS.
REFUSED = ("argsort", "flatnonzero", "matmul", "tolist")

recording = None     # while a stream captures


class Recording:
    """What is recorded: calls in their order; arrays that live as long, those made meanwhile."""

    def __init__(self):
        self.calls, self.kept, self.made = [], [], []


class Graph:
    """What `end_capture` gives."""

    def __init__(self, recorded, launched):
        self.recorded, self.launched = recorded, launched

    def launch(self, stream=None):
        """Does it all again."""
        assert recording is None
        self.launched("graph")
        for a in self.recorded.made:
            a.view(np.uint8)[...] = 0xff
        for call in self.recorded.calls:
            call()


class Event:
    """Nothing runs beside anything else here, but for copies to pinned memory: they are there when
    an event behind them has been waited for."""

    coming: list = []     # (place, numbers) of those that no event follows yet

    def __init__(self, disable_timing=False):
        self.copies = []

    def record(self):
        """Stands behind all that has been asked for."""
        refuse("an event")
        self.copies, Event.coming = Event.coming, []

    def synchronize(self):
        """Waits for it."""
        for place, numbers in self.copies:
            place[...] = numbers


class Stream:
    """A stream; the last that was entered is the current one."""

    stack: list = []
    launched = staticmethod(lambda name: None)     # how to count a launch

    def __init__(self, non_blocking=False, ptr=1):
        self.ptr = ptr

    def __enter__(self):
        Stream.stack.append(self)
        return self

    def __exit__(self, *error):
        Stream.stack.pop()

    def begin_capture(self):
        """From now on nothing is done."""
        global recording
        assert self.ptr and Stream.stack[-1] is self and MemoryPool.current is not None
        recording = Recording()

    def end_capture(self):
        """-> Graph."""
        global recording
        recorded, recording = recording, None
        return Graph(recorded, self.launched)

    def record(self):
        """-> an event."""
        refuse("an event of another stream")
        return Event()

    def wait_event(self, event):
        """Nothing to wait for."""


Stream.stack.append(Stream(ptr=0))


class MemoryPool:
    """Counts nothing; knows whether it is the one in use."""

    current = None

    def __init__(self, allocator=None):
        self.allocator = allocator

    def malloc(self, size):
        """Nobody calls it: arrays are NumPy's."""
        raise AssertionError

    def total_bytes(self):
        """-> 0."""
        return 0


class using_allocator:     # noqa: N801  CuPy's name
    """Within it arrays would come from there."""

    def __init__(self, allocator):
        self.allocator = allocator

    def __enter__(self):
        MemoryPool.current, self.kept = self.allocator, MemoryPool.current

    def __exit__(self, *error):
        MemoryPool.current = self.kept


def refuse(what):
    """Raises while a stream captures."""
    if recording is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


def later(call, *kept):
    """-> whether a stream captures: then call() is kept for the replay, with what it needs."""
    if recording is None:
        return False
    recording.calls.append(call)
    recording.kept += kept
    return True


def made(call, result):
    """result, which call() gives -> the same; made anew by each replay of what is recorded."""
    if recording is None or not isinstance(result, (np.ndarray, np.generic)):
        return result
    result = np.asarray(result)
    recording.made.append(result)
    recording.calls.append(lambda: np.copyto(result, call()))
    return result
