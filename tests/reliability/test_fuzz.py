"""Hostile files at every door (fuzz.py): one line, no traceback, no hang, no gigabytes, no silence.

MINISFT_FUZZ says how many files there are (CI takes 500), MINISFT_FUZZ_SEED which.
A failure prints the seed and the number of each file, with which fuzz.py has it again.
"""

import json
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SEED = int(os.environ.get("MINISFT_FUZZ_SEED", "1"))
FILES_TRIED = int(os.environ.get("MINISFT_FUZZ", "60"))

sys.path.insert(0, str(HERE))

import mutate  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                reason="the fuzzer forks and limits memory as Linux does")


def start(*command):
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (
                                str(ROOT), str(HERE), os.environ.get("PYTHONPATH"))))})


def findings(process, tried):
    out, err = process.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines and lines[-1].get("tried") == tried, err
    return lines[:-1]


def show(found):
    return "\n".join(f"python tests/reliability/fuzz.py {f['seed']} {f['number']} "
                     f"{f['number'] + 1}: {f['found']}, {f['door']}, {f['file']}: {f['how']}\n"
                     f"{f['err'][-500:]}" for f in found)


@pytest.mark.slow     # a stage of CI of its own
def test_hostile_files():
    n = len(os.sched_getaffinity(0))
    edges = [i * FILES_TRIED // n for i in range(n + 1)]
    parts = [(start(HERE / "fuzz.py", SEED, a, b), b - a) for a, b in pairwise(edges)]
    found = [one for part, tried in parts for one in findings(part, tried)]
    assert not found, show(found)


# That it finds what it should: faults planted before it starts

FAULTS = {
    # an offset, shape or dtype of a header is taken as it is; the 13th and the 14th file show it
    "header": ("safetensors.safe_open = lambda *args, **options: None", "predict from shards",
               20, "traceback"),
    # no checksum is compared
    "checksum": ("safetensors._checksum = lambda *args: 0", "predict", 60, "silent"),
    # a .gz is unpacked whatever it holds; the ninth is a bomb
    "bomb": ("encoding._ANY_RATIO = 2**40", "predict train.csv.gz", 9, "memory")}


@pytest.mark.parametrize("fault", ["header", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("checksum", "bomb"))])
def test_planted_faults_are_found(fault):
    patch, door, tries, kind = FAULTS[fault]
    script = ("import fuzz; fuzz.prepare(); from minisft.io import safetensors; "
              f"from minisft.data import encoding; {patch}; fuzz.fuzz(1, 0, {tries}, {door!r})")
    found = findings(start("-c", script), tries)
    assert kind in {one["found"] for one in found}, found


# The mutations

FILES = {
    "config.json": b'{"a": [1, 2.5, "x"], "b": {"c": null, "d": true}}',
    "metrics.jsonl": b'{"step": 1}\n{"step": 2}\n', "train.csv": b"text,label\nthe cat,a\n",
    "train.csv.gz": mutate.gzip.compress(b"text,label\nthe cat,a\n", mtime=0),
    "words.txt": b"some words\nmore\n",
    "x.safetensors": (61).to_bytes(8, "little") + b'{"w": {"dtype": "F32", "shape": [1], '
                     b'"data_offsets": [0, 4]}}' + b"    "}


@pytest.mark.parametrize("name", FILES)
def test_a_seed_gives_the_same_mutation(name):
    made = set()
    for n in range(150):
        data, how = mutate.mutate(random.Random(n), name, FILES[name])
        assert (data, how) == mutate.mutate(random.Random(n), name, FILES[name])
        made.add(data)
    assert len(made) > 80 and how


def test_what_is_a_finding(tmp_path):
    import fuzz
    door = fuzz.Door("x", tmp_path, [], [], True)
    usual = fuzz.Answer(0, "result 1\n", "minisft: said\n", 10**8, 0.1)

    def verdict(code=0, out="result 1\n", err="minisft: said\n", memory=10**8, ours=True):
        return fuzz.verdict(fuzz.replace(door, ours=ours), usual, usual.out,
                            fuzz.Answer(code, out, err, memory, 0.1), tmp_path)

    assert verdict() is None and verdict(2, "", "minisft: no\n") is None
    assert verdict(1) == verdict(70) == verdict(-signal.SIGSEGV) == "traceback"
    assert verdict(2, err="Traceback (most recent call last):\nminisft: x") == "traceback"
    assert verdict(2, err="") == verdict(2, err="minisft: a\nb\n") == "traceback"
    assert verdict(-signal.SIGXCPU) == verdict(-signal.SIGALRM) == "hang"
    assert verdict(memory=3 * 10**9) == "memory"
    assert verdict(2, err="minisft: the memory is too small: x\n") == "memory"
    assert verdict(out="result 2\n") == "silent" and verdict(out="result 2\n", ours=False) is None
    assert verdict(out="result 2\n", err="minisft: said\nminisft: note: changed\n") is None
