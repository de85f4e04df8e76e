from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np
import pytest

from minisft.ops import attention
from minisft.verify.gradcheck import check

RATE = 0.4


@dataclass
class Case:
    """What attention takes besides q, k and v."""

    cu_seqlens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    causal: bool
    drop: tuple | None

    @property
    def rest(self):
        return self.cu_seqlens, self.starts, self.lengths, self.causal, self.drop


def case(rng, queries, keys, causal=True, drop=False, gap=0, heads=2, width=3):
    """Queries and keys of each sequence -> q, k, v, Case; `gap` unused rows before each's keys."""
    starts = np.cumsum([gap] + [n + gap for n in keys[:-1]])
    n_keys = starts[-1] + keys[-1] + gap
    words = [rng.integers(0, 2**32, (heads, tq, tk), dtype=np.uint32)
             for tq, tk in zip(queries, keys, strict=True)]
    fixed = (RATE, lambda b, tk: words[b][:, :, :tk]) if drop else None
    q = rng.standard_normal((sum(queries), heads, width))
    k, v = (rng.standard_normal((n_keys, heads, width)) for _ in range(2))
    return q, k, v, Case(np.cumsum([0, *queries]), starts, np.array(keys), causal, fixed)


def mask_of(drop, b, tk, shape):
    if drop is None:
        return np.ones(shape)
    rate, words = drop
    return np.where(words(b, tk) / 2**32 >= rate, 1 / (1 - rate), 0)


def by_loops(q, k, v, c, dy):
    """Equations (1)-(7), a number at a time -> y, dq, dk, dv."""
    heads, width = q.shape[1:]
    y, dq, dk, dv = np.zeros(q.shape), np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b, (first, tk) in enumerate(zip(c.starts, c.lengths, strict=True)):
        tq = c.cu_seqlens[b + 1] - c.cu_seqlens[b]
        m = mask_of(c.drop, b, tk, (heads, tq, tk))
        for h in range(heads):
            for i in range(tq):
                row = c.cu_seqlens[b] + i
                seen = [j for j in range(tk) if not c.causal or j <= i + tk - tq]
                e = {j: exp(sum(q[row, h, d] * k[first + j, h, d] for d in range(width))
                            / sqrt(width)) for j in seen}
                p = {j: e[j] / sum(e.values()) for j in seen}
                dp = {}
                for j in seen:
                    dp[j] = 0.0
                    for d in range(width):
                        y[row, h, d] += p[j] * m[h, i, j] * v[first + j, h, d]
                        dv[first + j, h, d] += p[j] * m[h, i, j] * dy[row, h, d]
                        dp[j] += dy[row, h, d] * v[first + j, h, d] * m[h, i, j]
                for j in seen:
                    # the row of the Jacobian diag(p) - p p^T, without the shortcut of (6)
                    ds = sum(p[j] * ((j == o) - p[o]) * dp[o] for o in seen)
                    for d in range(width):
                        dq[row, h, d] += ds * k[first + j, h, d] / sqrt(width)
                        dk[first + j, h, d] += ds * q[row, h, d] / sqrt(width)
    return y, dq, dk, dv


def close(ours, theirs, limit=1e-12):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit * max(1, np.abs(theirs).max()))


# queries and keys of each sequence, rows between the keys
SHAPES = [((1,), (1,), 0), ((2,), (3,), 0), ((5,), (5,), 0), ((3, 1, 4), (3, 1, 4), 0),
          ((1, 2, 3), (4, 2, 7), 2), ((1, 1), (3, 5), 1)]


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries, keys, gap", SHAPES)
def test_forward_matches_loops(rng, queries, keys, gap, causal, drop):
    for heads, width in [(1, 1), (2, 3), (3, 5)]:
        q, k, v, c = case(rng, queries, keys, causal, drop, gap, heads, width)
        dy = rng.standard_normal(q.shape)
        y, cache = attention.forward(q, k, v, *c.rest)
        assert y.shape == q.shape
        results = (y, *attention.backward(dy, cache))
        for ours, theirs in zip(results, by_loops(q, k, v, c, dy), strict=True):
            close(ours, theirs)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries, keys, gap", SHAPES)
def test_backward_matches_finite_differences(rng, queries, keys, gap, causal, drop):
    q, k, v, c = case(rng, queries, keys, causal, drop, gap)
    check(lambda q, k, v: attention.forward(q, k, v, *c.rest), attention.backward, q, k, v,
          names=["q", "k", "v"], operation="attention")


