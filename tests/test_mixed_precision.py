"""Products in 16 bits: what is rounded, what is not, and that cuBLAS would be asked rightly."""

import numpy as np
import pytest

from minisft.backend import array, bfloat16
from minisft.backend.constants import IGNORE
from minisft.backend.gpu import cuda
from minisft.data.batch import pack
from minisft.dispatch import linear as dispatch_linear
from minisft.dispatch import matmul, mixed_precision
from minisft.dispatch.matmul import FLOAT16, FORMATS, rounded, widened
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.ops import linear
from tests import standin_cupy

HALVES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}     # relative error of rounding


@pytest.fixture(autouse=True)
def no_kernels():
    with cuda.kernels("off"):
        yield


def nearest_bfloat16(x):
    """One number -> the nearest of the two bfloat16 around it, by trying both."""
    bits = int(np.float32(x).view(np.uint32)) >> 16
    around = [np.array([n << 16], np.uint32).view(np.float32)[0] for n in (bits, bits + 1)]
    distance = [abs(float(a) - float(x)) for a in around]
    return bits + (distance[1] < distance[0] or distance[0] == distance[1] and bits % 2)


def test_bfloat16_is_the_nearest(rng):
    x = (rng.standard_normal(300) * 10.0 ** rng.integers(-30, 30, 300)).astype(np.float32)
    x[:3] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0     # two ties: to even, down and up
    found = bfloat16.to_bfloat16(x)
    assert found.tolist() == [nearest_bfloat16(v) for v in x]
    assert np.array_equal(bfloat16.to_bfloat16(bfloat16.from_bfloat16(found)), found)
    odd = np.float32([np.nan, np.inf, -np.inf, 3.4e38])
    odd = bfloat16.from_bfloat16(bfloat16.to_bfloat16(odd))
    assert np.isnan(odd[0]) and odd[1:].tolist() == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("n, k, m", [(1, 1, 1), (1, 5, 3), (7, 16, 13), (31, 127, 2)])
def test_a_linear_map_is_that_of_rounded_factors(rng, name, n, k, m):
    x, w, b, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((n, k), (k, m), (m,), (n, m)))
    low = rounded(w, FORMATS[name])
    y, cache = mixed_precision.forward(x, low, b)
    found = y, *mixed_precision.backward(dy, cache)
    wide = [widened(rounded(a, low.dtype)).astype(np.float64) for a in (x, w, dy)]
    y, cache = linear.forward(wide[0], wide[1], b.astype(np.float64))
    dx, dw, _ = linear.backward(wide[2], cache)
    for ours, exact in zip(found, (y, dx, dw, dy.astype(np.float64).sum(axis=0)), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * max(1, np.abs(exact).max()))
    low_b = rounded(b, low.dtype)
    stored, _ = mixed_precision.forward(x, low, low_b, round_y=True)     # rounded once
    exact = wide[0] @ wide[1] + widened(low_b)
    assert stored.dtype == low.dtype
    np.testing.assert_allclose(widened(stored), exact, rtol=HALVES[name], atol=1e-5)
    with pytest.raises(ValueError, match="b is float32, but y is to have 16 bits"):
        dispatch_linear.forward(x, low, b, round_y=True)
    plain = linear.forward(x, w, b)[0]     # and rounding costs what it should, no more, no less
    error = np.abs(found[0] - plain).max() / (np.abs(x) @ np.abs(w)).max()
    assert error <= 2.1 * HALVES[name] and (k < 16 or error > 0)


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    """A stand-in for CuPy, or CuPy with its card."""
    if request.param == "stand-in":
        monkeypatch.setattr(array, "cupy", standin_cupy)
    elif not array.gpu_available():
        pytest.skip("no CUDA card")
    return array.cupy


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("n, k, m", [(1, 1, 1), (1, 4, 3), (4, 1, 3), (4, 3, 1), (5, 4, 3),
                                     (1, 1, 5), (5, 1, 1), (64, 48, 80), (0, 4, 3), (4, 0, 3)])
