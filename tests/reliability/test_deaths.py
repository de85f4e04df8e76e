"""Runs that die at any time, at a file event, in the middle of a write or on a full disk, and go on
to the same bits.

MINISFT_RELIABILITY is how many deaths of each form a kind of run dies at most (30: 210 of a form);
MINISFT_SEED is the seed of the random times.
"""

import os
import shutil
import sys

import numpy as np
import pytest
from runs import contents

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                reason="the harness counts events and limits files as Linux does")
KINDS = ("classify", "pretrain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (
    "adaptation", "complete", "frozen", "seeds", "curve")))
MOST = os.environ.get("MINISFT_RELIABILITY")
SEED = int(os.environ.get("MINISFT_SEED", 0))


@pytest.fixture(scope="module")
def whole(die, commands, tmp_path_factory):
    """whole(kind) -> the folder of the run that did not die, its events and seconds."""
    done = {}

    def run(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp("whole") / kind
            # with the state, whose size is one of those at which a write is cut
            answer = die([*commands[kind], "--keep-state", "--out", folder], folder)
            assert answer["code"] == 0, answer["output"]
            done[kind] = folder, answer["events"], answer["seconds"]
        return done[kind]
    return run


def go_on(die, argv, folder, **how):
    """Resumes the run, or starts the same command anew where the folder holds no run yet.

    -> what was done, the answer or None.
    """
    command = argv[0]
    if not (folder / "config.json").is_file():
        return "anew", die([*argv, "--out", folder], folder, **how)
    if (folder / "results.json").is_file() or (
            command == "curve" and (folder / "report.md").is_file()):
        return "had finished", None
    return "resumed", die([command, "--resume", folder], folder, **how)


def chosen(events, n):
    """-> about n numbers of events, or MOST, the first and the last among them."""
    return sorted({round(x) for x in np.linspace(1, events, min(int(MOST or n), events))})


def require_exact(die, whole, commands, kind, folder, *deaths, plant=None):
    """The run dies so, and where there are more deaths what goes on with it; then all is right."""
    answer, done = die([*commands[kind], "--out", folder], folder, plant=plant, **deaths[0]), []
    for how in (*deaths[1:], {}):
        assert "Traceback" not in answer["output"], (kind, deaths, answer)
        assert not answer["lost"], (kind, deaths, answer)
        if answer["code"] == 0:      # no file as large as the limit, or the end came first
            break
        what, again = go_on(die, commands[kind], folder, plant=plant, **how)
        done.append(f"exit {answer['code']}, {what}")
        if (answer := again) is None:
            break
    assert answer is None or answer["code"] == 0, (kind, deaths, answer["output"])
    assert contents(folder) == contents(whole(kind)[0]), (kind, deaths)
    print(f"{kind} {deaths}: {'; '.join(done) or 'did not die'}")      # with pytest -s
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_kill_at_a_random_time(die, whole, commands, tmp_path, kind):
    """SIGKILL; what goes on after every third of them is killed too."""
    rng, seconds = np.random.default_rng((SEED, *kind.encode())), whole(kind)[2]
    print(f"seed {SEED}")
    for i in range(int(MOST or 2)):
        deaths = [{"seconds": round(s, 4)}
                  for s in rng.uniform(0, seconds, 2 if i % 3 == 1 else 1).tolist()]
        require_exact(die, whole, commands, kind, tmp_path / kind, *deaths)


def twice(event, i):
    """-> the events of deaths: after every third, what goes on dies too."""
    return [event, 1 + 7 * event % 40] if i % 3 == 1 else [event]


@pytest.mark.parametrize("kind", KINDS)
def test_death_at_a_file_event(die, whole, commands, tmp_path, kind):
    events = whole(kind)[1]
    for i, event in enumerate(chosen(events, 6)):
        require_exact(die, whole, commands, kind, tmp_path / kind,
                      *({"event": e} for e in twice(event, i)))


@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_a_file_event(die, whole, commands, tmp_path, kind):
    """What was not synced is lost; what was replaced whole is not."""
    events = whole(kind)[1]
    for i, event in enumerate(chosen(events, 6)):
        require_exact(die, whole, commands, kind, tmp_path / kind,
                      *({"event": e, "power": True} for e in twice(event, i)))


def sizes_of(folder):
    """-> the sizes at which a write can be cut: in the middle, and at the last byte."""
    sizes = sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})
    cuts = [size - 1 for size in sizes] + ([size // 2 for size in sizes] if MOST else [])
    return sorted({max(cut, 1) for cut in cuts})


@pytest.mark.parametrize("kind", KINDS)
def test_death_in_the_middle_of_a_write(die, whole, commands, tmp_path, kind):
    """The first file larger than the limit is cut there: metrics, tokenizer, weights or state."""
    sizes = sizes_of(whole(kind)[0])
    for size in (sizes[i - 1] for i in chosen(len(sizes), 3)):
        require_exact(die, whole, commands, kind, tmp_path / kind, {"limit": size})


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(die, whole, commands, tmp_path, kind):
    sizes = sizes_of(whole(kind)[0])
    for size in (sizes[i - 1] for i in chosen(len(sizes), 3)):
        require_exact(die, whole, commands, kind, tmp_path / kind, {"full": size})


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("part", ["diverging", "mended"])
def test_death_of_a_run_that_diverges(die, commands, tmp_path, part, power):
    """While it says so and tidies up, and while it goes on with another rate."""
    command = [*commands["classify"], "--lr", "3e37", "--warmup-ratio", "0.3", "--save-every", "1"]
    whole = tmp_path / "whole"
    first = die([*command, "--out", whole], whole)
    assert first["code"] == 2 and "--lr" in first["output"], first
    second = die(["finetune", "--resume", whole, "--lr", "0.003"], whole)
    assert second["code"] == 0, second
    events = (first if part == "diverging" else second)["events"]
    for event in chosen(events, 8):
        folder, death = tmp_path / "run", {"event": event, "power": power}
        answer = die([*command, "--out", folder], folder, **(death if part == "diverging" else {}))
        if part == "diverging":
            assert answer["code"] == 99 and not answer["lost"], (event, answer)
            answer = go_on(die, command, folder)[1]
        assert answer["code"] == 2 and "--lr" in answer["output"], (event, answer)
        mend = ["finetune", "--resume", folder, "--lr", "0.003"]
        answer = die(mend, folder, **(death if part == "mended" else {}))
        if part == "mended":
            assert answer["code"] == 99 and not answer["lost"], (event, answer)
            answer = {"code": 0} if (folder / "results.json").is_file() else die(mend, folder)
        assert answer["code"] == 0, (event, answer)
        assert contents(folder) == contents(whole), event
        shutil.rmtree(folder)


@pytest.mark.parametrize("fault, how", [
    ("non_atomic_write", {"limit": 50_000}), ("non_atomic_write", {"event": 40, "power": True}),
    ("missing_sync", {"event": 40, "power": True})])
def test_planted_faults_are_found(die, whole, commands, tmp_path, fault, how):
    """By the deaths that find nothing in the program as it is."""
    require_exact(die, whole, commands, "classify", tmp_path / "classify", how)
    with pytest.raises(AssertionError):
        require_exact(die, whole, commands, "classify", tmp_path / "planted", how, plant=fault)