def test_hostile_inputs(rng):
    # scores of +-1000: the softmax is one-hot, nothing overflows
    q, k, v, c = case(rng, (3,), (3,), width=1)
    q[...] = 1000
    k[...] = np.array([1, -1, 0])[:, None, None]
    y, cache = attention.forward(q, k, v, *c.rest)
    np.testing.assert_array_equal(y, v[[0, 0, 0]])
    dq, dk, dv = attention.backward(np.ones_like(y), cache)
    assert not dq.any() and not dk.any() and dv[:, 0, 0].tolist() == [3, 0, 0]
    # equal keys: each query takes the mean of what it sees
    q, k, v, c = case(rng, (4,), (4,))
    k[...] = k[0]
    y, cache = attention.forward(q, k, v, *c.rest)
    for i in range(4):
        close(y[i], v[:i + 1].mean(axis=0))
    close(attention.backward(rng.standard_normal(y.shape), cache)[0], np.zeros(y.shape), 1e-14)
    # one key only: its value, and no gradient for queries and keys
    q, k, v, c = case(rng, (1, 1), (1, 1))
    y, cache = attention.forward(1000 * q, 1000 * k, v, *c.rest)
    dq, dk, dv = attention.backward(np.ones_like(y), cache)
    assert np.array_equal(y, v) and not dq.any() and not dk.any() and (dv == 1).all()
    # a score of -inf from the keys themselves
    q, k, v, c = case(rng, (1,), (3,), heads=1, width=1)
    q[...], k[...] = 1.0, np.array([0.0, -inf, 0.0])[:, None, None]
    y, _ = attention.forward(q, k, v, *c.rest)
    close(y[0, 0, 0], (v[0, 0, 0] + v[2, 0, 0]) / 2)
    # a cache not written yet lies between the keys
    q, k, v, c = case(rng, (1, 2), (3, 2), gap=2)
    y, _ = attention.forward(q, k, v, *c.rest)
    used = np.concatenate([np.arange(s, s + n) for s, n in zip(c.starts, c.lengths, strict=True)])
    unused = np.setdiff1d(np.arange(len(k)), used)
    k[unused] = v[unused] = np.nan
    same, cache = attention.forward(q, k, v, *c.rest)
    dq, dk, dv = attention.backward(np.ones_like(y), cache)
    assert np.array_equal(y, same) and np.isfinite(dq).all()
    assert not dk[unused].any() and not dv[unused].any()


@pytest.mark.parametrize("drop", [False, True])
def test_inputs_are_left_alone(rng, drop):
    q, k, v, c = case(rng, (3, 2), (3, 4), drop=drop)
    dy = rng.standard_normal(q.shape)
    for a in (q, k, v, dy, c.cu_seqlens, c.starts, c.lengths):
        a.flags.writeable = False
    y, cache = attention.forward(q, k, v, *c.rest)
    kept = y.copy()
    other, other_cache = attention.forward(q[::-1], k, v, *c.rest)
    first = attention.backward(dy, cache)
    attention.backward(dy, other_cache)
    second = attention.backward(dy, cache)
    assert np.array_equal(y, kept) and not np.shares_memory(y, other)
    for one, again in zip(first, second, strict=True):
        assert np.array_equal(one, again) and not np.shares_memory(one, again)


@pytest.mark.parametrize("drop", [False, True])
def test_float32_stays_float32(rng, drop):
    q, k, v, c = case(rng, (3, 1), (4, 2), drop=drop)
    y, cache = attention.forward(*(a.astype(np.float32) for a in (q, k, v)), *c.rest)
    assert {a.dtype for a in (y, *attention.backward(y, cache))} == {np.dtype(np.float32)}


def test_causal_mask_is_aligned_to_the_end(rng):
    # the last query sees all of the keys, the one before all but one
    q, k, v, c = case(rng, (2,), (5,))
    y, _ = attention.forward(q, k, v, *c.rest)
    free, _ = attention.forward(q, k, v, c.cu_seqlens, c.starts, c.lengths, False)
    close(y[1], free[1])
    changed = v.copy()
    changed[4] += 1
    other, _ = attention.forward(q, k, changed, *c.rest)
    assert np.array_equal(y[0], other[0]) and (y[1] != other[1]).all()
    changed[3] += 1
    assert (attention.forward(q, k, changed, *c.rest)[0][0] != y[0]).all()


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("wanted", [1, 3])
def test_pruned_queries_equal_the_full_rows(rng, wanted, drop):
    lengths = (5, 3, 4)
    q, k, v, c = case(rng, lengths, lengths, drop=drop)
    rows = np.concatenate([np.arange(stop - wanted, stop) for stop in c.cu_seqlens[1:]])
    words = None if c.drop is None else (RATE, lambda b, tk: c.drop[1](b, tk)[:, -wanted:])
    dy = np.zeros(q.shape)
    dy[rows] = rng.standard_normal((len(rows), *q.shape[1:]))
    full, full_cache = attention.forward(q, k, v, *c.rest)
    pruned, cache = attention.forward(q[rows], k, v, wanted * np.arange(4), c.starts, c.lengths,
                                      True, words)
    close(pruned, full[rows])
    dq, dk, dv = attention.backward(dy, full_cache)
    for ours, theirs in zip(attention.backward(dy[rows], cache), (dq[rows], dk, dv), strict=True):
        close(ours, theirs)
    assert not np.delete(dq, rows, axis=0).any()


