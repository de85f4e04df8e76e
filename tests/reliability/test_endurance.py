"""A long training keeps its memory and its file handles; runs in a row end with the same bits.

MINISFT_ENDURANCE is how long the training is watched, in seconds: 60 by default, or such as 3600.
The 15,000 steps before that, in which it reaches its level, come on top.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runs import ENVIRONMENT, ROOT, contents

from minisft import TextClassifier
from minisft.data import toy_news
from minisft.evaluation.metrics import t_critical

SECONDS = int(os.environ.get("MINISFT_ENDURANCE", 60))
BLOCKS = 10          # of each half
WARM = 2_500_000     # bytes of metrics.jsonl, 15,000 steps: the largest batches have come by then
NOISE = 0.125    # MB in half the time: the heap of a process grows by an eighth at once, and seldom
TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
        "300", "--batch-tokens", "512", "--compare", "none", "--quiet"]
# every step keeps something
LEAK = """
import os, sys
from minisft.cli import main
from minisft.training import loop
step, kept = loop.train_step, []
def leaky(*args, **options):
    kept.append({kept})
    return step(*args, **options)
loop.train_step = leaky
sys.exit(main())
"""
PROC = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads Linux's /proc")


def watch(arguments, seconds, warm=WARM, program=("-m", "minisft")):
    """Runs a training for so long -> megabytes of memory, numbers of open files, by quarter second.

    From outside, so that the process does nothing else; it ends by SIGTERM with its state saved.
    """
    process = subprocess.Popen([sys.executable, *program, *arguments], cwd=ROOT, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
    metrics = Path(arguments[-1]) / "metrics.jsonl"
    memory, files = [], []
    try:
        while not (metrics.exists() and metrics.stat().st_size > warm):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        for _ in range(4 * seconds):
            time.sleep(0.25)
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            (line,) = (line for line in lines if line.startswith("RssAnon:"))
            memory.append(int(line.split()[1]) / 1024)
            files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; to go on" in error, error
    return np.array(memory), np.array(files)


def slope(y):
    """y (N,), evenly spaced in time -> growth over the whole time, half width of its 95% interval.

    Neighbours are alike, so the line goes through the means of blocks; the interval is Student's.
    """
    y = np.array([block.mean() for block in np.array_split(y, BLOCKS)])
    x = (np.arange(BLOCKS) - (BLOCKS - 1) / 2) / BLOCKS
    b = x @ y / (x @ x)
    rest = y - y.mean() - b * x
    error = np.sqrt(rest @ rest / (BLOCKS - 2) / (x @ x))
    return b, t_critical(BLOCKS - 2) * error


def require_constant(memory, files):
    """A leak grows in both halves. One step of 0.6 MB is no leak: it is Python's table of names,
    which becomes twice as long when 21,845 have come, and minisft's imports bring 20,400."""
    by_half = [slope(half) for half in np.array_split(memory, 2)]
    by_block = [int(np.median(block)) for block in np.array_split(files, 2 * BLOCKS)]
    print(f"{memory.mean():.1f} MB, growth in the halves",
          *(f"{growth:+.3f} +- {error:.3f} MB," for growth, error in by_half),
          f"open files {by_block}")
    print("MB by block:", *(f"{block.mean():.3f}" for block in np.array_split(memory, 2 * BLOCKS)))
    assert min(growth - error for growth, error in by_half) < NOISE
    assert len(set(by_block)) == 1 and np.ptp(files) <= 3      # a save opens its file, its folder


@pytest.fixture
def arguments(toy_file, tmp_path):
    return ["finetune", "--train", toy_file(400), *TINY, "--epochs", str(20 * SECONDS + 1000),
            "--save-every", "0.1m", "--out", str(tmp_path / "run")]


@PROC
@pytest.mark.slow
def test_a_long_training_keeps_memory_and_files(arguments):
    try:
        require_constant(*watch(arguments, SECONDS))
    except AssertionError as first:     # the heap may grow once; a leak grows in every run
        print(first)
        require_constant(*watch([*arguments[:-1], arguments[-1] + "-again"], SECONDS))


@pytest.mark.parametrize("step", [0, 1, 5, 60, 119, 120, 121, 180, 235, 239, 240])
def test_one_step_is_no_leak(step):
    """A steady leak of 0.6 MB in a minute is found, wherever the step is."""
    memory = 34 + 0.6 * (np.arange(240) >= step)
    require_constant(memory, np.full(240, 5))
    with pytest.raises(AssertionError):
        require_constant(memory + np.linspace(0, 0.6, 240), np.full(240, 5))


@PROC
@pytest.mark.slow
@pytest.mark.parametrize("kept", ["bytearray(2000)", "os.open('/dev/null', 0)"])
def test_planted_leaks_are_found(arguments, kept):
    """Bytes, or (until the system refuses more of them) files, whatever else happens."""
    memory, files = watch(arguments, 9, 20_000, ("-c", LEAK.format(kept=kept)))
    if kept.startswith("os"):
        memory[:] = memory[0]
    else:
        files[:] = files[0]
    with pytest.raises(AssertionError):
        require_constant(memory, files)


def test_runs_in_a_row_in_one_process():
    """20 of them, every other with another seed: nothing of one run is seen in the next."""
    texts, labels = (list(part)[:60] for part in toy_news.generate("train"))
    settings = {"model": "scratch", "layers": 1, "width": 16, "heads": 2, "vocab_size": 300,
                "epochs": 1, "dropout": 0.1, "token_dropout": 0.1, "quiet": True}
    found, left = {0: set(), 1: set()}, set()
    for i in range(20):
        fitted = TextClassifier(seed=i % 2, **settings).fit(texts, labels)
        found[i % 2].add(fitted.model_.store.values.tobytes()
                         + fitted.predict_proba(texts[:9]).tobytes())
        if i >= 2:      # pools of threads begin with the first
            left.add((threading.active_count(),
                      len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0))
    assert [len(values) for values in found.values()] == [1, 1] and found[0] != found[1]
    assert len(left) == 1


@pytest.mark.parametrize("n", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_runs_in_a_row_by_the_command(toy_file, tmp_path, n):
    command = [sys.executable, "-m", "minisft", "finetune", "--train", toy_file(60), *TINY,
               "--epochs", "1", "--dropout", "0.1", "--out"]
    for i in range(n):
        done = subprocess.run([*command, tmp_path / f"{i}"], cwd=ROOT, env=ENVIRONMENT, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / f"{i}") == contents(tmp_path / "0")
