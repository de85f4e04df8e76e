"""The low-rank update by its equations, alone."""

import numpy as np
import pytest

from minisft.backend.gpu import cuda
from minisft.dispatch import factor_gradients
from minisft.dispatch import lora as dispatched
from minisft.dispatch.matmul import FORMATS, rounded, widened
from minisft.nn.lora import _merge
from minisft.ops import linear, lora
from minisft.verify.gradcheck import check

SHAPES = [(1, 1, 1, 1), (1, 2, 3, 1), (3, 5, 2, 4), (7, 16, 13, 3)]     # n, in, out, rank


def inputs(rng, n, width_in, width_out, rank, dtype=np.float64):
    return [rng.standard_normal(shape).astype(dtype)
            for shape in ((n, width_in), (rank, width_in), (width_out, rank))]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_matches_loops(rng, shape):
    n, width_in, width_out, rank = shape
    x, a, b = inputs(rng, *shape)
    y, _ = lora.forward(x, a, b, 0.7)
    assert y.shape == (n, width_out)
    for i in range(n):
        for m in range(width_out):
            expected = sum(b[m, k] * a[k, c] * x[i, c] for k in range(rank)
                           for c in range(width_in))
            assert y[i, m] == pytest.approx(0.7 * expected, rel=1e-12, abs=1e-12)


# with a square B a transposed dB would have the right shape
@pytest.mark.parametrize("shape", [*SHAPES, (4, 3, 3, 3)])
def test_backward_matches_finite_differences(rng, shape):
    check(lora.forward, lora.backward, *inputs(rng, *shape), 1.7)


def test_hostile_inputs(rng):
    # 1000 - 1000: large terms that cancel; equal rows, which all add into dA and dB
    x = np.array([[1000.0, -1000.0], [1000.0, -1000.0], [0.0, 0.0]])
    y, cache = lora.forward(x, np.array([[1.0, 1.0]]), np.array([[2.0], [3.0]]), 0.5)
    assert y.tolist() == [[0.0, 0.0]] * 3
    dx, da, db = lora.backward(np.ones((3, 2)), cache)
    assert dx.tolist() == [[2.5, 2.5]] * 3
    assert da.tolist() == [[5000.0, -5000.0]] and db.tolist() == [[0.0], [0.0]]
    # a rank above both widths, and the rows of B that are one part of a fused map
    x, a, b = inputs(rng, 3, 2, 6, 5)
    check(lora.forward, lora.backward, x, a, b[2:4], 1.0)


def test_b_zero_moves_b_alone_and_both_zero_move_nothing(rng):
    """Why B alone begins as zeros: a product of two zeros has no gradient at all."""
    x, a, b = inputs(rng, 5, 4, 3, 2)
    dy = rng.standard_normal((5, 3))
    y, cache = lora.forward(x, a, np.zeros_like(b), 2.0)
    dx, da, db = lora.backward(dy, cache)
    assert not y.any() and not dx.any() and not da.any() and np.abs(db).min() > 0
    _, cache = lora.forward(x, np.zeros_like(a), np.zeros_like(b), 2.0)
    assert not any(d.any() for d in lora.backward(dy, cache))


