"""The state of a training run: the same after reading, old or new after a crash, never damaged."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from minisft.errors import UserError
from minisft.io import training_state
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.training.averaging import Mean
from minisft.training.loop import load_or_init_state
from minisft.training.loss_scale import LossScale
from minisft.training.optim import AdamW
from minisft.training.state import State

GOLDEN = Path(__file__).parent / "golden" / "gpt2_tiny"
ARRAYS = {"m": np.arange(12, dtype=np.float32), "v": np.ones((2, 3)), "order": np.arange(5),
          "key": np.array(2**63, np.uint64), "empty": np.zeros(0, np.float32)}
INFO = {"step": 12, "loss": 0.1 + 0.2, "best": None, "name": "naïve", "seed": 2**70}


def test_state_round_trip(tmp_path):
    training_state.save_state(tmp_path / "training_state", ARRAYS, INFO)
    arrays, info = training_state.load_state(tmp_path / "training_state")
    assert info == INFO and arrays.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert arrays[name].dtype == x.dtype and arrays[name].shape == x.shape
        np.testing.assert_array_equal(arrays[name], x)


def test_state_is_replaced_whole(tmp_path, monkeypatch):
    training_state.save_state(tmp_path, ARRAYS, INFO)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            training_state.save_state(tmp_path, {"m": np.zeros(3)}, {"step": 13})
    assert training_state.load_state(tmp_path)[1] == INFO
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]
    # killed outright, nothing is tidied up: the half file is passed by, and written over later
    (tmp_path / ".state.safetensors.partial").write_bytes(b"half")
    assert training_state.load_state(tmp_path)[1] == INFO
    training_state.save_state(tmp_path, {"m": np.zeros(3)}, {"step": 13})
    assert training_state.load_state(tmp_path)[1] == {"step": 13}
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]


def test_damaged_state(tmp_path, rng):
    with pytest.raises(UserError, match="no training state"):
        training_state.load_state(tmp_path)
    training_state.save_state(tmp_path, ARRAYS, INFO)
    file = tmp_path / "state.safetensors"
    content = file.read_bytes()
    for bit in rng.integers(0, 8 * len(content), 300):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(str(file))):
            training_state.load_state(tmp_path)
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(UserError):
            training_state.load_state(tmp_path)
    shutil.copy(GOLDEN / "model.safetensors", file)
    with pytest.raises(UserError, match="minisft did not write it"):
        training_state.load_state(tmp_path)


def test_a_folder_is_no_state(tmp_path):
    """What a death in the first save leaves."""
    assert not training_state.has_state(tmp_path / "absent")
    assert not training_state.has_state(tmp_path)
    (tmp_path / ".state.safetensors.partial").write_bytes(b"half")
    assert not training_state.has_state(tmp_path)
    training_state.save_state(tmp_path, ARRAYS, INFO)
    assert training_state.has_state(tmp_path)


# What a file with sound checksums may still hold

BEST = {"epoch": 1, "step": 3, "train_loss": 0.5, "valid_loss": 0.4, "score": [0.5, -0.4]}


def saved():
    model = Classifier(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2),
                       "ab", seed=1)
    optimizer = AdamW(model.store)
    optimizer.step(0.01)
    state = State(epoch=1, index=2, step=5, seconds=1.5, tokens=60, loss_sum=2.0, best=BEST,
                  best_values=model.store.values.copy(), mean=Mean(model.store.values),
                  scale=LossScale(), metrics_crc32=7)
    arrays, info = state.to_save(model, optimizer)
    return model, optimizer, dict(arrays), info


def test_what_a_run_writes_is_taken():
    model, optimizer, arrays, info = saved()
    state = State()
    state.restore(model, optimizer, arrays, info)
    assert state.to_save(model, optimizer)[1] == info
    State().restore(model, optimizer, arrays, json.loads(json.dumps(info)))


WRONG = [-1, 0.5, "3", [], {}, True, float("nan"), 2**64]
FIGURES = [*((name, value) for name in ("epoch", "index", "step", "tokens", "optimizer_t")
             for value in (*WRONG, None)),
           *((name, value) for name in ("metrics_crc32", "averaged") for value in WRONG),
           *((name, value) for name in ("seconds", "loss_sum")
             for value in (None, "1", [], float("inf"))),
           ("step", 0), ("step", 2**32), ("seconds", 0.0), ("best", 3), ("best", {}),
           *(("best", BEST | {name: "x"}) for name in BEST),
           *(("best", {key: x for key, x in BEST.items() if key != name}) for name in BEST),
           ("best", BEST | {"score": [0.5, None]}), ("scale", 1.0), ("scale", {"value": 1.0}),
           ("scale", {"value": 0.0, "good": 1}), ("scale", {"value": 1.0, "good": -1})]


@pytest.mark.parametrize("name, value", FIGURES)
def test_figures_that_no_run_writes(name, value):
    model, optimizer, arrays, info = saved()
    with pytest.raises(UserError, match=f"not what a run writes: {name} is"):
        State().restore(model, optimizer, arrays, info | {name: value})


@pytest.mark.parametrize("name", State.INFO)
def test_figures_that_are_missing(name):
    model, optimizer, arrays, info = saved()
    del info[name]
    with pytest.raises(UserError, match=f"it has no {name}"):
        State().restore(model, optimizer, arrays, info)


@pytest.mark.parametrize("name", ["values", "best_values", "mean", "optimizer.m", "optimizer.v"])
@pytest.mark.parametrize("change, said", [
    (None, "it holds"), (lambda a: a[:-1], "is float32"), (lambda a: a[None], "is float32"),
    (lambda a: a.astype(np.float64), "is float64")])
def test_arrays_that_are_not_of_this_model(name, change, said):
    model, optimizer, arrays, info = saved()
    array = arrays.pop(name)
    if change is not None:
        arrays[name] = change(array)
    with pytest.raises(UserError, match=f"not of this model: .*{said}"):
        State().restore(model, optimizer, arrays, info)


def test_values_that_are_not_finite():
    for name in "values", "best_values", "mean":
        model, optimizer, arrays, info = saved()
        arrays[name] = np.full_like(arrays[name], np.inf)
        with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
            State().restore(model, optimizer, arrays, info)


def test_epochs_of_which_none_is_the_best(tmp_path):
    model, optimizer, arrays, info = saved()
    del arrays["best_values"]
    training_state.save_state(tmp_path / "training_state", arrays, info | {"best": None})
    with pytest.raises(UserError, match="none is the best"):
        load_or_init_state(tmp_path, True, model, optimizer, print)
