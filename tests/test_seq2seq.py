"""The encoder-decoder: gradients, what a token may see, company, and the loss."""

import copy
import pickle
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from minisft.backend import array, random
from minisft.backend.gpu import cuda, emulator
from minisft.backend.random import Stream
from minisft.data.batch import Batch, pack, pack_pairs
from minisft.data.special_tokens import SpecialTokens
from minisft.errors import UserError
from minisft.models import logit_blocks, seq2seq
from minisft.models.config import Seq2SeqConfig
from minisft.models.heads import tied_logits
from minisft.models.seq2seq import EncoderDecoder, sinusoids
from minisft.models.translate import greedy
from minisft.nn import blocks, parameters
from minisft.nn.cross_attention import Attention
from minisft.nn.layers import Dropout, Layer, no_grad
from minisft.ops.cross_entropy import IGNORE
from minisft.training.optim import AdamW
from minisft.verify import gradcheck
from tests import standin_cupy

CONFIG = Seq2SeqConfig(
    vocab_size=13, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
    decoder_attention_heads=2, encoder_ffn_dim=7, decoder_ffn_dim=10, max_position_embeddings=9,
    dropout=0.25, attention_dropout=0.3)
START, END = CONFIG.decoder_start_token_id, CONFIG.eos_token_id
STREAM = Stream(seed=5, step=12)
# sources longer and shorter than their targets, and as long
SOURCES = [[3, 4, 5, 9, 6, 2], [8, 2], [7, 7, 8], [5, 12, 3, 2]]
TARGETS = [[5, 3], [4, 4, 10, 9, 8, 11], [6, 3], []]
NUMBERS = [31, 8, 100, 2]


def model_of(rng, dtype=np.float64, config=CONFIG):
    model = EncoderDecoder(config, dtype, seed=1)
    # far from the small initial values, so that attention really chooses
    model.store.values += (0.3 * rng.standard_normal(model.store.size)).astype(dtype)
    return model


def batch_of(chosen=range(4), sources=SOURCES, targets=TARGETS):
    return pack_pairs([sources[i] for i in chosen], [targets[i] for i in chosen], START, END,
                      [NUMBERS[i] for i in chosen])


