"""Attention of short texts side by side equals the plain one, sequence after sequence."""

from types import SimpleNamespace

import numpy as np
import pytest

from minisft.backend.cpu import row_blocks
from minisft.dispatch import attention_groups
from minisft.ops import attention
from minisft.verify.gradcheck import check

GROUPS = attention_groups.Groups()
LENGTHS = [(1,), (5,), (3, 1, 13), (9, 8, 8, 7, 2, 1, 1), (16,) * 7]


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: request.param)


def case(rng, lengths, dropped, dtype=np.float64):
    q, k, v = (rng.standard_normal((sum(lengths), 2, 3)).astype(dtype) for _ in range(3))
    words = rng.integers(0, 2**32, (len(lengths), 2, max(lengths), max(lengths)), dtype=np.uint32)
    plain = grouped = None
    if dropped:
        plain = 0.4, lambda b, tk: words[b, :, :tk, :tk]
        grouped = 0.4, SimpleNamespace(
            of_groups=lambda: lambda indices, length: words[indices, :, :length, :length])
    return q, k, v, np.cumsum([0, *lengths]), plain, grouped


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equals_the_plain_formula(rng, threads, lengths, causal, dropped):
    q, k, v, cu_seqlens, plain, grouped = case(rng, lengths, dropped)
    expected, kept = attention.forward(q, k, v, cu_seqlens, cu_seqlens[:-1], np.array(lengths),
                                       causal, plain)
    y, cache = GROUPS.forward(q, k, v, cu_seqlens, causal=causal, drop=grouped)
    dy = rng.standard_normal(y.shape)
    for ours, theirs in zip((y, *GROUPS.backward(dy, cache)),
                            (expected, *attention.backward(dy, kept)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_backward_matches_finite_differences(rng, causal, dropped):
    q, k, v, cu_seqlens, _, grouped = case(rng, (5, 1, 4), dropped)
    check(lambda q, k, v: GROUPS.forward(q, k, v, cu_seqlens, causal=causal, drop=grouped),
          GROUPS.backward, q, k, v, names=["q", "k", "v"],
          operation="attention in groups")


def test_hostile_inputs(rng):
    # a padding key has the score 0, above every real one
    q, k, v, cu_seqlens, _, _ = case(rng, (4, 3), False)
    q[...], k[...] = 1000, -1000
    for causal in (True, False):
        y, cache = GROUPS.forward(q, k, v, cu_seqlens, causal=causal)
        np.testing.assert_allclose(y[3], v[:4].mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(y[6], v[4:].mean(axis=0), rtol=1e-13)
        assert all(np.isfinite(g).all() for g in GROUPS.backward(y, cache))


def test_inputs_are_left_alone_and_float32_stays(rng):
    q, k, v, cu_seqlens, _, grouped = case(rng, (9, 8, 3), True, np.float32)
    for a in (q, k, v):
        a.flags.writeable = False
    y, cache = GROUPS.forward(q, k, v, cu_seqlens, drop=grouped)
    first = GROUPS.backward(y, cache)
    again = GROUPS.backward(y, cache)
    assert {a.dtype for a in (y, *first)} == {np.dtype(np.float32)}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_groups_hold_every_sequence_once_with_little_padding(rng):
    lengths = rng.integers(1, 200, 101)
    groups = attention_groups.groups_of(lengths, 6)
    assert sorted(n for numbers, _ in groups for n in numbers) == list(range(101))
    for numbers, length in groups:
        assert max(lengths[numbers]) == length and min(lengths[numbers]) >= 0.8 * length
        assert len(numbers) == 1 or len(numbers) * 6 * length**2 <= attention_groups.NUMBERS
    assert len(groups) < 60
