"""The run folder: nothing that a user has is lost."""

import json
import os
import shutil
import signal
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


def test_the_log_of_a_resumed_run_is_whole(tmp_path):
    steps = [{"step": i, "epoch": 1, "loss": 0.1 * i, "lr": 0.1} for i in (1, 2, 3)]
    epoch = {"epoch": 1, "step": 2, "train_loss": 0.2}
    first = run_folder.MetricsLog(tmp_path)
    for entry in (steps[0], steps[1], epoch, steps[2]):
        first(entry)
    first.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()

    def resumed(step, epoch):
        log = run_folder.MetricsLog(tmp_path, step, epoch)
        log.sync()
        log.close()
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    assert resumed(3, 1) == [steps[0], steps[1], epoch, steps[2]]
    assert resumed(2, 1) == [steps[0], steps[1], epoch]
    assert resumed(2, 0) == steps[:2]      # saved before the epoch was scored
    for torn in range(len(whole)):         # a death in the middle of a line
        path.write_bytes(whole[:torn])
        found = resumed(3, 1)
        assert found == [steps[0], steps[1], epoch][:whole[:torn].count(b"\n")]
    for odd in (b"[" * 10**5 + b"\n", b"3\n", b"{}\n", b"\xff\n"):
        path.write_bytes(whole + odd)
        assert len(resumed(9, 9)) == 4
    assert resumed(0, 0) == []


def test_the_log_follows_no_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="metrics.jsonl: is a link"):
        run_folder.MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    os.link(tmp_path / "theirs", tmp_path / "metrics.jsonl")      # as a copy of a backup has them
    log = run_folder.MetricsLog(tmp_path)
    log({"step": 1, "epoch": 1})
    log.close()
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "epoch": 1}\n'


def test_a_log_that_is_gone_is_told(tmp_path):
    log = run_folder.MetricsLog(tmp_path)
    log.sync()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="metrics.jsonl: was removed or replaced while"):
        log.sync()
    (tmp_path / "metrics.jsonl").touch()      # of another run
    with pytest.raises(UserError, match="was removed or replaced"):
        log.sync()
    log.close()


def test_the_history_of_a_long_run_is_thinned(tmp_path):
    log = run_folder.MetricsLog(tmp_path)
    for i in range(1, 101):
        log({"step": i, "epoch": 1, "loss": 1 / i, "lr": 0.1, "tokens": 9})
    log({"step": 100, "epoch": 1, "train_loss": 0.5, "sample": "x"})
    log.close()
    assert [e["step"] for e in run_folder.read_history(tmp_path)["steps"]] == list(range(1, 101))
    history = run_folder.read_history(tmp_path, most=20)
    assert [e["step"] for e in history["steps"]] == list(range(1, 101, 4))
    assert history["steps"][1] == {"step": 5, "loss": 1 / 5, "lr": 0.1}
    assert history["epochs"] == [{"step": 100, "epoch": 1, "train_loss": 0.5, "sample": "x"}]


def test_a_second_signal_waits_for_the_save():
    with run_folder.catch_interrupts() as interrupts:
        with interrupts.held():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX")
def test_a_terminal_that_closes_is_heard_but_under_nohup():
    with run_folder.catch_interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.received
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run_folder.catch_interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_machine_says_what_bits_depend_on(tmp_path):
    found = run_folder.environment()
    assert found["versions"]["numpy"] and found["processor"] and found["threads"]


def test_fingerprint_sees_a_change(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("a")
    first = run_folder.file_sha256(file)
    file.write_text("b")
    assert run_folder.file_sha256(file) != first and len(first) == 64
    assert run_folder.file_sha256(None) is None


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
