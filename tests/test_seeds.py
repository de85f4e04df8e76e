"""Several seeds: a run for each, their spread, going on, and nothing lost."""

import json
import os

import pytest

from minisft.cli import main
from minisft.errors import UserError
from minisft.evaluation import metrics
from minisft.io import run_folder
from minisft.jobs import finetune as runner
from minisft.jobs import seeds
from minisft.training.loop import Interrupted

TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
        "300", "--epochs", "1", "--batch-tokens", "256", "--quiet"]


@pytest.fixture(scope="module")
def command(toy_file):
    path = toy_file(60)
    return ["finetune", "--train", path, "--test", path, *TINY, "--seeds", "3",
            "--seed", "4"]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    assert main([*command, "--out", str(out)]) == 0
    return out


def read(path):
    return run_folder.read_results(path)


def timeless(results):
    return {k: v for k, v in results.items() if k not in ("runs", "seconds")} | {
        "runs": [{k: v for k, v in run.items() if k != "train_seconds"} for run in results["runs"]]}


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_seed_is_a_run_of_its_own(command, finished, tmp_path):
    assert {p.name for p in finished.iterdir()} == {
        "config.json", "results.json", "report.md", "report.html", "seeds.png", "seed-4",
        "seed-5", "seed-6"}
    alone = [*command[:-4], "--seed", "5", "--out", str(tmp_path / "alone")]
    assert main(alone) == 0
    model = "model/model.safetensors"
    assert (tmp_path / "alone" / model).read_bytes() == (finished / "seed-5" / model).read_bytes()
    found, each = read(finished), [read(finished / f"seed-{n}") for n in (4, 5, 6)]
    assert found["seeds"] == [4, 5, 6] and found["n"] == 60
    for key in ("accuracy", "macro_f1", "loss"):
        values = [r[key] for r in each]
        assert found[key] == metrics.over_seeds(values) and len(set(values)) > 1
        assert found[key]["values"] == values and found[key]["low"] is None
    bayes = found["compared"]["naive_bayes"]
    assert bayes["p"] == [r["naive_bayes"]["mcnemar"]["p"] for r in each] and bayes["n"] == 3


def test_three_seeds_have_values_and_a_mean(command, finished, tmp_path, capsys):
    found = read(finished)["accuracy"]
    text = (finished / "report.md").read_text()
    assert f"| accuracy | {found['mean']:.1%} |" in text and "[5](seed-5/report.md)" in text
    assert "largest McNemar p" in text and "There is no test set" not in text
    assert "95%" not in text and "Fewer than 5 seeds have a mean and no interval" in text
    page = (finished / "report.html").read_text()
    assert '<a href="seed-5/report.html">5</a>' in page and page.count("<img ") == 1
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    verdict = shown.index(f"{found['mean']:.1%} accuracy, mean of 3")
    end = shown.index("to use the model")
    assert shown.index("seed 6, 3 of 3:") < verdict < end
    values = ", ".join(f"{value:.1%}" for value in found["values"])
    assert f"  accuracy: {values}\n" in shown and "interval" not in shown[verdict:]
    assert shown.count("far fewer texts") == shown.count("4 classes: ") == 1     # told once
    assert [line for line in shown[:end].splitlines() if len(line) > 99] == []


def test_five_seeds_have_an_interval_that_ends_at_1(capsys):
    values = [0.98, 1.0, 0.99, 1.0, 1.0]
    runs = {seed: {"accuracy": value, "macro_f1": value, "loss": 4 * value, "n": 50}
            for seed, value in enumerate(values)}
    results = seeds.summary(runs) | {"scored_on": "test"}
    plain = metrics.mean_interval(values)
    assert plain["high"] > 1 and results["accuracy"]["high"] == 1.0
    assert results["accuracy"]["low"] == plain["low"] and results["loss"]["high"] > 3
    line = seeds.headlines(results)[1]
    assert line == (f"  accuracy: mean {plain['mean']:.1%}, standard deviation {plain['sd']:.1%}, "
                    f"95% interval {plain['low']:.1%} to 100.0%")


