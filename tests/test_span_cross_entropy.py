"""Cross-entropy over the tokens of each text, against loops and against cross_entropy."""

from math import exp, log

import numpy as np
import pytest

from minisft.dispatch import span_cross_entropy as dispatched
from minisft.ops import cross_entropy, span_cross_entropy
from minisft.ops.cross_entropy import IGNORE
from minisft.verify.gradcheck import check

LENGTHS = [(1,), (5,), (1, 1), (3, 1, 7), (2, 13, 1, 5)]


def case(rng, lengths, columns=2, ignored=False):
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.stack([rng.integers(0, n, columns) for n in lengths])
    if ignored:
        labels[::2, 0] = IGNORE
    return 2 * rng.standard_normal((cu_seqlens[-1], columns)), cu_seqlens, labels


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("columns, ignored", [(1, False), (2, False), (2, True), (3, True)])
def test_forward_matches_loops(rng, lengths, columns, ignored):
    z, cu_seqlens, labels = case(rng, lengths, columns, ignored)
    (loss, denominator), _ = span_cross_entropy.forward(z, cu_seqlens, labels)
    expected, n = 0.0, 0
    for b, (start, stop) in enumerate(zip(cu_seqlens, cu_seqlens[1:], strict=False)):
        for k in range(columns):
            if labels[b, k] != IGNORE:
                total = sum(exp(z[t, k]) for t in range(start, stop))
                expected -= log(exp(z[start + labels[b, k], k]) / total)
                n += 1
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-13) and denominator == n


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("ignored", [False, True])
def test_backward_matches_finite_differences(rng, lengths, ignored):
    z, cu_seqlens, labels = case(rng, lengths, 2, ignored)

    def forward(z):
        (loss, _), cache = span_cross_entropy.forward(z, cu_seqlens, labels)
        return loss, cache

    check(forward, span_cross_entropy.backward, z)


def test_equal_lengths_are_rows_of_cross_entropy(rng):
    z, cu_seqlens, labels = case(rng, (7, 7, 7))
    (loss, n), cache = span_cross_entropy.forward(z, cu_seqlens, labels)
    rows = z.reshape(3, 7, 2).transpose(0, 2, 1).reshape(6, 7)
    (expected, m), theirs = cross_entropy.forward(rows, labels.ravel())
    assert loss == pytest.approx(expected, rel=1e-13) and n == m
    dz = cross_entropy.backward(0.3, theirs).reshape(3, 2, 7).transpose(0, 2, 1).reshape(21, 2)
    np.testing.assert_allclose(span_cross_entropy.backward(0.3, cache), dz, atol=1e-15)


def test_hostile_inputs():
    z = np.array([[1000.0, -1000.0], [-1000.0, -1000.0], [-np.inf, 5.0], [0.0, 5.0]])
    edges, labels = np.array([0, 2, 4]), np.array([[1, 0], [1, 1]])
    before = z.copy(), labels.copy()
    (loss, _), cache = span_cross_entropy.forward(z, edges, labels)
    assert loss == pytest.approx(2000 + 2 * log(2))
    dz = span_cross_entropy.backward(1.0, cache)
    assert np.isfinite(dz).all() and dz[:, 0].tolist() == [1, -1, 0, 0]
    # nothing of its arguments is written to
    assert np.array_equal(z, before[0]) and np.array_equal(labels, before[1])


def test_dtype_is_preserved(rng):
    z, cu_seqlens, labels = case(rng, (3, 4))
    (loss, _), cache = span_cross_entropy.forward(z.astype(np.float32), cu_seqlens, labels)
    assert loss.dtype == span_cross_entropy.backward(np.float64(0.5), cache).dtype == np.float32


def test_a_forgotten_text_boundary_is_found(rng):
    """The check fails for a softmax over the whole batch, as for one over padding."""
    z, cu_seqlens, labels = case(rng, (3, 4))

    def forward(z):
        (loss, _), cache = span_cross_entropy.forward(z, cu_seqlens, labels)
        return loss, cache

    def over_all(dloss, cache):
        p, y, counted, text = cache
        return span_cross_entropy.backward(dloss, (p / len(cu_seqlens[1:]), y, counted, text))

    with pytest.raises(AssertionError):
        check(forward, over_all, z)


@pytest.mark.parametrize("labels, message", [
    ([[0, 1]], r"labels has shape \(1, 2\), expected \(2, 2\)"),
    ([[0, 1], [0, 4]], "the label 4 of text 1"), ([[0, 1], [-1, 0]], "the label -1 of text 1")])
def test_what_does_not_fit_is_refused(labels, message):
    z = np.zeros((7, 2))
    with pytest.raises(ValueError, match=message):
        dispatched.forward(z, np.array([0, 3, 7]), np.array(labels))
    with pytest.raises(ValueError, match="cu_seqlens ends at 6, z has 7 rows"):
        dispatched.forward(z, np.array([0, 3, 6]), np.array([[0, 1], [0, 1]]))
