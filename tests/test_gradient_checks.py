"""The catalogue behind `minisft check`: all of it passes, and every planted bug is found."""

import argparse
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minisft import dispatch, ops
from minisft.cli import check as command
from minisft.errors import UserError
from minisft.io.checkpoint import save
from minisft.models import bert
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.nn import blocks, layers
from minisft.verify import gradcheck, planted_bugs
from minisft.verify.gradcheck import MODEL_LIMIT, GradientError, compare_directions, require
from minisft.verify.gradient_checks import CHECKS, check_model
from minisft.verify.planted_bugs import PLANTED, sum_hides

SMALL = GPT2Config(vocab_size=101, n_positions=6, n_embd=8, n_layer=2, n_head=2)
BERT = BertConfig(vocab_size=101, max_position_embeddings=6, hidden_size=8, num_hidden_layers=2,
                  num_attention_heads=2, intermediate_size=12)


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


@pytest.mark.parametrize("name", CHECKS)
def test_the_catalogue_passes(name):
    require(CHECKS[name].results(), CHECKS[name].limit, name)


def test_the_catalogue_covers_every_operation():
    assert set(ops.__all__) <= {name.split(" (")[0] for name in CHECKS}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name):
    bug = PLANTED[name]
    planned = CHECKS[bug.check]
    row = gradcheck.worst_of(planned.results(bug.broken))
    assert row.error > 1e4 * planned.limit     # by a wide margin, not by luck


@pytest.mark.parametrize("name, right", [
    ("attention-scale", ["v"]), ("attention-rowsum", ["v"]), ("attention-dropout", ["v"]),
    ("layer_norm-term", ["w", "b"]), ("linear-transposed", ["x", "b"]),
    ("lora-scale", ["x", "a"]), ("lora-side", ["b"]),
    ("bert-types", [f"embeddings.{name}" for name in (
        "word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight",
        "LayerNorm.bias")]),
])
def test_planted_bugs_leave_the_other_gradients_right(name, right):
    bug = PLANTED[name]
    planned = CHECKS[bug.check]
    rows = planned.results(bug.broken)
    assert [row.name for row in rows if row.error <= planned.limit] == right


def test_keys_in_the_place_of_values_are_found():
    """Were v of the check k plus a constant, equation (6) would take the difference out again."""
    def swapped(dy, cache):
        q, k, v, *rest = cache
        return ops.attention.backward(dy, (q, k, k, *rest))

    rows = CHECKS["attention (causal)"].results(swapped)
    assert [row.error > 0.01 for row in rows] == [True, True, False]


def test_sum_as_objective_hides_zeros():
    row = sum_hides()
    assert row.by_hand == 0 and abs(row.numeric) < 1e-10


@pytest.fixture
def formulas_alone(monkeypatch):
    """Where Numba is installed the command checks its loops too."""
    monkeypatch.setenv("MINISFT_COMPILED", "off")


def test_command_passes(formulas_alone, capsys):
    assert run("cross_entropy", "LAYER_norm") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["check", "worst", "array"]
    assert [line.split()[0] for line in lines[1:-1]] == ["layer_norm", "cross_entropy",
                                                         "cross_entropy", "span_cross_entropy"]
    assert all(line.endswith("  ok") for line in lines[1:-1])
    assert len({line.rindex("ok") for line in lines[1:-1]}) == 1
    assert lines[-1].startswith("4 checks, all pass, largest error ")


def test_command_fails(formulas_alone, capsys, monkeypatch):
    broken = replace(CHECKS["softmax"], part=planted_bugs.softmax_rowsum)
    monkeypatch.setitem(CHECKS, "softmax", broken)
    assert run("softmax") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("  FAIL")
    assert lines[-1].startswith("1 check, 1 FAIL (softmax), largest error 2")


def test_command_fails_for_a_gradient_of_another_shape(capsys, monkeypatch):
    broken = replace(CHECKS["softmax"], part=lambda dp, cache: dp.T)
    monkeypatch.setitem(CHECKS, "softmax", broken)
    assert run("softmax") == 1
    assert "gradient of s has shape (5, 4), the array (4, 5)  FAIL" in capsys.readouterr().out


def test_command_refuses_unknown_names():
    with pytest.raises(UserError, match="no check has 'convolution' in its name"):
        run("convolution")
    with pytest.raises(UserError, match="no such planted bug.*attention-scale"):
        run("--break", "attention-scales")
    with pytest.raises(UserError, match="expected no NAME"):
        run("softmax", "--break", "attention-scale")


