"""The run folder: nothing that a user has is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minisft.errors import UserError
from minisft.io import run_folder


def test_unused_path(tmp_path):
    assert run_folder.unused_path(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").touch()
    assert run_folder.unused_path(tmp_path, "a") == tmp_path / "a-3"


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    run_folder.check_output_folder(tmp_path / "new", False)
    run_folder.check_output_folder(tmp_path, False)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not empty.*overwrite.*resume"):
        run_folder.check_output_folder(tmp_path, False)
    run_folder.check_output_folder(tmp_path, True)
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match="'thesis.doc', which no run made"):
        run_folder.check_output_folder(tmp_path, True)
    with pytest.raises(UserError, match="is a file"):
        run_folder.check_output_folder(tmp_path / "config.json", True)


def test_start_removes_what_a_run_left_and_no_more(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "report.md").touch()
    (tmp_path / "notes").mkdir()
    run_folder.create(tmp_path, {"settings": {"seed": 1}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes"]
    assert json.loads((tmp_path / "config.json").read_text())["settings"] == {"seed": 1}
    assert run_folder.read_interrupted_run(tmp_path)["settings"] == {"seed": 1}


def test_parts_of_files_from_a_killed_run_do_not_stand_in_the_way(tmp_path):
    (tmp_path / ".results.json.partial").touch()
    (tmp_path / ".model.partial").mkdir()
    run_folder.check_output_folder(tmp_path, False)
    run_folder.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json",
                                     "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_models_folder_is_no_run(tmp_path, weights):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / weights).touch()
    with pytest.raises(UserError, match="expected the folder of a run"):
        run_folder.read_interrupted_run(tmp_path)


def test_start_follows_no_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(elsewhere)
    run_folder.create(tmp_path / "run", {})
    assert (elsewhere / "weights").exists() and not (tmp_path / "run" / "model").exists()


LOCKING = pytest.mark.skipif(run_folder.fcntl is None, reason="the system has no flock")
HOLD = """
import sys
from minisft.io.run_folder import FolderLock
with FolderLock(sys.argv[1], unnamed=len(sys.argv) > 2) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """hold(folder, *unnamed) -> a process that has the folder, and which one it is."""
    processes = []

    def start(*args):
        process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, args)], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.communicate("")


@LOCKING
def test_a_folder_belongs_to_one_process(tmp_path, hold):
    process, _ = hold(tmp_path / "run")
    with pytest.raises(UserError, match=f"run: process {process.pid} on .* works in this folder"):
        with run_folder.FolderLock(tmp_path / "run"):
            pass
    process.communicate("")
    assert not (tmp_path / "run").exists()      # nothing was written
    with run_folder.FolderLock(tmp_path / "run") as folder:
        (folder / "config.json").touch()
    assert os.listdir(tmp_path / "run") == ["config.json"]


@LOCKING
def test_the_lock_of_a_dead_process_is_told_and_taken(tmp_path, hold):
    process, _ = hold(tmp_path / "run")
    process.kill()
    process.wait()
    said = []
    run_folder.check_output_folder(tmp_path / "run", False)
    with run_folder.FolderLock(tmp_path / "run", said.append):
        (line,) = said
        assert line.startswith(f"note: process {process.pid} on ") and "died" in line
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / ".lock").write_text("\033[2J" * 9)
    with run_folder.FolderLock(tmp_path / "run", said.append):
        assert said[1].startswith("note: another process died")


def test_unnamed_runs_get_a_folder_each(tmp_path, hold):
    found = {hold(tmp_path / "runs" / "x", "unnamed")[1] for _ in range(3)}
    assert found == {tmp_path / "runs" / name for name in ("x", "x-2", "x-3")}


def test_a_folder_that_was_removed_is_told(tmp_path):
    run_folder.create(tmp_path / "run", {})
    run_folder.require_present(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="run: was removed while the run went on"):
        run_folder.require_present(tmp_path / "run")


def test_overwrite_takes_all_that_a_run_leaves(tmp_path):
    for name in run_folder.CONTENTS:
        (tmp_path / name).touch()
    (tmp_path / "adaptation").unlink()
    (tmp_path / "adaptation" / "training_state").mkdir(parents=True)
    run_folder.check_output_folder(tmp_path, True)
    run_folder.remove_state(tmp_path)
    assert os.listdir(tmp_path / "adaptation") == []
    run_folder.create(tmp_path, {})
    assert os.listdir(tmp_path) == ["config.json"]


def test_results_that_have_changed_are_refused(tmp_path):
    results = {"accuracy": 0.5, "of_seeds": {1: [0.25]}, "loss": None}
    run_folder.write_results(tmp_path, results)
    assert run_folder.read_results(tmp_path) == {
        "accuracy": 0.5, "of_seeds": {"1": [0.25]}, "loss": None}
    text = (tmp_path / "results.json").read_text()
    for changed in (text.replace("0.5", "0.7"), text.replace("loss", "lost"),
                    text.replace("_sha256", "_sha257"), "{}"):
        (tmp_path / "results.json").write_text(changed)
        with pytest.raises(UserError, match="results.json: is not as the run wrote it"):
            run_folder.read_results(tmp_path)
