"""A run that diverges: which tensor, why, what is kept, and how it goes on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from minisft import TextClassifier, dispatch, train
from minisft.cli import main
from minisft.data.dataset import TokenizedDataset
from minisft.errors import DivergedError, UserError
from minisft.io import metrics_log, run_folder
from minisft.io.model_folder import read_folder
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.training import divergence, optim
from minisft.training.config import TrainingConfig
from minisft.training.loop import fit, make_optimizer, train_step
from minisft.training.saving import Saver
from minisft.training.state import State

GPT2 = GPT2Config(vocab_size=23, n_positions=12, n_embd=16, n_layer=2, n_head=2)
BERT = BertConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                  intermediate_size=32, max_position_embeddings=12, type_vocab_size=2)
SOUND = TrainingConfig(epochs=2, batch_tokens=40, micro_tokens=30, lr=0.01, warmup_ratio=0.0)


@pytest.fixture
def sequences(rng):
    """20 short texts of three classes; text 3 alone has token 2."""
    labels = [int(n) for n in rng.integers(0, 3, 20)]
    ids = [np.append(rng.integers(3, 23, rng.integers(1, 11)), 3 + k) for k in labels]
    ids[3][0] = 2
    return TokenizedDataset(ids, labels)


def diverge(model, sequences, precision="float32", loss_options=None, state=None, validate=None,
            **settings):
    model.to("cpu", precision)
    config = replace(SOUND, **settings)
    with pytest.raises(DivergedError) as found:
        fit(model, sequences, config, validate, state or State(), make_optimizer(model, config),
            loss_options=loss_options, show_progress=False)
    assert "\n" not in str(found.value)
    return found.value


def classifier(**values):
    model = Classifier(GPT2, "abc", seed=1)
    for name, value in values.items():
        model.store[name.replace("__", ".")].value[...] = value
    return model


CAUSES = {
    "lr": (dict(lr=1e30), "linear.forward in h.0.attn.c_attn", "lr 1e+30: a step changes",
           "a smaller lr"),
    "lr, sgd": (dict(lr=1e30, optimizer="sgd"), "in h.0", "lr 1e+30: a step", "a smaller lr"),
    "decay": (dict(weight_decay=1e30), "attention.forward in h.0.attn",
              "weight_decay 1e+30 with lr 0.01: a step multiplies the weights by -1e+28",
              "a smaller weight_decay"),
    "decay, sgd": (dict(weight_decay=1e30, optimizer="sgd"), "in h.0",
                   "weight_decay 1e+30 with lr 0.01", "a smaller weight_decay"),
    "decay, adam": (dict(weight_decay=1e39, optimizer="adam"), "the values of wte.weight",
                    "weight_decay 1e+39, which is added to the gradient", "a smaller weight_decay"),
    "no limit": (dict(optimizer="sgd", lr=0.5, max_grad_norm=0.0, epochs=500, schedule="constant"),
                 "", "the norm of the gradients, which max_grad_norm 0 does not limit",
                 "max_grad_norm 1, or a smaller lr"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_what_is_to_blame_among_the_options(sequences, case):
    settings, tensor, cause, remedy = CAUSES[case]
    error = diverge(classifier(), sequences, **settings)
    assert tensor in error.tensor and error.tensor in str(error)
    assert f"the likely cause is {cause}" in str(error)
    assert UserError(error.remedy).__str__() == remedy
    assert error.step > 1 and str(error).startswith(f"step {error.step}: ")
    assert "the batch begins with text " in str(error)


def test_class_weights(sequences):
    weights = np.array([1e38, 1e38, 1], dtype=np.float32)
    error = diverge(classifier(), sequences, loss_options={"weights": weights})
    assert error.step == 1 and "dw of linear.backward in score" in error.tensor
    assert "class_weights of 1e+38" in str(error) and error.remedy == ""


@pytest.mark.parametrize("value, tensor, cause", [
    (np.nan, "the values of h.1.mlp.c_fc.weight", "it had such values before the first step"),
    (1e30, "gelu.backward in h.1.mlp", "h.1.mlp.c_fc.weight holds values up to 1e+30")])
def test_a_model_that_brought_it_along(sequences, value, tensor, cause):
    error = diverge(classifier(h__1__mlp__c_fc__weight=value), sequences)
    assert error.step == 1 and tensor in error.tensor
    assert f"the likely cause is the model: {cause}" in str(error) and error.remedy == ""


def test_a_text_that_alone_has_it(sequences):
    """Of the batch only one text has the token whose row is out of bounds."""
    model = classifier()
    model.store["wte.weight"].value[2] = 1e38
    error = diverge(model, sequences)
    assert "texts of the batch alone: text 3" in str(error)
    assert "wte.weight holds values up to 1e+38" in str(error)


def test_float16_is_to_blame_where_float32_would_do(sequences):
    model = classifier()
    w = model.store["h.1.mlp.c_fc.weight"].value
    w[...] = 6e4 * np.sign(w)      # GELU's output, a factor of the next product, is beyond 65504
    error = diverge(model, sequences, "float16")
    assert error.step == 1 and "h.1.mlp.c_proj" in error.tensor
    assert "float16, which ends at 65504: the same step is finite in float32" in str(error)
    assert str(UserError(error.remedy)) == "precision='bfloat16'"
    assert model.store.compute_dtype == np.float16


def test_a_model_computes_in_float32_again():
    """What `to` gave in 16 bits does not stay."""
    model = classifier()
    model.to("cpu", "float16").to("cpu", "float32")
    assert all(p.product_value is p.value for p in model.store)


@pytest.mark.parametrize("kind", ["bert", "language model", "frozen"])
def test_the_layers_of_other_models_have_their_names(sequences, kind):
    if kind == "bert":
        model = BertClassifier(BERT, "abc", seed=1)
        model.store["encoder.layer.1.attention.self.key.weight"].value[...] = 1e38
        expected = "linear.forward in encoder.layer.1.attention.self.key"
    elif kind == "frozen":
        model = classifier(h__0__mlp__c_proj__weight=1e38)
        model.train_layers("last:1")
        expected = "layer_norm.forward in h.1.ln_1"
    else:
        model = LanguageModel(GPT2, seed=1)
        model.store["ln_f.weight"].value[...] = 1e38
        model.store["wte.weight"].value[...] *= 100
        sequences = TokenizedDataset(sequences.ids, [
            np.append(ids[1:], -100) for ids in sequences.ids])
        expected = "linear.forward in the model"
    error = diverge(model, sequences)
    assert expected in error.tensor and error.step == 1


def test_the_sum_of_a_block_is_looked_at_too(sequences):
    """Each summand is finite: no operation gives it, but the block."""
    model = classifier(wte__weight=2e38)
    model.store["h.0.attn.c_proj.bias"].value[...] = 2e38
    with np.errstate(all="ignore"):
        found = divergence.first_not_finite(
            model, lambda: model.forward(sequences.batch([0]), None))
    assert found.tensor == "the output of layer_norm.forward in h.0.ln_1" or \
        found.tensor == "the output of Block.forward in h.0"


def test_looking_leaves_the_model_as_it_was(sequences):
    model = classifier()
    batch = sequences.batch(range(5))

    def run():
        model.loss(batch, None)
        model.loss_backward()

    run()
    grads = model.store.grads.copy()
    model.store.zero_grad()
    assert divergence.first_not_finite(model, run) is None
    assert np.array_equal(model.store.grads, grads)
    assert not any(method in vars(layer) for layer, _ in divergence._layers(model, "")
                   for method in divergence.METHODS)


def test_who_watches_hears_of_every_operation():
    heard = []
    x = np.ones((2, 4), np.float32)
    with dispatch.watched(lambda *seen: heard.append(seen[:2])):
        y, cache = dispatch.gelu.forward(x)
        dispatch.gelu.backward(y, cache)
        dispatch.matmul(x, x.T)
    dispatch.gelu.forward(x)
    assert heard == [("gelu", "forward"), ("gelu", "backward"), ("matmul", "forward")]


def exploding(monkeypatch, first):
    """From this step on (from 0) the learning rate is beyond all bounds."""
    usual = optim.schedule
    monkeypatch.setattr(optim, "schedule", lambda name, step, *rest: (
        1e32 if step >= first else usual(name, step, *rest)))


def test_the_loop_leaves_the_model_of_the_best_epoch(sequences, monkeypatch):
    steps, best = [], []

    def validate(model):
        best.append(model.store.values.copy())
        return {"score": len(best), "valid_loss": 1.0}

    model = classifier()
    fit(model, sequences, SOUND, validate, State(), make_optimizer(model, SOUND),
        show_progress=False, log=steps.append)
    per_epoch = sum("train_loss" not in entry for entry in steps) // 2
    best.clear()
    exploding(monkeypatch, per_epoch + 1)
    error = diverge(model := classifier(), sequences, validate=validate)
    assert error.step == per_epoch + 3 and len(best) == 1
    assert np.array_equal(model.store.values, best[0])


def test_without_a_validation_the_last_update_is_looked_at(sequences, monkeypatch):
    model = classifier()
    monkeypatch.setattr(optim.AdamW, "step", lambda self, *a: self.store.values.fill(np.nan))
    error = diverge(model, TokenizedDataset(sequences.ids[:2], sequences.labels[:2]), epochs=1,
                    batch_tokens=1000, micro_tokens=1000)
    assert error.step == 1 and "since the update of step 1" in str(error)


def test_the_python_api_raises_the_same_error(sequences):
    texts, labels = ["good film", "bad film", "fine play", "poor play"] * 20, ["a", "b"] * 40
    model = TextClassifier("scratch", layers=1, width=8, heads=2, vocab_size=300, lr=1e30,
                           warmup_ratio=0.0, batch_tokens=20, quiet=True)
    named = r"lr 1e\+30.*texts, line \d+, '\w+ (film|play)'"
    with pytest.raises(DivergedError, match=named) as found:
        model.fit(texts, labels)
    assert found.value.cause and found.value.folder is None and "resume" not in str(found.value)
    assert not hasattr(model, "model_")
    with pytest.raises(DivergedError, match="lr 1e"):
        train(classifier(), sequences, TrainingConfig(lr=1e30, warmup_ratio=0.0, batch_tokens=40),
              show_progress=False)


def test_a_step_of_its_own_rate_is_told_by_it(sequences):
    model, config = classifier(), replace(SOUND, lr=None)
    optimizer = make_optimizer(model, config)
    with pytest.raises(DivergedError, match=r"lr 1e\+30: a step changes"):
        for _ in range(3):
            train_step(model, sequences, range(5), optimizer, 1e30, config, None, {})


TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
        "300", "--batch-tokens", "256", "--compare", "none", "--quiet"]


@pytest.fixture(scope="module")
def command(toy_file):
    return ["finetune", "--train", toy_file(60), *TINY, "--epochs", "3"]


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def message(capsys):
    error = capsys.readouterr().err
    assert error.startswith("minisft: step ") and error.count("\n") == 1
    return error


def test_the_best_epoch_is_kept_and_the_run_goes_on(command, tmp_path, monkeypatch, capsys):
    """As a user would: the model is used, then the run goes on with a smaller rate."""
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    per_epoch = next(entry["step"] for entry in log_of(tmp_path / "whole")
                     if not metrics_log.is_step(entry))
    out = tmp_path / "run"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        exploding(patch, per_epoch + 1)
        assert main([*command, "--out", str(out)]) == 2
    error = message(capsys)
    assert f"the model as it was after epoch 1, the best so far, is in {out / 'model'}" in error
    assert f"go on with --resume {out} and a smaller --lr" in error and "train.csv, line " in error
    model, _, _ = read_folder(out / "model")
    assert np.isfinite(model.store.values).all()
    assert main(["predict", "--model", str(out / "model"), "any text"]) == 0
    assert main(["finetune", "--resume", str(out), "--lr", "0.0005", "--weight-decay", "0.01"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["lr"] == 0.0005
    assert config["changes"] == [{"step": per_epoch, "part": "", "options": {"lr": [
        0.001, 0.0005]}}]
    assert f"| {per_epoch} | lr | 0.001 | 0.0005 |" in (out / "report.md").read_text()
    rates, whole = ([entry["lr"] for entry in log_of(folder) if metrics_log.is_step(entry)]
                    for folder in (out, tmp_path / "whole"))
    assert rates[:per_epoch] == whole[:per_epoch]
    assert np.allclose(rates[per_epoch:], np.array(whole[per_epoch:]) / 2)


def test_without_an_epoch_the_last_save_is_kept(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        exploding(patch, 2)      # the third step, whose harm the fourth finds
        assert main([*command, "--save-every", "1", "--out", str(out)]) == 2
    assert f"after step 2, where it was last saved, is in {out / 'model'}" in message(capsys)
    assert main(["predict", "--model", str(out / "model"), "any text"]) == 0
    assert main(["finetune", "--resume", str(out), "--lr", "1e-4"]) == 0
    assert "resuming after step 2" in capsys.readouterr().out


def test_of_an_adapter_the_merged_model_is_kept(command, tmp_path, monkeypatch, capsys):
    out, base = tmp_path / "run", tmp_path / "base"
    assert main([*command, "--epochs", "1", "--out", str(base)]) == 0
    adapted = [*command[:3], "--model", str(base / "model"), "--adapter", "lora", "--rank", "2",
               "--batch-tokens", "256", "--compare", "none", "--quiet", "--save-every", "1"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        exploding(patch, 2)
        assert main([*adapted, "--out", str(out)]) == 2
    assert f"is in {out / 'model'}" in message(capsys)
    assert (out / "adapter").is_dir() and read_folder(out / "model")[0].adapter is None
    assert main(["finetune", "--resume", str(out), "--lr", "1e-4", "--epochs", "2"]) == 0


def test_a_state_of_no_use_goes(command, tmp_path, monkeypatch, capsys):
    """Saved by an interruption right after the harmful update, before anybody knew."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        exploding(patch, 1)
        patch.setattr(Saver, "after_step", Saver.__call__)
        assert main([*command, "--save-every", "1", "--out", str(out)]) == 2
    assert "was removed, so it starts anew" in message(capsys)
    assert not (out / "model").exists()
    assert main(["finetune", "--resume", str(out), "--lr", "1e-3"]) == 0
    assert "starting anew" in capsys.readouterr().out


