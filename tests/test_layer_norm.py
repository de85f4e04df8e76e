from math import sqrt

import numpy as np
import pytest

from minisft.ops import layer_norm
from minisft.verify.gradcheck import check

SHAPES = [(1, 1), (1, 2), (3, 5), (7, 16), (2, 31)]


@pytest.mark.parametrize("n, width", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_forward_matches_loops(rng, n, width, eps):
    x = rng.standard_normal((n, width))
    w, b = rng.standard_normal(width), rng.standard_normal(width)
    y, _ = layer_norm.forward(x, w, b, eps)
    assert y.shape == x.shape
    for i in range(n):
        mean = sum(x[i, c] for c in range(width)) / width
        var = sum((x[i, c] - mean) ** 2 for c in range(width)) / width
        for c in range(width):
            expected = (x[i, c] - mean) / sqrt(var + eps) * w[c] + b[c]
            assert y[i, c] == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("n, width", [(1, 2), (3, 5), (7, 16)])
@pytest.mark.parametrize("unit", [True, False])
def test_backward_matches_finite_differences(rng, n, width, unit):
    # with w = 1 and a sum as objective a backward without its third term would pass
    w = np.ones(width) if unit else rng.standard_normal(width)
    check(layer_norm.forward, layer_norm.backward, rng.standard_normal((n, width)), w,
          rng.standard_normal(width))


def test_hostile_inputs(rng):
    w, b = rng.standard_normal(6), rng.standard_normal(6)
    # a constant row has no variance: eps alone keeps it finite, and only b is left of it
    x = np.stack([np.full(6, 0.1), np.full(6, -1000.0), 1000 * rng.standard_normal(6), np.zeros(6)])
    y, cache = layer_norm.forward(x, w, b)
    for row in (0, 1, 3):
        np.testing.assert_allclose(y[row], b, rtol=0, atol=1e-9)
    assert all(np.isfinite(g).all() for g in layer_norm.backward(np.ones((4, 6)), cache))
    # rows of +-1000 on a small difference: the mean must go before the square
    x = 1000 + 1e-3 * rng.standard_normal((2, 6))
    near, _ = layer_norm.forward(x - 1000, w, b)
    np.testing.assert_allclose(layer_norm.forward(x, w, b)[0], near, rtol=0, atol=1e-8)
    # one channel is its own mean
    y, cache = layer_norm.forward(np.array([[5.0], [-3.0]]), np.array([2.0]), np.array([0.5]))
    dx, dw, db = layer_norm.backward(np.ones((2, 1)), cache)
    assert y.tolist() == [[0.5], [0.5]] and not dx.any() and not dw.any() and db.tolist() == [2.0]
    # float32 with a mean far from zero
    x = (1000.1 + np.zeros((1, 768))).astype(np.float32)
    y, cache = layer_norm.forward(x, np.ones(768, np.float32), np.zeros(768, np.float32))
    assert np.abs(y).max() < 0.05     # one unit in the last place of 1000.1, over sqrt(eps)


def test_inputs_are_left_alone(rng):
    x, w, b = rng.standard_normal((3, 4)), rng.standard_normal(4), rng.standard_normal(4)
    dy = rng.standard_normal((3, 4))
    for a in (x, w, b, dy):
        a.flags.writeable = False
    y, cache = layer_norm.forward(x, w, b)
    kept = y.copy()
    layer_norm.forward(x[::-1], w, b)
    first, second = layer_norm.backward(dy, cache), layer_norm.backward(dy, cache)
    assert np.array_equal(y, kept)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other) and not np.shares_memory(one, other)


def test_float32_stays_float32(rng):
    x, w, b = (rng.standard_normal(s, dtype=np.float32) for s in [(3, 4), (4,), (4,)])
    y, cache = layer_norm.forward(x, w, b, eps=1e-5)
    assert {a.dtype for a in (y, *layer_norm.backward(y, cache))} == {np.dtype(np.float32)}


@pytest.mark.parity
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_matches_pytorch(rng, eps):
    torch = pytest.importorskip("torch")
    x, w, b = rng.standard_normal((5, 8)), rng.standard_normal(8), rng.standard_normal(8)
    dy = rng.standard_normal((5, 8))
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    ty = torch.nn.functional.layer_norm(tx, (8,), tw, tb, eps)
    ty.backward(torch.tensor(dy))
    y, cache = layer_norm.forward(x, w, b, eps)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=0, atol=1e-11)
    for ours, theirs in zip(layer_norm.backward(dy, cache), (tx, tw, tb), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=0, atol=1e-11)
