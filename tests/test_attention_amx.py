"""Attention on AMX's tiles: right within bfloat16, and the same bits in any company."""

from importlib import import_module

import numpy as np
import pytest

from minisft.backend import bfloat16
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.random import Scores, Stream
from minisft.dispatch import attention
from minisft.dispatch.matmul import BFLOAT16
from minisft.ops import attention as formula

WHY_NOT = processor.why_not_bfloat16() or processor.why_not_amx()
needs_tiles = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
LENGTHS = [(1,), (31,), (32, 33), (64, 2, 97, 1), (263, 5)]
RATE, STREAM = 0.3, Stream(3, 4)


def loops():
    return import_module("minisft.backend.cpu.compiled.attention_amx")


def case(rng, lengths, heads=3, width=32):
    """-> q, k, v and dy (N,H,D), where each text begins."""
    q, k, v, dy = rng.standard_normal((4, sum(lengths), heads, width), dtype=np.float32)
    return (q, k, v), dy, np.cumsum([0, *lengths])


def ids_of(edges):
    return np.arange(len(edges) - 1) * 7 + 2**31


def dropout_of(edges, heads):
    return RATE, Scores(STREAM, 1, ids_of(edges), edges, heads)


def ours(qkv, dy, edges, causal=True, drop=None):
    """-> y, dq, dk, dv."""
    y, cache = loops().forward(*qkv, edges, causal=causal, drop=drop)
    return y, *loops().backward(dy, cache)


def exact(qkv, dy, edges, causal, dropped):
    """-> the same in float64, of rounded factors."""
    *qkv, dy = (bfloat16.from_bfloat16(bfloat16.to_bfloat16(x)).astype(float) for x in (*qkv, dy))
    lengths, ids = np.diff(edges), ids_of(edges)
    drop = (RATE, lambda b, keys: STREAM.scores(1, ids[b], np.arange(lengths[b]), qkv[0].shape[1],
                                                keys)) if dropped else None
    y, cache = formula.forward(*qkv, edges, edges[:-1], lengths, causal, drop)
    return y, *formula.backward(dy, cache)


@needs_tiles
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_the_formula_of_rounded_factors(rng, lengths, width, causal, dropped):
    qkv, dy, edges = case(rng, lengths, width=width)
    drop = dropout_of(edges, 3) if dropped else None
    wanted = exact(qkv, dy, edges, causal, dropped)
    largest = max(np.abs(a).max() for a in wanted[1:])     # a text of one token has dq = dk = 0
    for found, exactly in zip(ours(qkv, dy, edges, causal, drop), wanted, strict=True):
        size = np.abs(exactly).max()
        assert np.abs(found - exactly).max() < 2.0**-7 * (size if size > 1e-9 else largest)


@needs_tiles
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_neither_threads_nor_company_nor_layout_change_a_bit(rng, monkeypatch, causal, dropped):
    lengths, found = (70, 3, 129, 32), []
    qkv, dy, edges = case(rng, lengths)
    drop = dropout_of(edges, 3) if dropped else None
    side_by_side = np.stack(qkv, axis=1)
    for n, arrays in ((1, qkv), (2, qkv), (3, side_by_side.swapaxes(0, 1)), (16, qkv),
                      (2, [np.asfortranarray(x) for x in qkv])):
        monkeypatch.setattr(row_blocks, "threads", lambda n=n: n)
        found.append(ours(arrays, dy, edges, causal, drop))
    for b, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        alone = RATE, Scores(STREAM, 1, ids_of(edges)[b:b + 1], edges[:2], 3)
        one = ours([x[start:stop] for x in qkv], dy[start:stop], np.array([0, stop - start]),
                   causal, alone if dropped else None)
        assert all(np.array_equal(a, whole[start:stop]) for a, whole in zip(
            one, found[0], strict=True))
    for other in found[1:]:
        assert all(map(np.array_equal, found[0], other))


@needs_tiles
@pytest.mark.parametrize("causal", [True, False])
def test_probabilities_that_are_computed_again_are_the_same(rng, monkeypatch, causal):
    qkv, dy, edges = case(rng, (70, 3, 129))
    kept = ours(qkv, dy, edges, causal)
    monkeypatch.setattr(loops(), "SHORT", 0)
    assert all(map(np.array_equal, kept, ours(qkv, dy, edges, causal)))
    drop = dropout_of(edges, 3)     # then they are masked before or after they are rounded
    again = ours(qkv, dy, edges, causal, drop)
    monkeypatch.undo()
    for a, b in zip(ours(qkv, dy, edges, causal, drop), again, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-7 * np.abs(b).max())


