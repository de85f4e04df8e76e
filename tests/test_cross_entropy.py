from math import exp, inf, log

import numpy as np
import pytest

from minisft.ops import cross_entropy
from minisft.ops.cross_entropy import IGNORE
from minisft.verify.gradcheck import check

# weights?, smoothing, an ignored row?
SETTINGS = [(False, 0.0, False), (True, 0.0, False), (False, 0.1, False), (False, 0.0, True),
            (True, 0.2, True), (True, 1.0, True)]


def case(rng, n, classes, weighted, ignored):
    labels = rng.integers(0, classes, n)
    if ignored:
        labels[::3] = IGNORE
    weights = rng.uniform(0.2, 3.0, classes) if weighted else None
    return 2 * rng.standard_normal((n, classes)), labels, weights


@pytest.mark.parametrize("weighted, smoothing, ignored", SETTINGS)
@pytest.mark.parametrize("n, classes", [(1, 1), (1, 2), (5, 3), (7, 13)])
def test_forward_matches_loops(rng, n, classes, weighted, smoothing, ignored):
    z, labels, weights = case(rng, n, classes, weighted, ignored)
    (loss, denominator), _ = cross_entropy.forward(z, labels, weights, smoothing)
    w = [1.0] * classes if weights is None else weights
    expected, below = 0.0, 0.0
    for i in range(n):
        if labels[i] == IGNORE:
            continue
        total = sum(exp(z[i, k]) for k in range(classes))
        below += w[labels[i]]
        for k in range(classes):
            target = smoothing / classes * w[k]
            if k == labels[i]:
                target += (1 - smoothing) * w[k]
            expected -= target * log(exp(z[i, k]) / total)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-13)
    assert denominator == pytest.approx(below, rel=1e-14)


@pytest.mark.parametrize("weighted, smoothing, ignored", SETTINGS)
@pytest.mark.parametrize("n, classes", [(1, 2), (5, 3), (7, 4)])
def test_backward_matches_finite_differences(rng, n, classes, weighted, smoothing, ignored):
    z, labels, weights = case(rng, n, classes, weighted, ignored)

    def forward(z):
        (loss, _), cache = cross_entropy.forward(z, labels, weights, smoothing)
        return loss, cache

    # the check draws the upstream gradient: one of 1.0 alone would hide a forgotten dloss
    check(forward, cross_entropy.backward, z)


def test_hostile_inputs():
    # the label has the logit -1000 where another has 1000: log(0) if the sum were taken first
    z = np.array([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0], [-1000.0, 1000.0, 1000.0]])
    (loss, denominator), cache = cross_entropy.forward(z, np.array([1, 0, 2]))
    assert loss == pytest.approx(2000 + log(3) + log(2), rel=1e-14) and denominator == 3
    dz = cross_entropy.backward(1.0, cache)
    np.testing.assert_allclose(dz, [[1, -1, 0], [-2 / 3, 1 / 3, 1 / 3], [0, 0.5, -0.5]], atol=1e-15)
    # a class ruled out by -inf costs nothing where it has no mass
    (loss, _), cache = cross_entropy.forward(np.array([[-inf, 1.0, 1.0]]), np.array([2]))
    assert loss == pytest.approx(log(2), rel=1e-14)
    assert cross_entropy.backward(1.0, cache).tolist() == [[0.0, 0.5, -0.5]]
    # every row ignored, no row at all, a single class, and a class of no weight
    nothing = np.full(3, IGNORE)
    for weights, smoothing in [(None, 0.0), (np.array([1.0, 2.0, 3.0]), 0.1)]:
        (loss, denominator), cache = cross_entropy.forward(z, nothing, weights, smoothing)
        assert loss == 0 and denominator == 0 and not cross_entropy.backward(1.0, cache).any()
    (loss, denominator), cache = cross_entropy.forward(np.zeros((0, 3)), np.zeros(0, dtype=int))
    assert loss == 0 and denominator == 0 and cross_entropy.backward(1.0, cache).shape == (0, 3)
    (loss, denominator), cache = cross_entropy.forward(np.array([[1000.0]]), np.array([0]))
    assert loss == 0 and denominator == 1 and not cross_entropy.backward(1.0, cache).any()
    (loss, denominator), cache = cross_entropy.forward(z, np.array([1, 1, 1]),
                                                       np.array([1.0, 0.0, 1.0]))
    assert loss == 0 and denominator == 0 and not cross_entropy.backward(1.0, cache).any()
    # float32 holds these logits too
    (loss, _), _ = cross_entropy.forward(np.array([[1000, -1000]], np.float32), np.array([1]))
    assert loss == 2000


