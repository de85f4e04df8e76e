"""A language model's loss in blocks of rows: the gradients of the whole, without its logits."""

import tracemalloc

import numpy as np
import pytest

from minisft.backend.constants import IGNORE
from minisft.data.batch import pack
from minisft.models import heads, logit_blocks
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.nn import parameters

CONFIG = GPT2Config(vocab_size=60, n_positions=32, n_embd=8, n_layer=1, n_head=2)


def texts(rng):
    ids = [rng.integers(0, 60, n) for n in (13, 1, 20, 9)]
    # a prompt has no labels, nor has the last token
    return pack(ids, [np.where(np.arange(len(x)) < 3, IGNORE, np.append(x[1:], IGNORE))
                      for x in ids])


def gradients(model, run):
    model.store.zero_grad()
    loss, denominator = run()
    return float(loss), float(denominator), model.store.grads.copy()


def whole(model, batch, scale):
    loss, denominator, _ = model.loss(batch)
    model.loss_backward(scale)
    return loss, denominator


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of logits at a time, and rows of a gradient that is added."""
    monkeypatch.setattr(logit_blocks, "ON_CPU", 7 * 60 * 8)
    monkeypatch.setattr(parameters, "ROWS_AT_ONCE", 17)


def test_where_every_token_has_a_label_none_is_picked_out(rng, small_blocks, monkeypatch):
    ids, model = [rng.integers(0, 60, n) for n in (13, 1, 20, 9)], LanguageModel(CONFIG, seed=1)
    batch = pack(ids, ids)
    wanted = gradients(model, lambda: whole(model, batch, 4.0))
    monkeypatch.setattr(heads, "scattered", None)
    found = gradients(model, lambda: model.loss_and_gradients(batch, None, 4.0))
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_blocks_give_the_gradients_of_the_whole(rng, small_blocks, monkeypatch, tied, frozen,
                                                dtype, limit):
    batch, model = texts(rng), LanguageModel(CONFIG, tied, dtype, seed=1)
    if frozen:
        model.train_layers("last:1")
    wanted = gradients(model, lambda: whole(model, batch, 4.0))
    seen, head = [], model._head
    monkeypatch.setattr(model, "_head", lambda x: (seen.append(len(x)), head(x))[1])
    found = gradients(model, lambda: model.loss_and_gradients(batch, None, 4.0))
    assert len(seen) > 1 and max(seen) - min(seen) <= len(seen) and sum(seen) == found[1]
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a - b).max() <= limit * np.abs(b).max()
    assert abs(wanted[2]).max() > 0 and model.loss_cache is None


def test_gradients_are_added_to_those_of_another_batch(rng, small_blocks):
    batch, model = texts(rng), LanguageModel(CONFIG, dtype=np.float64, seed=1)

    def twice(run):
        run()
        return run()
    wanted = gradients(model, lambda: twice(lambda: whole(model, batch, 1.0)))
    found = gradients(model, lambda: twice(lambda: model.loss_and_gradients(batch)))
    assert np.abs(found[2] - wanted[2]).max() <= 1e-12 * np.abs(wanted[2]).max()


def test_an_option_that_the_loss_does_not_have_is_refused_in_blocks(rng, small_blocks):
    with pytest.raises(TypeError, match="smoothing"):
        LanguageModel(CONFIG, seed=1).loss_and_gradients(texts(rng), smoothing=0.1)


@pytest.mark.parametrize("rows, classes, sizes", [
    (0, 10, []), (5, 10, [5]), (3, 10**9, [1, 1, 1]), (1024, 50257, [512] * 2)])
def test_blocks_are_equal_and_cover_all_rows(rows, classes, sizes):
    parts = logit_blocks.blocks(rows, classes, np)
    assert [part.stop - part.start for part in parts] == sizes
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(rows))
    assert len(logit_blocks.blocks(1024, 50257, None)) == 1     # a card


def test_memory_is_that_of_a_block(rng, monkeypatch):
    config = GPT2Config(vocab_size=4000, n_positions=64, n_embd=8, n_layer=1, n_head=2)
    model = LanguageModel(config, seed=1)
    ids = [rng.integers(0, 4000, 64) for _ in range(8)]
    batch = pack(ids, [np.append(x[1:], IGNORE) for x in ids])

    def peak():
        model.store.zero_grad()
        tracemalloc.start()
        model.loss_and_gradients(batch)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    peak()
    before = peak()
    monkeypatch.setattr(logit_blocks, "ON_CPU", 32 * 4000 * 4)
    assert before > 504 * 4000 * 4 > 2 * peak()
