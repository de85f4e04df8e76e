"""The first hour of a new user: every command of the path, its exit code and what it shows.

    python scripts/first_hour.py [--install] [FOLDER]

Clones the repository this file is of, and runs there what a newcomer would: the first command, a
CSV of their own with semicolons, slips of the fingers, predict, evaluate, seeds, a curve, pretrain,
plan. Prints a row for each command; ends with 1 when an exit code is not the one expected.
--install makes a virtual environment and installs the clone into it, which takes the network.
"""

import csv
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# (expected exit code, command); {m} is the program
PATH = [
    (0, "{m}"),
    (0, "{m} finetune --help"),
    (0, "{m} finetune"),
    (2, "{m} finetune mine.csv"),
    (2, "{m} finetune --trian mine.csv"),
    (2, "{m} finetune --train mine.csv"),
    (0, "{m} finetune --train mine.csv --test test.csv --label-column topic --out runs/mine"),
    (0, '{m} predict --model runs/mine/model "Shares fell in London on Tuesday"'),
    (0, "{m} predict --model runs/mine/model --file test.csv --out labelled.csv"),
    (2, "{m} predict --model runs/mine/model --file test.csv --out labelled.csv"),
    (0, "{m} predict --model runs/mine/model < lines.txt"),
    (2, "{m} predict --model runs/mien/model x"),
    (0, "{m} evaluate --model runs/mine/model --test test.csv"),
    (0, "{m} finetune --train mine.csv --test test.csv --label-column topic --model scratch "
        "--epochs 2 --seeds 3 --out runs/three"),
    (0, "{m} curve --train mine.csv --test test.csv --label-column topic --model scratch "
        "--epochs 2 --sizes 50 100 --out runs/curve"),
    (0, "{m} pretrain --text prose.txt --layers 1 --width 32 --heads 2 --vocab-size 400 "
        "--out runs/text"),
    (0, '{m} generate --model runs/text/model --max-new-tokens 20 "The minister"'),
    (0, "{m} plan --model minisft-gpt2 --texts mine.csv --train-layers last:2"),
    (1, "{m} check --break attention-scale"),
]


@dataclass(frozen=True)
class Row:
    """What one command did: lines and the longest of them, of stdout and stderr together."""

    command: str
    expected: int
    code: int
    lines: int
    longest: int
    seconds: float
    text: str


def write_files(folder):
    """The newcomer's own files: a CSV as a spreadsheet in much of Europe saves it, and prose."""
    sys.path.insert(0, str(ROOT))
    from minisft.data.toy_news import generate
    texts, labels = generate("train")
    rows = list(zip(texts, labels, strict=True))
    for name, part in (("mine.csv", rows[:300]), ("test.csv", rows[300:])):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=";").writerows([("text", "topic"), *part])
    (folder / "prose.txt").write_text("\n\n".join(texts[:100]), encoding="utf-8")
    (folder / "lines.txt").write_text("\n".join(texts[:3]), encoding="utf-8")


def walk(folder, install=False, path=PATH):
    """A new folder -> a Row for each command of the path, run in a clone there."""
    clone = folder / "minisft"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    environment = os.environ | {"PYTHONPATH": str(clone)}
    program = f"{shlex.quote(sys.executable)} -m minisft"
    if install:
        subprocess.run("python3 -m venv .venv && .venv/bin/pip install --quiet .", shell=True,
                       cwd=clone, check=True)
        environment, program = {**os.environ}, ".venv/bin/minisft"
        environment.pop("PYTHONPATH", None)
    write_files(clone)
    for expected, command in path:
        started = time.perf_counter()
        ended = subprocess.run(command.format(m=program), shell=True, cwd=clone, text=True,
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", stdin=subprocess.DEVNULL)
        lines = ended.stdout.splitlines()
        yield Row(command.format(m="minisft"), expected, ended.returncode, len(lines),
                  max(map(len, lines), default=0), time.perf_counter() - started, ended.stdout)


def main(argv):
    """-> exit code."""
    names = [word for word in argv[1:] if word != "--install"]
    with tempfile.TemporaryDirectory() as scratch:
        folder, wrong = Path(names[0] if names else scratch), 0
        print(f"{'exit':>4} {'lines':>5} {'longest':>7} {'seconds':>7}  command")
        for row in walk(folder, "--install" in argv):
            wrong += row.code != row.expected
            print(f"{row.code:>4} {row.lines:>5} {row.longest:>7} {row.seconds:>7.1f}  "
                  f"{row.command}{'' if row.code == row.expected else '   UNEXPECTED'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
