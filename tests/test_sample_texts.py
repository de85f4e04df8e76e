"""The script that draws a small training and test file from a large one."""

import csv

import pytest

from minisft.data.read import read_examples
from scripts import sample_texts


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def large(tmp_path):
    """A file in AG News's form: class, title, text; every third text stands there twice."""
    path = tmp_path / "large.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        for i in range(60):
            csv.writer(file).writerows([[i % 2 + 1, f"Title {i}", f'said "{i}", ünd\nmore']]
                                       * (1 + (i % 3 == 0)))
            if i % 5 == 0:      # the same words again, in other case and with other spaces
                csv.writer(file).writerow([i % 2 + 1, f"TITLE  {i}", f'said "{i}", ünd more'])
    return path


def run(large, out, *options):
    return sample_texts.main([str(large), "--no-header", "--label-column", "1", "--text-column",
                              "2", "3", "--out", str(out), *options])


def test_classes_are_even_and_nothing_stands_in_both(large, tmp_path):
    assert run(large, tmp_path / "out", "--train", "20", "--test", "10") == 0
    train, test = rows(tmp_path / "out/train.csv"), rows(tmp_path / "out/test.csv")
    assert train[0] == test[0] == ["text", "label"]
    for part, n in ((train, 20), (test, 10)):
        assert [label for _, label in part[1:]].count("1") == n and len(part) == 2 * n + 1
    keys = [" ".join(text.casefold().split()) for text, _ in train[1:] + test[1:]]
    assert len(set(keys)) == len(keys) == 60
    found = read_examples(tmp_path / "out/train.csv", ["text"], "label", steps=())
    assert found.texts == [text for text, _ in train[1:]]     # quotes and lines survive


def test_the_same_seed_draws_the_same(large, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert run(large, tmp_path / name, "--train", "9", "--test", "5", "--seed", seed) == 0
    files = [(tmp_path / name / "train.csv").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_a_test_file_gives_no_text_of_the_training_file(large, tmp_path, capsys):
    assert run(large, tmp_path / "out", "--train", "5", "--test", "1",
               "--test-file", str(large)) == 2
    assert "0 different texts of class '1' are left, expected 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(large, tmp_path, capsys):
    assert run(large, tmp_path, "--train", "2", "--test", "2") == 0
    before = (tmp_path / "test.csv").read_bytes()
    assert run(large, tmp_path, "--train", "3", "--test", "3") == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "test.csv").read_bytes() == before


def test_too_few_texts_are_told(large, tmp_path, capsys):
    assert run(large, tmp_path / "out", "--train", "31") == 2
    assert "30 different texts of class '1' are left, expected 31" in capsys.readouterr().err
