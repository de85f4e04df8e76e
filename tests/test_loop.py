"""The training loop: accumulation, order, choice of the epoch, exact resume, frozen layers."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest

from minisft.backend.random import Stream
from minisft.data.dataset import TokenizedDataset
from minisft.errors import UserError
from minisft.io import training_state as states
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training import loop
from minisft.training.config import TrainingConfig
from minisft.training.loop import Interrupted, State, fit, make_optimizer
from minisft.training.saving import SaveInterval, parse_save_every

CONFIG = GPT2Config(vocab_size=23, n_positions=12, n_embd=8, n_layer=2, n_head=2,
                    embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2)
SETTINGS = TrainingConfig(epochs=4, batch_tokens=40, micro_tokens=1000, lr=0.02, seed=5)
WEIGHTS = np.array([0.5, 1.0, 2.0])


@pytest.fixture
def sequences(rng):
    """30 texts of three classes; the class is the token at the end."""
    labels = [int(n) for n in rng.integers(0, 3, 30)]
    return TokenizedDataset(
        [np.append(rng.integers(3, 23, rng.integers(0, 11)), k) for k in labels], labels)


def classifier(dtype=np.float32):
    return Classifier(CONFIG, "abc", dtype=dtype, seed=1)


def validation(sequences):
    def validate(model):
        loss, n, logits = model.loss(sequences.batch(range(len(sequences))))
        model.loss_cache = None
        right = float((logits.argmax(axis=1) == sequences.labels).mean())
        return {"score": [right, -float(loss / n)], "valid_loss": float(loss / n),
                "valid_accuracy": right}
    return validate


def run(sequences, settings=SETTINGS, state=None, model=None, **options):
    model = model or classifier()
    state, optimizer = state or State(), make_optimizer(model, settings)
    fit(model, sequences, settings, validation(sequences), state, optimizer, show_progress=False,
        **options)
    return model, state


def without_times(entries):
    return [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in entries]


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_accumulation_equals_the_large_step(sequences, kind):
    values, losses = [], []
    for micro_tokens in (1, 13, 1000):
        settings = dataclasses.replace(SETTINGS, micro_tokens=micro_tokens)
        if kind == "classifier":
            model, data = classifier(np.float64), sequences
            options = {"weights": WEIGHTS, "smoothing": 0.1}
        else:
            model, options = LanguageModel(CONFIG, dtype=np.float64), {}
            # the first labels do not count, as a prompt's
            data = TokenizedDataset(sequences.ids, [
                np.append(np.where(np.arange(1, len(x)) < 3, IGNORE, x[1:]), IGNORE)
                for x in sequences.ids])
        numbers = [n for n in range(30) if len(data.ids[n]) > 3]
        loss, _ = loop.train_step(model, data, numbers, make_optimizer(model, settings), 0.1,
                                   settings, Stream(5, 3), options)
        values.append(model.store.values.copy())
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[2], rel=1e-12)
    for found in values[:2]:
        np.testing.assert_allclose(found, values[2], atol=1e-9)


def test_each_epoch_reads_every_text_once(sequences):
    first = list(loop.BatchPlan(sequences, SETTINGS))
    assert first == list(loop.BatchPlan(sequences, SETTINGS))
    assert first != list(loop.BatchPlan(sequences, dataclasses.replace(SETTINGS, seed=6)))
    assert first[0] != first[1]
    for batches in first:
        assert sorted(n for batch in batches for n in batch) == list(range(30))
        assert max(sequences.lengths[batch].sum() for batch in batches) <= 40


def test_learns_and_keeps_the_best_epoch(sequences):
    told = []
    model, state = run(sequences, log=told.append)
    epochs = [e for e in told if "train_loss" in e]
    losses = [e["train_loss"] for e in epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert losses == [pytest.approx(np.mean([e["loss"] for e in told if e["epoch"] == n
                                             and "loss" in e])) for n in (1, 2, 3, 4)]
    best = max(epochs, key=lambda e: e["score"])
    assert state.best == best
    assert validation(sequences)(model)["valid_loss"] == best["valid_loss"]


def test_bits_depend_on_the_seed_alone(sequences):
    first, again = run(sequences)[0], run(sequences)[0]
    np.testing.assert_array_equal(first.store.values, again.store.values)
    other = run(sequences, dataclasses.replace(SETTINGS, seed=6))[0]
    assert (first.store.values != other.store.values).any()


def fitted(sequences, settings, scores):
    """-> state, the model's values, and those that each validation saw, whose scores are given."""
    state, model, kept, scores = State(), classifier(), [], iter(scores)

    def validate(model):
        kept.append(model.store.values.copy())
        return {"score": [next(scores)]}

    fit(model, sequences, settings, validate, state, make_optimizer(model, settings),
        show_progress=False)
    return state, model.store.values, kept


