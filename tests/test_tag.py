"""The task `tag` from files to a folder that predicts: every word gets a tag, and it is counted."""

import json

import numpy as np
import pytest

from minisft.cli import main
from minisft.data.tagged import read_tagged
from minisft.evaluation.token_reports import better_by
from minisft.io.model_folder import read_folder
from minisft.jobs import tag
from minisft.models.token_heads import TokenClassifier

SMALL = ["--task", "tag", "--model", "scratch", "--layers", "1", "--width", "32", "--heads", "2",
         "--vocab-size", "300", "--batch-tokens", "200", "--quiet"]
WORDS = {"DET": ["the", "a"], "NOUN": ["dog", "cat", "ball", "tree"], "VERB": ["sees", "likes"],
         "PUNCT": ["."]}
PATTERN = ("DET", "NOUN", "VERB", "DET", "NOUN", "PUNCT")


def write(path, rng, n, pattern=PATTERN):
    rows = [[(str(rng.choice(WORDS[name])), name) for name in pattern] for _ in range(n)]
    path.write_text("\n".join("".join(f"{word} {name}\n" for word, name in row) for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its test file."""
    folder, rng = tmp_path_factory.mktemp("tag"), np.random.default_rng(3)
    train, test = (write(folder / name, rng, n) for name, n in (("a.txt", 60), ("b.txt", 20)))
    out = str(folder / "run")
    assert main(["finetune", *SMALL, "--train", train, "--test", test, "--epochs", "12",
                 "--out", out]) == 0
    return folder / "run", test


def test_a_run_learns_and_leaves_everything(run):
    folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"] > 0.9 and results["n"] == 120 and results["n_sentences"] == 20
    baseline = results["most_frequent_tag"]
    assert baseline["accuracy"] == 1 and baseline["better_by"] <= 0
    assert {path.name for path in folder.iterdir()} >= {
        "report.md", "report.html", "confusion.png", "curves.png", "config.json", "model"}
    report = (folder / "report.md").read_text()
    assert "words are tagged right" in report and "most often in training" in report


def test_the_folder_evaluates_to_the_same_figures(run, capsys):
    folder, test = run
    assert main(["evaluate", "--model", str(folder / "model"), "--test", test, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    results = json.loads((folder / "results.json").read_text())
    for key in ("accuracy", "accuracy_low", "whole_sentences", "loss"):
        assert found[key] == pytest.approx(results[key])
    assert main(["evaluate", "--model", str(folder / "model"), "--test", test]) == 0
    assert "of 120 test words are tagged right" in capsys.readouterr().out


def test_every_word_is_predicted(run, tmp_path, capsys):
    folder, test = run
    out = tmp_path / "tags.jsonl"
    assert main(["predict", "--model", str(folder / "model"), "--file", test, "--out",
                 str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["words"] for row in rows] == read_tagged(test).words
    assert all(len(row["words"]) == len(row["tags"]) == len(row["p"]) for row in rows)
    capsys.readouterr()
    assert main(["predict", "--model", str(folder / "model"), "the dog sees a cat ."]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["words"] == ["the", "dog", "sees", "a", "cat", "."]
    assert row["tags"][-1] == "PUNCT"


def test_long_sentences_are_read_in_windows(run):
    """A sentence far longer than the model: each word is scored once, and none is left out."""
    folder, _ = run
    model, tokenizer, preprocessing = read_folder(folder / "model")
    assert isinstance(model, TokenClassifier)
    short = tag.words_of(["the dog sees a cat ."])
    long = tag.words_of([" ".join(["the dog sees a cat ."] * 300)])
    found = tag.sentence_windows(long, tokenizer, preprocessing, model)
    assert len(found.ids) > 3
    logp = tag.log_probabilities(model, long, found, 2000)
    assert logp[0].shape == (1800, 4) and np.isfinite(logp[0]).all()
    alone = tag.log_probabilities(model, short, tag.sentence_windows(
        short, tokenizer, preprocessing, model), 2000)
    np.testing.assert_allclose(logp[0][0], alone[0][0], atol=1e-5)     # a causal model's first word


@pytest.mark.parametrize("options", [
    ["--seeds", "2"], ["--train-layers", "last:1"], ["--compare", "none"],
    ["--train-texts", "20", "--select", "macro_f1"]])
def test_the_loops_options_work(tmp_path, rng, capsys, options):
    train = write(tmp_path / "a.txt", rng, 30)
    out = tmp_path / "run"
    assert main(["finetune", *SMALL, "--train", train, "--epochs", "2", "--out", str(out),
                 *options]) == 0
    results = json.loads((out / "results.json").read_text())
    assert ("most_frequent_tag" in results) == (options[0] in ("--train-layers", "--train-texts"))
    text = capsys.readouterr().out
    assert "minisft predict" in text or "predict --model" in text


def test_entities_are_counted_whole(tmp_path, rng):
    rows = ["Ada B-PER\nByron I-PER\nwrote O\n", "in O\nParis B-LOC\n"] * 10
    (tmp_path / "a.txt").write_text("\n".join(f"{row}x{i} O\n" for i, row in enumerate(rows)))
    out = tmp_path / "run"
    assert main(["finetune", *SMALL, "--train", str(tmp_path / "a.txt"), "--epochs", "1", "--out",
                 str(out), "--valid-fraction", "0.3"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {row["name"] for row in results["entities"]["per_type"]} >= {"LOC", "PER"}
    assert "An entity counts where its type" in (out / "report.md").read_text()


@pytest.mark.parametrize("options, message", [
    ([], "--task tag needs --train"), (["--clean", "all"], "--clean is for texts"),
    (["--skip-bad-rows"], "--skip-bad-rows is for tables"),
    (["--tag-column", "7"], "no column '7' for the tag"),
    (["--pair-column", "x"], "--pair-column is for --task classify"),
    (["--class-weights", "balanced"], "--class-weights is for --task classify"),
    (["--adapt-epochs", "1"], "--adapt-epochs is for --task classify"),
    (["--max-length", "0"], "--max-length")])
def test_what_cannot_be_is_refused(tmp_path, rng, capsys, options, message):
    train = write(tmp_path / "a.txt", rng, 10)
    given = ["--train", train] if options else []
    assert main(["finetune", *SMALL, *given, "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--out", "p.csv", "a b"], "expected a file ending in .jsonl"), ([" "], "text 1 is empty"),
    (["--file", "absent.txt"], "absent.txt: no such file")])
def test_predict_refuses_in_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--model", str(run[0] / "model"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_tag_that_only_the_test_file_has_is_told(tmp_path, rng, capsys):
    train = write(tmp_path / "a.txt", rng, 20)
    (tmp_path / "b.txt").write_text("the DET\nodd ADJ\n")
    assert main(["finetune", *SMALL, "--train", train, "--test", str(tmp_path / "b.txt"),
                 "--epochs", "1", "--out", str(tmp_path / "run"), "--compare", "none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tags that the training file lacks, so none of them can be right: 'ADJ'" in said
    model, *_ = read_folder(tmp_path / "run" / "model")
    assert model.label_names == ("DET", "NOUN", "PUNCT", "VERB", "ADJ")


@pytest.mark.parametrize("better, low, high, words", [
    (0.14, 0.12, 0.16, "clearly better, by 14.0 points (95% interval 12.0 to 16.0)"),
    (-0.2, -0.25, -0.15, "clearly worse, by 20.0 points (95% interval 15.0 to 25.0)"),
    (0.01, -0.02, 0.04, "better, by 1.0 points (95% interval -2.0 to 4.0)")])
def test_how_it_stands_to_the_baseline(better, low, high, words):
    said = better_by({"better_by": better, "better_low": low, "better_high": high})
    assert said == f"the model is {words}"