def test_inputs_are_left_alone(rng):
    z, labels, weights = case(rng, 5, 3, True, True)
    for a in (z, labels, weights):
        a.flags.writeable = False
    (loss, _), cache = cross_entropy.forward(z, labels, weights, 0.1)
    first = cross_entropy.backward(2.0, cache)
    kept = first.copy()
    cross_entropy.forward(z[::-1], labels, weights, 0.1)
    second = cross_entropy.backward(-1.0, cache)
    assert np.array_equal(first, kept) and np.array_equal(first, -2 * second)
    (again, _), _ = cross_entropy.forward(z, labels, weights, 0.1)
    assert loss == again


@pytest.mark.parametrize("weighted", [True, False])
def test_float32_stays_float32(rng, weighted):
    z, labels, weights = case(rng, 5, 3, weighted, True)
    (loss, _), cache = cross_entropy.forward(z.astype(np.float32), labels, weights, 0.1)
    assert loss.dtype == cross_entropy.backward(0.5, cache).dtype == np.float32


def test_another_number_may_mean_ignore(rng):
    z = rng.standard_normal((3, 4))
    (loss, denominator), _ = cross_entropy.forward(z, np.array([2, 0, 0]), ignore=0)
    (alone, _), _ = cross_entropy.forward(z[:1], np.array([2]))
    assert loss == pytest.approx(alone, rel=1e-14) and denominator == 1


def test_sums_of_parts_are_the_whole(rng):
    # loss and denominator are sums: this is what makes accumulation equal to the large batch
    z, labels, weights = case(rng, 7, 4, True, True)
    (loss, denominator), cache = cross_entropy.forward(z, labels, weights, 0.1)
    parts = [cross_entropy.forward(z[rows], labels[rows], weights, 0.1)
             for rows in (slice(0, 2), slice(2, 7))]
    assert loss == pytest.approx(sum(part[0][0] for part in parts), rel=1e-14)
    assert denominator == pytest.approx(sum(part[0][1] for part in parts), rel=1e-14)
    np.testing.assert_allclose(
        cross_entropy.backward(1.0, cache),
        np.concatenate([cross_entropy.backward(1.0, part[1]) for part in parts]), rtol=1e-13)


@pytest.mark.parity
@pytest.mark.parametrize("weighted, smoothing, ignored", SETTINGS)
def test_matches_pytorch(rng, weighted, smoothing, ignored):
    torch = pytest.importorskip("torch")
    z, labels, weights = case(rng, 10, 4, weighted, ignored)
    (loss, denominator), cache = cross_entropy.forward(z, labels, weights, smoothing)
    for reduction, divisor in [("sum", 1.0), ("mean", float(denominator))]:
        tz = torch.tensor(z, requires_grad=True)
        expected = torch.nn.functional.cross_entropy(
            tz, torch.tensor(labels), None if weights is None else torch.tensor(weights),
            ignore_index=IGNORE, reduction=reduction, label_smoothing=smoothing)
        expected.backward()
        assert loss / divisor == pytest.approx(expected.item(), rel=1e-12)
        np.testing.assert_allclose(cross_entropy.backward(1 / divisor, cache), tz.grad.numpy(),
                                   rtol=0, atol=1e-13)


def test_a_float64_scalar_does_not_widen_the_gradient():
    (_, denominator), cache = cross_entropy.forward(np.ones((2, 3), np.float32), np.array([0, 1]))
    assert cross_entropy.backward(1 / denominator, cache).dtype == np.float32