def test_early_stopping(sequences):
    settings = dataclasses.replace(SETTINGS, epochs=9, early_stopping=2)
    state, values, kept = fitted(sequences, settings, [1, 3, 2, 2, 5])
    assert state.epoch == 4 and state.best["epoch"] == 2
    np.testing.assert_array_equal(values, kept[1])


def test_the_last_epoch_counts_where_it_is_asked_for(sequences):
    settings = dataclasses.replace(SETTINGS, epochs=3, select="last")
    state, values, kept = fitted(sequences, settings, [3, 2, 1])
    assert state.best["epoch"] == 3
    np.testing.assert_array_equal(values, kept[2])
    assert (kept[2] != kept[0]).any()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 4, "last of epoch", "last of all"])
def test_resume_is_exact(sequences, tmp_path, after, number):
    settings = dataclasses.replace(SETTINGS, early_stopping=3, average=0.6)
    history = loop.History()
    whole, state = run(sequences, settings, log=history)
    plan = loop.BatchPlan(sequences, settings)
    after = {"last of epoch": len(plan[0]), "last of all": plan.steps}.get(after, after)

    model, stopped = classifier(), State()
    optimizer = make_optimizer(model, settings)

    first, rest = loop.History(), loop.History()

    def interrupt(entry):
        first(entry)
        if entry.get("step") == after and "loss" in entry:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        fit(model, sequences, settings, validation(sequences), stopped, optimizer, log=interrupt,
            save=lambda: states.save_state(tmp_path, *stopped.to_save(model, optimizer)),
            show_progress=False)
    assert stopped.step == after

    resumed, second = classifier(), State()
    optimizer = make_optimizer(resumed, settings)
    second.restore(resumed, optimizer, *states.load_state(tmp_path))
    fit(resumed, sequences, settings, validation(sequences), second, optimizer, log=rest,
        show_progress=False)
    np.testing.assert_array_equal(resumed.store.values, whole.store.values)
    assert without_times(first.steps + rest.steps) == without_times(history.steps)
    assert first.epochs + rest.epochs == history.epochs and second.best == state.best


@pytest.mark.parametrize("stretch", [1, 3, 7, 1000])
def test_stretches_are_the_epochs_laid_end_to_end(sequences, stretch):
    batches = [batch for epoch in loop.BatchPlan(sequences, SETTINGS) for batch in epoch]
    plan = loop.BatchPlan(sequences, SETTINGS, stretch)
    assert list(plan) == [batches[i:i + stretch] for i in range(0, len(batches), stretch)]
    assert plan.steps == len(batches) and len(list(plan)) == len(plan)
    assert plan[0] == batches[:stretch]      # whatever was asked for before


def test_the_state_does_not_grow_with_the_steps(sequences):
    model, state = run(sequences)
    optimizer = make_optimizer(model, SETTINGS)
    for step in (10, 600_000):
        state.step = state.index = step
        arrays, info = state.to_save(model, optimizer)
        assert len(json.dumps(info)) < 1000
        assert {name: x.size for name, x in arrays.items()}.keys() == {
            "values", "best_values", "optimizer.m", "optimizer.v"}


def saves(sequences, interval, save=None):
    """-> the steps at which a run was saved."""
    state, found = State(), []

    def note():
        found.append(state.step)
        if save is not None:
            save()

    run(sequences, state=state, save=note, save_every=interval)
    return found, state.step


def test_saves_at_the_interval(sequences):
    found, last = saves(sequences, SaveInterval(steps=2))
    assert set(range(2, last, 2)) <= {*found} | {step + 1 for step in found}
    assert found[-1] == last
    found, last = saves(sequences, SaveInterval(seconds=1e-9))
    assert set(range(1, last + 1)) <= set(found)


