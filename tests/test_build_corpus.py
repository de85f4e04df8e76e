"""The corpus script's reading of WordNet, on lines made by hand in its form (wndb(5WN))."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "build_corpus.py"
DATA = {
    "noun": [
        "  1 a line of the licence at the top of the file",
        "00000100 18 n 02 keeper 0 goal_keeper 0 002 @ 00000200 n 0000 ;c 00000300 n 0000 | the "
        "player who guards the goal; \"the keeper was late\"  ",
        "00000200 18 n 01 player 0 001 ~ 00000100 n 0000 | someone who plays  ",
        "00000300 04 n 01 soccer 0 000 | a ball game  "],
    "verb": ["00000100 38 v 01 run 0 001 ! 00000200 v 0101 01 + 02 00 | move fast  ",
             "00000200 38 v 01 walk 0 000 01 + 02 00 | move slowly  "],
    "adj": ["00000100 00 s 01 round(p) 0 000 | like a ball  "],
    "adv": [],
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wordnet_documents(script, tmp_path):
    for name, lines in DATA.items():
        (tmp_path / f"data.{name}").write_text("".join(line + "\n" for line in lines))
    assert script.wordnet(tmp_path) == [
        'keeper, goal keeper: the player who guards the goal; "the keeper was late". A kind of '
        "player. Topic: soccer.",
        "player: someone who plays.", "soccer: a ball game.",
        "run: move fast. The opposite: walk.", "walk: move slowly.", "round: like a ball."]


def test_every_source_states_its_licence(script):
    assert all(origin and licence for origin, licence in script.SOURCES.values())