def test_command_breaks(capsys):
    assert run("--break", "attention-scale") == 1
    out = capsys.readouterr().out
    assert out.startswith("attention-scale: (7) without 1 / sqrt(D)")
    assert "return dq * sqrt(d), dk * sqrt(d), dv" in out
    assert out.count("  FAIL\n") == 2 and out.count("  ok\n") == 1
    assert "exit code 1" in out


def test_command_shows_what_sum_hides(capsys):
    assert run("--break", "softmax-zeros") == 1
    assert "With sum(y) as the objective the bug passes" in capsys.readouterr().out


def test_command_lists_mistakes(capsys):
    assert run("--break", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PLANTED)


def test_command_checks_a_checkpoint(capsys, monkeypatch, tmp_path):
    save(Classifier(SMALL, ["a", "b", "c"]), tmp_path)
    assert run("--model", str(tmp_path), "--seed", "3") == 0
    captured = capsys.readouterr()
    assert "h.1.mlp.c_proj.bias (dropout)" in captured.out and "58 checks, all pass" in captured.out
    save(BertClassifier(BERT, ["a", "b", "c"]), tmp_path)
    assert run("--model", str(tmp_path)) == 0
    captured = capsys.readouterr()
    assert "encoder.layer.1.intermediate.dense.weight (dropout)" in captured.out
    assert "82 checks, all pass" in captured.out
    monkeypatch.setattr(ops.layer_norm, "backward", planted_bugs.layer_norm_term)
    assert run("--model", str(tmp_path)) == 1


def models():
    return [LanguageModel(SMALL, dtype=np.float64), LanguageModel(SMALL, False, np.float64),
            Classifier(SMALL, ["a", "b", "c"], np.float64),
            bert_classifier("first"), bert_classifier("mean")]


def bert_classifier(pooling):
    model = BertClassifier(BERT, ["a", "b", "c"], np.float64, pooling=pooling)
    # wider than at the start, where a post-norm model attends to all tokens alike
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(model.store.size)
    return model


MODELS = ["tied", "separate", "classifier", "bert", "bert mean"]


@pytest.mark.parametrize("model", models(), ids=MODELS)
def test_check_model_passes(model):
    before = model.store.values.copy()
    rows = check_model(model, seed=1)
    assert len(rows) == 2 * len(model.store.trainable)
    require(rows, MODEL_LIMIT / 100)
    assert np.array_equal(model.store.values, before)


def test_check_model_without_dropout_checks_once():
    config = replace(SMALL, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    model = LanguageModel(config, dtype=np.float64)
    assert [row.name for row in check_model(model)] == [p.name for p in model.store.trainable]


@pytest.mark.parametrize("name", ["attention-scale", "attention-rowsum", "attention-mask",
                                  "layer_norm-term", "embedding-repeats", "gelu-chain"])
@pytest.mark.parametrize("model", models(), ids=MODELS)
def test_check_model_finds_planted_bugs(monkeypatch, model, name):
    bug = PLANTED[name]
    operation = bug.check.split(" (")[0]

    # in the layers only: some broken variants call the right backward themselves
    planted = SimpleNamespace(forward=getattr(dispatch, operation).forward, backward=bug.broken)
    for module in blocks, layers, bert:
        monkeypatch.setattr(module, operation, planted, raising=False)
    with dispatch.only("formula"):
        rows = check_model(model)
    with pytest.raises(GradientError):
        require(rows, 100 * MODEL_LIMIT)


def test_check_model_refuses_float32():
    with pytest.raises(ValueError, match="float32"):
        check_model(LanguageModel(SMALL))


def test_directions_do_not_depend_on_unused_rows(rng):
    """A table of which a million rows are unused is judged like one without them."""
    errors = []
    for rows in 3, 10**6:
        w = rng.standard_normal((rows, 2))
        dw = np.zeros_like(w)
        dw[:3] = 3 * w[:3] ** 2 * 1.01      # one percent wrong
        (row,) = compare_directions(lambda w=w: float((w[:3] ** 3).sum()), {"w": w}, {"w": dw})
        errors.append(row.error)
    assert all(1e-4 < error < 1e-1 for error in errors)


def test_directions_refuse_another_shape():
    with pytest.raises(GradientError, match="shape"):
        compare_directions(lambda: 0.0, {"w": np.ones((2, 3))}, {"w": np.ones((3, 2))})
