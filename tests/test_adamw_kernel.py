"""AdamW's kernel: one launch for all groups has the bits of one for each, and its 16-bit copy."""

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.constants import ceil_div
from minisft.backend.gpu import cuda, emulator
from minisft.backend.gpu.launch import adamw
from minisft.dispatch import rounded
from minisft.nn.parameters import Parameter, Parameters
from minisft.training.optim import AdamW
from tests import standin_cupy

pytestmark = pytest.mark.skipif(emulator.compiler() is None,
                                reason="no C++ compiler to emulate CUDA kernels")
# A thread a number, a launch a group: what the kernel was before.
SIMPLE = """
extern "C" __global__ void simple(float* values, const float* grads, float* m, float* v,
                                  const float* squares, long long n, float scale, float limit,
                                  float shrink, float b1, float rest1, float b2, float rest2,
                                  float m_rate, float v_root, float eps) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float factor = scale;
    if (squares) factor *= fminf(1.0f, limit / (sqrtf(*squares) * scale));
    const float g = grads[i] * factor;
    const float first = b1 * m[i] + rest1 * g;
    const float second = b2 * v[i] + rest2 * (g * g);
    m[i] = first;
    v[i] = second;
    values[i] = values[i] * shrink - m_rate * (first / (sqrtf(second) * v_root + eps));
}
"""
ENDS = 5, 6, 6, 40, 131     # neither multiples of four, nor of a block; an empty one


def groups_of(rng):
    return [(end, float(lr), decay) for end, lr, decay in
            zip(ENDS, rng.uniform(1e-3, 1e-2, len(ENDS)), (0.1, 0.0, 0.1, 0.0, 0.3), strict=True)]


def one_by_one(values, grads, m, v, t, groups, squares, limit, scale):
    b1, b2, start = 0.9, 0.999, 0
    for end, lr, decay in groups:
        part = [np.ascontiguousarray(a[start:end]) for a in (values, grads, m, v)]
        cuda.launch_source(
            SIMPLE, "simple", (ceil_div(end - start, 32),), (32,), squares=squares, n=end - start,
            **dict(zip(("values", "grads", "m", "v"), part, strict=True)), scale=scale,
            limit=limit, shrink=1 - lr * decay, b1=b1, rest1=1 - b1, b2=b2, rest2=1 - b2,
            m_rate=lr / (1 - b1**t), v_root=1 / (1 - b2**t) ** 0.5, eps=1e-8)
        for a, changed in zip((values, grads, m, v), part, strict=True):
            a[start:end] = changed
        start = end


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("dtype", [None, np.uint16, np.float16])
def test_one_launch_has_the_bits_of_one_for_each_group(rng, order, dtype):
    n, groups = ENDS[-1], groups_of(rng)
    values = rng.standard_normal(n, dtype=np.float32)
    buffers = [[values.copy(), np.zeros(n, np.float32), np.zeros(n, np.float32)] for _ in range(2)]
    low = None if dtype is None else np.zeros(n, dtype)
    for t in (1, 2, 3):
        grads = rng.standard_normal(n, dtype=np.float32)
        squares = adamw.squares(grads) if t > 1 else None
        with emulator.thread_order(order, seed=t):
            adamw.step(buffers[0][0], grads, *buffers[0][1:], t, groups, scale=0.5,
                       squares=squares, limit=0.7, low=low)
        one_by_one(buffers[1][0], grads, *buffers[1][1:], t, groups, squares, 0.7, 0.5)
        for ours, simple in zip(*buffers, strict=True):
            assert np.array_equal(ours, simple)
        if dtype is not None:
            assert np.array_equal(low, rounded(buffers[1][0], np.dtype(dtype)))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_step_is_left_out_where_the_gradients_are_not_finite(rng, bad):
    n = ENDS[-1]
    grads, *buffers = (rng.standard_normal(n, dtype=np.float32) for _ in range(4))
    np.square(buffers[2], out=buffers[2])
    before, low = [a.copy() for a in buffers], np.zeros(n, np.uint16)
    grads[7] = bad
    adamw.step(buffers[0], grads, *buffers[1:], 1, groups_of(rng), squares=adamw.squares(grads),
               limit=1.0, low=low)
    assert all(map(np.array_equal, buffers, before)) and not low.any()
    # finite ones are not left out
    grads[7] = 0
    adamw.step(buffers[0], grads, *buffers[1:], 1, groups_of(rng), squares=adamw.squares(grads))
    assert not np.array_equal(buffers[0], before[0])


def test_a_buffer_must_be_aligned(rng):
    odd = rng.standard_normal(9, dtype=np.float32)[1:]
    with pytest.raises(ValueError, match="adamw: grads begins at 0x.*expected a multiple of 16"):
        adamw.step(np.zeros(8, np.float32), odd, *np.zeros((2, 8), np.float32), 1, [(8, 0.1, 0.0)])


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
def test_the_optimizer_keeps_the_copy_of_a_card(rng, monkeypatch, dtype):
    monkeypatch.setattr(array, "cupy", standin_cupy)
    names, whole = [], cuda.launch_source
    monkeypatch.setattr(cuda, "launch_source", lambda text, kernel, *sizes, **given: (
        names.append(kernel), whole(text, kernel, *sizes, **given)))
    store = Parameters([Parameter("w", (7, 5), 0, True), Parameter("b", (5,), 0, False),
                        Parameter("frozen", (3, 3), 1, True)])
    store.values[...] = rng.standard_normal(store.values.shape)
    store.train(lambda p: p.layer == 0)
    store.to_gpu()
    store.set_compute_dtype(np.dtype(dtype))
    copies = store["w"].compute_value, store["b"].compute_value
    frozen = array.to_cpu(store["frozen"].compute_value)
    store.grads[...] = array.to_gpu(rng.standard_normal(store.values.shape, dtype=np.float32))
    names.clear()
    AdamW(store).step(0.1)
    assert names == ["adamw_step"]     # and no other: nothing is rounded again
    for p, copy in zip((store["w"], store["b"]), copies, strict=True):
        assert p.compute_value is copy
        assert np.array_equal(array.to_cpu(copy), rounded(array.to_cpu(p.value), np.dtype(dtype)))
    assert np.array_equal(array.to_cpu(store["frozen"].compute_value), frozen)
