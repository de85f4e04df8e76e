from math import exp

import numpy as np
import pytest

from minisft.ops import softmax
from minisft.verify.gradcheck import check


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 5), (7, 16), (2, 3, 13), (31,)])
def test_forward_matches_loops(rng, shape):
    s = 2 * rng.standard_normal(shape)
    p, _ = softmax.forward(s)
    assert p.shape == shape
    for index in np.ndindex(shape[:-1]):
        total = sum(exp(s[(*index, j)]) for j in range(shape[-1]))
        for j in range(shape[-1]):
            assert p[(*index, j)] == pytest.approx(exp(s[(*index, j)]) / total, rel=1e-13)


# times 20: rows that are all but one-hot
@pytest.mark.parametrize("size, shape", [(1, (1, 2)), (1, (3, 5)), (1, (2, 3, 4)), (1, (4, 1)),
                                         (20, (7, 5)), (20, (2, 6, 4))])
def test_backward_matches_finite_differences(rng, size, shape):
    check(softmax.forward, softmax.backward, size * rng.standard_normal(shape))


def test_hostile_inputs(rng):
    s = np.array([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0], [1000.0, 1000.0, -1000.0],
                  [-np.inf, 3.0, 3.0], [-np.inf, -np.inf, -1000.0]])
    p, cache = softmax.forward(s)
    assert p.tolist()[0] == [1, 0, 0]
    np.testing.assert_allclose(p[1], 1 / 3, rtol=1e-15)
    assert p.tolist()[2:] == [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]
    ds = softmax.backward(rng.standard_normal(s.shape), cache)
    assert np.isfinite(ds).all()
    assert not ds[[0, 4]].any() and ds[2, 2] == ds[3, 0] == 0
    # one key only: always probability one, never a gradient
    p, cache = softmax.forward(np.array([[1000.0], [-1000.0]]))
    assert p.tolist() == [[1.0], [1.0]] and not softmax.backward(np.full((2, 1), 7.0), cache).any()


def test_inputs_are_left_alone(rng):
    s, dp = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    s.flags.writeable = dp.flags.writeable = False
    p, cache = softmax.forward(s)
    kept = p.copy()
    other, _ = softmax.forward(s[::-1])
    first, second = softmax.backward(dp, cache), softmax.backward(dp, cache)
    assert np.array_equal(p, kept) and np.array_equal(first, second)
    assert not np.shares_memory(p, other) and not np.shares_memory(first, second)


def test_float32_stays_float32(rng):
    p, cache = softmax.forward(rng.standard_normal((3, 4), dtype=np.float32))
    assert p.dtype == softmax.backward(p, cache).dtype == np.float32


def test_rows_sum_to_one_and_gradients_to_zero(rng):
    p, cache = softmax.forward(5 * rng.standard_normal((6, 7)))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax.backward(rng.standard_normal((6, 7)), cache).sum(axis=-1), 0,
                               atol=1e-14)


@pytest.mark.parity
def test_matches_pytorch(rng):
    torch = pytest.importorskip("torch")
    s, dp = 3 * rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 5, 7))
    ts = torch.tensor(s, requires_grad=True)
    tp = torch.softmax(ts, dim=-1)
    tp.backward(torch.tensor(dp))
    p, cache = softmax.forward(s)
    np.testing.assert_allclose(p, tp.detach().numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(softmax.backward(dp, cache), ts.grad.numpy(), rtol=0, atol=1e-14)
