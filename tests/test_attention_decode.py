"""Attention of one query of each sequence to a cache: right, the same bits in any company, refused
where it must be."""

from contextlib import nullcontext
from importlib import import_module

import numpy as np
import pytest
from test_attention import case, close

from minisft import ops
from minisft.backend.cpu import jit, row_blocks
from minisft.data.batch import pack
from minisft.dispatch import attention, only
from minisft.models.generate import KVCache
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel

pytestmark = pytest.mark.skipif(not jit.enabled(), reason="compiled loops need the extra fast")


def asked(rng, lengths, heads=2, width=3, gap=0):
    """-> float32 arguments of `attention`; what lies between the sequences' keys is NaN."""
    q, k, v, c = case(rng, [1] * len(lengths), lengths, gap=gap, heads=heads, width=width)
    unused = np.ones(len(k), bool)
    for start, n in zip(c.starts, c.lengths, strict=True):
        unused[start:start + n] = False
    k[unused] = v[unused] = np.nan
    return [*(a.astype(np.float32) for a in (q, k, v)), c.cu_seqlens, c.starts, c.lengths]


def in_float64(arguments):
    return [a.astype(np.float64) if a.dtype == np.float32 else a for a in arguments]


@pytest.mark.parametrize("heads, width", [(1, 1), (2, 3), (3, 16), (5, 17), (12, 64)])
@pytest.mark.parametrize("lengths", [[1], [2], [37], [1, 1], [5, 1, 33], [64, 2, 131, 7, 300]])
def test_values_and_gradients_are_the_formula_s(rng, lengths, heads, width):
    for gap in (0, 3):
        arguments = asked(rng, lengths, heads, width, gap)
        y, cache = attention.forward(*arguments)
        assert cache.implementation.name == "decode"
        expected, exact = ops.attention.forward(*in_float64(arguments))
        close(y, expected, 2e-6)
        dy = rng.standard_normal(y.shape)
        for ours, theirs in zip(attention.backward(dy.astype(np.float32), cache),
                                ops.attention.backward(dy, exact), strict=True):
            close(ours, theirs, 2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int32, list])
def test_keys_may_be_given_by_any_whole_numbers(rng, dtype):
    q, k, v, *rest = asked(rng, [5, 1, 33])
    given = [a.tolist() if dtype is list else a.astype(dtype) for a in rest]
    assert np.array_equal(attention.forward(q, k, v, *given)[0],
                          attention.forward(q, k, v, *rest)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_a_single_query_sees_every_key(rng, causal):
    arguments = asked(rng, [9, 4])
    close(attention.forward(*arguments, causal)[0],
          ops.attention.forward(*in_float64(arguments), False)[0], 2e-6)


def test_company_and_threads_change_no_bit(rng, monkeypatch):
    loops = import_module("minisft.backend.cpu.compiled.attention_decode")
    monkeypatch.setattr(loops, "THREADED", 0)
    lengths = [5, 130, 1, 64, 17, 300, 2]
    q, k, v, edges, starts, lengths = asked(rng, lengths, 3, 16, gap=1)
    whole = attention.forward(q, k, v, edges, starts, lengths)[0]
    for threads in (1, 2, 3, 5, 11):
        monkeypatch.setattr(row_blocks, "threads", lambda threads=threads: threads)
        for rows in ([0], [1], [5, 0], [2, 6, 1], [4, 3, 2, 1, 0], list(range(7))):
            alone = attention.forward(q[rows], k, v, np.arange(len(rows) + 1), starts[rows],
                                      lengths[rows])[0]
            assert np.array_equal(alone, whole[rows])


def test_hostile_numbers_stay_in_their_sequence_and_head(rng):
    for place, value in (("k", np.nan), ("k", np.inf), ("k", -np.inf), ("v", np.nan),
                         ("v", -np.inf), ("k", 3e38), ("v", 3e38)):
        q, k, v, *rest = asked(rng, [7, 4, 40])
        (k if place == "k" else v)[8, 1, 2] = value      # of the second sequence
        with np.errstate(all="ignore"):
            expected = ops.attention.forward(q, k, v, *rest)[0]
        y = attention.forward(q, k, v, *rest)[0]
        for kind in (np.isnan, np.isposinf, np.isneginf):
            assert np.array_equal(kind(y), kind(expected)), (place, value)
        assert np.isfinite(y[[0, 2]]).all() and np.isfinite(y[:, 0]).all()
    q, k, v, *rest = asked(rng, [40, 3])
    q *= 1e4      # one probability is 1
    close(attention.forward(q, k, v, *rest)[0],
          ops.attention.forward(*in_float64([q, k, v, *rest]))[0], 1e-5)


def test_what_it_does_not_take_runs_as_before(rng):
    q, k, v, edges, starts, lengths = arguments = asked(rng, [5, 7])

    def chosen(*args, **options):
        return attention.choose(*args, **options).name

    assert chosen(*arguments) == "decode"
    twice = np.concatenate([q, q])
    words = (0.5, lambda b, n: np.zeros((2, 1, n), np.uint32))
    for other in ((twice, k, v, 2 * edges, starts, lengths),
                  (twice, k, v, np.array([0, 1, 4]), starts, lengths),
                  (q, k.repeat(2, axis=0)[::2], v, edges, starts, lengths),
                  (q, k, np.asfortranarray(v), edges, starts, lengths),
                  (q, k, v, edges, starts, lengths, True, words),
                  (q, k, v, edges, starts - 1, lengths), (q, k, v, edges, starts, lengths + 1),
                  in_float64(arguments)):
        assert chosen(*other) == "formula"
    without = edges, starts, lengths * [1, 0]
    with pytest.raises(ValueError, match="1 queries but 0 keys"):
        attention.forward(q, k, v, *without)
    assert chosen(q, k, v, *without, False) == "formula"
    with jit.compiled(False):
        assert chosen(*arguments) == "formula"


def test_a_new_token_of_each_text_decodes(rng, monkeypatch):
    model = LanguageModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=24, n_layer=2, n_head=3),
                          seed=1)
    loops = import_module("minisft.backend.cpu.compiled.attention_decode")
    ran, found = [], {}
    forward = loops.forward
    monkeypatch.setattr(loops, "forward", lambda *a, **o: ran.append(len(a[0])) or forward(*a, **o))
    prompts = [rng.integers(0, 40, n) for n in (3, 11, 1)]
    for name in (None, "formula"):
        with only(name, operations=("attention",)) if name else nullcontext():
            cache = KVCache(model.trunk.config, 3, 20, model.store.values)
            model.forward(pack(prompts), last_only=True, kv_cache=cache)
            batch = pack([[7], [8], [9]])
            batch.positions[:] = [3, 11, 1]
            found[name] = model.forward(batch, last_only=True, kv_cache=cache)
    # in the last block one token of each prompt asks, then one in both blocks
    assert ran == [3, 3, 3]
    close(found[None], found["formula"], 1e-5)
