"""Pairs of texts from tables and from aligned files; what does not fit together is refused."""

import gzip
import json

import pytest

from minisft.data.pairs import read_pairs, require_kinds
from minisft.data.read import train_valid_split
from minisft.errors import UserError

PAIRS = [("A dog.", "Un chien."), ("Two cats, here.", 'Deux "chats".'), ("No", "Non")]


def test_tables_and_lines_are_alike(tmp_path):
    (tmp_path / "a.csv").write_text('en,x,fr\nA dog.,1,Un chien.\n"Two cats, here.",2,'
                                    '"Deux ""chats""."\nNo,3,Non\n')
    (tmp_path / "a.jsonl").write_text("\n".join(
        json.dumps({"en": a, "fr": b}) for a, b in PAIRS))
    (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS))
    (tmp_path / "a.en").write_text("".join(f"{a}\r\n" for a, _ in PAIRS), newline="")
    with gzip.open(tmp_path / "a.fr.gz", "wt", newline="") as file:
        file.write("\n".join(b for _, b in PAIRS))      # no break behind the last line
    read = [read_pairs(tmp_path / "a.csv", "en", "fr"),
            read_pairs(tmp_path / "a.jsonl", "en", "fr"),
            read_pairs(tmp_path / "a.tsv", "1", "2", header=False),
            read_pairs(tmp_path / "a.en", "source", "target", tmp_path / "a.fr.gz")]
    for pairs in read:
        assert list(zip(pairs.sources, pairs.targets, strict=True)) == PAIRS
    assert read[0].lines == [2, 3, 4] and read[-1].lines == [1, 2, 3]
    assert read[-1].place(2) == f"{tmp_path / 'a.en'}, line 3"
    assert read_pairs(tmp_path / "a.csv", "en", None).targets is None


def test_unequal_files_name_both_counts(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.fr").write_text("un\ndeux\n")
    with pytest.raises(UserError, match=r"a\.en has 3 lines, .*a\.fr 2: expected as many"):
        read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr")
    with pytest.raises(UserError, match="is a table"):
        read_pairs(tmp_path / "a.csv", "s", "t", tmp_path / "a.fr")
    with pytest.raises(UserError, match="cannot tell its format by its name.*train_target"):
        require_kinds(tmp_path / "a.en", None, "train_target")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_sides_are_told_or_skipped(tmp_path, end):
    (tmp_path / "a.en").write_text(end.join(["one", " ", "", "four", "five", ""]), newline="")
    (tmp_path / "a.fr").write_text(end.join(["un", "deux", "", "", "cinq", ""]), newline="")
    with pytest.raises(UserError, match="line 2: the source is empty"):
        read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr")
    pairs = read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr", skip_bad_rows=True)
    # line 3 is blank in both, so it is no pair
    assert pairs.lines == [1, 5] and [bad.line for bad in pairs.bad_rows] == [2, 4]
    assert pairs.bad_rows[1].reason == "the target is empty" and "skipped 2 of 4" in pairs.notes[0]
    (tmp_path / "b.csv").write_text("source,target\none,\n")
    with pytest.raises(UserError, match="line 2: the target is empty"):
        read_pairs(tmp_path / "b.csv", "source", "target")


def test_bytes_of_another_encoding_are_told_or_skipped(tmp_path):
    (tmp_path / "a.en").write_bytes(b"one\ntwo\n")
    (tmp_path / "a.fr").write_bytes(b"un\nd\xe9ux\n")
    with pytest.raises(UserError, match=r"a\.fr"):
        read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr")
    pairs = read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr", skip_bad_rows=True)
    assert pairs.sources == ["one"] and "0xe9" in pairs.bad_rows[0].reason
    latin = read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr", encoding="latin-1")
    assert latin.targets == ["un", "déux"]


def test_missing_columns_and_equal_ones(tmp_path):
    (tmp_path / "a.csv").write_text("en,fr\na,b\n")
    with pytest.raises(UserError, match="no column 'de'; the columns are: en, fr"):
        read_pairs(tmp_path / "a.csv", "en", "de")
    with pytest.raises(UserError, match="cannot be both source and target"):
        read_pairs(tmp_path / "a.csv", "en", "en")
    (tmp_path / "a.en").write_text("one\n")
    (tmp_path / "link").symlink_to(tmp_path / "a.en")
    with pytest.raises(UserError, match="cannot be both source and target"):
        read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "link")
    (tmp_path / "a.en").write_text("\n\n")
    (tmp_path / "a.fr").write_text("\n\n")
    with pytest.raises(UserError, match="is empty"):
        read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr")
    (tmp_path / "a.en").write_bytes(b"\xe9\n")
    (tmp_path / "a.fr").write_text("x\n")
    with pytest.raises(UserError, match="no row of it can be read; the first, line 1: byte 0xe9"):
        read_pairs(tmp_path / "a.en", "s", "t", tmp_path / "a.fr", skip_bad_rows=True)


def test_equal_sources_stay_on_one_side_of_the_split():
    sources = [f"text {n // 3}" for n in range(60)]     # three translations of each
    kept, held_out = train_valid_split(None, sources, 0.2, 0)
    assert not {sources[n] for n in kept} & {sources[n] for n in held_out}
    assert len(held_out) == 12
