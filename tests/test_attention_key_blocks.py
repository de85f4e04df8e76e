"""Attention in blocks of keys equals the plain one, which keeps every score."""

import tracemalloc

import numpy as np
import pytest

from minisft.backend.cpu import row_blocks
from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.dispatch import attention_key_blocks
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.ops import attention
from minisft.verify.gradcheck import check

# queries and keys of each sequence
SHAPES = [((1,), (1,)), ((5,), (5,)), ((3, 1, 13), (3, 1, 13)), ((1, 4, 3), (9, 4, 7)),
          ((16, 12), (16, 12))]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention_key_blocks, "KEYS", 4)


def case(rng, queries, keys, causal, dropped, dtype=np.float64):
    starts = np.cumsum([2, *keys[:-1]])
    q = rng.standard_normal((sum(queries), 2, 3)).astype(dtype)
    k, v = (rng.standard_normal((2 + sum(keys), 2, 3)).astype(dtype) for _ in range(2))
    words = [rng.integers(0, 2**32, (2, tq, tk), dtype=np.uint32)
             for tq, tk in zip(queries, keys, strict=True)]

    def drawn(b, tk, block=slice(None), queries=slice(None)):
        return words[b][:, queries, block]

    return q, k, v, (np.cumsum([0, *queries]), starts, np.array(keys), causal,
                     (0.4, drawn) if dropped else None)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries, keys", SHAPES)
def test_equals_the_plain_formula(rng, queries, keys, causal, dropped):
    q, k, v, rest = case(rng, queries, keys, causal, dropped)
    expected, plain = attention.forward(q, k, v, *rest)
    y, cache = attention_key_blocks.forward(q, k, v, *rest)
    dy = rng.standard_normal(y.shape)
    for ours, theirs in zip((y, *attention_key_blocks.backward(dy, cache)),
                            (expected, *attention.backward(dy, plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("queries, keys", SHAPES)
def test_threads_change_no_bit(rng, monkeypatch, queries, keys, dropped):
    q, k, v, rest = case(rng, queries, keys, True, dropped, np.float32)
    dy, found, taken = rng.standard_normal(q.shape).astype(np.float32), [], []
    each = row_blocks.each_product
    monkeypatch.setattr(row_blocks, "each_product", lambda work, parts: (
        taken.append([part[0] for part in parts]), each(work, parts)))
    for threads in (1, 2, 5):
        monkeypatch.setattr(row_blocks, "threads", lambda threads=threads: threads)
        y, cache = attention_key_blocks.forward(q, k, v, *rest)
        found.append((y, *attention_key_blocks.backward(dy, cache)))
    for result in found[1:]:
        assert all(map(np.array_equal, result, found[0]))
    # one text alone is shared by heads, unless dropout draws the words of all heads at once
    assert taken[2] == taken[3] == ([0, 0] if len(queries) == 1 and not dropped else
                                    list(range(len(queries))))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_backward_matches_finite_differences(rng, causal, dropped):
    q, k, v, rest = case(rng, (1, 9, 3), (5, 9, 6), causal, dropped)
    check(lambda q, k, v: attention_key_blocks.forward(q, k, v, *rest),
          attention_key_blocks.backward, q, k, v, names=["q", "k", "v"],
          operation="attention in blocks")


def test_hostile_inputs(rng):
    # the largest score comes first, in the middle, last: what was summed before must shrink
    for order in ([1000, -1000, 0], [-1000, 1000, 0], [0, -1000, 1000]):
        q, k, v, rest = case(rng, (12,), (12,), False, False)
        q[...] = 1
        k[2:] = np.repeat(order, 4)[:, None, None]
        y, cache = attention_key_blocks.forward(q, k, v, *rest)
        best = v[2:][np.repeat(order, 4) == 1000].mean(axis=0)
        np.testing.assert_allclose(y, np.broadcast_to(best, y.shape), rtol=1e-13)
        assert all(np.isfinite(g).all() for g in attention_key_blocks.backward(y, cache))
    with pytest.raises(ValueError, match="3 queries but 2 keys"):
        attention_key_blocks.forward(*case(rng, (3,), (2,), True, False)[:3], [0, 3], [0], [2])


def test_inputs_are_left_alone_and_float32_stays(rng):
    q, k, v, rest = case(rng, (9,), (9,), True, True, np.float32)
    for a in (q, k, v):
        a.flags.writeable = False
    y, cache = attention_key_blocks.forward(q, k, v, *rest)
    first = attention_key_blocks.backward(y, cache)
    again = attention_key_blocks.backward(y, cache)
    assert {a.dtype for a in (y, *first)} == {np.dtype(np.float32)}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory_grows_with_the_length(rng, monkeypatch):
    monkeypatch.setattr(attention_key_blocks, "KEYS", 64)
    monkeypatch.setattr(row_blocks, "threads", lambda: 1)     # whether two meet is chance
    peak = []
    for length in (512, 2048):
        q = rng.standard_normal((length, 2, 8)).astype(np.float32)
        tracemalloc.start()
        y, cache = attention_key_blocks.forward(q, q, q, [0, length], [0], [length])
        attention_key_blocks.backward(y, cache)
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peak[1] < 5 * peak[0]     # the plain formula: sixteen times


@pytest.mark.parametrize("stream", [None, Stream(3, 1)])
def test_a_model_takes_long_texts_in_blocks(rng, monkeypatch, stream):
    model = Classifier(GPT2Config(vocab_size=9, n_positions=30, n_embd=8, n_layer=2, n_head=2),
                       "ab", np.float64)
    model.store.values += 0.3 * rng.standard_normal(model.store.size)
    batch = pack([rng.integers(0, 9, n) for n in (3, 30, 13)], [0, 1, 0], [7, 2, 5])
    found = []
    for short in (29, 30):
        monkeypatch.setattr(attention_key_blocks, "SHORT", short)
        model.store.zero_grad()
        loss, _, _ = model.loss(batch, stream)
        name = model.trunk.h[0].attn.attended.implementation.name
        assert name == ("key blocks" if short == 29 else "groups")
        model.loss_backward()
        found.append((loss, model.store.grads.copy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-13)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=1e-12)
