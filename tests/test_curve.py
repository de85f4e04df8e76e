"""The learning curve: nested texts, finished runs stay, more sizes later, and the picture."""

import json

import numpy as np
import pytest

from minisft.cli import main
from minisft.data.read import stratified_subset
from minisft.errors import UserError
from minisft.evaluation import comparison, plots
from minisft.jobs import curve
from minisft.jobs import finetune as runner
from minisft.training.loop import Interrupted

TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
        "300", "--epochs", "1", "--batch-tokens", "256", "--quiet"]


@pytest.fixture(scope="module")
def command(toy_file):
    path = toy_file(80)
    return ["curve", "--train", path, "--test", path, *TINY, "--seeds", "2"]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    assert main([*command, "--sizes", "40,20", "--out", str(out)]) == 0
    return out


def points(folder):
    return json.loads((folder / "curve.json").read_text())["points"]


def timeless(found):
    for point in found:
        for run in point["runs"]:
            run.pop("train_seconds")
    return found


def test_draws_are_nested_and_keep_the_shares():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    for seed in (0, 1):
        draws = [set(stratified_subset("f", labels, 100, count, seed))
                 for count in (1, 7, 10, 20, 50, 99, 100)]
        assert all(a < b for a, b in zip(draws, draws[1:], strict=False))
        assert [len(d) for d in draws] == [1, 7, 10, 20, 50, 99, 100]
        counts = np.bincount([labels[n] for n in draws[4]])
        assert counts.tolist() == [30, 15, 5]
        assert np.bincount([labels[n] for n in draws[2]]).tolist() == [6, 3, 1]
    assert not np.array_equal(stratified_subset("f", labels, 100, 50, 0),
                              stratified_subset("f", labels, 100, 50, 1))
    assert (np.diff(stratified_subset("f", None, 100, 30, 0)) > 0).all()
    with pytest.raises(UserError, match="f: holds 100 texts, but train_texts is 101"):
        stratified_subset("f", labels, 100, 101, 0)


def test_a_point_is_a_run_of_finetune(command, finished, tmp_path):
    assert [p["size"] for p in points(finished)] == [20, 40]
    out = tmp_path / "alone"
    arguments = ["finetune", *command[1:-2], "--train-texts", "20", "--seed", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    alone = json.loads((out / "results.json").read_text())
    run = points(finished)[0]["runs"][1]
    assert run["accuracy"] == alone["accuracy"] and run["loss"] == alone["loss"]
    assert run["naive_bayes"] == alone["naive_bayes"]
    place = finished / "size-20" / "seed-1"
    assert (place / "report.md").is_file() and not (place / "model").exists()
    assert not (place / "training_state").exists()


def test_table_and_picture(finished):
    text = (finished / "report.md").read_text()
    mean = points(finished)[1]["accuracy"]["mean"]
    assert f"| 40 | 2 | {mean:.1%} |" in text and "![Learning curve](curve.png)" in text
    assert "mean of 2 seeds, each a dot" in text
    assert "naive Bayes" in text and "largest McNemar p" in text
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_goes_on_where_it_was_stopped_and_takes_more_sizes(command, finished, tmp_path,
                                                           monkeypatch, capsys):
    out, whole, calls = tmp_path / "out", runner.run, []

    def stopped(ready, say, **options):
        config = ready.prepared.config
        calls.append((config.data.train_texts, config.training.seed))
        if len(calls) == 3:
            raise Interrupted("x")
        return whole(ready, say, **options)

    monkeypatch.setattr(runner, "run", stopped)
    assert main([*command, "--sizes", "20,40", "--out", str(out)]) == 130
    assert f"minisft curve --resume {out}" in capsys.readouterr().err
    assert [p["size"] for p in points(out)] == [20]
    assert main(["curve", "--resume", str(out)]) == 0
    assert calls == [(20, 0), (20, 1), (40, 0), (40, 0), (40, 1)]
    assert timeless(points(out)) == timeless(points(finished))
    assert main(["curve", "--resume", str(out), "--sizes", "30"]) == 0
    assert calls[5:] == [(30, 0), (30, 1)] and [p["size"] for p in points(out)] == [20, 30, 40]
    assert main(["curve", "--resume", str(out), "--sizes", "30", "--seed", "3"]) == 2
    assert "--seed beside --resume" in capsys.readouterr().err


@pytest.mark.parametrize("changes, said", [
    ([], "--sizes is missing, expected numbers"),
    (["--sizes", "20,81"], "--sizes 81: "),
    (["--sizes", "20", "--train", "none.csv"], "none.csv: no such file"),
    (["--sizes", "2"], "--sizes 2: cannot hold out"),
    (["--sizes", "20", "--train-texts", "9"], "--train-texts beside --sizes"),
    (["--sizes", "20", "--epochs", "0"], "--epochs is 0"),
    (["--sizes", "20", "--model", "no-such-model"], "no-such-model"),
])
def test_faults_come_before_the_first_run(command, tmp_path, capsys, changes, said):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out), *changes]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("minisft: ") and captured.err.count("\n") == 1
    assert said in captured.err and not out.exists()


