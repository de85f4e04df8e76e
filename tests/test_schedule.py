import numpy as np
import pytest

from minisft import rows, schedule
from minisft.ops import cross_entropy, gelu, layer_norm


@pytest.fixture(params=[1, 2, 5])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 64)     # a few rows of the arrays below
    monkeypatch.setattr(rows, "threads", lambda: request.param)


def same(a, b, tolerance=0.0):
    """Nested results of the same structure, equal but for rounding of sums."""
    assert isinstance(a, tuple) == isinstance(b, tuple)
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y, tolerance)
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype and np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    else:
        assert a == b


def cases(rng, n):
    """-> forward's arguments and the upstream gradient, for each operation that runs in blocks."""
    x, z = rng.standard_normal((n, 3)), rng.standard_normal((n, 5))
    # a width that equals the number of rows of a block must not be taken for rows
    wide = rng.standard_normal((n, 2))
    labels = rng.integers(0, 5, n)
    labels[::3] = cross_entropy.IGNORE
    return [
        (gelu, (x,), x[::-1].copy()),
        (gelu, (x, "erf"), x[::-1].copy()),
        (layer_norm, (x, rng.standard_normal(3), rng.standard_normal(3)), x[::-1].copy()),
        (layer_norm, (wide, *rng.standard_normal((2, 2)), 0.1), wide[::-1].copy()),
        (cross_entropy, (z, labels), 0.7),
        (cross_entropy, (z, labels, rng.uniform(1, 2, 5), 0.2), -1.3),
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 31])
def test_blocks_give_what_the_plain_formula_gives(rng, small_blocks, n):
    for operation, args, dy in cases(rng, n):
        plain = operation.forward.formula(*args)
        y, cache = operation.forward(*args)
        assert isinstance(cache, schedule.Cache) == (len(rows.blocks(n, 8 * args[0].shape[1])) > 1)
        same((y, tuple(cache)), plain, 1e-14)
        same(operation.backward(dy, cache), operation.backward.formula(dy, plain[1]), 1e-14)
        same(operation.backward(dy, plain[1]), operation.backward.formula(dy, plain[1]))


def test_sums_do_not_depend_on_the_number_of_threads(rng, monkeypatch):
    x = rng.standard_normal((1009, 16)).astype(np.float32)
    w, b = rng.standard_normal((2, 16)).astype(np.float32)
    monkeypatch.setattr(rows, "BLOCK", 1000)
    found = []
    for n in (1, 2, 3):
        monkeypatch.setattr(rows, "threads", lambda n=n: n)
        _, cache = layer_norm.forward(x, w, b)
        found.append(layer_norm.backward(x[::-1], cache))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_passes_through_is_not_copied(rng, small_blocks):
    x, w, b = rng.standard_normal((9, 3)), np.ones(3), np.zeros(3)
    _, cache = layer_norm.forward(x, w, b)
    assert cache[0] is x and cache[1] is w and cache.by_row == (True, False, True, True)


def test_the_gradient_takes_the_place_of_the_logits_only_when_asked(rng, small_blocks):
    z, labels = rng.standard_normal((9, 5)), rng.integers(0, 5, 9)
    kept = z.copy()
    _, cache = cross_entropy.forward(z, labels)
    expected = cross_entropy.backward(2.0, cache)
    assert np.array_equal(z, kept)
    dz = cross_entropy.backward(2.0, cache, out=z)
    assert dz is z and np.array_equal(z, expected)


def test_a_sum_that_is_not_declared_is_refused(small_blocks):
    @schedule.by_rows("x")
    def forgotten(x):
        return x, x.sum(axis=0)

    with pytest.raises(ValueError, match="forgotten: a result of shape"):
        forgotten(np.ones((9, 3)))