def test_more_queries_than_keys_is_refused(rng):
    q, k, v, c = case(rng, (2, 4), (2, 3))
    with pytest.raises(ValueError, match="sequence 1: 4 queries but 3 keys under a causal mask"):
        attention.forward(q, k, v, *c.rest)
    y, _ = attention.forward(q, k, v, c.cu_seqlens, c.starts, c.lengths, causal=False)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_each_sequence_is_alone(rng, causal, drop):
    queries, keys = (3, 1, 4), (3, 6, 5)
    q, k, v, c = case(rng, queries, keys, causal, drop, gap=1)
    dy = rng.standard_normal(q.shape)
    y, cache = attention.forward(q, k, v, *c.rest)
    dq, dk, dv = attention.backward(dy, cache)
    for b in range(3):
        own = slice(c.cu_seqlens[b], c.cu_seqlens[b + 1])
        its = slice(c.starts[b], c.starts[b] + c.lengths[b])
        words = None if c.drop is None else (RATE, lambda _, tk, b=b: c.drop[1](b, tk))
        alone, alone_cache = attention.forward(q[own], k[its], v[its], [0, queries[b]], [0],
                                               [keys[b]], causal, words)
        close(alone, y[own])
        for ours, theirs in zip(attention.backward(dy[own], alone_cache),
                                (dq[own], dk[its], dv[its]), strict=True):
            close(ours, theirs)


def test_the_softmax_never_saw_the_mask(rng):
    # Dropped and kept P differ in (6): by finite differences, and against the mistaken formula.
    q, k, v, c = case(rng, (5,), (5,), drop=True)
    dy = rng.standard_normal(q.shape)
    rows = check(lambda q, k, v: attention.forward(q, k, v, *c.rest), attention.backward, q, k, v)
    assert max(row.error for row in rows) < 1e-8
    _, cache = attention.forward(q, k, v, *c.rest)
    ((p, _),) = cache[-1]
    m = mask_of(c.drop, 0, 5, p.shape)
    assert 0 < (m == 0).mean() < 1
    dp = (dy.transpose(1, 0, 2) @ v.transpose(1, 2, 0)) * m
    right, wrong = (a * (dp - (dp * a).sum(axis=-1, keepdims=True)) for a in (p, p * m))
    dq = attention.backward(dy, cache)[0]
    by_p, by_pm = ((ds @ k.transpose(1, 0, 2)).transpose(1, 0, 2) / sqrt(3)
                   for ds in (right, wrong))
    close(dq, by_p)
    assert np.abs(dq - by_pm).max() > 0.01


@pytest.mark.parity
@pytest.mark.parametrize("queries, keys", [((4,), (4,)), ((1, 2, 3), (4, 2, 7))])
@pytest.mark.parametrize("causal", [True, False])
def test_matches_pytorch(rng, queries, keys, causal):
    torch = pytest.importorskip("torch")
    q, k, v, c = case(rng, queries, keys, causal)
    dy = rng.standard_normal(q.shape)
    y, cache = attention.forward(q, k, v, *c.rest)
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    outputs = []
    for b, (tq, tk) in enumerate(zip(queries, keys, strict=True)):
        own = slice(c.cu_seqlens[b], c.cu_seqlens[b + 1])
        its = slice(c.starts[b], c.starts[b] + tk)
        tq_, tk_, tv_ = (t[rows].transpose(0, 1) for t, rows in
                         zip(tensors, (own, its, its), strict=True))
        # PyTorch's own is_causal is aligned to the beginning, so the mask is spelled out
        seen = torch.ones(tq, tk, dtype=torch.bool)
        seen = seen.tril(tk - tq) if causal else seen
        outputs.append(torch.nn.functional.scaled_dot_product_attention(
            tq_, tk_, tv_, attn_mask=seen).transpose(0, 1))
    output = torch.cat(outputs)
    output.backward(torch.tensor(dy))
    close(y, output.detach().numpy())
    for ours, theirs in zip(attention.backward(dy, cache), tensors, strict=True):
        close(ours, theirs.grad.numpy())


def test_two_sequences_may_share_keys(rng):
    q, k, v = (rng.standard_normal((n, 2, 3)) for n in (3, 4, 4))
    given = np.array([0, 1, 3]), np.array([0, 1]), np.array([3, 3])     # rows 1 and 2 serve both
    check(lambda q, k, v: attention.forward(q, k, v, *given), attention.backward, q, k, v)
