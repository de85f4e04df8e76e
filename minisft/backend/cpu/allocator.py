"""Memory: freed, it is kept for the next step or batch of texts; arrays that begin at a line.

By default the C library returns every large array to the system as soon as it is freed, and the
system zeroes each page when it is touched again. In a training loop this is wasted work, since the
next step needs arrays of the same sizes. mallopt(3) of GNU's C library switches it off; formulas
need no buffers of their own.
"""

import ctypes
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike

LINE = 64     # bytes of a line of the cache

# options of <malloc.h>, and their values when the process starts
TRIM_THRESHOLD, MMAP_MAX = -1, -4
DEFAULTS = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}     # never shrink the heap; everything in the heap

_users, _lock = 0, threading.Lock()     # several threads may predict at once


@contextmanager
def reused() -> Iterator[None]:
    """Within it, freed memory stays in the process; without GNU's C library nothing changes.

    The outermost one returns it to the system at its end.
    """
    global _users
    libc = _libc()
    with _lock:
        _users += 1
        if libc is not None and _users == 1:
            _set(libc, KEEPING)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if libc is not None and _users == 0:
                _set(libc, DEFAULTS)
                libc.malloc_trim(0)


def _libc():
    """-> the process's C library where it has what is needed, or None."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):     # other systems
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None   # musl


def _set(libc, values):
    for option, value in values.items():
        libc.mallopt(option, value)


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """-> an array that begins at a line of the cache.

    A tile whose rows reach over two lines each takes six times as long to load.
    """
    return _from_a_line(np.empty, shape, dtype)


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """-> the same full of zeros, whose pages the system gives when they are touched."""
    return _from_a_line(np.zeros, shape, dtype)


def _from_a_line(make, shape, dtype):
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = make(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start:start + size].view(dtype).reshape(shape)
