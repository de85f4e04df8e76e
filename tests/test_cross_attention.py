"""Attention whose keys are of another text: every way to compute it is right, or is not taken."""

import numpy as np
import pytest

from minisft import dispatch
from minisft.backend.gpu import cuda, emulator
from minisft.backend.random import Scores, Stream
from minisft.dispatch import attention, attention_key_blocks

RATE = 0.3
STREAM = Stream(seed=3, step=7)
# queries and keys of each text: more of one, more of the other, as many
QUERIES, KEYS = np.array([5, 1, 3, 9]), np.array([2, 6, 3, 4])
WIDTH = 16


def case(rng, queries=QUERIES, keys=KEYS):
    """-> q, k, v (float32), the places of queries and keys, dropout."""
    q, k, v = (rng.standard_normal((n, 2, WIDTH)).astype(np.float32)
               for n in (queries.sum(), keys.sum(), keys.sum()))
    cu_seqlens, starts = np.concatenate([[0], np.cumsum(queries)]), np.cumsum(keys) - keys
    words = Scores(STREAM, 4, np.array([31, 8, 100, 2]), cu_seqlens, 2)
    return q, k, v, cu_seqlens, starts, keys, (RATE, words)


def expected(q, k, v, cu_seqlens, starts, lengths, drop, dy):
    """Text by text in float64 -> y, dq, dk, dv."""
    q, k, v, dy = (a.astype(np.float64) for a in (q, k, v, dy))
    y, dq, dk, dv = (np.zeros_like(a) for a in (q, q, k, v))
    for b, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        rows, keys = slice(cu_seqlens[b], cu_seqlens[b + 1]), slice(start, start + n)
        s = np.einsum("ihd,jhd->hij", q[rows], k[keys]) / np.sqrt(WIDTH)
        p = np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)
        m = np.ones_like(p)
        if drop is not None:
            m = (drop[1](b, n) >= np.uint32(RATE * 2**32)) / (1 - RATE)
        y[rows] = np.einsum("hij,jhd->ihd", p * m, v[keys])
        dv[keys] += np.einsum("hij,ihd->jhd", p * m, dy[rows])
        dp = np.einsum("ihd,jhd->hij", dy[rows], v[keys]) * m
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) / np.sqrt(WIDTH)
        dq[rows] = np.einsum("hij,jhd->ihd", ds, k[keys])
        dk[keys] += np.einsum("hij,ihd->jhd", ds, q[rows])
    return y, dq, dk, dv


def require_right(rng, given, drops, runs_as, limit=1e-5, **options):
    *arrays, drop = given
    drop = drop if drops else None
    dy = rng.standard_normal(arrays[0].shape).astype(np.float32)
    y, cache = attention.forward(*arrays, False, drop, **options)
    assert cache.implementation.name == runs_as
    for ours, theirs in zip((y, *attention.backward(dy, cache)),
                            expected(*arrays, drop, dy), strict=True):
        assert np.abs(ours - theirs).max() <= limit * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("name, runs_as", [
    ("formula", "formula"), ("groups", "formula"), ("compiled groups", "formula"),
    ("key blocks", "key blocks"), (None, "formula")])
def test_on_a_cpu(rng, monkeypatch, drops, name, runs_as):
    if name == "key blocks":
        monkeypatch.setattr(attention_key_blocks, "SHORT", 4)
        monkeypatch.setattr(attention_key_blocks, "KEYS", 4)
    given = case(rng)
    if name is None:
        require_right(rng, given, drops, runs_as)
        return
    with dispatch.only(name, operations=("attention",)):
        require_right(rng, given, drops, runs_as)


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("name", ["groups", "compiled groups"])
def test_groups_of_texts_as_long_as_their_sources(rng, drops, name):
    """Only where each source is as long as its target may they stand side by side."""
    if name == "compiled groups":
        pytest.importorskip("numba")
    with dispatch.only(name, operations=("attention",)):
        if attention.choose(*case(rng, QUERIES, QUERIES)[:-1], False).name != name:
            pytest.skip("compiled loops are switched off")
        require_right(rng, case(rng, QUERIES, QUERIES), drops, name)
        # as many tokens in all, but not of each text
        require_right(rng, case(rng, QUERIES, QUERIES[::-1]), drops, "formula")


@pytest.fixture
def emulate(monkeypatch):
    if emulator.compiler() is None:
        pytest.skip("no C++ compiler to emulate CUDA kernels")
    monkeypatch.setenv("MINISFT_CUDA", "emulate")


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("version", ["fused", "naive"])
def test_on_the_emulator(rng, emulate, drops, version):
    with cuda.kernels(version):
        require_right(rng, case(rng), drops, f"{version} kernel")


@pytest.mark.parametrize("drops", [False, True])
def test_tensor_cores_on_the_emulator(rng, emulate, drops):
    require_right(rng, case(rng), drops, "tensor cores", 2e-2, compute_dtype=dispatch.BFLOAT16)


def test_beams_that_share_a_source(rng):
    """In writing several rows ask the keys of one text."""
    q, k, v, cu_seqlens, starts, lengths, _ = case(rng, np.ones(4, int))
    shared = np.array([1, 1, 0, 1])
    y, _ = attention.forward(q, k, v, cu_seqlens, starts[shared], lengths[shared], False)
    for row, text in enumerate(shared):
        alone, _ = attention.forward(q[row:row + 1], k, v, np.array([0, 1]), starts[[text]],
                                     lengths[[text]], False)
        np.testing.assert_allclose(y[row], alone[0], rtol=1e-5, atol=1e-6)


def test_a_source_token_sums_over_the_target(rng):
    """dv of one key is the sum of what each query alone gives it: (4) of Attention."""
    q, k, v, *_ = case(rng)
    given = np.array([0, 3]), np.array([2]), np.array([4])
    dy = rng.standard_normal((3, 2, WIDTH)).astype(np.float32)
    _, dk, dv = attention.backward(dy, attention.forward(q[:3], k, v, *given, False)[1])
    parts = [attention.backward(dy[[i]], attention.forward(
        q[[i]], k, v, np.array([0, 1]), *given[1:], False)[1]) for i in range(3)]
    np.testing.assert_allclose(dk, sum(part[1] for part in parts), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dv, sum(part[2] for part in parts), rtol=1e-4, atol=1e-6)
    assert not dk[:2].any() and not dk[6:].any()
