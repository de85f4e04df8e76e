import math

import numpy as np
import pytest

from minisft.backend.erf import erf

# the two formulas meet at 0.46875, and the argument is held at 6
SEAMS = [0.46875, 6.0]


def test_matches_the_standard_library():
    seams = [np.nextafter(s, to) for s in SEAMS for to in (-np.inf, np.inf)] + SEAMS
    x = np.concatenate([np.linspace(-8, 8, 4001), seams, np.negative(seams)])
    expected = np.array([math.erf(a) for a in x])
    assert np.abs(erf(x) - expected).max() <= 1e-15


def test_small_arguments_keep_their_digits():
    x = 10.0 ** np.arange(-300, 0)
    expected = np.array([math.erf(a) for a in x])
    assert np.abs(erf(x) / expected - 1).max() <= 1e-15


def test_it_is_odd_and_ends_at_one():
    x = np.linspace(0, 10, 1001)
    assert np.array_equal(erf(-x), -erf(x))
    y = erf(np.array([-np.inf, -40.0, -0.0, 0.0, 40.0, np.inf, np.nan]))
    assert y[:6].tolist() == [-1, -1, 0, 0, 1, 1] and np.isnan(y[6])
    assert np.signbit(y[2]) and not np.signbit(y[3])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (0,), (2, 3, 4)])
def test_float32_stays_float32(rng, shape):
    x = 2 * rng.standard_normal(shape, dtype=np.float32)
    y = erf(x)
    assert y.dtype == np.float32 and y.shape == shape
    for ours, a in zip(y.ravel(), x.ravel(), strict=True):
        assert abs(ours - math.erf(a)) < 4e-7


def test_inputs_are_left_alone(rng):
    x = rng.standard_normal(5)
    x.flags.writeable = False
    y = erf(x)
    kept = y.copy()
    erf(x[::-1])
    assert np.array_equal(y, kept)
