import numpy as np
import pytest

from minisft.backend.random import EMBEDDING, Stream
from minisft.ops import dropout
from minisft.verify.gradcheck import check


def words_of(rng, shape):
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 16), (2, 3, 13)])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_forward_matches_loops(rng, shape, rate):
    x, words = rng.standard_normal(shape), words_of(rng, shape)
    y, _ = dropout.forward(x, words, rate)
    assert y.shape == shape
    for index in np.ndindex(shape):
        kept = int(words[index]) / 2**32 >= rate
        assert y[index] == pytest.approx(x[index] / (1 - rate) if kept else 0, rel=1e-14)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_backward_matches_finite_differences(rng, rate):
    words = words_of(rng, (5, 7))
    check(lambda x: dropout.forward(x, words, rate), dropout.backward,
          rng.standard_normal((5, 7)))


def test_hostile_inputs():
    # the words at either end, and on either side of the limit
    words = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    x = np.array([1000.0, -1000.0, 1000.0, -1000.0])
    assert dropout.forward(x, words, 0.5)[0].tolist() == [0, 0, 2000, -2000]
    assert dropout.forward(x, words, 0.0)[0].tolist() == x.tolist()
    # all dropped but the last word
    y, cache = dropout.forward(x, words, 1 - 2.0**-32)
    assert y.tolist() == [0, 0, 0, -1000 * 2.0**32]
    assert dropout.backward(np.ones(4), cache).tolist() == [0, 0, 0, 2.0**32]


def test_inputs_are_left_alone(rng):
    x, words, dy = rng.standard_normal((3, 4)), words_of(rng, (3, 4)), rng.standard_normal((3, 4))
    for a in (x, words, dy):
        a.flags.writeable = False
    y, cache = dropout.forward(x, words, 0.5)
    kept = y.copy()
    dropout.forward(x, words[::-1], 0.5)
    first, second = dropout.backward(dy, cache), dropout.backward(dy, cache)
    assert np.array_equal(y, kept) and np.array_equal(first, second)
    assert not np.shares_memory(y, x) and not np.shares_memory(first, second)


def test_float32_stays_float32(rng):
    x = rng.standard_normal((3, 4), dtype=np.float32)
    y, cache = dropout.forward(x, words_of(rng, (3, 4)), 0.1)
    assert y.dtype == dropout.backward(y, cache).dtype == np.float32
    assert dropout.mask(words_of(rng, 4), 0.1, np.dtype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_mean_is_kept(rate):
    n, width = 300, 100
    words = Stream(3, 0).tokens(0, EMBEDDING, np.zeros(n, int), np.arange(n), width)
    m = dropout.mask(words, rate, np.float64)
    deviation = np.sqrt(rate / (1 - rate) / (n * width))     # of the mean of the mask
    assert abs(m.mean() - 1) < 4 * deviation
    # no row and no column is favoured
    assert abs(m.mean(axis=0) - 1).max() < 5 * deviation * np.sqrt(width)
    assert abs(m.mean(axis=1) - 1).max() < 5 * deviation * np.sqrt(n)