def test_values_that_are_not_finite_are_never_saved(command, tmp_path, monkeypatch, capsys):
    step = optim.AdamW.step

    def harmful(self, *args):
        step(self, *args)
        if self.t == 2:
            self.store.values[7] = np.nan

    with monkeypatch.context() as patch:
        patch.setattr(optim.AdamW, "step", harmful)
        assert main([*command, "--save-every", "1", "--out", str(tmp_path / "run")]) == 2
    assert "since the update of step 2" in message(capsys)
    assert main(["finetune", "--resume", str(tmp_path / "run"), "--lr", "1e-4"]) == 0
    assert "resuming after step 1" in capsys.readouterr().out


def test_an_adaptation_and_seeds(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        exploding(patch, 1)
        assert main([*command, "--adapt-epochs", "2", "--out", str(out)]) == 2
        assert "this was the adaptation; go on with --resume" in message(capsys)
        assert main([*command, "--seeds", "2", "--out", str(tmp_path / "seeds")]) == 2
        error = message(capsys)
        assert "this was seed 0, 1 of 2" in error and "start anew with --overwrite" in error
        assert "--resume" not in error
    assert main(["finetune", "--resume", str(out), "--lr", "1e-3", "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["finetune", "--resume", str(tmp_path / "seeds"), "--lr", "1e-3"]) == 2
    assert "runs that are compared have the same options" in capsys.readouterr().err


def test_completion_and_pretraining(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"say {i}", "completion": str(i + 1)})
                              for i in range(30)))
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(f"the cat sat on mat {i} of the house"
                                             for i in range(60)))
    commands = [
        ["finetune", "--task", "complete", "--train", str(rows), *TINY, "--max-new-tokens", "4",
         "--epochs", "2", "--batch-tokens", "100"],
        ["pretrain", "--text", str(text), "--context-length", "16", "--vocab-size", "280",
         "--validate-every", "2", "--quiet", "--layers", "1", "--width", "16", "--heads", "2",
         "--batch-tokens", "256", "--epochs", "2"]]
    for command in commands:
        out = tmp_path / command[0]
        with monkeypatch.context() as patch:
            exploding(patch, 2)
            assert main([*command, "--save-every", "2", "--out", str(out)]) == 2
        error = message(capsys)
        assert "go on with --resume" in error and "'say " in error or "'the cat" in error
        assert main(["generate", "--model", str(out / "model"), "the", "--max-new-tokens",
                     "2"]) == 0
        given = json.loads((out / "config.json").read_text())["given"]
        assert main([command[0], "--resume", str(out), "--lr", "4e-3"]) == 0
        assert json.loads((out / "config.json").read_text())["given"] == given | {"lr": 4e-3}
        shown = out / ("report.md" if command[0] == "finetune" else "model/README.md")
        changed = shown.read_text()
        assert "These settings changed on the way" in changed
        capsys.readouterr()


def test_what_may_not_change(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        exploding(patch, 1)
        assert main([*command, "--average", "0.5", "--out", str(out)]) == 2
    kept = (out / "config.json").read_text()
    capsys.readouterr()
    for options in (["--seed", "0"], ["--optimizer", "sgd"], ["--train", "other.csv"],
                    ["--no-header"], ["--epochs", "5"], ["--lr", "-1"], ["--lr", "0"]):
        assert main(["finetune", "--resume", str(out), *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(f"minisft: {options[0]}")
        assert (out / "config.json").read_text() == kept
    for damaged in ([3], [{"step": 1}], "x"):
        shutil.copytree(out, tmp_path / "copy")
        config = json.loads(kept) | {"changes": damaged}
        run_folder.write_config(tmp_path / "copy", config)
        assert main(["finetune", "--resume", str(tmp_path / "copy"), "--lr", "1e-3"]) == 2
        assert "changes is not what a run writes" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "copy")
