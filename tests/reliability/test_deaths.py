"""Runs that die at a file event or in the middle of a write, and go on to the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DIED = 99
SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--batch-tokens", "256"]
SCRATCH = ["--model", "scratch", "--vocab-size", "300", *SMALL, "--compare", "none", "--quiet"]
TIMES = {"train_seconds", "tokens_per_second", "seconds", "samples_per_second",
         "results_sha256"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                reason="the harness counts events and limits files as Linux does")


@pytest.fixture(scope="module")
def die():
    """die(argv, folder, event=N or limit=BYTES) -> {"code", "events", "output"}."""
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("deaths.py"))],
                               cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(
                                   filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))})

    def run(argv, folder, **how):
        job = {"argv": [str(a) for a in argv], "folder": str(folder), **how}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def commands(toy_file, tmp_path_factory):
    """Kind of run -> its arguments, all but --out."""
    texts = toy_file(60)
    rng = np.random.default_rng(0)
    words = "the cat sat on a mat and the dog ran to its house by the river".split()
    documents = tmp_path_factory.mktemp("text") / "text.txt"
    documents.write_text("\n<|endoftext|>\n".join(
        " ".join(rng.choice(words, rng.integers(2, 30))) for _ in range(80)))
    prompts = documents.with_name("prompts.jsonl")
    prompts.write_text("\n".join(json.dumps({"prompt": f"say {i}", "completion": str(i + 1)})
                                 for i in range(30)))
    classify = ["finetune", "--train", texts, *SCRATCH]
    return {
        "classify": [*classify, "--epochs", "2"],
        "adaptation": [*classify, "--epochs", "2", "--adapt-epochs", "2"],
        "complete": ["finetune", "--task", "complete", "--train", prompts, *SCRATCH,
                     "--epochs", "2", "--max-new-tokens", "4"],
        "frozen": [*classify, "--epochs", "2", "--train-layers", "head"],
        "seeds": [*classify, "--epochs", "1", "--seeds", "2"],
        "curve": ["curve", "--train", texts, "--test", texts, "--sizes", "20,40", *SCRATCH,
                  "--epochs", "1"],
        "pretrain": ["pretrain", "--text", documents, "--context-length", "16", "--vocab-size",
                     "280", "--validate-every", "3", "--quiet", *SMALL]}


KINDS = ("classify", "pretrain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (
    "adaptation", "complete", "frozen", "seeds", "curve")))
# all: every file event and the size of every file, which takes an hour
ALL = os.environ.get("MINISFT_RELIABILITY") == "all"


@pytest.fixture(scope="module")
def whole(die, commands, tmp_path_factory):
    """whole(kind) -> the folder of the run that did not die, how many file events it had."""
    done = {}

    def run(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp("whole") / kind
            # with the state, whose size is one of those at which a write is cut
            answer = die([*commands[kind], "--keep-state", "--out", folder], folder)
            assert answer["code"] == 0, answer["output"]
            done[kind] = folder, answer["events"]
        return done[kind]
    return run


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def contents(folder):
    """-> what a run left: model files as bytes, figures without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "training_state" in name or path.name == ".lock":
            continue      # a death after the last result may leave them
        if path.suffix == ".safetensors" or path.name == "tokenizer.json":
            found[name] = path.read_bytes()
        elif path.name in ("results.json", "curve.json"):
            found[name] = without_times(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[name] = [without_times(json.loads(line))
                           for line in path.read_text().splitlines()]
        elif path.is_file() and path.name not in ("config.json", "report.md", "README.md"):
            found[name] = None
    return found


def go_on(die, argv, folder):
    """Resumes the run, or starts the same command anew where the folder holds no run yet."""
    command = argv[0]
    if (folder / "config.json").is_file():
        again = [command, "--resume", folder]
        if (folder / "results.json").is_file() or (
                command == "curve" and (folder / "report.md").is_file()):
            return None
    else:
        again = [*argv, "--out", folder]
    answer = die(again, folder)
    assert answer["code"] == 0, answer["output"]
    return answer


def chosen(events, n):
    """-> about n numbers of events, the first and the last among them."""
    return sorted({round(x) for x in np.linspace(1, events, min(n, events))})


def require_exact(die, whole, commands, kind, folder, how):
    answer = die([*commands[kind], "--out", folder], folder, **how)
    assert "Traceback" not in answer["output"], (how, answer)
    try:
        if answer["code"] != 0:      # else no file of this run was as large as the limit
            go_on(die, commands[kind], folder)
    except AssertionError as error:
        raise AssertionError(f"{kind}, {how}: {error}") from None
    assert contents(folder) == contents(whole(kind)[0]), (kind, how)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_death_at_a_file_event(die, whole, commands, tmp_path, kind):
    _, events = whole(kind)
    for event in chosen(events, events if ALL else 6):
        require_exact(die, whole, commands, kind, tmp_path / kind, {"event": event})


@pytest.mark.parametrize("kind", KINDS)
def test_death_in_the_middle_of_a_write(die, whole, commands, tmp_path, kind):
    """The first file larger than the limit is cut there: metrics, tokenizer, weights or state."""
    folder, _ = whole(kind)
    sizes = sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})
    for size in (sizes[i - 1] for i in chosen(len(sizes), len(sizes) if ALL else 3)):
        require_exact(die, whole, commands, kind, tmp_path / kind, {"limit": max(size - 1, 1)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(die, whole, commands, tmp_path, kind):
    folder, _ = whole(kind)
    sizes = sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})
    for size in (sizes[i - 1] for i in chosen(len(sizes), len(sizes) if ALL else 3)):
        require_exact(die, whole, commands, kind, tmp_path / kind, {"full": max(size - 1, 1)})
