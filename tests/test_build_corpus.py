"""The corpus script's reading of WordNet, on lines made by hand in its form (wndb(5WN))."""

import gzip
import importlib.util
import sys
import zipfile
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
    """The script as a module; its neighbour wordnet.py is found as when it runs by itself."""
    spec = importlib.util.spec_from_file_location("build_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def write_wordnet(folder, **more):
    for name, lines in DATA.items():
        lines = [*lines, *more.get(name, ())]
        (folder / f"data.{name}").write_text("".join(line + "\n" for line in lines))


def test_wordnet_documents(script, tmp_path):
    write_wordnet(tmp_path)
    assert script.wordnet(tmp_path) == [
        'keeper, goal keeper: the player who guards the goal; "the keeper was late". A kind of '
        "player. Topic: soccer.",
        "player: someone who plays.", "soccer: a ball game.",
        "run: move fast. The opposite: walk.", "walk: move slowly.", "round: like a ball."]


def test_kinds_go_up_and_bring_their_topic(script, tmp_path):
    write_wordnet(tmp_path, noun=[
        "00000400 18 n 01 libero 0 002 @ 00000100 n 0000 + 00000100 v 0101 | the last one  "])
    assert script.wordnet(tmp_path)[3] == (
        "libero: the last one. A kind of keeper, player. Topic: soccer. Related: run.")


def test_of_species_only_what_has_kinds_and_an_english_name_is_kept(script, tmp_path):
    write_wordnet(tmp_path, noun=[
        "00000500 05 n 01 dog 0 001 ~ 00000600 n 0000 | it barks  ",
        "00000600 05 n 01 pug 0 001 @ 00000500 n 0000 | a small one  ",
        "00000700 05 n 02 Canis 0 genus_Canis 0 001 ~ 00000500 n 0000 | of dogs  "])
    found = " ".join(script.wordnet(tmp_path))
    assert "dog: it barks." in found and "pug" not in found and "Canis" not in found


def test_topics_list_what_belongs_together(script, tmp_path):
    write_wordnet(tmp_path, noun=[
        f"0000{n}000 18 n 01 back_{n} 0 002 @ 00000200 n 0000 ;c 00000300 n 0000 | a player  "
        for n in range(1, 5)])
    words, kinds = script.topics(tmp_path)
    assert words.startswith("Words of soccer: ") and kinds.startswith("Kinds of player: ")
    assert set(words[17:-1].split(", ")) == {"keeper", "back 1", "back 2", "back 3", "back 4"}


def test_factbook_keeps_sentences(script, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("data/xx.json", '''{
            "Introduction": {"Background": {"text": "<p>Rivers &amp; hills meet the sea.</p>"}},
            "Government": {"Country name": {"conventional short form": {"text": "Nowhere"}}},
            "Economy": {"Industries": {"text": "$1.5 billion 2024, 1.4 in 2023"},
                        "GDP": {"text": "large, but this entry is not one of the chosen"}}}''')
    assert script.factbook(tmp_path / "a.whl") == [
        "Nowhere. Introduction.\nBackground: Rivers & hills meet the sea."]


def test_other_readers(script, tmp_path):
    (tmp_path / "a.html").write_text(
        "<p>menu<div>no<p>" + "<p>".join(c * 80 + " <b>b</b> " + c * 80 for c in "xyz")
        + "<pre>no</pre>")
    (page,) = script.sqlite(tmp_path)
    assert page == "\n\n".join(f"{c * 80} b {c * 80}" for c in "xyz")
    (tmp_path / "d").write_bytes(gzip.compress(
        f"00-database-info\n    x\nword\n /werd/, n.\n    See {{ other}}. {'y' * 99}\n".encode()))
    assert script.jargon(tmp_path / "d") == [f"word, n. See other. {'y' * 99}"]
    assert script.prose("one\nline\n\n" + "a " * 3500 + "\n\nnext") == [
        "one line\n" + "a " * 3499 + "a", "next"]


def test_chosen_and_held_out_stay_where_they_are(script):
    documents = [f"document {i}" for i in range(3000)] + ["document 1", "bullshit 1"]
    kept, held = script.choose(documents, 10**9)
    assert len(kept) + len(held) == 3000 and not set(kept) & set(held)
    assert 15 < len(held) < 50
    fewer, held_too = script.choose(documents[:2000], 10**9)
    assert set(held_too) <= set(held) and set(fewer) <= set(kept)
    capped = script.choose(documents, 5000)
    assert sum(len(d) for part in capped for d in part) <= 5000
    assert set(capped[0]) <= set(kept)


def test_every_source_states_its_licence(script):
    assert all(source.origin and source.licence for source in script.SOURCES.values())