def test_an_epoch_that_is_short_beside_its_save_is_not_saved(sequences):
    found, last = saves(sequences, None, lambda: time.sleep(0.05))
    assert len(found) == 2 and found[-1] == last      # the first tells what it costs


@pytest.mark.parametrize("text", ["", "0", "0m", "-1", "1h", "m", "1e3", "10 m", "٣", "1.m"])
def test_save_every_is_steps_or_minutes(text):
    assert parse_save_every("500") == SaveInterval(steps=500)
    assert parse_save_every("0.5m") == SaveInterval(seconds=30)
    with pytest.raises(UserError, match="save_every"):
        parse_save_every(text)


def test_signals_in_a_save_wait_for_its_end(sequences):
    done = []

    def save():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(True)

    with pytest.raises(Interrupted):
        run(sequences, save=save, save_every=SaveInterval(steps=1))
    assert done == [True]


def test_state_of_another_model_is_refused(tmp_path):
    model, state = classifier(), State(step=1, seconds=0.5)
    states.save_state(tmp_path, *state.to_save(model, make_optimizer(model, SETTINGS)))
    other = Classifier(CONFIG, "abcd")
    with pytest.raises(UserError, match="not of this model: values is"):
        State().restore(other, make_optimizer(other, SETTINGS), *states.load_state(tmp_path))


def test_a_state_goes_on_only_over_the_same_frozen_layers(tmp_path):
    model, state = classifier(), State(step=1, seconds=0.5)
    model.train_layers("last:1")
    states.save_state(tmp_path, *state.to_save(model, make_optimizer(model, SETTINGS)))
    again = classifier()
    again.train_layers("last:1")
    State().restore(again, make_optimizer(again, SETTINGS), *states.load_state(tmp_path))
    again.store["wte.weight"].value[3, 1] += 1e-3
    with pytest.raises(UserError, match="not trained have changed"):
        State().restore(again, make_optimizer(again, SETTINGS), *states.load_state(tmp_path))


@pytest.mark.parametrize("which, lowest", [("head", 4), ("last:1", 2), ("last:2", 1)])
def test_frozen_layers_stay(sequences, monkeypatch, which, lowest):
    full = classifier(np.float64)
    batch = sequences.batch(range(30))
    full.trunk.drop.rate = 0.0     # frozen layers have no dropout
    for block in full.trunk.h[:lowest - 1]:
        block.attn.rate = block.drop_1.rate = block.drop_2.rate = 0.0
    full.loss(batch, Stream(0, 0))
    full.loss_backward()

    part = classifier(np.float64)
    part.train_layers(which)
    monkeypatch.setattr(part.trunk.wte, "backward", None)     # would be an error if called
    before = {p.name: p.value.copy() for p in part.store}
    part.loss(batch, Stream(0, 0))
    part.loss_backward()
    assert {p.name for p in part.store.trainable} == \
        {p.name for p in part.store if p.layer >= lowest}
    for p in part.store.trainable:
        np.testing.assert_allclose(p.grad, full.store[p.name].grad, rtol=1e-12, atol=1e-15)
    make_optimizer(part, SETTINGS).step(0.1)
    for p in part.store:
        assert (p.value == before[p.name]).all() == (p.layer < lowest)


@pytest.mark.parametrize("which", ["last:0", "last:3", "last:", "some", "last:-1"])
def test_unknown_layers_are_refused(which):
    with pytest.raises(ValueError, match="all, head, bias or last:K with K from 1 to 2"):
        classifier().train_layers(which)


def test_a_loss_that_is_no_number_names_the_step(sequences):
    model = classifier()
    model.store["wte.weight"].value[...] = np.nan
    with pytest.raises(UserError, match="step 1: the values of wte.weight are not finite.*is nan"):
        run(sequences, model=model)


class Indexed(list):
    """A list that may be walked over once, for the lengths."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def test_a_step_does_not_walk_over_the_whole_data_set(sequences):
    ids = Indexed(sequences.ids)
    data = TokenizedDataset(ids, sequences.labels)
    model = classifier()
    for step in range(3):
        loop.train_step(model, data, [step], make_optimizer(model, SETTINGS), 0.1, SETTINGS,
                        None, {})
    assert ids.walks == 1
