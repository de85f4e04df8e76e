"""A run that is interrupted anywhere and goes on: the same figures as if nobody had."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minisft.cli import main
from minisft.io import run_folder
from minisft.jobs.classify import Classification
from minisft.models.heads import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2",
        "--vocab-size", "300", "--epochs", "3", "--batch-tokens", "64", "--token-dropout", "0.1",
        "--token-swap", "0.1", "--quiet"]


@pytest.fixture(scope="module")
def command(toy_file):
    """The arguments of a run on 80 texts, all but --out."""
    path = toy_file(80)
    return ["finetune", "--train", path, "--test", path, *TINY]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of the run that nobody interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*command, "--out", str(out)]) == 0
    return out


def require_equal(a, b):
    """Everything but the times, and the model bit for bit."""
    found, other = (json.loads((f / "results.json").read_text()) for f in (a, b))
    for key in ("train_seconds", "tokens_per_second", "results_sha256"):
        found.pop(key), other.pop(key)
    for results in (found, other):
        results.get("adaptation", {}).pop("seconds", None)
    assert found == other
    found, other = ([json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
                    for f in (a, b))
    for entry in found + other:
        entry.pop("tokens_per_second", None)
    assert found == other
    assert (a / "model" / "model.safetensors").read_bytes() == (
        b / "model" / "model.safetensors").read_bytes()


def test_ctrl_c(command, whole, tmp_path):
    """A real process, a real signal."""
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "minisft", *command, "--out", str(out)],
                               cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 130
    assert stderr == f"minisft: interrupted; to go on: minisft finetune --resume {out}\n"
    assert main(["finetune", "--resume", str(out)]) == 0
    require_equal(out, whole)


def test_a_resumed_run_tells_what_changed(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "evaluate", interrupted)
        assert main([*command, "--out", str(out)]) == 130
    config = json.loads((out / "config.json").read_text())
    now = config["versions"]["numpy"], config["threads"]
    config["versions"]["numpy"], config["threads"] = "1.2.3", 64
    (out / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["finetune", "--resume", str(out)]) == 0
    assert (f"note: not what the run began with: numpy 1.2.3, now {now[0]}; threads 64, now "
            f"{now[1]}; it goes on") in capsys.readouterr().out


@pytest.mark.parametrize("where", ["validate", "evaluate", "write"])
def test_ctrl_c_outside_the_steps(command, whole, tmp_path, monkeypatch, where, capsys):
    """While texts are scored no signal waits for the end of a step."""
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classification, where, interrupted)
        assert main([*command, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == (
        f"minisft: interrupted; to go on: minisft finetune --resume {tmp_path / 'run'}\n")
    assert not (tmp_path / "run" / "results.json").exists()
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert ("starting anew" if where == "validate" else "resuming after step") in out
    require_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("where", ["adaptation", "classifier"])
def test_adaptation_goes_on_where_it_was(command, tmp_path, monkeypatch, where):
    command = [*command, "--adapt-epochs", "2", "--train-layers", "last:1"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    calls = []

    def interrupted(*args, **kept):
        calls.append(args)
        if len(calls) == 2:     # the second step, or the second validation of the classifier
            raise KeyboardInterrupt
        return original(*args, **kept)

    place = (LanguageModel, "loss_backward") if where == "adaptation" else (
        Classification, "validate")
    original = getattr(*place)
    with monkeypatch.context() as patch:
        patch.setattr(*place, interrupted)
        assert main([*command, "--out", str(tmp_path / "run")]) == 130
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 0
    require_equal(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_state(command, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Classification, "evaluate", interrupted)
    out = tmp_path / "run"
    assert main([*command, "--out", str(out)]) == 130
    path = out / "training_state" / "state.safetensors"
    data = bytearray(path.read_bytes())
    for damaged in (data[:-5], data[:100], data[:-200] + bytes([data[-200] ^ 1]) + data[-199:]):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert main(["finetune", "--resume", str(out)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"minisft: {path}") and err.count("\n") == 1


def test_a_folder_that_goes_away_is_told(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    for place in ("validate", "evaluate"):
        original = getattr(Classification, place)

        def removed(*args, original=original):
            shutil.rmtree(out, ignore_errors=True)
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Classification, place, removed)
            assert main([*command, "--out", str(out)]) == 2
        found = capsys.readouterr()
        assert found.err.startswith(f"minisft: {out}") and found.err.count("\n") == 1
        assert "removed" in found.err and "everything is in" not in found.out
        shutil.rmtree(out, ignore_errors=True)


def test_the_state_goes_when_the_run_has_ended_unless_it_is_kept(command, whole, tmp_path,
                                                                capsys):
    assert not (whole / "training_state").exists()
    command = [*command, "--adapt-epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*command, "--keep-state"]) == 0
    assert (tmp_path / "run" / "training_state" / "state.safetensors").is_file()
    assert (tmp_path / "run" / "adaptation" / "training_state").is_dir()
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 2
    assert "(training_state/ in it is of no use any more)" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert not list((tmp_path / "run").rglob("training_state"))


def test_the_state_of_a_seed_that_died_with_its_results_goes(command, tmp_path, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "remove_state", killed)
        assert main([*command, "--seeds", "2", "--out", str(tmp_path / "runs")]) == 130
    assert list(tmp_path.rglob("results.json")) and list(tmp_path.rglob("training_state"))
    assert main(["finetune", "--resume", str(tmp_path / "runs")]) == 0
    assert not list(tmp_path.rglob("training_state"))


def interrupted_run(command, out, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "evaluate", interrupted)
        assert main([*command, "--out", str(out)]) == 130


def test_settings_that_were_changed_by_hand_are_refused(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    interrupted_run(command, out, monkeypatch)
    path = out / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config, indent=4, sort_keys=True))      # the same, written otherwise
    config["settings"]["lr"] *= 2
    (tmp_path / "changed").write_text(json.dumps(config))
    kept = path.read_text()
    path.write_text((tmp_path / "changed").read_text())
    capsys.readouterr()
    assert main(["finetune", "--resume", str(out)]) == 2
    assert capsys.readouterr().err == (f"minisft: {path}: its settings have changed since the run "
                                       "began, expected those that it began with\n")
    path.write_text(kept)
    assert main(["finetune", "--resume", str(out)]) == 0


def test_a_model_or_tokenizer_that_has_changed_is_refused(command, whole, tmp_path, monkeypatch,
                                                          capsys):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(whole / "model", model)
    data = command[:5]
    for name, options in (("tokenizer.json", []), ("model.safetensors", []),
                          ("tokenizer.json", ["--tokenizer", str(model)])):
        interrupted_run([*data, "--model", str(whole / "model" if options else model), *options,
                         "--epochs", "1", "--quiet"], out, monkeypatch)
        kept = (model / name).read_bytes()
        (model / "README.md").write_text("is not read")
        (model / name).write_bytes(kept + b" ")
        capsys.readouterr()
        assert main(["finetune", "--resume", str(out)]) == 2
        flag = "--tokenizer" if options else "--model"
        assert capsys.readouterr().err == (f"minisft: {model}: has changed since the run {out} "
                                           f"began, expected the same for {flag}\n")
        (model / name).write_bytes(kept)
        assert main(["finetune", "--resume", str(out)]) == 0
        shutil.rmtree(out)


def test_metrics_that_have_changed_are_set_aside(command, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    interrupted_run(command, out, monkeypatch)
    path = out / "metrics.jsonl"
    kept = path.read_text()
    number = json.loads(kept.splitlines()[0])["loss"]
    damaged = kept.replace(str(number), str(number + 1), 1)
    path.write_text(damaged)
    capsys.readouterr()
    assert main(["finetune", "--resume", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"note: {path} is not as it was when the state was saved: it is called " \
        "metrics-damaged.jsonl now" in said
    assert (out / "metrics-damaged.jsonl").read_text() == damaged and path.read_text() == ""
    assert (out / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(out)
    interrupted_run(command, out, monkeypatch)
    with open(path, "a") as file:      # behind the state
        file.write('{"step": 999, "epoch": 9, "loss": 1.0}\n{"step":')
    assert main(["finetune", "--resume", str(out)]) == 0
    assert f"note: {path}" not in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(out)
    interrupted_run(command, out, monkeypatch)
    path.unlink()
    assert main(["finetune", "--resume", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"note: {path} is missing: the curves begin here" in said


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", "2"), ("epochs", True), ("lr", "1"), ("lr", float("inf")), ("lr", 10**400),
    ("text_column", "text"), ("text_column", [1]), ("train", 3), ("quiet", 1), ("model", []),
    ("max_length", 1.5), ("seed", {})])
def test_settings_of_another_type(command, name, value, tmp_path, monkeypatch, capsys):
    """With a checksum that fits, as by who writes a run's folder for others."""
    if not (path := tmp_path.parent / "typed" / "config.json").exists():
        interrupted_run(command, path.parent, monkeypatch)
    config = json.loads(path.read_text())
    capsys.readouterr()
    run_folder.write_config(path.parent, {
        **config, "settings": config["settings"] | {name: value}})
    assert main(["finetune", "--resume", str(path.parent)]) == 2
    found = capsys.readouterr().err
    flag = f"--{name.replace('_', '-')}"
    assert found.startswith(f"minisft: {path}: {flag} is ") and found.count("\n") == 1, found
    run_folder.write_config(path.parent, config)


@pytest.mark.parametrize("part", ["given", "files", "settings"])
def test_parts_of_another_type(command, part, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    interrupted_run(command, out, monkeypatch)
    config = json.loads((out / "config.json").read_text())
    run_folder.write_config(out, config | {part: []})
    capsys.readouterr()
    assert main(["finetune", "--resume", str(out)]) == 2
    found = capsys.readouterr().err
    assert found == f"minisft: {out}/config.json: no settings of a run\n"


def test_an_environment_of_another_type(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    interrupted_run(command, out, monkeypatch)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {
        "versions": [1], "compiled": {}, "threads": None, "python": []}))
    assert main(["finetune", "--resume", str(out)]) == 0
    assert "note: not what the run began with" in capsys.readouterr().out
