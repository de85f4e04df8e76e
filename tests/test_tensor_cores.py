"""What a lane holds of tensor cores' products and loads, and copies ahead, on the emulator."""

import numpy as np
import nvrtc
import pytest
from test_emulator import needs_compiler

from minisft.backend.gpu import cuda, emulator
from minisft.backend.gpu.launch import attention_tensor_cores, column_sums
from minisft.dispatch.matmul import rounded
from minisft.verify.kernel_checks import KERNEL_CHECKS

# C (M,8) = A (M,K) @ B (K,8) in 16 bits: a warp a tile of 16 rows.
PRODUCT = """
extern "C" __global__ void product(const float* a, const float* b, float* c, int depth) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4, row = 16 * blockIdx.x + g;
    float sums[4] = {};
    for (int k = 0; k < depth; k += 16) {
        uint32_t left[4], right[2];
        for (int word = 0; word < 4; word++) {
            const float* pair = a + (row + word % 2 * 8) * depth + k + 2 * t + word / 2 * 8;
            left[word] = pack_16_bits(pair[0], pair[1]);
        }
        for (int word = 0; word < 2; word++) {
            const float* pair = b + (k + 2 * t + word * 8) * 8 + g;
            right[word] = pack_16_bits(pair[0], pair[8]);
        }
        mma_16_bits(sums, left, right);
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
        ("pack_16_bits(pair[0], pair[8])", "pack_16_bits(pair[8], pair[0])")]
BFLOAT16, FLOAT16 = {}, {"FLOAT16": 1}
FORMATS = {"bfloat16": BFLOAT16, "float16": FLOAT16, "float16 of sm_75": FLOAT16 | {
    "BEFORE_SM_80": 1}}
# C (16,16) = A (16,16) @ B^T for B (16,16), or @ B, whose pieces come out of shared memory.
LOADED = """
extern "C" __global__ void loaded(const float* a, const float* b, float* c) {
    __shared__ __align__(16) uint16_t tile[16][24];
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 256; i += 32) tile[i / 16][i % 16] = to_bfloat16(b[i]);
    __syncthreads();
    uint32_t left[4], right[4];
    for (int word = 0; word < 4; word++) {
        const float* pair = a + (g + word % 2 * 8) * 16 + 2 * t + word / 2 * 8;
        left[word] = pack_16_bits(pair[0], pair[1]);
    }
    LOAD;
    float sums[2][4] = {};
    mma_16_bits(sums[0], left, {right[0], right[1]});
    mma_16_bits(sums[1], left, {right[2], right[3]});
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            c[(g + i / 2 * 8) * 16 + 8 * n + 2 * t + i % 2] = sums[n][i];
}
"""
LOADS = {"transposed": "load_pieces(right, &tile[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8])",
         "as it is": "load_pieces_turned(right, &tile[lane % 16][lane / 16 * 8])"}
# y[i] = x[n - 1 - i] in pieces of four numbers, by two buffers in turn
COPIES = """
extern "C" __global__ void copies(const float* x, float* y, int n) {
    __shared__ __align__(16) float kept[2][128];
    const int i = threadIdx.x;
    copy_ahead(&kept[0][4 * i], &x[4 * i], 4 * i < n);
    for (int first = 0, now = 0; first < n; first += 128, now ^= 1) {
        copies_wait();
        __syncthreads();
        const int next = first + 128 + 4 * i;
        if (first + 128 < n) copy_ahead(&kept[now ^ 1][4 * i], &x[next < n ? next : 0], next < n);
        for (int j = 0; j < 4; j++)
            if (first + 127 - 4 * i - j < n)
                y[n - 1 - (first + 127 - 4 * i - j)] = kept[now][127 - 4 * i - j];
    }
}
"""


def device():
    """device.cuh alone."""
    return cuda.source("softmax").split('#line 1 "softmax.cu"')[0]


def bfloat16(x):
    """float32 -> rounded to bfloat16, to the nearest, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def error(rng, text, defines=BFLOAT16):
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((32, 48), (48, 8)))
    c = np.full((32, 8), np.nan, np.float32)
    cuda.launch_source(device() + text, "product", (2,), (32,), a=a, b=b, c=c, depth=48,
                       defines=defines)
    if defines is not BFLOAT16:
        return np.abs(c - a.astype(np.float16).astype(np.float64) @ b.astype(np.float16)).max()
    return np.abs(c - bfloat16(a).astype(np.float64) @ bfloat16(b)).max()