@pytest.mark.parametrize("more", [0, 1])     # whole matrices, or parts of larger ones
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
def test_cublas_is_asked_for_the_same(rng, cupy, name, n, k, m, more, turn_a, turn_b):
    here, there = [], []
    for rows, columns, turn in ((n, k, turn_a), (k, m, turn_b)):
        side = rng.standard_normal((rows + more, columns + 2 * more), dtype=np.float32)
        side = rounded(np.ascontiguousarray(side.T if turn else side),
                              FORMATS[name])
        here.append((side.T if turn else side)[:rows, :columns])
        side = cupy.asarray(side)
        there.append((side.T if turn else side)[:rows, :columns])
    found = matmul(*there)
    assert isinstance(found, cupy.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(cupy.asnumpy(found), matmul(*here), rtol=1e-5, atol=1e-5)


def test_a_matrix_without_contiguous_stretches_is_copied(rng, cupy):
    a = rounded(rng.standard_normal((6, 8), dtype=np.float32), FLOAT16)
    b = rounded(rng.standard_normal((4, 3), dtype=np.float32), FLOAT16)
    found = matmul(cupy.asarray(a)[::2, ::2], cupy.asarray(b))
    np.testing.assert_allclose(cupy.asnumpy(found), matmul(a[::2, ::2], b),
                               rtol=1e-5, atol=1e-6)


def test_float32_and_float64_are_left_alone(rng):
    for dtype in (np.float32, np.float64):
        a, b = rng.standard_normal((3, 4)).astype(dtype), rng.standard_normal((4, 2)).astype(dtype)
        assert rounded(a, a.dtype) is a
        assert np.array_equal(matmul(a, b), a @ b) and matmul(a, b).dtype == dtype


def test_too_large_a_number_becomes_infinite():
    with np.errstate(over="ignore"):
        assert np.isinf(rounded(np.float32([[1e6]]), FLOAT16)).all()
    assert np.isfinite(bfloat16.from_bfloat16(bfloat16.to_bfloat16(np.float32([1e38])))).all()


def gradients(model, batch):
    model.store.zero_grad()
    model.loss(batch)
    model.loss_backward()
    return {p.name: p.grad.astype(np.float64).ravel() for p in model.store.trainable}


def model_and_batch(rng, kind, dtype):
    texts = [rng.integers(0, 50, n) for n in (3, 17, 1, 9, 30)]
    labels = np.array([0, 1, 2, 1, 0])
    gpt2 = GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    if kind == "language model":
        return (LanguageModel(gpt2, dtype=dtype, seed=3),
                pack(texts, [np.append(ids[1:], IGNORE) for ids in texts]))
    if kind == "GPT-2":
        return Classifier(gpt2, "abc", dtype=dtype, seed=3), pack(texts, labels)
    bert = BertConfig(vocab_size=50, max_position_embeddings=32, hidden_size=32,
                      num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return (BertClassifier(bert, "abc", dtype=dtype, seed=3, pooling=kind.split()[1]),
            pack(texts, labels))


@pytest.mark.parametrize("kind", ["GPT-2", "BERT first", "BERT mean", "language model"])
def test_a_whole_models_gradients_point_where_exact_ones_do(kind):
    exact, batch = model_and_batch(np.random.default_rng(0), kind, np.float64)
    low, _ = model_and_batch(np.random.default_rng(0), kind, np.float32)
    low.to("cpu", "bfloat16")
    for p in exact.store:     # the same weights, to the bit
        p.value[...] = low.store[p.name].value
    wanted, found = gradients(exact, batch), gradients(low, batch)
    largest, zeros = max(abs(g).max() for g in wanted.values()), []
    for name, g in wanted.items():
        if abs(g).max() <= 1e-9 * largest:
            zeros.append(name)
            continue
        d = found[name]
        assert not np.array_equal(d, g.astype(np.float32)), name     # something was rounded
        assert g @ d >= 0.9995 * np.sqrt((g @ g) * (d @ d)), name
    # a number added to all scores of a query changes nothing
    assert all(name.endswith("key.bias") for name in zeros) and bool(zeros) == ("BERT" in kind)
