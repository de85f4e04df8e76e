"""The recipe: what a run takes where its user says nothing. No constant of it changes unseen."""

from dataclasses import dataclass
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest

from minisft.io.files import read_json
from minisft.jobs.finetune import finetune, kept_config
from minisft.training.config import FinetuneConfig
from minisft.training.defaults import resolve_defaults, with_defaults


@dataclass
class Texts:
    """As many tokens as a training set has; nothing else of it counts."""

    tokens: int

    @property
    def lengths(self):
        return np.array([self.tokens])


def resolved(tokens, width=768, pooling=None, **options):
    model = SimpleNamespace(trunk=SimpleNamespace(config=SimpleNamespace(n_embd=width)),
                            pooling=pooling)
    return resolve_defaults(with_defaults(FinetuneConfig.from_options(**options)), model,
                            Texts(tokens))


@pytest.mark.parametrize("tokens, expected", [
    (1, 1), (7, 1), (8, 1), (80, 10), (8 * 2047, 2047), (8 * 2048, 2048), (10**6, 2048)])
def test_an_eighth_of_the_tokens_but_2048_at_most(tokens, expected):
    assert resolved(tokens).training.batch_tokens == expected
    assert resolved(tokens, batch_tokens=77).training.batch_tokens == 77


@pytest.mark.parametrize("tokens, epochs", [
    (120 * 2048 // 3, 3), (120 * 2048 // 3 - 1, 4), (120 * 2048 // 10, 10), (10**7, 3),
    # an eighth of the tokens in a step: 120 steps are 15 passes
    (8 * 2048, 15), (800, 15)])
def test_three_epochs_or_as_many_as_120_steps_take(tokens, epochs):
    assert resolved(tokens).training.epochs == epochs
    assert resolved(tokens, epochs=2).training.epochs == 2


def test_20_epochs_at_most():
    assert resolved(6 * 2048, batch_tokens=2048).training.epochs == 20
    assert resolved(2048, batch_tokens=2048).training.epochs == 20
    assert resolved(120 * 2048 // 19, batch_tokens=2048).training.epochs == 20
    assert resolved(120 * 2048 // 19 + 1, batch_tokens=2048).training.epochs == 19


def test_random_weights_take_15_epochs():
    for tokens in (800, 10**7):
        assert resolved(tokens, model="scratch").training.epochs == 15
    assert resolved(800, model="scratch", epochs=4).training.epochs == 4


@pytest.mark.parametrize("width, factor", [(768, 1.0), (192, 8.0), (3072, 0.125)])
def test_the_learning_rate_falls_with_the_width(width, factor):
    assert resolved(10**6, width).training.lr == pytest.approx(5e-5 * factor, rel=1e-12)


@pytest.mark.parametrize("batch_tokens, factor", [
    (2048, 1.0), (4096, 1.0), (512, 0.5), (128, 0.25), (1000, sqrt(1000 / 2048))])
def test_the_learning_rate_falls_with_the_root_of_a_small_batch(batch_tokens, factor):
    lr = resolved(10**6, batch_tokens=batch_tokens).training.lr
    assert lr == pytest.approx(5e-5 * factor, rel=1e-12)


@pytest.mark.parametrize("options", [{"train_layers": "head"}, {"model": "scratch"}])
def test_a_head_alone_and_random_weights_take_1e_3(options):
    for width, batch_tokens in ((768, 2048), (192, 100)):
        assert resolved(10**6, width, batch_tokens=batch_tokens, **options).training.lr == 1e-3


def test_sgd_takes_a_hundred_times_the_learning_rate():
    assert resolved(10**6, optimizer="sgd").training.lr == pytest.approx(5e-3, rel=1e-12)
    assert resolved(10**6, optimizer="adam").training.lr == pytest.approx(5e-5, rel=1e-12)
    assert resolved(10**6, train_layers="head", optimizer="sgd").training.lr == pytest.approx(0.1)
    assert resolved(10**6, optimizer="sgd", lr=0.7).training.lr == 0.7


def test_what_depends_on_other_options():
    options = with_defaults(FinetuneConfig()).options()
    assert (options["dropout"], options["clean"], options["compare"]) == (None, "all", "random")
    options = with_defaults(FinetuneConfig.from_options(
        model="scratch", task="complete", train="a.csv")).options()
    assert (options["dropout"], options["clean"], options["compare"]) == (0.3, "none", "baselines")
    given = {"dropout": 0.0, "clean": "tags", "compare": "none"}
    assert given.items() <= with_defaults(
        FinetuneConfig.from_options(model="scratch", **given)).options().items()


def test_a_translator_from_random_weights_has_its_own():
    given = {"task": "translate", "model": "scratch", "train": "a.csv"}
    found = resolved(10**6, width=512, **given)
    assert found.training.lr == pytest.approx(2.5e-3) and found.training.epochs == 10
    assert resolved(10**6, width=128, **given).training.lr == pytest.approx(5e-3)
    assert found.model.dropout == found.training.label_smoothing == 0.1
    assert found.data.clean == "none" and found.output.compare == "baselines"
    # an earlier run's folder is fine-tuned like any other
    later = resolved(10**7, width=768, task="translate", model="runs/a/model", train="a.csv")
    assert (later.training.epochs, later.training.lr) == (3, 5e-5)
    assert later.model.dropout is None and later.training.label_smoothing == 0.1
    assert resolved(10**6).training.label_smoothing == 0.0


def test_pooling_is_that_of_the_model():
    assert resolved(100, pooling="mean").model.pooling == "mean"
    assert resolved(100).model.pooling is None


def test_config_json_keeps_what_was_given_and_what_was_used(toy_file, tmp_path):
    """Of a pretrained model the shape is its own; a resumed run takes back the options alone."""
    out, data = tmp_path / "out", toy_file(60)
    options = {"train": data, "epochs": 1, "batch_tokens": 4096, "quiet": True, "out": str(out)}
    finetune(FinetuneConfig.from_options(**options), say=lambda line: None)
    config = read_json(out / "config.json")
    assert config["given"] == options
    assert options.items() <= config["settings"].items()
    used = {"layers": 6, "width": 192, "heads": 6, "context_length": 256, "vocab_size": 8192,
            "dropout": 0.1, "max_length": 256, "clean": "all", "train_layers": "all"}
    assert used.items() <= config["settings"].items() and config["settings"]["lr"] > 1e-5
    again = kept_config(config, out).options()
    assert {name: again[name] for name in used} == used | {
        "layers": 2, "width": 128, "heads": 4, "context_length": 512, "vocab_size": 4096,
        "dropout": None, "max_length": None}
    del config["given"]      # as versions before wrote it
    config["settings"] |= {"layers": 2, "dropout": 0.2}
    assert kept_config(config, out).options()["dropout"] == 0.2
