"""CUDA kernels without a GPU: the same .cu, compiled for the CPU, one fiber a CUDA thread.

Barriers and shuffles are real: a thread that waits for one that never arrives is an error that
names kernel, line, block and thread. It is slow and meant for checking and learning.
The C++ side is `kernels/emulator/`; `minisft/backend/gpu/cuda.py` decides when it is used.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from minisft.errors import UserError

ORDERS = ("forward", "reverse", "ahead")     # as `Order` in emulator/block.h
MOST_THREADS = 1024
FLAGS = ("-std=c++17", "-O2", "-g1", "-w", "-fPIC", "-shared", "-fvisibility=hidden",
         "-fno-strict-aliasing", "-fno-stack-protector", "-DEMULATOR")
SANITIZERS = ("address", "thread")

_order = ContextVar("order", default=("forward", 0))
_lock = threading.Lock()     # the emulator's threads and blocks are variables of the library


class KernelError(RuntimeError):
    """The emulator stopped a kernel; the message names kernel, file, line, block and thread."""


@contextmanager
def thread_order(name: str, seed: int = 0) -> Iterator[None]:
    """Within it, threads run in this order: forward, reverse, or ahead (a random warp first)."""
    token = _order.set((name, seed))
    try:
        yield
    finally:
        _order.reset(token)


def compiler() -> str | None:
    """-> the C++ compiler, CXX or the first of g++, clang++, c++; None without one."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if path := shutil.which(name):
            return path
    return None


def build(source: str, kernels: Iterable[str], folder: Path,
          defines: dict[str, int]) -> ctypes.CDLL:
    """CUDA source, names of its kernels, folder of the header, {name: number} -> ctypes library.

    Raises UserError without a C++ compiler, KernelError when it refuses the source.
    """
    if (cxx := compiler()) is None:
        raise UserError("no C++ compiler: expected g++ or clang++ (or CXX) to emulate CUDA "
                        "kernels without a GPU")
    text = source + "\n" + "".join(f"EXPORT_KERNEL({name})\n" for name in kernels)
    flags = [*FLAGS, "-include", str(folder / "cuda.h"),
             *(f"-D{name}={value}" for name, value in sorted(defines.items()))]
    if sanitizer := os.environ.get("MINISFT_SANITIZER"):
        if sanitizer not in SANITIZERS:
            raise UserError(f"MINISFT_SANITIZER is {sanitizer!r}, expected one of "
                            f"{', '.join(SANITIZERS)}")
        flags.append(f"-fsanitize={sanitizer}")
    headers = "".join(path.read_text() for path in sorted(folder.glob("*.h")))
    key = hashlib.sha256("\0".join([cxx, *flags, headers, text]).encode()).hexdigest()[:24]
    library = cache_folder() / f"{key}.so"
    if not library.exists():
        _compile([cxx, *flags], text, library)
    return ctypes.CDLL(str(library))


def run(library: ctypes.CDLL, kernel: str, grid: tuple[int, ...], block: tuple[int, ...],
        arguments: list) -> None:
    """Runs a kernel on ctypes values; raises KernelError that says what failed, and where."""
    sizes = (ctypes.c_ulong * 64)()
    expected = list(sizes[:getattr(library, f"emulator_sizes_{kernel}")(sizes)])
    given = [ctypes.sizeof(a) for a in arguments]
    if given != expected:
        raise KernelError(f"{kernel}: arguments of {given} bytes, the kernel has {expected}")
    pointers = (ctypes.c_void_p * max(len(arguments), 1))(*map(ctypes.addressof, arguments))
    message = ctypes.create_string_buffer(512)
    name, seed = _order.get()
    with _lock:
        fine = getattr(library, f"emulator_run_{kernel}")(
            pointers, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
            ORDERS.index(name), ctypes.c_uint64(seed), message)
    if not fine:
        raise KernelError(message.value.decode())


@cache
def cache_folder() -> Path:
    """-> the folder of compiled kernels: MINISFT_CACHE, the user's cache, or a temporary one."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minisft"
    folder = Path(os.environ.get("MINISFT_CACHE") or user) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="minisft-kernels-"))
    return folder


def _compile(command, text, library):
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, output = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text, encoding="utf-8")
        # a preloaded sanitizer is meant for this process, not for the compiler
        plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        done = subprocess.run([*command, "-x", "c++", str(source), "-o", str(output)],
                              capture_output=True, text=True, env=plain)
        if done.returncode:
            raise KernelError(f"the C++ compiler refuses the kernel:\n{done.stderr[:4000]}")
        output.replace(library)     # atomic: another process may compile it, too