def run(model, batch, stream=None, **options):
    """-> loss, denominator, logits, gradient of the embedded rows, gradients of parameters."""
    model.store.zero_grad()
    loss, denominator, logits = model.loss(batch, stream, **options)
    logits = logits.copy()
    return loss, denominator, logits, model.loss_backward(), model.store.grads.copy()


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.2}])
@pytest.mark.parametrize("stream", [None, STREAM])
def test_gradients_of_the_loss(rng, options, stream):
    model, batch = model_of(rng), batch_of()
    run(model, batch, stream, **options)
    rows = gradcheck.compare_directions(
        lambda: float(model.loss(batch, stream, **options)[0]),
        {p.name: p.value for p in model.store}, {p.name: p.grad for p in model.store}, 1)
    gradcheck.require(rows, gradcheck.MODEL_LIMIT)


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.2}])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_in_blocks_of_rows(rng, monkeypatch, options, frozen):
    model, batch, seen = model_of(rng), batch_of(), []
    if frozen:
        model.train_layers("last:1")
    loss, denominator, _, _, gradients = run(model, batch, STREAM, **options)
    monkeypatch.setattr(logit_blocks, "ON_CPU", 3 * 13 * 8)
    monkeypatch.setattr(parameters, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(seq2seq, "tied_logits",
                        lambda h, table: (seen.append(len(h)), tied_logits(h, table))[1])
    model.store.zero_grad()
    found = model.loss_and_gradients(batch, STREAM, **options)
    assert found == pytest.approx((loss, denominator), rel=1e-14)
    assert len(seen) > 1 and max(seen) <= 3 and sum(seen) == denominator
    assert abs(model.store.grads - gradients).max() <= 1e-12 * abs(gradients).max() > 0
    with pytest.raises(TypeError, match="weight"):
        model.loss_and_gradients(batch, weight=1)


def test_where_no_backward_comes_blocks_keep_nothing(rng):
    model, batch = model_of(rng), batch_of()
    logits = model.loss(batch)[2].copy()

    def kept():
        return [block.mlp.cache is not None for block in model.trunk.blocks]

    assert all(kept())
    with no_grad():
        assert np.array_equal(model.loss(batch)[2], logits) and not any(kept())
    model.loss(batch)
    assert all(kept())


def test_a_later_target_token_changes_no_earlier_logit(rng):
    model = model_of(rng, np.float32)
    assert leaks(model) == []


def test_a_planted_leak_is_found(rng, monkeypatch):
    model = model_of(rng, np.float32)
    model.trunk.decoder.layers[1].self_attn.causal = False
    assert leaks(model)


def leaks(model):
    """-> (later token, earlier token) of a target where the later changes the earlier's logits."""
    batch, found = batch_of(), []
    before = model.forward(batch)
    first, after = batch.cu_seqlens[1], batch.cu_seqlens[2]      # of the longest target
    for later in range(first + 1, after):
        ids = batch.ids.copy()
        ids[later] = 12 - ids[later]
        changed = (model.forward(replace(batch, ids=ids)) != before).any(axis=1)
        assert changed[later]
        found += [(later, earlier) for earlier in np.flatnonzero(changed)
                  if not later <= earlier < after]
    return found


def test_every_source_token_reaches_every_logit_of_its_own_target(rng):
    model, batch = model_of(rng, np.float32), batch_of()
    before = model.forward(batch)
    text_of = np.repeat(np.arange(4), batch.source.lengths)
    for i, text in enumerate(text_of):
        ids = batch.source.ids.copy()
        ids[i] = (ids[i] + 1) % 13
        after = model.forward(replace(batch, source=replace(batch.source, ids=ids)))
        own = np.repeat(np.arange(4), batch.lengths) == text
        assert ((after != before).any(axis=1) == own).all()


@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("chosen", [(3, 2, 1, 0), (2, 0), (1, 2), (3,)])
def test_company_changes_nothing(rng, stream, chosen):
    model = model_of(rng)
    loss, denominator, logits, drows, gradients = run(model, batch_of(chosen), stream)
    alone = [run(model, batch_of([i]), stream) for i in chosen]
    for i, ours in enumerate((loss, denominator, logits, drows, gradients)):
        parts = [run_alone[i] for run_alone in alone]
        theirs = np.concatenate(parts) if i in (2, 3) else sum(parts)
        assert np.abs(ours - theirs).max() <= 1e-9 * np.abs(theirs).max()


def test_all_masks_differ(rng):
    """Each place that drops draws its own: of source and target, of both attentions."""
    places = []

    def walk(layer):
        if isinstance(layer, Dropout):
            places.append((layer.layer, layer.site))
        elif isinstance(layer, Attention):
            places.append((layer.layer, random.SCORES))
        for part in layer._parts(Layer):
            walk(part)

    walk(model_of(rng).trunk)
    # two embeddings; of a block of the encoder three, of one of the decoder five
    assert len(places) == len(set(places)) == 2 + 2 * 3 + 2 * 5


@pytest.mark.parametrize("which", ["head", "last:1", "last:2", "last:3", "bias"])
def test_frozen_layers(rng, which):
    model, batch = model_of(rng), batch_of()
    *_, whole = run(model, batch)
    whole = {p.name: p.grad.copy() for p in model.store}
    model.train_layers(which)
    run(model, batch)
    for p in model.store.trainable:
        np.testing.assert_allclose(p.grad, whole[p.name], rtol=1e-9, atol=1e-12)
    assert 0 < len(model.store.trainable) < len(whole)


def test_gradient_checkpointing_changes_no_gradient(rng):
    model, batch = model_of(rng), batch_of()
    *_, expected = run(model, batch, STREAM)
    for block in model.trunk.blocks:
        block.gradient_checkpointing = True
    *_, gradients = run(model, batch, STREAM)
    assert np.array_equal(gradients, expected)


def test_only_labels_that_count_count(rng):
    model, batch = model_of(rng), batch_of()
    logits = model.forward(batch)
    batch.labels[1] = IGNORE
    loss, denominator, counted, *_ = run(model, batch, smoothing=0.0)
    kept = batch.labels != IGNORE
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert denominator == kept.sum() == len(counted)
    assert float(loss) == pytest.approx(-logp[kept, batch.labels[kept]].sum())


def test_sinusoids():
    s = sinusoids(50, 8)
    for t in (0, 1, 49):
        for i in range(4):
            angle = t / 10000 ** (i / 3)
            assert s[t, i] == pytest.approx(np.sin(angle))
            assert s[t, 4 + i] == pytest.approx(np.cos(angle))


def test_copies_pickles_and_repr(rng):
    model, batch = model_of(rng, np.float32), batch_of()
    model.special_tokens = SpecialTokens(START, (END,), CONFIG.pad_token_id, {"pad_token": "<pad>"})
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.special_tokens == model.special_tokens     # else a folder pads with another
        assert np.array_equal(again.forward(batch), model.forward(batch))
    assert repr(model) == ("EncoderDecoder(encoder-decoder, 4 blocks, width 12, 13 tokens of "
                           f"vocabulary, {model.store.size:,} parameters)")


@pytest.mark.parametrize("batch, message", [
    (pack([[3, 4]], [[4, 5]]), "the batch has no source, expected one of pack_pairs"),
    (replace(pack([[3], [4]], [[4], [5]]), source=pack([[3]])), "2 targets .* its source has"),
    (pack_pairs([[13]], [[3]], START, END), "the token id 13"),
    (pack_pairs([[3]], [[14]], START, END), "labels from 2 to 14"),
    (pack_pairs([[3] * 10], [[3]], START, END), "a text of 10 tokens, but the model takes 9"),
    (pack_pairs([[3]], [[3] * 9], START, END), "a text of 10 tokens"),
])
def test_batches_that_do_not_fit(rng, batch: Batch, message):
    with pytest.raises(ValueError, match=message):
        model_of(rng).loss(batch)


@pytest.mark.parametrize("changed, message", [
    ({"d_model": 9}, "d_model is 9, expected an even number"),
    ({"encoder_attention_heads": 5}, "no multiple of encoder_attention_heads 5"),
    ({"decoder_attention_heads": 5}, "no multiple of decoder_attention_heads 5"),
    ({"decoder_layers": 0}, "decoder_layers is 0"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"activation_function": "relu"}, "activation_function is 'relu', expected one of gelu_new"),
    ({"eos_token_id": 13}, "eos_token_id is 13, expected the number of a token"),
    ({"eos_token_id": [2, 3]}, r"eos_token_id is \[2, 3\]"),
    ({"pad_token_id": 2}, "pad_token_id is 2 as another"),
])
def test_configs_that_cannot_be(changed, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **changed).require_sound("config.json")


