"""Runs that train an adapter, its folder in every command, and what is refused by name."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minisft.cli import main
from minisft.data import toy_news
from minisft.data.batch import pack
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from minisft.estimators import TextClassifier
from minisft.io import adapters, hub, safetensors
from minisft.io.checkpoint import load, save
from minisft.io.model_folder import Preprocessing, read_folder, write_folder
from minisft.jobs.classify import Classification
from minisft.models.adapters import LoraConfig, target_names
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from tests import test_answer, test_tag

SHAPE = {"vocab_size": 300, "n_positions": 64, "n_embd": 16, "n_layer": 3, "n_head": 2}
OPTIONS = ["--epochs", "2", "--batch-tokens", "128", "--compare", "none", "--quiet"]
LORA = ["--adapter", "lora", "--rank", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """train.csv, prompts.csv and `base`, a small GPT-2 without a head."""
    folder = tmp_path_factory.mktemp("adapters")
    texts, labels = toy_news.generate("train")
    rows = list(zip(texts[:60], labels[:60], strict=True))
    for name, head in ("train", ("text", "label")), ("prompts", ("prompt", "completion")):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    write_base(folder / "base", texts[:60])
    return folder


def write_base(folder, texts, seed=0):
    tokenizer = train_tokenizer(texts, 300)
    model = LanguageModel(GPT2Config(**SHAPE))
    model.store.values += 0.1 * np.random.default_rng(seed).standard_normal(
        model.store.size).astype("f4")
    write_folder(folder, model, tokenizer, Preprocessing(clean=()))


def finetune(files, out, *options, train="train.csv"):
    return main(["finetune", "--model", str(files / "base"), "--train", str(files / train),
                 "--out", str(out), *OPTIONS, *options])


@pytest.fixture(scope="module")
def run(files):
    """The folder of one finished run."""
    assert finetune(files, files / "run", *LORA, "--test", str(files / "train.csv")) == 0
    return files / "run"


def test_the_run_leaves_both(run, files, capsys):
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config == {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "inference_mode": True, "bias": "none",
        "base_model_name_or_path": str(files / "base"), "fan_in_fan_out": True, "r": 2,
        "lora_alpha": 4, "lora_dropout": 0.0, "modules_to_save": ["score"],
        "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]}
    base, merged, apart = load(files / "base"), load(run / "model"), load(run / "adapter")
    changed = [p.name for p in base.store
               if not np.array_equal(p.value, merged.store[p.name].value)]
    assert changed == [f"h.{i}.{name}.weight" for i in range(3) for name in
                       ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert apart.label_names == merged.label_names == (
        "economy", "entertainment", "politics", "sport")
    assert all(np.array_equal(p.value, merged.store[p.name].value) for p in apart.store)
    # what was scored is what was written
    main(["evaluate", "--model", str(run / "adapter"), "--test", str(files / "train.csv"),
          "--json"])
    ours = json.loads(capsys.readouterr().out)
    main(["evaluate", "--model", str(run / "model"), "--test", str(files / "train.csv"), "--json"])
    assert json.loads(capsys.readouterr().out) == ours
    assert json.loads((run / "results.json").read_text())["loss"] == ours["loss"]
    settings = json.loads((run / "config.json").read_text())["settings"]
    full = 5e-5 * (768 / 16) ** 1.5 * np.sqrt(128 / 2048)
    assert settings["lr"] == pytest.approx(10 * full) and settings["alpha"] == 4


def test_every_command_takes_the_adapter(run, files, capsys, tmp_path):
    adapter, model = str(run / "adapter"), str(run / "model")
    for arguments in (["predict", "a goal in the last minute"], ["plan"]):
        told = []
        for place in adapter, model:
            assert main([*arguments, "--model", place]) == 0
            told.append(capsys.readouterr().out.replace(place, ""))
        assert told[0] == told[1] and told[0]
    assert main(["check", "--model", adapter]) == 0
    assert main(["merge", adapter, "--out", str(tmp_path / "merged")]) == 0
    for path in (run / "model").iterdir():
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()
    assert main(["finetune", "--model", adapter, "--train", str(files / "train.csv"), *OPTIONS,
                 "--out", str(tmp_path / "further")]) == 0
    assert "a new head" not in capsys.readouterr().out
    estimator = TextClassifier.load(adapter)
    assert np.array_equal(estimator.predict_proba(["a goal", "a film"]),
                          TextClassifier.load(model).predict_proba(["a goal", "a film"]))


def test_a_language_model(files, tmp_path, capsys):
    assert finetune(files, tmp_path / "run", *LORA, "--task", "complete", "--max-new-tokens", "2",
                    train="prompts.csv") == 0
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["modules_to_save"] is None
    told = []
    for name in "adapter", "model":
        capsys.readouterr()
        assert main(["generate", "--model", str(tmp_path / "run" / name), "a goal",
                     "--temperature", "0", "--max-new-tokens", "5"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "a goal" in told[0]
    assert main(["predict", "--model", str(tmp_path / "run" / "adapter"), "x"]) == 2
    assert "is a language model, expected a classifier" in capsys.readouterr().err


@pytest.mark.parametrize("task, task_type, whole, write", [
    ("tag", "TOKEN_CLS", "classifier", test_tag.write),
    ("answer", "QUESTION_ANS", "qa_outputs", test_answer.write)])
def test_heads_over_tokens(files, tmp_path, rng, task, task_type, whole, write, capsys):
    data = write(tmp_path / ("data.txt" if task == "tag" else "data.json"), rng, 12)
    assert main(["finetune", "--model", str(files / "base"), "--train", data, "--test", data,
                 "--out", str(tmp_path / "run"), "--task", task, "--epochs", "1",
                 "--batch-tokens", "200", "--lr", "1e-3", "--quiet", *LORA]) == 0
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == task_type and config["modules_to_save"] == [whole]
    told = []
    for name in "adapter", "model":
        capsys.readouterr()
        assert main(["evaluate", "--model", str(tmp_path / "run" / name), "--test", data,
                     "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert told[0]["loss"] == pytest.approx(results["loss"])


@pytest.mark.parametrize("options", [
    [], ["--adapter-dropout", "0.3"], ["--train-layers", "last:1", "--average", "0.5"],
    ["--gradient-checkpointing", "--adapter-targets", "c_attn", "mlp.c_proj"]])
def test_resumed_bit_for_bit(files, tmp_path, options, monkeypatch):
    def run_(name, *more):
        return finetune(files, tmp_path / name, *LORA, *options, *more)

    assert run_("whole") == 0
    validate, calls = Classification.validate, []

    def interrupted(self, model, valid):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(self, model, valid)

    monkeypatch.setattr(Classification, "validate", interrupted)
    assert run_("part", "--save-every", "3") == 130
    monkeypatch.setattr(Classification, "validate", validate)
    assert not (tmp_path / "part" / "adapter").exists()
    assert main(["finetune", "--resume", str(tmp_path / "part")]) == 0
    for name in "model/model.safetensors", "adapter/adapter_model.safetensors":
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


def test_frozen_features_change_nothing(files, tmp_path):
    """Adapters in the upper blocks only: what is below is computed once."""
    losses = []
    for memory in "0", "100":
        out = tmp_path / memory
        assert finetune(files, out, *LORA, "--train-layers", "last:2", "--feature-memory",
                        memory, "--lr", "1e-3") == 0
        lines = (out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    config = adapters.read_config(tmp_path / "0" / "adapter")
    assert config.layers_to_transform == (1, 2)
    tensors = safetensors.read_header(tmp_path / "0" / "adapter" / adapters.WEIGHTS)[0]
    assert len(tensors) == 2 * 4 * 2 + 1
    assert load(tmp_path / "0" / "adapter").label_names


def test_seeds_and_overwriting(files, tmp_path):
    out = tmp_path / "run"
    assert finetune(files, out, *LORA, "--seeds", "2") == 0
    assert all(hub.is_adapter(out / f"seed-{i}" / "adapter") for i in range(2))
    assert finetune(files, out, "--overwrite") == 0
    assert not (out / "adapter").exists() and (out / "model").is_dir()


def test_biases_alone(files, tmp_path):
    assert finetune(files, tmp_path / "run", "--train-layers", "bias") == 0
    base, trained = load(files / "base"), load(tmp_path / "run" / "model")
    assert {p.name.endswith(".bias") for p in base.store
            if not np.array_equal(p.value, trained.store[p.name].value)} == {True}
    assert not (tmp_path / "run" / "adapter").exists()


def test_in_memory_as_with_files(files, run):
    with open(files / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    texts, labels = zip(*((row["text"], row["label"]) for row in rows), strict=True)
    fitted = TextClassifier(str(files / "base"), adapter="lora", rank=2, epochs=2, batch_tokens=128,
                            clean="all", quiet=True).fit(texts, labels)
    merged = load(run / "model")
    assert fitted.model_.adapter is None
    assert all(np.array_equal(p.value, merged.store[p.name].value) for p in fitted.model_.store)


def copied(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def changed(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_another_base_is_refused(run, files, tmp_path, capsys):
    texts = toy_news.generate("train")[0][:60]
    write_base(tmp_path / "other", texts, seed=1)
    folder = changed(copied(run, tmp_path), base_model_name_or_path=str(tmp_path / "other"))
    assert main(["predict", "--model", str(folder), "x"]) == 2
    told = capsys.readouterr().err
    assert "was trained on another base" in told and str(tmp_path / "other") in told
    # the same values elsewhere, in another form, are the same base
    model, tokenizer, preprocessing = read_folder(files / "base")
    write_folder(tmp_path / "moved", Classifier(model.trunk.config, "ab"), tokenizer,
                 preprocessing)
    moved = load(tmp_path / "moved")
    for p in moved.trunk.parameters():
        p.value[...] = model.store[p.name].value
    write_folder(tmp_path / "moved", moved, tokenizer, preprocessing)
    changed(folder, base_model_name_or_path=str(tmp_path / "moved"))
    assert np.array_equal(load(folder).store["h.0.attn.c_attn.weight"].value,
                          load(run / "model").store["h.0.attn.c_attn.weight"].value)
    # of PEFT, which keeps no checksum, it is said
    tensors, metadata = safetensors.read_header(folder / adapters.WEIGHTS)
    safetensors.write(folder / adapters.WEIGHTS,
                      {name: t.read() for name, t in tensors.items()}, {"format": "pt"})
    assert main(["predict", "--model", str(folder), "x"]) == 0
    seen = capsys.readouterr()
    assert "has no checksum of its base" in seen.err and "LABEL_0" in seen.out


@pytest.mark.parametrize("settings, told", [
    ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING', expected 'LORA'"),
    ({"task_type": {"a": 1}}, "task_type is {'a': 1}, expected a text"),
    ({"use_dora": True}, "use_dora = True is not supported"),
    ({"bias": "all"}, "bias = 'all' is not supported (only 'none')"),
    ({"lora_bias": True}, "lora_bias = True"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported (only True"),
    ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config = {'loftq_bits': 4}"),
    ({"layer_replication": [[0, 2]]}, "layer_replication = [[0, 2]]"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices = [1]"),
    ({"exclude_modules": ["c_fc"]}, "exclude_modules = ['c_fc']"),
    ({"target_parameters": ["x"]}, "target_parameters = ['x']"),
    ({"something_new": "yes"}, "something_new = 'yes' is not supported"),
    ({"modules_to_save": ["wte"]}, "modules_to_save names 'wte', only score, classifier,"),
    ({"modules_to_save": None}, "score.weight is unexpected, adapter_config.json does not name it"),
    ({"r": 0}, "r is 0, expected a whole number above 0"),
    ({"r": 3}, "has shape (2, 16), adapter_config.json and the base ask for (3, 16)"),
    ({"rank_pattern": {"c_fc": 1.5}}, "rank_pattern is {'c_fc': 1.5}, expected whole numbers"),
    ({"lora_alpha": "16"}, "lora_alpha is '16', expected a number above 0"),
    ({"lora_dropout": 1}, "lora_dropout is 1, expected a number in [0, 1)"),
    ({"use_rslora": "yes"}, "use_rslora is 'yes', expected true or false"),
    ({"target_modules": None}, "target_modules is None, expected names, or one expression"),
    ({"target_modules": "(c_attn"}, "target_modules is '(c_attn', expected names"),
    ({"target_modules": []}, "target_modules is [], expected names"),
    ({"target_modules": ["c_attn"]}, "h.0.attn.c_proj has an adapter, but it is no linear map"),
    ({"layers_to_transform": [0, 1]}, "h.2.attn.c_attn has an adapter, but it is no linear map"),
    ({"layers_to_transform": "0"}, "layers_to_transform is '0', expected numbers of blocks"),
    ({"base_model_name_or_path": None}, "base_model_name_or_path is None, expected the name"),
    ({"base_model_name_or_path": "/no/such"}, "base_model_name_or_path: /no/such: no such folder"),
])
def test_what_we_do_not_have_is_refused_by_name(run, tmp_path, settings, told, capsys):
    folder = changed(copied(run, tmp_path), **settings)
    assert main(["predict", "--model", str(folder), "x"]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and str(folder) in said


def test_a_config_that_was_edited_is_told(run, files, tmp_path, capsys):
    folder = changed(copied(run, tmp_path), base_model_name_or_path=str(files / "base"))
    assert main(["predict", "--model", str(folder), "x"]) == 0
    assert "not as it was saved" not in capsys.readouterr().err
    changed(folder, lora_alpha=3)
    assert main(["predict", "--model", str(folder), "x"]) == 0
    assert (f"note: {folder / 'adapter_config.json'}: lora_alpha is not as it was saved with the "
            "weights") in " ".join(capsys.readouterr().err.split())


def test_damaged_folders_are_refused(run, tmp_path, capsys):
    def refused(told):
        assert main(["predict", "--model", str(folder), "x"]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1

    folder = copied(run, tmp_path)
    weights = folder / adapters.WEIGHTS
    tensors, metadata = safetensors.read_header(weights)
    arrays, extra = {n: t.read() for n, t in tensors.items()}, metadata[adapters.EXTRA]
    name = "base_model.model.transformer.h.1.mlp.c_fc.lora_{}.weight"

    def rewritten(extra=extra, **changes):
        safetensors.write(weights, {n: a for n, a in (arrays | changes).items() if a is not None},
                          {"format": "pt", adapters.EXTRA: extra})

    rewritten(**{name.format("B"): None})
    refused("h.1.mlp.c_fc.lora_B is missing")
    rewritten(**{name.format("A"): None, name.format("B"): None})
    refused("h.1.mlp.c_fc has no adapter, adapter_config.json says that it has one")
    rewritten(**{name.format("A"): np.zeros((2, 16), "i4")})
    refused("has dtype I32, expected one of F64, F32")
    rewritten(**{name.format("A"): np.full((2, 16), np.nan, "f4")})
    refused("holds values that are not finite")
    rewritten(**{"base_model.model.transformer.h.1.mlp.c_fc.lora_C.weight": np.zeros(2, "f4")})
    refused("lora_C.weight is unexpected")
    rewritten(**{"base_model.model.score.weight": np.zeros((4, 9), "f4")})
    refused("score.weight has shape (4, 9)")
    rewritten("[]")
    refused("its metadata holds '[]' as minisft, expected what minisft writes there")
    data = bytearray((run / "adapter" / adapters.WEIGHTS).read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    refused("is damaged, its checksum differs")
    weights.unlink()
    refused("holds no adapter_model.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"")
    refused("adapter_model.bin is not read, since opening a pickle can run any code in it")


@pytest.mark.parametrize("options, told", [
    (["--rank", "4"], "--rank is for --adapter lora"),
    (["--adapter-targets", "c_fc"], "--adapter-targets is for --adapter lora"),
    ([*LORA, "--train-layers", "head"], "--train-layers head beside --adapter"),
    ([*LORA, "--train-layers", "bias"], "--train-layers bias beside --adapter"),
    ([*LORA, "--model", "scratch"], "--adapter is for a pretrained model"),
    ([*LORA, "--adapt-epochs", "1"], "--adapt-epochs changes the base"),
    ([*LORA, "--adapter-targets", "query"], "no linear map of a block is called 'query'"),
    ([*LORA, "--rank", "0"], "--rank is 0, expected from 1 to 10000"),
    ([*LORA, "--alpha", "-1"], "--alpha is -1.0, expected from"),
    ([*LORA, "--adapter-dropout", "1"], "--adapter-dropout is 1.0, expected from 0 to 0.99")])
def test_options_that_do_not_go_together(files, tmp_path, options, told, capsys):
    assert finetune(files, tmp_path / "run", *options) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_an_adapter_of_an_adapter_is_refused(run, files, tmp_path, capsys):
    assert main(["finetune", "--model", str(run / "adapter"), "--train", str(files / "train.csv"),
                 "--out", str(tmp_path / "run"), *OPTIONS, *LORA]) == 2
    assert "holds an adapter, expected the model" in capsys.readouterr().err
    folder = changed(copied(run, tmp_path), base_model_name_or_path=str(run / "adapter"))
    assert main(["predict", "--model", str(folder), "x"]) == 2
    assert "is an adapter itself, expected a model" in capsys.readouterr().err


def test_merge_overwrites_nothing_and_takes_adapters_only(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert main(["merge", str(run / "adapter"), "--out", str(tmp_path / "full")]) == 2
    assert "is there already, expected a new folder" in capsys.readouterr().err
    assert main(["merge", str(run / "model"), "--out", str(tmp_path / "new")]) == 2
    assert "holds a model, expected an adapter" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_adapter_of_the_cache_is_found_by_name(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--me--adapter"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc1")
    shutil.copytree(run / "adapter", home / "snapshots" / "abc1")
    assert hub.resolve("me/adapter") == home / "snapshots" / "abc1"
    assert load(hub.resolve("me/adapter")).label_names


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_bert_with_its_pooler(tmp_path, pooling):
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=24, max_position_embeddings=12)
    model = BertClassifier(config, "ab")
    (tmp_path / "base").mkdir()
    base = tmp_path / "base"
    save(model, base)
    labels = "yes", "no", "maybe"
    model = load(base, task="classify", label_names=labels, pooling=pooling)
    model.add_adapter(LoraConfig(r=2, target_modules=target_names(model)))
    rng = np.random.default_rng(0)
    for p in model.store.trainable:
        p.value[...] = 0.3 * rng.standard_normal(p.shape)
    adapters.write(tmp_path / "adapter", model, str(base))
    whole = {name for name in safetensors.read_header(tmp_path / "adapter" / adapters.WEIGHTS)[0]
             if "lora" not in name}
    pooler = {f"base_model.model.bert.pooler.dense.{k}" for k in ("weight", "bias")}
    assert whole == {f"base_model.model.classifier.{k}" for k in ("weight", "bias")} | (
        pooler if pooling == "first" else set())
    batch = pack([[3, 4, 5], [6], [7, 8]])
    merged = load(tmp_path / "adapter")
    assert merged.pooling == pooling and merged.label_names == labels
    np.testing.assert_allclose(merged.forward(batch), model.forward(batch), rtol=0, atol=1e-5)
    # the head by other labels, or in another order, as of any folder
    turned = load(tmp_path / "adapter", label_names=labels[::-1])
    assert np.array_equal(turned.forward(batch), merged.forward(batch)[:, ::-1])
    other = load(tmp_path / "adapter", label_names=["a", "b"])
    assert "classifier.weight" in other.newly_initialized
    # attached, not merged
    apart = load(base, task="classify", label_names=labels, pooling=pooling)
    adapters.attach(apart, tmp_path / "adapter")
    assert np.array_equal(apart.forward(batch), model.forward(batch))
    with pytest.raises(ValueError, match="has no adapter to write"):
        adapters.write(tmp_path / "none", merged, "x")
    model.store["classifier.weight"].value[0, 0] = np.inf
    with pytest.raises(UserError, match="not written, classifier.weight holds values"):
        adapters.write(tmp_path / "none", model, "x")
    assert not Path(tmp_path / "none").exists()