def test_an_interrupted_call_goes_on(command, finished, tmp_path, monkeypatch, capsys):
    out, whole = tmp_path / "out", runner.run
    calls = []

    def stopped(ready, say, **options):
        calls.append(ready.prepared.config.training.seed)
        if calls[-1] == 5:
            raise Interrupted(ready.folder)
        return whole(ready, say, **options)

    monkeypatch.setattr(runner, "run", stopped)
    assert main([*command, "--out", str(out)]) == 130
    assert f"--resume {out}" in capsys.readouterr().err and calls == [4, 5]
    kept = files(out / "seed-4")

    # the second was killed: it has begun, and nothing more
    monkeypatch.setattr(runner, "run", whole)
    (out / "seed-5").mkdir()
    config = json.loads((out / "seed-4" / "config.json").read_text())
    config["settings"] |= {"seed": 5, "out": str(out / "seed-5")}
    run_folder.write_config(out / "seed-5", config)
    (out / "seed-6").mkdir()
    (out / "seed-6" / ".config.json.partial").touch()
    assert main(["finetune", "--resume", str(out)]) == 0
    assert files(out / "seed-4") == kept
    assert timeless(read(out)) == timeless(read(finished))
    assert main(["finetune", "--resume", str(out)]) == 2
    assert "finished run" in capsys.readouterr().err


def test_nothing_is_lost(command, finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command, "--seeds", "2", "--out", str(out)]) == 0
    before = files(out)
    for arguments in ([*command, "--out", str(out)],                              # no --overwrite
                      [*command, "--out", str(out), "--overwrite", "--train", "none.csv"],
                      [*command, "--out", str(out), "--overwrite", "--lr", "-1"]):
        assert main(arguments) == 2
        assert files(out) == before
    (out / "seed-5" / "thesis.doc").touch()
    assert main([*command, "--out", str(out), "--overwrite"]) == 2
    assert "thesis.doc" in capsys.readouterr().err
    os.remove(out / "seed-5" / "thesis.doc")
    # fewer seeds: none of the old ones is left to be taken for a new one
    assert main([*command, "--seeds", "2", "--seed", "8", "--out", str(out), "--overwrite"]) == 0
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"seed-8", "seed-9"}
    # a run of one seed takes the folder over
    assert main([*command[:-4], "--out", str(out), "--overwrite"]) == 0
    assert not (out / "seed-8").exists() and (out / "model").is_dir()


def test_a_link_in_the_place_of_a_seed_is_a_stranger(command, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "report.md").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / "seed-4").symlink_to(tmp_path / "elsewhere")
    assert main([*command, "--out", str(out), "--overwrite"]) == 2
    assert (tmp_path / "elsewhere" / "report.md").exists()


def test_without_a_test_set_it_says_so(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command[:3], *command[5:], "--seeds", "2", "--out", str(out)]) == 0
    assert "on 7 validation texts" in capsys.readouterr().out
    assert "There is no test set" in (out / "report.md").read_text()


def test_interrupted_before_it_began_there_is_nothing_to_resume(command, tmp_path, monkeypatch):
    def stopped(config, resume, say):
        raise KeyboardInterrupt
    monkeypatch.setattr(runner, "prepare", stopped)
    assert main([*command, "--out", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes, said", [
    (["--seeds", "0"], "--seeds is 0, expected from 1 to 1000"),
    (["--train", "none.csv"], "none.csv: no such file"),
    (["--seed", "4294967295"], "--seeds is 3 with --seed 4294967295"),
])
def test_faults(command, tmp_path, capsys, changes, said):
    assert main([*command, *changes, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_changed_data_are_refused(command, tmp_path, monkeypatch, capsys):
    train = tmp_path / "train.csv"
    with open(command[2]) as file:
        train.write_text(file.read())
    monkeypatch.setattr(runner, "run", lambda ready, say, **options: 1 / 0)
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        main([*command, "--train", str(train), "--out", str(out)])
    with open(train, "a") as file:
        file.write("another,economy\n")
    assert main(["finetune", "--resume", str(out)]) == 2
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("key, value", [
    ("accuracy", {}), ("accuracy", "0.5"), ("macro_f1", None), ("loss", float("nan")),
    ("loss", [1.0]), ("n", 0.5), ("n", -1), ("best_epoch", "1"), ("train_seconds", None),
    ("naive_bayes", {"accuracy": 0.5}), ("naive_bayes", [0.5]),
    ("naive_bayes", {"accuracy": 0.5, "macro_f1": 0.5, "mcnemar": {"p": "0"}})])
def test_results_that_no_run_writes_are_refused(finished, tmp_path, key, value):
    results = read(finished / "seed-4")
    assert seeds._sound(results, tmp_path) is results
    with pytest.raises(UserError, match=f"is not what a run writes: {key}; remove it"):
        seeds._sound(results | {key: value}, tmp_path)


def test_results_without_a_figure_are_refused(finished, tmp_path):
    results = read(finished / "seed-4")
    for gone in (["n"], ["best_epoch"], ["train_seconds"], list(seeds.FIGURES)):
        with pytest.raises(UserError, match=f"is not what a run writes: {gone[0]}"):
            seeds._sound({k: v for k, v in results.items() if k not in gone}, tmp_path)
