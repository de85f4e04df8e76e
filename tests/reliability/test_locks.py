"""Two processes on one folder at once: one of them has it, whoever comes first; 20 times."""

import subprocess
import sys

import pytest
from runs import ENVIRONMENT, ROOT, Runner, contents

from minisft.io import run_folder

pytestmark = pytest.mark.skipif(run_folder.fcntl is None or not sys.platform.startswith("linux"),
                                reason="the harness is for Linux and its flock")
ROUNDS = 20
# a line on stdin: takes the lock and says so; the next line: gives it back. "often": takes it and
# gives it back a hundred times, and says what was wrong
TAKE = """
import sys
from minisft.errors import UserError
from minisft.io.run_folder import FolderLock

def take(folder, how, hold):
    try:
        with FolderLock(folder, lambda note: None, how == "unnamed") as got:
            return hold(got) or str(got)
    except UserError as error:
        return f"refused: {error}"

def hold(got):
    print(got, flush=True)
    sys.stdin.readline()

for line in sys.stdin:
    folder, how = line.split()
    if how == "often":
        said = {take(folder, how, lambda got: None) for _ in range(100)}
        hold(" ".join(said - {folder, *filter(lambda s: "works in this folder" in s, said)}))
    elif (said := take(folder, how, hold)).startswith("refused"):
        hold(said)
    print(flush=True)
"""


@pytest.fixture(scope="module")
def race():
    """race(folder, name) -> what each of three processes said that took it at once."""
    takers = [subprocess.Popen([sys.executable, "-c", TAKE], cwd=ROOT, env=ENVIRONMENT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]

    def all_of(*line):
        for taker in takers:
            taker.stdin.write(" ".join(map(str, line)) + "\n")
            taker.stdin.flush()
        return [taker.stdout.readline().strip() for taker in takers]

    def run(folder, name):
        said = all_of(folder, name)
        all_of()      # it is given back
        return said

    yield run
    for taker in takers:
        taker.communicate("")


def test_one_of_three_processes_has_the_folder(race, tmp_path):
    for i in range(ROUNDS):
        folder = tmp_path / f"{i}"
        if i % 2:      # every other is there already
            folder.mkdir()
        said = race(folder, "named")
        assert said.count(str(folder)) == 1, said
        refused = [line for line in said if line.startswith("refused: ")]
        assert len(refused) == 2 and all("works in this folder" in line for line in refused), said


def test_unnamed_runs_get_a_folder_each(race, tmp_path):
    for i in range(ROUNDS):
        said = race(tmp_path / f"{i}" / "run", "unnamed")
        assert sorted(said) == [str(tmp_path / f"{i}" / name) for name in ("run", "run-2", "run-3")]
        assert not list((tmp_path / f"{i}").glob("*"))      # nothing was written


def test_a_folder_that_is_given_back_meanwhile(race, tmp_path):
    """Who writes nothing removes what he made, under the feet of who comes next."""
    for i in range(3):
        assert race(tmp_path / f"{i}" / "run", "often") == ["", "", ""]


@pytest.mark.parametrize("rounds", [2, pytest.param(ROUNDS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("resume", [False, True])
def test_one_of_two_runs_has_the_folder(commands, tmp_path, rounds, resume):
    """Whole runs: one is right, the other ends with one line, and damages nothing."""
    command = commands["frozen"]
    with Runner() as first, Runner() as second:
        whole = tmp_path / "whole"
        answer = first([*command, "--out", whole], whole)
        assert answer["code"] == 0, answer
        for i in range(rounds):
            folder = tmp_path / f"{i}"
            argv = [*command, "--out", folder]
            if resume:
                first(argv, folder, event=answer["events"] - 5 * (i % 5 + 1))
                argv = ["finetune", "--resume", folder]
            for runner in (first, second):
                runner.start(argv, folder)
            winner, loser = sorted((first.answer(), second.answer()), key=lambda a: a["code"])
            assert (winner["code"], loser["code"]) == (0, 2), (winner, loser)
            assert any(reason in loser["output"] for reason in (
                "works in this folder", "is not empty", "is a finished run")), loser
            assert "Traceback" not in loser["output"]
            assert contents(folder) == contents(whole)
