"""What frozen layers make of the texts, kept: the same training, without their work."""

import numpy as np
import pytest

from minisft.backend.random import Stream
from minisft.data.dataset import TokenizedDataset
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.training.frozen_features import Features, with_features

CONFIG = GPT2Config(vocab_size=23, n_positions=12, n_embd=8, n_layer=3, n_head=2)
MANY, NONE = 2**30, 0     # bytes of memory: all in memory, all in a file


@pytest.fixture
def texts(rng):
    ids = [rng.integers(0, 23, n) for n in (5, 1, 12, 3, 3, 7)]
    return {Classifier: TokenizedDataset(ids, [0, 1, 2, 0, 1, 2]),
            LanguageModel: TokenizedDataset(ids, [np.append(row[1:], -100) for row in ids])}


def model_of(rng, kind, which):
    model = (Classifier(CONFIG, "abc", np.float64) if kind is Classifier else
             LanguageModel(CONFIG, False, np.float64))
    model.store.values += 0.3 * rng.standard_normal(model.store.size)
    model.train_layers(which)
    return model


@pytest.mark.parametrize("memory", [MANY, NONE])
@pytest.mark.parametrize("which", ["last:1", "last:2", "last:3", "head"])
@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_loss_and_gradients_are_those_of_the_whole_model(rng, texts, kind, which, memory):
    model, sequences = model_of(rng, kind, which), texts[kind]
    kept = with_features(sequences, model, 10, memory)
    assert kept.features.on_disk == (memory == NONE)
    numbers, stream = [4, 0, 2, 1], Stream(3, 1)      # the live layers drop out
    loss, n, _ = model.loss(sequences.batch(numbers), stream)
    model.loss_backward()
    expected = model.store.grads.copy()
    model.store.zero_grad()
    model.trunk.wte.forward = model.trunk.wpe.forward = None      # the frozen layers are not called
    if which != "last:3":
        model.trunk.h[0].forward = None
    found, m, _ = model.loss(kept.batch(numbers), stream)
    model.loss_backward()
    assert n == m and found == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(model.store.grads, expected, rtol=0, atol=1e-12)
    assert expected.any()


def test_only_the_last_tokens_are_kept_for_a_head_alone(rng, texts):
    head = Features(model_of(rng, Classifier, "head"), texts[Classifier], 8, MANY)
    assert head.rows.shape == (6, 8)
    block = Features(model_of(rng, Classifier, "last:1"), texts[Classifier], 8, MANY)
    assert block.rows.shape == (31, 8)


def test_frozen_layers_keep_nothing_for_a_backward(rng, texts):
    model = model_of(rng, Classifier, "last:1")
    model.loss(texts[Classifier].batch([0, 1]))
    frozen = [model.trunk.h[0], model.trunk.h[1].attn.c_attn, model.trunk.h[1].mlp]
    assert all(layer.cache is None for layer in frozen)
    assert model.trunk.h[2].mlp.cache is not None
