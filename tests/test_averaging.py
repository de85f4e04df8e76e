"""The mean of the values over the last steps: what it is, and that training ends with it."""

import dataclasses

import numpy as np
import pytest

from minisft.data.dataset import TokenizedDataset
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.training import averaging
from minisft.training.averaging import Mean
from minisft.training.config import TrainingConfig
from minisft.training.loop import fit, make_optimizer
from minisft.training.state import State

CONFIG = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
SETTINGS = TrainingConfig(epochs=3, batch_tokens=20, micro_tokens=1000, lr=0.02)


@pytest.fixture
def sequences(rng):
    labels = [int(n) for n in rng.integers(0, 3, 20)]
    return TokenizedDataset([np.append(rng.integers(3, 11, rng.integers(0, 7)), k) for k in labels],
                     labels)


def classifier():
    return Classifier(CONFIG, "abc", seed=1)


def trained(sequences, settings, validate=None, kept=None):
    model, state = classifier(), State()

    def log(entry):
        if "loss" in entry and kept is not None:
            kept.append(model.store.values.astype(np.float64))

    fit(model, sequences, settings, validate, state, make_optimizer(model, settings), log=log,
        show_progress=False)
    return model, state


@pytest.mark.parametrize("size, piece", [(1, 5), (7, 3), (13, 13), (13, 100)])
def test_it_is_the_mean(rng, monkeypatch, size, piece):
    monkeypatch.setattr(averaging, "PIECE", piece)
    values = rng.standard_normal((5, size), dtype=np.float32)
    mean = Mean(values[0])
    for row in values[1:]:
        mean.add(row)
    assert mean.count == 5
    np.testing.assert_allclose(mean.values, values.astype(np.float64).mean(axis=0), atol=1e-6)


def test_the_model_has_it_for_a_while():
    model = classifier()
    own = model.store.values.copy()
    mean = Mean(own + 1)
    with mean.within(model):
        np.testing.assert_array_equal(model.store.values, own + 1)
    np.testing.assert_array_equal(model.store.values, own)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("validated", [True, False])
def test_training_ends_with_the_mean_of_its_last_steps(sequences, part, validated):
    kept, seen = [], []

    def validate(model):
        seen.append(model.store.values.copy())
        return {"score": [len(seen)]}

    settings = dataclasses.replace(SETTINGS, average=part)
    model, state = trained(sequences, settings, validate if validated else None, kept)
    n = len(kept)
    last = max(1, sum(step > (1 - part) * n for step in range(1, n + 1)))
    assert n > 10 and abs(last - part * n) <= 1
    np.testing.assert_allclose(model.store.values, np.mean(kept[-last:], axis=0), atol=1e-6)
    # the steps themselves are those of a run without it
    plain = []
    trained(sequences, SETTINGS, None, plain)
    np.testing.assert_array_equal(kept[-1], plain[-1])
    if validated:     # what was validated is what is kept
        np.testing.assert_array_equal(seen[-1], model.store.values)