@needs_compiler
@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("defines", FORMATS.values(), ids=FORMATS)
def test_a_product_of_fragments(rng, order, defines):
    with emulator.thread_order(order):
        assert error(rng, PRODUCT, defines) < 1e-5


def error_of_loads(rng, which, text):
    a, b = rng.standard_normal((2, 16, 16), dtype=np.float32)
    c = np.full((16, 16), np.nan, np.float32)
    cuda.launch_source(device() + text, "loaded", (1,), (32,), a=a, b=b, c=c)
    right = bfloat16(b).astype(np.float64)
    return np.abs(c - bfloat16(a) @ (right.T if which == "transposed" else right)).max()


@needs_compiler
@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("which", LOADS)
def test_pieces_of_shared_memory(rng, order, which):
    with emulator.thread_order(order):
        assert error_of_loads(rng, which, LOADED.replace("LOAD", LOADS[which])) < 1e-5


@needs_compiler
@pytest.mark.parametrize("which, other", [
    ("transposed", LOADS["as it is"]), ("as it is", LOADS["transposed"]),
    ("transposed", LOADS["transposed"].replace("lane / 16", "lane / 8 % 2", 1)
     .replace("[lane / 8 % 2 * 8]", "[lane / 16 * 8]")),
    ("as it is", LOADS["as it is"].replace("lane % 16", "lane / 16 * 8 + lane % 8")
     .replace("[lane / 16 * 8]", "[lane / 8 % 2 * 8]"))])
def test_wrong_pieces_are_found(rng, which, other):
    assert not error_of_loads(rng, which, LOADED.replace("LOAD", other)) < 1


@needs_compiler
def test_pieces_begin_at_16_bytes(rng):
    text = LOADED.replace("LOAD", LOADS["transposed"]).replace("[16][24]", "[16][20]")
    with pytest.raises(emulator.KernelError, match="does not begin at 16 bytes"):
        error_of_loads(rng, "transposed", text)


def reversed_by_copies(rng, n, text, **defines):
    x, y = rng.standard_normal(n, dtype=np.float32), np.full(n, np.nan, np.float32)
    cuda.launch_source(device() + text, "copies", (1,), (32,), x=x, y=y, n=n, defines=defines)
    return np.array_equal(y, x[::-1])


@needs_compiler
@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("n", [4, 128, 300, 1024])
@pytest.mark.parametrize("older", [0, 1])
def test_copies_arrive_once_they_are_waited_for(rng, order, n, older):
    with emulator.thread_order(order, seed=2):
        assert reversed_by_copies(rng, n, COPIES, BEFORE_SM_80=older)


@needs_compiler
@pytest.mark.parametrize("order", emulator.ORDERS)
def test_a_copy_that_nobody_waits_for_is_found(rng, order):
    text = COPIES.replace("copies_wait();", "")
    with emulator.thread_order(order):
        with pytest.raises(emulator.KernelError, match="returns while copies of it are on their"):
            reversed_by_copies(rng, 300, text)
        with pytest.raises(emulator.KernelError, match="copies on their way that nobody waits for"):
            reversed_by_copies(rng, 128 * 70, text)


@needs_compiler
@pytest.mark.parametrize("fault", [("copies_wait();\n        __syncthreads();",
                                    "__syncthreads(); copies_wait();"), ("__syncthreads();", "")])
def test_what_another_thread_copied_needs_a_barrier_after_its_wait(rng, fault):
    text = COPIES.replace(*fault)
    assert text != COPIES
    assert not reversed_by_copies(rng, 300, text)


@needs_compiler
def test_a_copy_begins_at_16_bytes(rng):
    with pytest.raises(emulator.KernelError, match="no multiple of 16 bytes"):
        reversed_by_copies(rng, 300, COPIES.replace("&x[4 * i]", "&x[4 * i + 1]"))


@needs_compiler
@pytest.mark.parametrize("old, new", MAPS)
def test_a_wrong_fragment_map_is_found(rng, old, new):
    assert old in PRODUCT
    assert not error(rng, PRODUCT.replace(old, new)) < 1


