"""The emulator itself: right kernels pass in every order, and each planted fault is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisft.backend.gpu import cuda, emulator
from minisft.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
needs_compiler = pytest.mark.skipif(emulator.compiler() is None,
                                    reason="no C++ compiler to emulate CUDA kernels")

# y[i] = x[n - 1 - i]; each thread writes what another reads, so the barrier decides.
REVERSED = """extern "C" __global__ void reversed(const float* x, float* y, int n) {
    __shared__ float kept[256];
    const int i = threadIdx.x;
    if (i < n) kept[i] = x[i];
    __syncthreads();
    if (i < n) y[i] = kept[n - 1 - i];
}
"""
# the warps of a block, one after another, add what lane 0 finds
WARPS = """extern "C" __global__ void lanes(const float* x, float* y, int n) {
    const int lane = threadIdx.x % 32;
    float v = x[threadIdx.x];
    if (lane < n) v += __shfl_xor_sync(MASK, v, 1);
    y[threadIdx.x] = v;
}
"""
THREADS = 70     # two full warps and a part of one


def run(text, kernel, x, threads=THREADS, n=None, **defines):
    y = np.full(threads, np.nan, dtype=np.float32)
    cuda.launch_source(text, kernel, (1,), (threads,), x=x, y=y,
                       n=len(x) if n is None else n, defines=defines)
    return y


@pytest.fixture(params=emulator.ORDERS)
def order(request):
    with emulator.thread_order(request.param, seed=3):
        yield request.param


@pytest.fixture
def x(rng):
    return rng.standard_normal(THREADS, dtype=np.float32)


@needs_compiler
@pytest.mark.parametrize("n", [1, 31, 32, 33, 70])
def test_a_barrier_orders_the_block(x, order, n):
    y = run(REVERSED, "reversed", x[:n])
    assert np.array_equal(y[:n], x[:n][::-1]) and np.isnan(y[n:]).all()


@needs_compiler
def test_lanes_exchange_values(x, order):
    y = run(WARPS, "lanes", x, n=32, MASK="0xffffffffu")
    assert np.array_equal(y, x + x.reshape(-1, 2)[:, ::-1].ravel())
    y = run(WARPS, "lanes", x, n=8, MASK="0x000000ffu")
    shared = np.arange(THREADS) % 32 < 8
    assert np.array_equal(y[~shared], x[~shared]) and (y[shared] != x[shared]).all()


@needs_compiler
def test_a_missing_barrier_is_found(x, order):
    y = run(REVERSED.replace("__syncthreads();", ""), "reversed", x)
    assert not np.array_equal(y, x[::-1])
    assert np.isnan(y).any()     # shared memory holds NaN until it is written


@needs_compiler
@pytest.mark.parametrize("change, message", [
    (("__syncthreads();", "if (i < 32) __syncthreads();"),
     r"reversed: kernel.cu:5: waits at __syncthreads, but other threads have returned; "
     r"block \(0,0,0\), thread \(0,0,0\)"),
    (("__syncthreads();", "if (i < 32) __syncthreads();\nelse __syncthreads();"),
     r"threads of one block wait at different __syncthreads; .*thread \(32,0,0\)"),
    (("const int i = threadIdx.x;", "const int i = threadIdx.x;\nif (i >= n) return;"),
     "waits at __syncthreads, but other threads have returned"),
    (("__syncthreads();", "if (i == 40) __syncwarp();\nelse __syncthreads();"),
     r"waits at __syncthreads, but other threads wait elsewhere"),
], ids=["half", "two places", "return", "warp"])
def test_a_barrier_that_not_all_reach_is_refused(x, order, change, message):
    text = '#line 1 "kernel.cu"\n' + REVERSED.replace(*change)
    with pytest.raises(emulator.KernelError, match=message):
        run(text, "reversed", x[:60])
    # and the next launch is not disturbed
    assert np.array_equal(run(REVERSED, "reversed", x), x[::-1])


@needs_compiler
@pytest.mark.parametrize("mask, message", [
    ("0xffffffffu", "waits for lanes of its warp that never come"),
    ("0x0000000fu", "whose mask leaves it out"),
])
def test_a_shuffle_that_not_all_lanes_reach_is_refused(x, order, mask, message):
    with pytest.raises(emulator.KernelError, match=message):
        run(WARPS, "lanes", x, n=8, MASK=mask)


@needs_compiler
def test_a_shuffle_from_a_lane_outside_gives_no_number(x, order):
    text = WARPS.replace("__shfl_xor_sync(MASK, v, 1)", "__shfl_sync(MASK, v, 9)")
    y = run(text, "lanes", x, n=8, MASK="0x000000ffu")
    assert np.isnan(y[:8]).all()


@needs_compiler
def test_what_does_not_compile_is_told_with_its_line(x):
    text = '#line 1 "kernel.cu"\n' + REVERSED.replace("kept[i] =", "kep[i] =")
    with pytest.raises(emulator.KernelError, match=r"kernel.cu:4:.*kep"):
        run(text, "reversed", x)


def test_without_a_compiler_it_says_so_in_one_line(x, monkeypatch):
    monkeypatch.setattr(emulator, "compiler", lambda: None)
    with pytest.raises(UserError, match="no C.. compiler: expected g.. or clang") as error:
        run(REVERSED + "// not yet compiled", "reversed", x)
    assert "\n" not in str(error.value)


# A fault that leaves the values right, and where the sanitizer must see it.
HIDDEN = {
    "address": ("if (i < n) y[i]", "if (i < n + 1) y[i]", "heap-buffer-overflow"),
    "thread": ("__syncthreads();", "", "data race"),
}


@needs_compiler
@pytest.mark.parametrize("sanitizer", emulator.SANITIZERS)
@pytest.mark.parametrize("planted", [False, True])
def test_sanitizers_see_what_values_hide(sanitizer, planted):
    old, new, report = HIDDEN[sanitizer]
    text = REVERSED.replace(old, new) if planted else REVERSED
    program = f"""
import numpy as np
from minisft.backend.gpu import cuda, emulator
x = np.ones(70, dtype=np.float32)
for order in emulator.ORDERS:
    with emulator.thread_order(order):
        cuda.launch_source({text!r}, "reversed", (2,), (70 + 1,), x=x,
                           y=np.empty_like(x), n=70)
print("done")
"""
    done = sanitized(sanitizer, program)
    found = report in done.stderr
    assert found == planted, done.stderr
    assert planted or (done.returncode == 0 and done.stdout == "done\n"), done.stderr


def sanitized(sanitizer, program):
    """Runs a Python program with its kernels under a sanitizer; skips where there is none."""
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    gcc = shutil.which("gcc")
    found = gcc and subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True,
                                   text=True).stdout.strip()
    if not found or not Path(found).is_absolute():
        pytest.skip(f"no {name} beside gcc")
    environment = os.environ | {
        "LD_PRELOAD": found, "MINISFT_SANITIZER": sanitizer, "CXX": "g++", "PYTHONPATH": str(ROOT),
        "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "report_thread_leaks=0 exitcode=66"}
    return subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT,
                          capture_output=True, text=True)
