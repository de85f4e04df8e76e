"""The one wrapper of the tensor cores: what a lane holds, on the emulator and for NVRTC."""

import numpy as np
import nvrtc
import pytest
from test_emulator import needs_compiler

from minisft.backend.gpu import cuda, emulator

# C (M,8) = A (M,K) @ B (K,8) in bfloat16: a warp a tile of 16 rows.
PRODUCT = """
extern "C" __global__ void product(const float* a, const float* b, float* c, int depth) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4, row = 16 * blockIdx.x + g;
    float sums[4] = {};
    for (int k = 0; k < depth; k += 16) {
        uint32_t left[4], right[2];
        for (int word = 0; word < 4; word++) {
            const float* pair = a + (row + word % 2 * 8) * depth + k + 2 * t + word / 2 * 8;
            left[word] = pack_bfloat16(pair[0], pair[1]);
        }
        for (int word = 0; word < 2; word++) {
            const float* pair = b + (k + 2 * t + word * 8) * 8 + g;
            right[word] = pack_bfloat16(pair[0], pair[8]);
        }
        mma_bfloat16(sums, left, right);
    }
    for (int i = 0; i < 4; i++) c[(row + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}
"""
ROUNDED = """
extern "C" __global__ void rounded(const float* x, float* y, int n) {
    const int i = threadIdx.x;
    if (i < n) y[i] = from_bfloat16(to_bfloat16(x[i]));
}
"""
MAPS = [("threadIdx.x / 4, t = threadIdx.x % 4", "threadIdx.x % 8, t = threadIdx.x / 8"),
        ("word % 2 * 8) * depth", "word / 2 * 8) * depth"),
        ("2 * t + word * 8) * 8 + g", "2 * t + word * 8) * 8 + t"),
        ("pack_bfloat16(pair[0], pair[8])", "pack_bfloat16(pair[8], pair[0])")]


def device():
    """device.cuh alone."""
    return cuda.source("softmax").split('#line 1 "softmax.cu"')[0]


def bfloat16(x):
    """float32 -> rounded to bfloat16, to the nearest, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def error(rng, text):
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((32, 48), (48, 8)))
    c = np.full((32, 8), np.nan, np.float32)
    cuda.launch_source(device() + text, "product", (2,), (32,), a=a, b=b, c=c, depth=48)
    return np.abs(c - bfloat16(a).astype(np.float64) @ bfloat16(b)).max()


@needs_compiler
@pytest.mark.parametrize("order", emulator.ORDERS)
def test_a_product_of_fragments(rng, order):
    with emulator.thread_order(order):
        assert error(rng, PRODUCT) < 1e-5


@needs_compiler
@pytest.mark.parametrize("old, new", MAPS)
def test_a_wrong_fragment_map_is_found(rng, old, new):
    assert old in PRODUCT
    assert not error(rng, PRODUCT.replace(old, new)) < 1


@needs_compiler
def test_a_lane_that_stays_away_is_found(rng):
    with pytest.raises(emulator.KernelError, match=r"device.cuh:\d+: waits for lanes of its warp"):
        error(rng, PRODUCT.replace("mma_bf", "if (g < 7) mma_bf"))


@needs_compiler
def test_rounding_to_bfloat16(rng):
    x = rng.standard_normal(64, dtype=np.float32)
    x[:8] = [0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-16, 3.4e38]
    y = np.zeros_like(x)
    cuda.launch_source(device() + ROUNDED, "rounded", (1,), (64,), x=x, y=y, n=64)
    assert np.array_equal(y, bfloat16(x))
    assert y[4:8].tolist() == [1, 1 + 2**-6, 1 + 2**-7, np.inf]
    x[:] = np.nan
    cuda.launch_source(device() + ROUNDED, "rounded", (1,), (64,), x=x, y=y, n=64)
    assert np.isnan(y).all()


@pytest.mark.skipif(nvrtc.folder() is None, reason="no NVRTC (extra `kernels`)")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_instruction_compiles(architecture):
    log, _ = nvrtc.compiled(nvrtc.library(), device() + PRODUCT, "product.cu", architecture, {})
    assert "warning" not in log and nvrtc.resources(log)["product"]["spilled"] == 0
