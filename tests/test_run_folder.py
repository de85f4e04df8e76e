"""The run folder: nothing that a user has is lost."""

import json

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
    assert json.loads((tmp_path / "config.json").read_text()) == {"settings": {"seed": 1}}


def test_parts_of_files_from_a_killed_run_do_not_stand_in_the_way(tmp_path):
    (tmp_path / ".results.json.partial").touch()
    (tmp_path / ".model.partial").mkdir()
    run_folder.check_output_folder(tmp_path, False)
    run_folder.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_start_follows_no_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(elsewhere)
    run_folder.create(tmp_path / "run", {})
    assert (elsewhere / "weights").exists() and not (tmp_path / "run" / "model").exists()


def test_the_log_of_a_resumed_run_is_whole(tmp_path):
    first = run_folder.MetricsLog(tmp_path)
    first({"step": 1})
    first({"step": 2})
    first.close()
    again = run_folder.MetricsLog(tmp_path, [{"step": 1}])     # interrupted after the first
    again({"step": 2, "loss": 1.5})
    again.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2, "loss": 1.5}]


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
