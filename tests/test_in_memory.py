"""Training on texts in memory: the bits of the command, and no file."""

import json

import numpy as np
import pytest

from minisft.data.in_memory import subset, training_parts
from minisft.data.read import Examples, Prompts, read_examples, read_prompts, train_valid_split
from minisft.errors import UserError
from minisft.jobs import finetune as runner
from minisft.training.config import FinetuneConfig

TINY = {"model": "scratch", "layers": 1, "width": 16, "heads": 2, "vocab_size": 300, "epochs": 2,
        "batch_tokens": 256, "quiet": True}


def silent(line):
    pass


def require_same_tensors(a, b):
    assert [p.name for p in a.store] == [p.name for p in b.store]
    for p in a.store:
        np.testing.assert_array_equal(p.value, b.store[p.name].value, err_msg=p.name)


@pytest.mark.parametrize("options", [
    {}, {"train_layers": "head", "epochs": 3}, {"adapt_epochs": 1, "token_dropout": 0.2},
    {"class_weights": "balanced", "early_stopping": 1, "epochs": 6}])
def test_a_classifier_has_the_bits_of_the_command(toy_file, tmp_path, monkeypatch, options):
    path, entries = toy_file(80), []
    config = FinetuneConfig.from_options(train=path, compare="none", **TINY | options)
    run = runner.prepare(config.replace(out=str(tmp_path / "run")), say=silent)
    runner.run(run, silent)

    examples = read_examples(path, ["text"], "label")
    kept, held_out = train_valid_split(examples.labels, examples.texts, 0.1, 0)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    fitted = runner.train_classifier(subset(examples, kept), subset(examples, held_out),
                                     config.replace(train=None), say=silent,
                                     callback=entries.append)
    assert sorted(tmp_path.rglob("*")) == before
    require_same_tensors(fitted.model, run.prepared.model)
    assert fitted.label_names == examples.label_names == fitted.model.label_names
    lines = [json.loads(line) 
             for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in entries] == \
        [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]
    assert fitted.config.training.lr == run.prepared.config.training.lr is not None


def test_a_language_model_has_the_bits_of_the_command(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": str(n)}) + "\n"
                            for n in range(40)))
    config = FinetuneConfig.from_options(task="complete", train=str(path), max_new_tokens=2, **TINY)
    run = runner.prepare(config.replace(out=str(tmp_path / "run")), say=silent)
    runner.run(run, silent)
    prompts = read_prompts(str(path), ["prompt"], "completion")
    parts = [subset(prompts, indices)
             for indices in train_valid_split(None, prompts.prompts, 0.1, 0)]
    fitted = runner.train_completion(*parts, config.replace(train=None), say=silent)
    require_same_tensors(fitted.model, run.prepared.model)
    assert fitted.label_names is None and fitted.preprocessing.separator == "\n\n"


def test_faults_are_those_of_the_command(toy_file):
    examples = read_examples(toy_file(40), ["text"], "label")
    for options, said in (({"epochs": 0}, "epochs is 0"), ({"lr": float("nan")}, "lr is nan"),
                          ({"class_weights": "x=1"}, "class"),
                          ({"train_layers": "some"}, "last:K")):
        config = FinetuneConfig.from_options(**TINY | options)
        with pytest.raises(UserError, match=said):
            runner.train_classifier(examples, examples, config, say=silent)


def test_an_option_that_is_none_names_the_nearest():
    with pytest.raises(UserError, match="'epoch' is no option, did you mean 'epochs'"):
        FinetuneConfig.from_options(epoch=3)
    with pytest.raises(UserError, match="'zzzz' is no option, expected one of task, train"):
        FinetuneConfig().replace(zzzz=3)
    config = FinetuneConfig.from_options(text_column="body", lr=0.5)
    assert config.data.text_column == ("body",) and config.training.lr == 0.5
    assert FinetuneConfig.from_options(**config.options()) == config


def test_parts_keep_the_shares_of_the_classes(tmp_path):
    rows = {"path": tmp_path, "lines": list(range(100)), "cleaned": {}}
    texts = [f"text {i}" for i in range(100)]
    examples = Examples(texts, [int(i >= 80) for i in range(100)], ("a", "b"), **rows)
    train, valid = training_parts(examples, None, "texts", 50, 0.2, 0)
    assert (train.labels.count(1), len(train.labels)) == (8, 40)
    assert (valid.labels.count(1), len(valid.labels)) == (2, 10)
    prompts = Prompts(texts, texts[::-1], **rows)
    train, valid = training_parts(prompts, None, "prompts", None, 0.1, 0)
    assert sorted(train.prompts + valid.prompts) == sorted(texts) and len(valid.prompts) == 10
    assert training_parts(train, valid, "prompts", 30, 0.1, 0)[1] is valid
