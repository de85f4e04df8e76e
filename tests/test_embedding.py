import numpy as np
import pytest

from minisft.ops import embedding
from minisft.verify.gradcheck import check


@pytest.mark.parametrize("n, rows, width", [(1, 1, 1), (1, 2, 3), (5, 3, 7), (16, 13, 4)])
def test_forward_matches_loops(rng, n, rows, width):
    ids, w = rng.integers(0, rows, n), rng.standard_normal((rows, width))
    y, _ = embedding.forward(ids, w)
    assert y.shape == (n, width)
    for i in range(n):
        # one-hot times table, written out
        for c in range(width):
            assert y[i, c] == sum(w[v, c] for v in range(rows) if v == ids[i])


@pytest.mark.parametrize("ids", [[0], [2, 2, 2, 2], [4, 0, 4, 1, 0, 4], [0, 1, 2, 3, 4]])
def test_backward_matches_finite_differences(rng, ids):
    check(embedding.forward, embedding.backward, np.array(ids), rng.standard_normal((5, 3)))


def test_adds_into_what_is_given(rng):
    dy, before = rng.standard_normal((6, 3)), rng.standard_normal((5, 3))
    cache = np.array([4, 0, 4, 4, 1, 0]), (5, 3)
    out = before.copy()
    assert embedding.backward(dy, cache, out=out) is out
    assert np.array_equal(out, before + embedding.backward(dy, cache))


def test_hostile_inputs(rng):
    # the first and the last row, one id many times, and rows that nobody asks for
    ids = np.array([6, 0, 6, 6, 0, 3, 6])
    dy = rng.standard_normal((len(ids), 4))
    _, cache = embedding.forward(ids, rng.standard_normal((7, 4)))
    dw = embedding.backward(dy, cache)
    expected = np.zeros((7, 4))
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(dw, expected, rtol=1e-13, atol=1e-14)
    assert not dw[[1, 2, 4, 5]].any()
    # logits of 1000 reach the gradient of one row beside ones of 1e-3: no row leaks into another
    _, cache = embedding.forward(np.array([1, 0, 1]), np.zeros((2, 1)))
    dw = embedding.backward(np.array([[1000.0], [1e-3], [-1000.0]]), cache)
    assert dw.tolist() == [[1e-3], [0.0]]


def test_inputs_are_left_alone(rng):
    ids, w, dy = rng.integers(0, 5, 8), rng.standard_normal((5, 3)), rng.standard_normal((8, 3))
    for a in (ids, w, dy):
        a.flags.writeable = False
    y, cache = embedding.forward(ids, w)
    kept = y.copy()
    other, other_cache = embedding.forward(ids[::-1], w)
    dw = embedding.backward(dy, cache)
    kept_dw = dw.copy()
    embedding.backward(dy, other_cache)
    assert np.array_equal(y, kept) and np.array_equal(dw, kept_dw)
    assert not np.shares_memory(y, w) and not np.shares_memory(y, other)


def test_float32_stays_float32(rng):
    w = rng.standard_normal((5, 3), dtype=np.float32)
    y, cache = embedding.forward(np.array([1, 4, 1]), w)
    assert y.dtype == embedding.backward(y, cache).dtype == np.float32


def test_repeated_ids_add_up_in_a_fixed_order(rng):
    ids = rng.integers(0, 11, 500)
    dy = rng.standard_normal((500, 3), dtype=np.float32)
    _, cache = embedding.forward(ids, np.zeros((11, 3), dtype=np.float32))
    dw = embedding.backward(dy, cache)
    expected = np.zeros((11, 3))
    np.add.at(expected, ids, dy)
    assert np.abs(dw - expected).max() < 1e-4
    assert np.array_equal(dw, embedding.backward(dy.copy(), cache))
    # a token of another id changes no bit of this one's sum
    other = np.where(ids == 3, 10, ids)
    _, cache = embedding.forward(other, np.zeros((11, 3), dtype=np.float32))
    same = [v for v in range(11) if v not in (3, 10)]
    assert np.array_equal(dw[same], embedding.backward(dy, cache)[same])


@pytest.mark.parity
def test_matches_pytorch(rng):
    torch = pytest.importorskip("torch")
    ids, w, dy = rng.integers(0, 7, 20), rng.standard_normal((7, 5)), rng.standard_normal((20, 5))
    tw = torch.tensor(w, requires_grad=True)
    ty = torch.nn.functional.embedding(torch.tensor(ids), tw)
    ty.backward(torch.tensor(dy))
    y, cache = embedding.forward(ids, w)
    assert np.array_equal(y, ty.detach().numpy())
    np.testing.assert_allclose(embedding.backward(dy, cache), tw.grad.numpy(), rtol=0, atol=1e-12)
