"""Links planted in the folder of a run: nothing is read or written through one."""

import os
import shutil

import pytest

from minisft.cli import main
from minisft.io import run_folder
from minisft.jobs import finetune
from minisft.jobs.classify import Classification

TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
        "300", "--epochs", "2", "--batch-tokens", "256", "--compare", "none", "--quiet"]


@pytest.fixture(scope="module")
def command(toy_file):
    return ["finetune", "--train", toy_file(40), *TINY]


@pytest.fixture(scope="module")
def interrupted(command, tmp_path_factory):
    """The folder of a run of two seeds that was interrupted after the first one's adaptation."""
    out = tmp_path_factory.mktemp("runs") / "run"
    patch = pytest.MonkeyPatch()
    patch.setattr(Classification, "evaluate", ended)
    assert main([*command, "--adapt-epochs", "1", "--seeds", "2", "--out", str(out)]) == 130
    patch.undo()
    assert main(["finetune", "--resume", str(shutil.copytree(out, out.with_name("sound")))]) == 0
    return out


def ended(*args):
    raise KeyboardInterrupt


def tree(folder):
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes()
            for p in folder.rglob("*")}


WHERE = ["", "seed-0", "seed-0/adaptation"]
FILES = [(where, name) for where in WHERE for name in (
    *run_folder.CONTENTS, *run_folder.PARTIAL, ".lock")] + [
    (f"seed-0{place}", name) for place in ("/training_state", "/adaptation/training_state")
    for name in ("state.safetensors", ".state.safetensors.partial")] + [
    ("seed-0/model", name) for name in ("model.safetensors", "tokenizer.json", "config.json")] + [
    ("", name) for name in ("seed-0", "seed-1")]


@pytest.mark.parametrize("where, name", FILES, ids="/".join)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_stops_the_run_that_would_go_on(interrupted, tmp_path, capsys, where, name, kind):
    """Whatever the link is called, and wherever it leads: what it leads to stays as it is."""
    run, elsewhere = shutil.copytree(interrupted, tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = run / where / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():      # what the run would go on with, but elsewhere
        path.rename(elsewhere / "moved")
    elif path.exists():
        path.rename(elsewhere / "file")
    for made in ("moved", "file"):
        if not (elsewhere / made).exists():
            (elsewhere / made).mkdir() if made == "moved" else (elsewhere / made).touch()
    path.symlink_to(elsewhere / ("moved" if kind == "folder" else "file"))
    before = tree(elsewhere)
    assert main(["finetune", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minisft: {path}: is a link") and error.count("\n") == 1
    assert tree(elsewhere) == before and path.is_symlink()


@pytest.mark.parametrize("name", ["training_state", "adaptation", "model", "metrics.jsonl"])
def test_a_link_that_comes_while_the_run_goes_on(command, tmp_path, monkeypatch, capsys, name):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (elsewhere / "training_state").mkdir(parents=True)
    (elsewhere / "file").write_text("theirs")
    before = tree(elsewhere)

    def planted(*args):      # config.json is there, nothing else
        (run / name).symlink_to(elsewhere / "file" if name == "metrics.jsonl" else elsewhere)

    monkeypatch.setattr(finetune, "_write_bad_rows", planted)
    assert main([*command, "--adapt-epochs", "1", "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minisft: {run / name}: is a link") and error.count("\n") == 1
    assert tree(elsewhere) == before


def test_the_folder_that_a_user_names_may_be_a_link(command, tmp_path, monkeypatch):
    """It was named, and not planted: a large disk, for one."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "evaluate", ended)
        assert main([*command, "--seeds", "2", "--out", str(tmp_path / "run")]) == 130
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "disk" / "seed-1" / "model").is_dir() and (tmp_path / "run").is_symlink()
    assert main([*command, "--out", str(tmp_path / "run"), "--overwrite"]) == 0
    assert (tmp_path / "disk" / "model").is_dir() and not (tmp_path / "disk" / "seed-1").exists()


def test_second_names_and_pipes(interrupted, tmp_path, capsys):
    """A hard link is a file of two folders: the other one is not written, either."""
    run, theirs = shutil.copytree(interrupted, tmp_path / "run"), tmp_path / "theirs"
    theirs.write_text("theirs")
    os.link(theirs, run / ".lock")
    shutil.copy(run / "seed-0" / "metrics.jsonl", tmp_path / "copy")
    os.link(run / "seed-0" / "metrics.jsonl", tmp_path / "other")
    assert main(["finetune", "--resume", str(run)]) == 0
    assert theirs.read_text() == "theirs"
    assert (tmp_path / "other").read_bytes() == (tmp_path / "copy").read_bytes()
    if hasattr(os, "mkfifo"):
        run = shutil.copytree(interrupted, tmp_path / "again")
        for name in (".lock", "seed-0/metrics.jsonl", "config.json"):
            (run / name).unlink(missing_ok=True)
            os.mkfifo(run / name)
            capsys.readouterr()
            assert main(["finetune", "--resume", str(run)]) == 2
            assert capsys.readouterr().err == (
                f"minisft: {run / name}: is no file, expected one that a run wrote\n")
            (run / name).unlink()