@needs_compiler
def test_a_lane_that_stays_away_is_found(rng):
    with pytest.raises(emulator.KernelError, match=r"device.cuh:\d+: waits for lanes of its warp"):
        error(rng, PRODUCT.replace("mma_16", "if (g < 7) mma_16"))


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
@pytest.mark.parametrize("architecture, defines", [
    ("sm_75", FLOAT16), *((architecture, defines) for architecture in ("sm_80", "sm_90", "sm_120")
                          for defines in (BFLOAT16, FLOAT16))])
def test_the_instructions_compile(architecture, defines):
    for text, name in ((PRODUCT, "product"), (COPIES, "copies")):
        log, _ = nvrtc.compiled(nvrtc.library(), device() + text, "text.cu", architecture, defines)
        assert "warning" not in log and nvrtc.resources(log)[name]["spilled"] == 0


@needs_compiler
def test_columns_in_16_bits_are_summed_in_pairs():
    with pytest.raises(ValueError, match="7 columns in 16 bits, expected an even number"):
        column_sums.column_sums(np.zeros((3, 7), np.uint16))


@needs_compiler
def test_attention_refuses_rows_that_begin_between_16_bytes():
    q, k, v = np.zeros((3, 4, 1, 16), np.uint16)
    where = np.array([0, 4]), np.array([0]), np.array([4])
    attention_tensor_cores.forward(q, k, v, *where)
    beside = np.zeros(4 * 16 + 1, np.uint16)[1:].reshape(4, 1, 16)
    apart = np.lib.stride_tricks.as_strided(np.zeros(80, np.uint16), (4, 1, 16), (40, 32, 2))
    for wrong in (apart, beside):
        for arrays in ((wrong, k, v), (q, wrong, v), (q, k, wrong)):
            with pytest.raises(ValueError, match="begins at no multiple of 16 bytes"):
                attention_tensor_cores.forward(*arrays, *where)


@needs_compiler
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [np.uint16, np.float16])
def test_gradients_in_16_bits_are_those_in_float32_rounded(rng, kind, causal):
    qkv, dy = (rounded(rng.standard_normal(shape, dtype=np.float32), np.dtype(kind))
               for shape in ((70, 3, 2, 16), (70, 2, 16)))
    lengths = np.array([33, 1, 36])
    edges = np.append(0, np.cumsum(lengths))
    _, cache = attention_tensor_cores.forward(*qkv.swapaxes(0, 1), edges, edges[:-1], lengths,
                                              causal)
    plain = attention_tensor_cores.backward(dy, cache)
    low = np.zeros_like(qkv)
    found = attention_tensor_cores.backward(dy, cache, low.swapaxes(0, 1))
    for part, ours, expected in zip(low.swapaxes(0, 1), found, plain, strict=True):
        assert expected.dtype == np.float32 and np.array_equal(ours, part)
        assert np.array_equal(part, rounded(expected, low.dtype))


@needs_compiler
def test_gradients_that_sequences_add_to_are_float32(rng):
    q, k, v = rounded(rng.standard_normal((3, 9, 1, 16), dtype=np.float32), np.dtype(np.uint16))
    for starts, lengths in (([0, 4], [5, 5]), ([0, 4], [4, 4])):     # a shared key, an unused one
        _, cache = attention_tensor_cores.forward(
            q[:8], k, v, np.array([0, 4, 8]), np.array(starts), np.array(lengths))
        with pytest.raises(ValueError, match="several sequences, or to none, are float32"):
            attention_tensor_cores.backward(q[:8], cache, (q[:8].copy(), k.copy(), v.copy()))
        dq, dk, dv = attention_tensor_cores.backward(q[:8], cache)
        assert dk.dtype == dv.dtype == np.float32 and dv.any()


@needs_compiler
@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("name", [name for name in KERNEL_CHECKS if "(float16, 64" in name])
def test_attention_before_sm_80(monkeypatch, order, name):
    """By products over eight numbers, and copies that the threads carry."""
    text = "#define BEFORE_SM_80 1\n" + cuda.source("attention_tensor_cores")
    monkeypatch.setattr(cuda, "source", lambda file: text)
    with emulator.thread_order(order, seed=1):
        for row in KERNEL_CHECKS[name].results(77):
            assert row.error <= row.limit, row
    broken = text.replace("b + half, HERE", "b, HERE")
    assert broken != text
    monkeypatch.setattr(cuda, "source", lambda file: broken)
    assert any(not row.error <= row.limit for row in KERNEL_CHECKS[name].results(77))