@needs_tiles
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("short", [0, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_memory_is_not_read_before_it_is_written(rng, monkeypatch, causal, short, dropped):
    qkv, dy, edges = case(rng, (70, 3, 33))
    drop = dropout_of(edges, 3) if dropped else None
    monkeypatch.setattr(loops(), "SHORT", short)
    found = []
    for byte in (0, 0xFF):     # a bfloat16 or float32 of ones is NaN
        monkeypatch.setattr(loops(), "aligned", lambda shape, dtype, byte=byte: np.full(
            int(np.prod(shape)) * np.dtype(dtype).itemsize + 64, byte, np.uint8)[
                :int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape))
        found.append(ours(qkv, dy, edges, causal, drop))
    assert all(map(np.array_equal, *found)) and np.isfinite(found[0][0]).all()


@needs_tiles
def test_hostile_inputs(rng):
    (q, k, v), dy, edges = case(rng, (40, 5, 33))
    usual = ours((q, k, v), dy, edges)
    for bad in (np.nan, np.inf, -np.inf):
        hostile = q.copy()
        hostile[42, 1, 3] = bad     # of the second text, its third token
        y, *_ = ours((hostile, k, v), dy, edges)
        assert np.isnan(y[42, 1]).all() and not np.isnan(np.delete(y[:, 1], 42, axis=0)).any()
        assert np.array_equal(y[:40], usual[0][:40]) and np.array_equal(y[45:], usual[0][45:])
    y, *gradients = ours((1e4 * q, 1e4 * k, v), dy, edges)     # all on one key
    assert np.isfinite(y).all() and all(np.isfinite(g).all() for g in gradients)
    y, *gradients = ours((1e-40 * q, 1e-40 * k, v), dy, edges)     # zeros to the instruction
    np.testing.assert_allclose(y[39], v[:40].mean(axis=0), atol=1e-2)
    y, cache = loops().forward(*[np.zeros((0, 2, 32), np.float32)] * 3, np.array([0, 0]))
    assert y.shape == (0, 2, 32) and all(g.shape == y.shape for g in loops().backward(y, cache))


@needs_tiles
def test_inputs_are_left_alone_and_may_be_read_only(rng):
    qkv, dy, edges = case(rng, (40, 5))
    before = [x.copy() for x in (*qkv, dy)]
    for x in (*qkv, dy):
        x.flags.writeable = False
    y, cache = loops().forward(*qkv, edges)
    first, second = loops().backward(dy, cache), loops().backward(dy, cache)
    assert all(map(np.array_equal, first, second))
    assert all(map(np.array_equal, before, (*qkv, dy)))


@needs_tiles
def test_what_takes_it():
    def chosen(lengths, width=64, dtype=BFLOAT16, queries=None):
        q = np.zeros((sum(queries or lengths), 2, width), np.float32)
        k, edges = np.zeros((sum(lengths), 2, width), np.float32), np.cumsum([0, *lengths])
        return attention.choose(q, k, k, np.cumsum([0, *(queries or lengths)]), edges[:-1],
                                np.array(lengths), compute_dtype=dtype).name

    assert chosen((3, 1024)) == chosen((1,), 32) == chosen((7,), 128) == "AMX"
    assert chosen((3,), dtype=None) == "compiled groups"
    assert "AMX" not in (chosen((3, 1025)), chosen((3,), 16), chosen((3,), 160),
                         chosen((3, 4), queries=(1, 1)))
    with jit.compiled(False):
        assert chosen((3,)) == "groups"


def test_no_tile_is_touched_where_the_system_lends_none(rng, monkeypatch):
    if jit.numba() is None:
        pytest.skip("compiled loops need the extra fast")
    monkeypatch.setattr(processor, "_lends_tiles", lambda: False)
    qkv, _, edges = case(rng, (3,))
    with pytest.raises(RuntimeError, match="tiles: "):     # the instruction would end the process
        loops().forward(*qkv, edges)
