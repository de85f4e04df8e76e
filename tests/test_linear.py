import numpy as np
import pytest

from minisft.ops import linear
from minisft.verify.gradcheck import check


@pytest.mark.parametrize("n, width_in, width_out", [(1, 1, 1), (1, 2, 3), (3, 5, 2), (7, 16, 13)])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_matches_loops(rng, n, width_in, width_out, bias):
    x, w = rng.standard_normal((n, width_in)), rng.standard_normal((width_in, width_out))
    b = rng.standard_normal(width_out) if bias else None
    y, _ = linear.forward(x, w, b)
    assert y.shape == (n, width_out)
    for i in range(n):
        for m in range(width_out):
            expected = sum(x[i, c] * w[c, m] for c in range(width_in)) + (b[m] if bias else 0)
            assert y[i, m] == pytest.approx(expected, rel=1e-12, abs=1e-12)


# 4 x 4 is square: a transposed dw would have the right shape
@pytest.mark.parametrize("n, width_in, width_out", [(1, 1, 1), (3, 5, 2), (3, 4, 4), (4, 4, 4)])
def test_backward_matches_finite_differences(rng, n, width_in, width_out):
    x, w = rng.standard_normal((n, width_in)), rng.standard_normal((width_in, width_out))
    check(linear.forward, linear.backward, x, w, rng.standard_normal(width_out))
    check(linear.forward, lambda dy, cache: linear.backward(dy, cache)[:2], x, w)


def test_hostile_inputs(rng):
    # 1000 - 1000: large terms that cancel, and equal rows that all add into dw
    x = np.array([[1000.0, -1000.0], [1000.0, -1000.0], [0.0, 0.0]])
    y, cache = linear.forward(x, np.array([[1.0, 2.0], [1.0, 1.0]]), np.array([0.5, -0.5]))
    assert y.tolist() == [[0.5, 999.5], [0.5, 999.5], [0.5, -0.5]]
    dx, dw, db = linear.backward(np.ones((3, 2)), cache)
    assert dx.tolist() == [[3.0, 2.0]] * 3
    assert dw.tolist() == [[2000.0, 2000.0], [-2000.0, -2000.0]]
    assert db.tolist() == [3.0, 3.0]
    # a tied output matrix comes in as a transposed view
    w = rng.standard_normal((5, 4))
    check(linear.forward, lambda dy, cache: linear.backward(dy, cache)[:2],
          rng.standard_normal((3, 4)), w.T)


def test_inputs_are_left_alone(rng):
    x, w, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 2)), rng.standard_normal(2)
    dy = rng.standard_normal((3, 2))
    for a in (x, w, b, dy):
        a.flags.writeable = False
    y, cache = linear.forward(x, w, b)
    kept = y.copy()
    linear.forward(x[::-1], w, b)
    gradients = linear.backward(dy, cache)
    again = linear.backward(dy, cache)
    assert np.array_equal(y, kept)
    for first, second in zip(gradients, again, strict=True):
        assert np.array_equal(first, second) and not np.shares_memory(first, second)


def test_float32_stays_float32(rng):
    x, w, b = (rng.standard_normal(s, dtype=np.float32) for s in [(3, 4), (4, 2), (2,)])
    y, cache = linear.forward(x, w, b)
    assert {a.dtype for a in (y, *linear.backward(y, cache))} == {np.dtype(np.float32)}


@pytest.mark.parity
def test_matches_pytorch(rng):
    torch = pytest.importorskip("torch")
    x, w, b = rng.standard_normal((5, 4)), rng.standard_normal((4, 3)), rng.standard_normal(3)
    dy = rng.standard_normal((5, 3))
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    ty = torch.nn.functional.linear(tx, tw.T, tb)     # PyTorch stores (out, in)
    ty.backward(torch.tensor(dy))
    y, cache = linear.forward(x, w, b)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=0, atol=1e-12)
    for ours, theirs in zip(linear.backward(dy, cache), (tx, tw, tb), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=0, atol=1e-12)


def test_the_gradient_of_the_matrix_goes_where_it_is_told(rng):
    x, w, dy = rng.standard_normal((5, 3)), rng.standard_normal((3, 7)), rng.standard_normal((5, 7))
    out = np.full((3, 7), np.nan)
    dx, dw, db = linear.backward(dy, linear.forward(x, w)[1], out=out)
    assert dw is out
    for found, expected in zip((dx, dw, db), linear.backward(dy, (x, w)), strict=True):
        np.testing.assert_array_equal(found, expected)
