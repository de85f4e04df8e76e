"""Memory that a step gives back is handed to the next step, page faults and zeroing spared.

The C library returns every large array to the system as soon as it is freed, and the system zeroes
each of its pages when it is touched again. Between the steps of a training loop that is work for
nothing: the next step wants the same arrays. GNU's C library can be told to keep them
(mallopt(3)); no formula has to carry buffers, and who holds two results holds two.
"""

import ctypes
from contextlib import contextmanager

# <malloc.h>: what is set, and its value as the C library starts
TRIM_THRESHOLD, MMAP_MAX = -1, -4
DEFAULTS = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}     # never shrink the heap; everything in the heap

_users = 0


@contextmanager
def reused():
    """Inside, freed memory stays with the process; without GNU's C library nothing changes.

    The end of the outermost one gives it back.
    """
    global _users
    libc = _libc()
    _users += 1
    if libc is not None and _users == 1:
        _set(libc, KEEPING)
    try:
        yield
    finally:
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