def test_without_a_test_file_it_is_refused(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command[:3], *command[5:], "--sizes", "20", "--out", str(out)]) == 2
    assert "--test is missing" in capsys.readouterr().err and not out.exists()


def test_completions(tmp_path):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": str(n)}) + "\n"
                            for n in range(40)))
    assert main(["curve", "--task", "complete", "--train", str(path), "--test", str(path), *TINY,
                 "--max-new-tokens", "4", "--sizes", "10,30", "--out", str(out)]) == 0
    assert "Exact match on test texts" in (out / "report.md").read_text()
    assert [p["n"] for p in points(out)] == [40, 40]


def test_sizes_that_are_none(command, capsys):
    for text in ("20,x", "1", "", "20;40"):
        with pytest.raises(SystemExit):
            main([*command, "--sizes", "30", text])
        assert "expected whole numbers above 1" in capsys.readouterr().err


def test_sizes_with_spaces_and_with_commas(monkeypatch):
    seen = []
    monkeypatch.setattr(curve, "curve", lambda config, resume, say: seen.append(config))
    for words in (["50", "100"], ["100,50"], ["100", "50,100"], ["50,100"]):
        assert main(["curve", "--sizes", *words, "--seeds", "2"]) == 0
    assert {config.curve.sizes for config in seen} == {(50, 100)} and len(seen) == 4


def test_a_finished_curve_is_not_lost(command, finished, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert main([*command, "--sizes", "20", "--out", str(finished)]) == 2
    assert main([*command, "--sizes", "99", "--out", str(finished), "--overwrite"]) == 2
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_overwrite_clears_the_sizes(command, tmp_path):
    out = tmp_path / "out"
    one = [*command, "--seeds", "1", "--out", str(out)]
    assert main([*one, "--sizes", "20"]) == 0
    assert "one seed" in (out / "report.md").read_text()
    assert main([*one, "--sizes", "30", "--overwrite"]) == 0
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"size-30"}


POINT = {"mean": 0.5, "low": None, "high": None, "values": [0.5]}


def test_the_plot_refuses_another_number_of_points(tmp_path):
    with pytest.raises(ValueError, match="2 sizes, 1 points"):
        plots.over_sizes([1, 2], {"a": [POINT]}, tmp_path / "x.png", "y")


def test_a_baseline_that_one_size_lacks_is_not_drawn():
    found = {"accuracy": POINT, "macro_f1": POINT, "better": 0, "worse": 0, "n": 1, "p": [1.0]}
    sizes = ((10, {"naive_bayes": found, "tfidf": found}), (20, {"naive_bayes": found}))
    made = [{"size": n, "n": 9, "seeds": [0], "accuracy": POINT, "compared": c, "baselines": {}}
            for n, c in sizes]
    for text in (str(curve.table(made)), "\n".join(curve.headlines(made)[1:])):
        assert "naive Bayes" in text and comparison.NAMES["tfidf"] not in text
