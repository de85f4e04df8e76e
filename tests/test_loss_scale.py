"""Loss scaling and master weights: a step in 16 bits, its overflow, and its exact resume."""


import numpy as np
import pytest

from minisft.backend.array import to_cpu
from minisft.backend.random import Stream
from minisft.cli import main
from minisft.data.dataset import TokenizedDataset
from minisft.dispatch import BFLOAT16, rounded
from minisft.errors import UserError
from minisft.io import training_state as states
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.training import loop, loss_scale, optim
from minisft.training.config import TrainingConfig
from minisft.training.loop import fit, make_optimizer
from minisft.training.loss_scale import LossScale
from minisft.training.state import State

CONFIG = GPT2Config(vocab_size=23, n_positions=12, n_embd=16, n_layer=2, n_head=2,
                    embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
SETTINGS = TrainingConfig(epochs=2, batch_tokens=40, micro_tokens=30, lr=0.01)


@pytest.fixture
def sequences(rng):
    labels = [int(n) for n in rng.integers(0, 3, 20)]
    return TokenizedDataset(
        [np.append(rng.integers(3, 23, rng.integers(0, 11)), k) for k in labels], labels)


def classifier(precision="float16"):
    return Classifier(CONFIG, "abc", seed=1).to("cpu", precision)


def run(sequences, state=None, model=None, **options):
    model, state = model or classifier(), state or State()
    optimizer = make_optimizer(model, SETTINGS)
    fit(model, sequences, SETTINGS, None, state, optimizer, show_progress=False, **options)
    return model, state


def test_the_scale_halves_and_doubles(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scale, values = LossScale(8.0), []
    for finite in (True, True, False, True, True, True, True, False, False):
        assert scale.update(finite) == finite
        values.append(scale.value)
    assert values == [8, 8, 4, 4, 4, 8, 8, 4, 2] and scale.good == 0
    scale = LossScale(loss_scale.LEAST)
    with pytest.raises(OverflowError, match="even at a loss scale of"):
        scale.update(False)


@pytest.mark.parametrize("precision, limit", [("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_a_step_is_near_that_of_float32(rng, sequences, kind, precision, limit):
    labels = sequences.labels if kind is Classifier else [
        np.append(ids[1:], -100) for ids in sequences.ids]
    data = TokenizedDataset(sequences.ids, labels)
    numbers = [n for n in range(20) if len(data.ids[n]) > 1]
    found = []
    for p in ("float32", precision):
        model = (Classifier(CONFIG, "abc", seed=1) if kind is Classifier else
                 LanguageModel(CONFIG, seed=1)).to("cpu", p)
        loss, _, logits = model.loss(data.batch(numbers), Stream(0, 1))
        assert logits.dtype == np.float32
        model.loss_backward(2.0**10 if p == "float16" else 1.0)
        found.append((float(loss), model.store.grads / (2.0**10 if p == "float16" else 1)))
    (exact_loss, exact), (loss, grads) = found
    assert grads.dtype == np.float32
    assert loss != exact_loss and loss == pytest.approx(exact_loss, rel=limit)
    assert np.linalg.norm(grads - exact) < limit * np.linalg.norm(exact)


def test_the_weights_that_are_trained_stay_float32(sequences):
    model, _ = run(sequences)
    for p in model.store:
        assert p.value.dtype == np.float32 and p.compute_value.dtype == np.float16
        assert np.array_equal(p.compute_value, p.value.astype(np.float16))
    changed = model.store.values != model.store.values.astype(np.float16)
    assert changed.mean() > 0.9     # smaller steps than float16 could hold add up


def test_small_gradients_need_the_scale(sequences):
    batch = sequences.batch(range(20))
    lost = []
    for scale in (2.0**-12, 2.0**8):     # the first as of a loss divided by many texts
        model = classifier()
        model.loss(batch, Stream(0, 1))
        model.loss_backward(scale)
        lost.append((model.store.grads == 0).mean())
    assert lost[0] > lost[1] + 0.05


def test_overflow_leaves_the_step_out(sequences):
    model = classifier()
    optimizer, scale = make_optimizer(model, SETTINGS), LossScale(2.0**40)
    before, numbers = model.store.values.copy(), list(range(8))
    with np.errstate(all="ignore"):
        _, norm = loop.train_step(model, sequences, numbers, optimizer, 0.01, SETTINGS,
                                   Stream(0, 1), {}, scale)
    assert norm is None and scale.value == 2.0**39 and optimizer.t == 0
    assert np.array_equal(model.store.values, before) and not optimizer.m.any()
    scale.value = 2.0**10
    loss, norm = loop.train_step(model, sequences, numbers, optimizer, 0.01, SETTINGS,
                                  Stream(0, 1), {}, scale)
    assert 0 < norm < 100 and scale.good == 1 and optimizer.t == 1
    assert (model.store.values != before).mean() > 0.9
    plain = classifier("float32")
    _, exact = loop.train_step(plain, sequences, numbers, make_optimizer(plain, SETTINGS), 0.01,
                                SETTINGS, Stream(0, 1), {})
    assert norm == pytest.approx(exact, rel=1e-2)     # the scale is out of it again


def test_a_run_finds_its_scale_and_logs_it(sequences):
    state = State(scale=LossScale(2.0**19))
    history, other = loop.History(), loop.History()
    model, _ = run(sequences, state=state, log=history)
    skipped = [s for s in history.steps if s["grad_norm"] is None]
    assert skipped and len(skipped) < len(history.steps)
    assert history.steps[0]["loss_scale"] == 2.0**18
    assert np.isfinite(model.store.values).all()
    run(sequences, model=classifier("bfloat16"), log=other)
    assert "loss_scale" not in other.steps[0]


def test_where_no_scale_helps_the_run_ends(sequences, monkeypatch):
    monkeypatch.setattr(optim, "gradient_norm", lambda store: np.inf)
    with pytest.raises(UserError, match="step 1: gradients overflow float16 even at"):
        run(sequences, state=State(scale=LossScale(loss_scale.LEAST)))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_resume_is_exact(sequences, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    begin = {"scale": LossScale(2.0**19)} if precision == "float16" else {}
    whole, state = run(sequences, State(**begin), classifier(precision))

    model, stopped = classifier(precision), State(**begin)
    if begin:
        stopped.scale = LossScale(2.0**19)
    optimizer = make_optimizer(model, SETTINGS)

    class Stop(Exception):
        pass

    def stop(entry):
        if entry.get("step") == 4 and "loss" in entry:
            states.save_state(tmp_path, *stopped.to_save(model, optimizer))
            raise Stop

    with pytest.raises(Stop):
        fit(model, sequences, SETTINGS, None, stopped, optimizer, log=stop,
            show_progress=False)
    resumed, second = classifier(precision), State()
    optimizer = make_optimizer(resumed, SETTINGS)
    second.restore(resumed, optimizer, *states.load_state(tmp_path))
    assert second.scale == stopped.scale
    fit(resumed, sequences, SETTINGS, None, second, optimizer, show_progress=False)
    np.testing.assert_array_equal(resumed.store.values, whole.store.values)
    assert second.scale == state.scale


def test_frozen_layers_have_a_copy_too(sequences):
    model = classifier("bfloat16")
    model.train_layers("last:1")
    for p in model.store:
        assert np.array_equal(p.compute_value, rounded(p.value, BFLOAT16))
    model.to("cpu")
    assert to_cpu(model.forward(sequences.batch([0]))).dtype == np.float32


def test_a_cpu_refuses_in_one_line(monkeypatch, capsys):
    monkeypatch.delenv("MINISFT_CUDA", raising=False)
    assert main(["finetune", "--precision", "float16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minisft: --precision float16 is for --device cuda, expected float32")
    assert error.count("\n") == 1
