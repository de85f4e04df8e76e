"""The newcomer's path, as scripts/first_hour.py walks it: exit codes, and readable lines."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "first_hour.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("first_hour", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_readable(row):
    assert row.code == row.expected, f"{row.command}\n{row.text}"
    assert "Traceback" not in row.text
    if row.code == 2:
        assert row.lines == 1 and row.text.startswith("minisft: ")
    elif row.command.split()[1:2] in (["finetune"], ["curve"], ["pretrain"], ["plan"]):
        # the command to go on with may hold a path of any length
        said = [line for line in row.text.splitlines() if not line.startswith("  minisft ")]
        assert [line for line in said if len(line) > 99] == []


def test_the_first_slips(script, tmp_path):
    path = [step for step in script.PATH if step[0] == 2 and "finetune" in step[1]]
    rows = list(script.walk(tmp_path, path=[script.PATH[0], script.PATH[1], *path]))
    for row in rows:
        require_readable(row)
    assert rows[1].lines <= 40 and "--train mine.csv" in rows[2].text
    assert "did you mean --train?" in rows[3].text and "text, topic" in rows[4].text


@pytest.mark.slow
def test_the_first_hour(script, tmp_path):
    rows = list(script.walk(tmp_path))
    for row in rows:
        require_readable(row)
    clone = tmp_path / "minisft"
    for folder in ("runs/toy-news-minisft-gpt2", "runs/mine", "runs/three", "runs/curve"):
        page = (clone / folder / "report.html").read_text(encoding="utf-8")
        assert "data:image/png" in page and "<script" not in page
