"""Freed memory stays with the process inside `memory.reused()`, and only there."""

import subprocess
import sys

import pytest

from minisft.backend.cpu import allocator

resource = pytest.importorskip("resource", reason="page faults are counted on Unix only")

# Arrays below 4 MB, for which NumPy asks for no huge pages, made and dropped as a step does.
COUNT = """
import resource
import numpy as np
from minisft.backend.cpu import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        held = [np.ones(3 * 2**20, dtype=np.uint8) for _ in range(3)]
        assert all(a.sum(dtype=int) == a.size for a in held)
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = faults()
with allocator.reused():
    with allocator.reused():
        faults()
    inside = faults()     # the inner end has not given anything back
print(outside, inside)
"""


def printed(code):
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(n) for n in found.stdout.split()]


needs_glibc = pytest.mark.skipif(allocator._libc() is None, reason="this C library has no mallopt")


@needs_glibc
def test_a_loop_inside_touches_the_same_pages_again():
    outside, inside = printed(COUNT)
    assert inside < outside / 10


@needs_glibc
def test_the_end_of_the_outermost_gives_the_memory_back():
    inside, after = printed(
        "import numpy as np\nfrom minisft.backend.cpu import allocator\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "before = held()\n"
        "with allocator.reused():\n"
        "    a = np.ones(2**27, dtype=np.uint8); del a\n"
        "    print(held() - before)\n"
        "print(held() - before)\n")
    assert inside > 2**26 > 4 * after


def test_without_such_a_library_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator, "_libc", lambda: None)
    with allocator.reused(), allocator.reused():
        assert allocator._users == 2
    assert allocator._users == 0
