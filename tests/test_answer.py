"""The task `answer` from files to a folder that predicts: every question is answered."""

import json
from pathlib import Path

import numpy as np
import pytest

from minisft.cli import main
from minisft.io.model_folder import read_folder
from minisft.models.token_heads import SpanClassifier

SMALL = ["--task", "answer", "--model", "scratch", "--layers", "1", "--width", "32", "--heads",
         "2", "--vocab-size", "320", "--batch-tokens", "400", "--quiet"]
NAMES = ["Ada", "Bob", "Cleo", "Dora", "Emil", "Fred"]
THINGS = ["ball", "book", "lamp", "boat"]


def write(path, rng, n, impossible=0.0):
    paragraphs = []
    for i in range(n):
        who, what, other = rng.choice(NAMES), rng.choice(THINGS), rng.choice(NAMES)
        context = f"{who} has the {what} and {other} has nothing ."
        answers = [{"text": str(who), "answer_start": 0}]
        none = rng.random() < impossible
        question = f"Who has the {'moon' if none else what} ?"
        paragraphs.append({"context": f"{context} {i}", "qas": [
            {"id": f"{path.stem}{i}", "question": question, "answers": [] if none else answers,
             "is_impossible": bool(none)}]})
    data = [{"title": f"t{k}", "paragraphs": paragraphs[k::3]} for k in range(3)]
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its test file."""
    folder, rng = tmp_path_factory.mktemp("answer"), np.random.default_rng(3)
    train, test = (write(folder / f"{name}.json", rng, n, 0.3) for name, n in
                   (("a", 60), ("b", 20)))
    assert main(["finetune", *SMALL, "--train", train, "--test", test, "--epochs", "12",
                 "--valid-fraction", "0.2", "--out", str(folder / "run")]) == 0
    return folder / "run", test


def test_a_run_leaves_everything(run):
    folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    assert results["n"] == results["has_answer"]["n"] + results["no_answer"]["n"] == 20
    assert results["f1"] > results["always_empty"] and results["articles"] == 3
    assert 0 <= results["sliding_window"]["f1"] <= 1
    kept = json.loads((folder / "model" / "minisft.json").read_text())
    assert kept["no_answer_margin"] == results["threshold"] is not None
    report = (folder / "report.md").read_text()
    assert "questions without" in report and (folder / "report.html").exists()


def test_the_folder_evaluates_to_the_same_figures(run, capsys):
    folder, test = run
    assert main(["evaluate", "--model", str(folder / "model"), "--test", test, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    results = json.loads((folder / "results.json").read_text())
    for key in ("f1", "exact_match", "f1_low", "loss", "threshold"):
        assert found[key] == pytest.approx(results[key])


def test_answers_are_no_longer_than_asked_for(tmp_path, rng):
    train, out = write(tmp_path / "a.json", rng, 30), tmp_path / "run"
    answers = tmp_path / "answers.json"
    lengths = {}
    for most in (1, 30):
        assert main(["finetune", *SMALL, "--train", train, "--epochs", "1", "--compare", "none",
                     "--max-answer-length", str(most), "--out", str(out), "--overwrite"]) == 0
        kept = json.loads((out / "model" / "minisft.json").read_text())
        assert kept["max_answer_length"] == most
        assert main(["predict", "--model", str(out / "model"), "--file", train, "--out",
                     str(answers), "--overwrite"]) == 0
        lengths[most] = max(len(answer.split())     # a token here holds one word or less
                            for answer in json.loads(answers.read_text()).values())
    assert lengths[1] == 1 < lengths[30]


def test_every_question_is_answered(run, tmp_path, capsys):
    folder, test = run
    out = tmp_path / "answers.json"
    assert main(["predict", "--model", str(folder / "model"), "--file", test, "--out",
                 str(out)]) == 0
    answers = json.loads(out.read_text())
    questions = [(q["id"], p["context"]) for article in json.loads(Path(test).read_text())["data"]
                 for p in article["paragraphs"] for q in p["qas"]]
    assert list(answers) == [key for key, _ in questions]
    assert all(answers[key] in context for key, context in questions)
    capsys.readouterr()
    assert main(["predict", "--model", str(folder / "model"), "Who has the lamp ?",
                 "Ada has the lamp and Bob has nothing ."]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_where_every_question_has_an_answer_none_stays_without(tmp_path, rng):
    train = write(tmp_path / "a.json", rng, 20)
    out = tmp_path / "run"
    assert main(["finetune", *SMALL, "--train", train, "--epochs", "1", "--out", str(out),
                 "--compare", "none"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["threshold"] is None and "no_answer" not in results
    assert "sliding_window" not in results
    model, _, preprocessing = read_folder(out / "model")
    assert isinstance(model, SpanClassifier) and preprocessing.no_answer_margin is None


@pytest.mark.parametrize("options", [["--seeds", "2"], ["--train-layers", "head"],
                                     ["--max-length", "24", "--select", "loss"]])
def test_the_loops_options_work(tmp_path, rng, options):
    train = write(tmp_path / "a.json", rng, 20, 0.2)
    out = tmp_path / "run"
    assert main(["finetune", *SMALL, "--train", train, "--epochs", "2", "--out", str(out),
                 *options]) == 0
    results = json.loads((out / "results.json").read_text())
    assert "f1" in results


@pytest.mark.parametrize("options, message", [
    ([], "--task answer needs --train"), (["--clean", "tags"], "--clean is for texts"),
    (["--max-length", "4"], "leaves no room for a question and its context"),
    (["--label-map", "a=b"], "--label-map is for --task classify"),
    (["--word-column", "2"], "--word-column is for --task tag"),
    (["--max-answer-length", "0"], "--max-answer-length is 0, expected at least 1")])
def test_what_cannot_be_is_refused(tmp_path, rng, capsys, options, message):
    given = ["--train", write(tmp_path / "a.json", rng, 10)] if options else []
    assert main(["finetune", *SMALL, *given, "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, message", [
    (["one"], "1 texts, expected a question and the text"),
    (["--out", "a.csv", "who", "Ada"], "expected a file ending in .json"),
    (["--file", "absent.json"], "absent.json: no such file")])
def test_predict_refuses_in_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--model", str(run[0] / "model"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_nothing_to_learn_from_is_refused(tmp_path, rng, capsys):
    train = write(tmp_path / "a.json", rng, 10, 1.1)
    assert main(["finetune", *SMALL, "--train", train, "--out", str(tmp_path / "run")]) == 2
    assert "no question has an answer" in capsys.readouterr().err
