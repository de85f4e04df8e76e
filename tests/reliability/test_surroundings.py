"""What surrounds a command can be missing: a home, a stream, room for its output, a thread.

Each command either does its work or ends with one line and exit code 2.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minisft.cli import main
from minisft.io import hub

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "minisft" / "bundled" / "minisft-gpt2"
GENERATE = ["generate", "--model", str(MODEL), "the cat", "--temperature", "0",
            "--max-new-tokens", "2"]
SMALL = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
         "270", "--epochs", "1", "--compare", "none", "--quiet"]

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux does it")


def command(arguments, redirections="", cwd=ROOT, **environment):
    """`minisft` in a shell with these redirections -> the finished process."""
    kept = {name: value for name, value in os.environ.items()
            if environment.get(name, "") is not None}
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "minisft",
         *map(os.fsencode, arguments)], cwd=cwd, capture_output=True, timeout=120,
        env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, (
            str(ROOT), os.environ.get("PYTHONPATH")))),
            **{name: value for name, value in environment.items() if value is not None}})


def one_line(process, *words):
    lines = process.stderr.decode().splitlines()
    assert process.returncode == 2 and len(lines) == 1, process
    assert lines[0].startswith("minisft: ") and all(word in lines[0] for word in words), lines


@linux
@pytest.mark.parametrize("redirections", [
    ">&-", "2>&-", *(pytest.param(closed, marks=pytest.mark.slow) for closed in (
        "<&-", "<&- >&- 2>&-"))])
def test_closed_streams(tmp_path, toy_file, redirections):
    """No file of the run takes the number of a closed stream, and nothing said lands elsewhere."""
    whole = command(GENERATE)
    assert whole.returncode == 0 and whole.stdout and whole.stderr
    found = command(GENERATE, redirections)
    assert found.returncode == 0, found
    assert found.stdout in ((b"",) if ">&- " in redirections + " " and "2>&-" != redirections
                            else (whole.stdout,))
    run = command(["finetune", "--train", toy_file(40), *SMALL, "--out", str(tmp_path / "run")],
                  redirections)
    assert run.returncode == 0 and (tmp_path / "run" / "results.json").is_file(), run
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines and all(line.startswith("{") for line in lines)
    assert command(["generate", "--model", "nowhere", "x"], redirections).returncode == 2


@linux
@pytest.mark.parametrize("unbuffered", ["1", None])
def test_full_outputs(unbuffered):
    """A short output is not written before Python ends, unless somebody asks for that."""
    kept = {"PYTHONUNBUFFERED": unbuffered}
    for arguments in ["why"], ["why", "--help"]:
        one_line(command(arguments, "> /dev/full", **kept), "No space left on device")
    assert command(["why"], "> /dev/full 2> /dev/full", **kept).returncode == 2
    one_line(command(["why", "nothing"], "> /dev/full", **kept), "no operation")
    found = command(GENERATE, "2> /dev/full", **kept)
    assert found.returncode == 2 and b"Traceback" not in found.stdout + found.stderr
    closed = command(["why"], "| true", **kept)
    assert closed.stderr == b"", closed


@linux
def test_names_that_are_no_utf8(tmp_path, toy_file):
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(place)
    texts = place + b"/train.csv"
    os.link(toy_file(40), texts)
    made = command(["finetune", "--train", texts, *SMALL, "--out", place + b"/run"])
    assert made.returncode == 0, made
    assert os.path.exists(place + b"/run/results.json")
    model = place + b"/run/model"
    found = command(["predict", "--model", model, "--file", texts, "--out", place + b"/out.csv"])
    assert found.returncode == 0 and os.path.exists(place + b"/out.csv"), found
    assert command(["predict", "--model", model, b"caf\xe9"]).returncode == 0
    for arguments in (["predict", "--model", place + b"/no", "x"],
                      ["finetune", "--resume", place + b"/no"],
                      ["predict", "--model", model, "--file", place + b"/no.csv"],
                      ["evaluate", "--model", model, "--test", texts, "--text-column", b"\xff"]):
        one_line(command(arguments))
    one_line(command(arguments, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"))


def test_nobodys_home(monkeypatch):
    """A container's user has no entry in /etc/passwd, and no HOME."""
    for name in "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)

    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert hub.cache() == Path("~/.cache/huggingface/hub")
    assert main(["predict", "--model", "gpt2", "x"]) == 2


@linux
def test_a_home_that_is_not_there(tmp_path):
    """Matplotlib says where its cache is then; we do not pass that on."""
    (tmp_path / "file").touch()
    found = command(GENERATE, HOME=str(tmp_path / "file" / "home"), MPLCONFIGDIR=None,
                    XDG_CONFIG_HOME=None, XDG_CACHE_HOME=None)
    assert found.returncode == 0 and found.stderr.count(b"\n") == 1, found


def test_no_thread(monkeypatch, capsys):
    def refused(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert main(GENERATE) == 0      # a bar's monitor would be one
    monkeypatch.setattr("minisft.cli.generate.generate_texts",
                        lambda *args: threading.Thread().start())
    capsys.readouterr()
    assert main(GENERATE) == 2
    assert capsys.readouterr().err.endswith(
        "minisft: the system allows no further thread, expected a higher limit (ulimit -u) or "
        "OPENBLAS_NUM_THREADS=1\n")

    def other(*args):
        raise RuntimeError("ours")

    monkeypatch.setattr("minisft.cli.generate.generate_texts", other)
    with pytest.raises(RuntimeError, match="ours"):
        main(GENERATE)


def test_openblas_that_gets_no_thread(tmp_path):
    """It ends the process as Ctrl-C does, while NumPy is imported."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt\n")
    found = subprocess.run([sys.executable, "-m", "minisft", "why"], cwd=ROOT, capture_output=True,
                           env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert found.returncode == 130 and found.stderr.count(b"\n") == 1
    assert b"ulimit -u" in found.stderr


def test_no_memory(monkeypatch, capsys):
    """The reason, or where it was."""
    for reason, words in (("Unable to allocate 3.00 TiB", "Unable to allocate 3.00 TiB"),
                          ("", "minisft.cli.generate.run needed more")):
        def none(*args, reason=reason):
            raise MemoryError(reason)

        monkeypatch.setattr("minisft.cli.generate.generate_texts", none)
        capsys.readouterr()
        assert main(GENERATE) == 2
        assert capsys.readouterr().err.endswith(f"minisft: the memory is too small: {words}\n")