def test_an_adapter_is_refused(rng):
    with pytest.raises(ValueError, match="no adapters"):
        model_of(rng).add_adapter(None)


def test_attention_is_watched_once_per_block(rng, monkeypatch):
    """Whatever attends goes through dispatch: three attentions a pair of blocks."""
    seen = []
    forward = blocks.attention.forward

    def watched(q, k, *rest, **options):
        seen.append((len(q), len(k)))
        return forward(q, k, *rest, **options)

    monkeypatch.setattr(blocks.attention, "forward", watched)
    batch = batch_of()
    model_of(rng).forward(batch)
    n, m = len(batch.ids), len(batch.source.ids)
    assert seen == [(m, m)] * 2 + [(n, n), (n, m)] * 2


@pytest.mark.parametrize("precision, least", [("bfloat16", 0.998), ("float16", 0.9999)])
def test_16_bits_carry_it(rng, precision, least):
    model, batch = model_of(rng, np.float32), batch_of()
    loss, _, logits, *_ = run(model, batch, STREAM, smoothing=0.1)
    expected = {p.name: p.grad.copy() for p in model.store}
    low_loss, _, low_logits, *_ = run(model.to("cpu", precision), batch, STREAM, smoothing=0.1)
    assert not np.array_equal(low_logits, logits)
    assert low_loss == pytest.approx(loss, rel=1e-2)
    for p in model.store:
        if not p.name.endswith("k_proj.bias"):     # zero but for rounding
            cosine = np.vdot(p.grad, expected[p.name]) / (
                np.linalg.norm(p.grad) * np.linalg.norm(expected[p.name]))
            assert cosine > least, p.name


@pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler to emulate CUDA kernels")
@pytest.mark.parametrize("version", ["fused", "naive"])
def test_the_kernels_carry_it(rng, monkeypatch, version):
    model, batch = model_of(rng, np.float32), batch_of()
    loss, _, *expected = run(model, batch, STREAM, smoothing=0.1)
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    names: list = []
    with cuda.kernels(version), watched_attention(monkeypatch, names):
        loss_of_kernels, _, *found = run(model, batch, STREAM, smoothing=0.1)
    assert names == [f"{version} kernel"] * 6
    assert loss_of_kernels == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler to emulate CUDA kernels")
@pytest.mark.parametrize("precision, limit", [("float32", 1e-3), ("bfloat16", 0.1)])
def test_a_stand_in_for_a_card_gives_the_same(rng, monkeypatch, precision, limit):
    """Source, sinusoids and states go there too; the table has rows of zeros behind its own."""
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    model, batch = model_of(rng, np.float32).to("cpu", precision), batch_of()
    loss, _, _, _, gradients = run(model, batch, STREAM, smoothing=0.1)
    words = [g.ids for g in greedy(model, SOURCES, 6)]
    monkeypatch.setattr(array, "cupy", standin_cupy)
    moved = batch.to(standin_cupy)
    assert isinstance(moved.source.ids, standin_cupy.ndarray)
    assert moved.source.cu_seqlens is batch.source.cu_seqlens
    model.to("cuda", precision)
    theirs = run(model, batch, STREAM, smoothing=0.1)
    assert isinstance(theirs[2], standin_cupy.ndarray)
    assert float(theirs[0]) == pytest.approx(float(loss), rel=limit)
    of_card = np.concatenate([array.to_cpu(p.grad).ravel() for p in model.store.trainable])
    assert np.abs(of_card - gradients).max() <= limit * np.abs(gradients).max()
    if precision == "float32":
        assert [g.ids for g in greedy(model, SOURCES, 6)] == words


@contextmanager
def watched_attention(monkeypatch, names):
    """Within it `names` gets what each attention runs as."""
    forward = blocks.attention.forward

    def watched(*args, **options):
        y, cache = forward(*args, **options)
        names.append(cache.implementation.name)
        return y, cache

    with monkeypatch.context() as patch:
        patch.setattr(blocks.attention, "forward", watched)
        yield


@pytest.mark.slow
def test_the_copy_task():
    """Random words, which nothing but the source can tell: 100%."""
    model = EncoderDecoder(replace(
        CONFIG, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64).with_dropout(0.0), seed=0)
    optimizer, rng, steps = AdamW(model.store), np.random.default_rng(0), 800

    def texts(n):
        return [rng.integers(3, 13, rng.integers(2, 9)) for _ in range(n)]

    for step in range(steps):
        some = texts(32)
        loss, n, _ = model.loss(pack_pairs(some, some, START, END))
        model.store.zero_grad()
        model.loss_backward()
        optimizer.step(5e-3 * min(1, step / 40, 3 * (1 - step / steps)), scale=1 / n)
    new = texts(200)
    assert [t.ids for t in greedy(model, new, 10)] == [t.tolist() for t in new]
