"""The script for a machine with a card: what of it a CPU can show."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from minisft.dispatch import matmul

PATH = Path(__file__).resolve().parents[1] / "scripts" / "on_a_card.py"
spec = importlib.util.spec_from_file_location("on_a_card", PATH)
on_a_card = importlib.util.module_from_spec(spec)
spec.loader.exec_module(on_a_card)


def test_all_parts_fit_into_ten_minutes(tmp_path):
    args = type("Args", (), {"dry_run": False, "train": None, "out": tmp_path})
    parts = on_a_card.parts(args)
    assert sum(seconds for _, seconds in parts.values()) <= 600
    assert {f"finetune {p}" for p in ("float32", "tf32", "bfloat16", "float16")} < parts.keys()
    for test in on_a_card.TESTS:
        assert (on_a_card.ROOT / test).is_file()


def test_products_are_checked(monkeypatch, capsys):
    assert on_a_card.products(((5, 32, 7), (1, 3, 2))) == []
    assert "48 products by what there is instead of cuBLASLt, 0 wrong" in capsys.readouterr().out
    module = sys.modules["minisft.dispatch.matmul"]     # the package's name is the function
    monkeypatch.setattr(module, "matmul", lambda a, b, bias=None: matmul(a, b))
    wrong = on_a_card.products(((5, 32, 7),))
    assert len(wrong) == 12 and all("bias True" in line for line in wrong)


def test_a_part_that_fails_or_takes_too_long_is_told(tmp_path):
    failing, slow = ([sys.executable, "-c", text] for text in (
        "print(5); raise SystemExit(3)", "import time; time.sleep(60)"))
    assert on_a_card.run("a b", failing, 60, tmp_path)["code"] == 3
    assert (tmp_path / "a-b.txt").read_text() == "5\n"
    assert on_a_card.run("c", slow, 1, tmp_path)["code"] is None


def test_a_part_that_is_stopped_leaves_no_process(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    lock, text = tmp_path / "lock", "import fcntl; f = open({!r}, 'w'); fcntl.flock(f, 2); "
    inner = text.format(str(lock)) + "print('locked', flush=True); import time; time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    for seconds in (3, 10, 30):     # a busy machine may need longer until it has begun
        assert on_a_card.run("d", [sys.executable, "-c", outer], seconds, tmp_path)["code"] is None
        if (tmp_path / "d.txt").read_text() == "locked\n":
            break
    else:
        pytest.fail("it never began")
    deadline = time.monotonic() + 10     # the system frees it soon
    with open(lock, "w") as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


@pytest.mark.slow
def test_the_command_runs_dry(tmp_path):
    out = tmp_path / "card"
    assert on_a_card.main(["--out", str(out), "--dry-run", "--only", "products", "host",
                           "finetune"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report.keys() == {"products", "host", "finetune float32"}
    assert "classifier" in (out / "host.txt").read_text()