def test_the_merged_map_gives_the_sum(rng):
    x, a, b = inputs(rng, 5, 6, 4, 2)
    w, bias = rng.standard_normal((6, 4)), rng.standard_normal(4)
    merged = lora.merge(w, a, b, 1.5)
    expected = linear.forward(x, w, bias)[0] + lora.forward(x, a, b, 1.5)[0]
    np.testing.assert_allclose(linear.forward(x, merged, bias)[0], expected, rtol=0, atol=1e-12)
    # and its gradient of x is the sum of both
    dy = rng.standard_normal((5, 4))
    dx = dy @ w.T + lora.backward(dy, lora.forward(x, a, b, 1.5)[1])[0]
    np.testing.assert_allclose(dy @ merged.T, dx, rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns", [slice(None), slice(100, None)])
@pytest.mark.parametrize("rows", [1, 300])
def test_merging_columns_of_a_fused_map(rng, rows, columns):
    """Its rows do not lie side by side."""
    _, a, b = inputs(rng, 1, rows, 400 - (columns.start or 0), 3, np.float32)
    whole = rng.standard_normal((rows, 400), dtype=np.float32)
    w, kept = whole[:, columns], whole.copy()
    merged = _merge(w, a, b, 1.5)
    np.testing.assert_allclose(merged, w + 1.5 * (b @ a).T, rtol=0, atol=1e-5)
    assert merged.flags.c_contiguous and np.array_equal(whole, kept)


@pytest.mark.parametrize("n", [1, 5, 64, 65, 200, 256, 600])
def test_gradients_behind_a_merged_map(rng, n):
    """Those of the separate ones, also in blocks of rows."""
    x, a, b = inputs(rng, n, 6, 4, 3)
    dy = rng.standard_normal((n, 4))
    _, *expected = lora.backward(dy, lora.forward(x, a, b, 1.5)[1])
    for found in (lora.factor_gradients(dy, x, a, b, 1.5), *factor_gradients(dy, x, [(a, b, 1.5)])):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_inputs_are_left_alone(rng):
    given = [*inputs(rng, 3, 4, 2, 3), rng.standard_normal((3, 2)), rng.standard_normal((4, 2))]
    for array in given:
        array.flags.writeable = False
    x, a, b, dy, w = given
    y, cache = lora.forward(x, a, b, 2.0)
    kept = y.copy()
    lora.forward(x[::-1], a, b, 2.0)
    lora.merge(w, a, b, 2.0)
    for first, second in zip(lora.backward(dy, cache), lora.backward(dy, cache), strict=True):
        assert np.array_equal(first, second) and not np.shares_memory(first, second)
    assert np.array_equal(y, kept)


def test_float32_stays_float32(rng):
    x, a, b = inputs(rng, 3, 4, 2, 3, np.float32)
    y, cache = lora.forward(x, a, b, 16 / 8)
    w = rng.standard_normal((4, 2), dtype=np.float32)
    results = (y, *lora.backward(y, cache), lora.merge(w, a, b, 16 / 8))
    assert {r.dtype for r in results} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name, unit", [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_16_bits_are_near_the_formula(rng, name, unit):
    """Near, not equal: each product rounds its factors, and no more than those."""
    x, a, b = inputs(rng, 31, 64, 48, 8, np.float32)
    dy = rng.standard_normal((31, 48), dtype=np.float32)
    low_a, low_b = (rounded(w, FORMATS[name]) for w in (a, b))
    with cuda.kernels("off"):
        y, cache = dispatched.forward(x, low_a, low_b, 2.0)
        found = y, *dispatched.backward(dy, cache)
        again, _ = dispatched.forward(rounded(x, FORMATS[name]), low_a, low_b, 2.0)
    assert cache.implementation.name == "16 bits" and np.array_equal(again, y)
    exact, plain = lora.forward(x, widened(low_a), widened(low_b), 2.0)
    for ours, theirs in zip(found, (exact, *lora.backward(dy, plain)), strict=True):
        assert ours.dtype == np.float32
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert 0 < error < 4 * unit


@pytest.mark.parity
def test_matches_pytorch(rng):
    torch = pytest.importorskip("torch")
    given = inputs(rng, 5, 4, 3, 2)
    dy = rng.standard_normal((5, 3))
    x, a, b = (torch.tensor(array, requires_grad=True) for array in given)
    y = 1.5 * (x @ a.T @ b.T)
    y.backward(torch.tensor(dy))
    found, cache = lora.forward(*given, 1.5)
    np.testing.assert_allclose(found, y.detach().numpy(), rtol=0, atol=1e-12)
    for ours, theirs in zip(lora.backward(dy, cache), (x, a, b), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=0, atol=1e-12)
