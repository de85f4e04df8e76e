"""metrics.jsonl: whole lines, up to the state that a run resumes from."""

import json
import os

import pytest

from minisft.errors import UserError
from minisft.io import metrics_log


def test_the_log_of_a_resumed_run_is_whole(tmp_path):
    steps = [{"step": i, "epoch": 1, "loss": 0.1 * i, "lr": 0.1} for i in (1, 2, 3)]
    epoch = {"epoch": 1, "step": 2, "train_loss": 0.2}
    first = metrics_log.MetricsLog(tmp_path)
    for entry in (steps[0], steps[1], epoch, steps[2]):
        first(entry)
    first.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()

    def resumed(step, epoch):
        log = metrics_log.MetricsLog(tmp_path, step, epoch)
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
        metrics_log.MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    os.link(tmp_path / "theirs", tmp_path / "metrics.jsonl")      # as a copy of a backup has them
    log = metrics_log.MetricsLog(tmp_path)
    log({"step": 1, "epoch": 1})
    log.close()
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "epoch": 1}\n'


def test_a_log_that_is_gone_is_told(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    log.sync()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="metrics.jsonl: was removed or replaced while"):
        log.sync()
    (tmp_path / "metrics.jsonl").touch()      # of another run
    with pytest.raises(UserError, match="was removed or replaced"):
        log.sync()
    log.close()


def test_the_history_of_a_long_run_is_thinned(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    for i in range(1, 101):
        log({"step": i, "epoch": 1, "loss": 1 / i, "lr": 0.1, "tokens": 9})
    log({"step": 100, "epoch": 1, "train_loss": 0.5, "sample": "x"})
    log.close()
    assert [e["step"] for e in metrics_log.read_history(tmp_path)["steps"]] == list(range(1, 101))
    history = metrics_log.read_history(tmp_path, most=20)
    assert [e["step"] for e in history["steps"]] == list(range(1, 101, 4))
    assert history["steps"][1] == {"step": 5, "loss": 1 / 5, "lr": 0.1}
    assert history["epochs"] == [{"step": 100, "epoch": 1, "train_loss": 0.5, "sample": "x"}]
