"""Tagged sentences of three formats, and every fault of a file by its line."""

import gzip
import json

import pytest

from minisft.data.tagged import is_bio, read_tagged
from minisft.errors import UserError

CONLLU = """\
# sent_id = 1
1\tDogs\tdog\tNOUN\tNNS\t_\t2\tnsubj\t_\t_
2\tbark\tbark\tVERB\tVBP\t_\t0\troot\t_\tSpaceAfter=No
3\t#\t#\tPUNCT\t.\t_\t2\tpunct\t_\t_

1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tgone\tgo\tVERB\tVBN\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""
COLUMNS = """\
-DOCSTART- -X- O O

EU NNP B-NP B-ORG
# : : O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_conllu(tmp_path, newline):
    found = read_tagged(write(tmp_path, "a.conllu", CONLLU.replace("\n", newline)))
    assert found.words == [["Dogs", "bark", "#"], ["do", "n't", "go"]]
    assert found.label_names == ("AUX", "NOUN", "PART", "PUNCT", "VERB")
    assert [[found.label_names[i] for i in row] for row in found.tags] == [
        ["NOUN", "VERB", "PUNCT"], ["AUX", "PART", "VERB"]]
    assert found.lines == [2, 7] and found.place(1).endswith("a.conllu, line 7")
    assert found.texts == ["Dogs bark #", "do n't go"] and found.n_words == 6


@pytest.mark.parametrize("word, tag, expected", [
    ("LEMMA", "XPOS", (["dog", "bark", "#"], ["NNS", "VBP", "."])),
    ("2", "-3", (["Dogs", "bark", "#"], ["nsubj", "root", "punct"]))])
def test_columns_of_conllu_by_name_or_number(tmp_path, word, tag, expected):
    found = read_tagged(write(tmp_path, "a.conllu", CONLLU), word, tag)
    assert (found.words[0], [found.label_names[i] for i in found.tags[0]]) == expected


@pytest.mark.parametrize("text", [COLUMNS, COLUMNS.replace(" ", "\t"), COLUMNS + "\n\n"])
def test_columns(tmp_path, text):
    found = read_tagged(write(tmp_path, "a.txt", text))
    assert found.words == [["EU", "#"], ["Peter", "Blackburn"]]
    assert found.label_names == ("B-ORG", "B-PER", "I-PER", "O") and is_bio(found.label_names)
    assert found.tags == [[0, 3], [1, 2]] and found.lines == [3, 6]
    assert read_tagged(found.path, "1", "2").label_names == (":", "NNP")


def test_json_lines(tmp_path):
    rows = [{"words": ["a", "b"], "tags": ["X", "Y"]}, {"words": ["c"], "tags": ["X"]}]
    text = json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1])
    found = read_tagged(write(tmp_path, "a.jsonl", text))
    assert (found.words, found.tags, found.lines) == ([["a", "b"], ["c"]], [[0, 1], [0]], [1, 3])
    renamed = write(tmp_path, "b.jsonl", text.replace("words", "tokens").replace("tags", "pos"))
    assert read_tagged(renamed, "tokens", "pos").tags == found.tags


def test_gz_and_no_tags(tmp_path):
    path = tmp_path / "a.conllu.gz"
    path.write_bytes(gzip.compress(CONLLU.encode()))
    found = read_tagged(path, with_tags=False)
    assert found.words[1] == ["do", "n't", "go"] and found.tags is found.label_names is None
    bare = write(tmp_path, "a.txt", "one\ntwo\n\nthree\n")
    assert read_tagged(bare, with_tags=False).words == [["one", "two"], ["three"]]


def test_the_tags_of_a_training_file_count(tmp_path):
    path = write(tmp_path, "a.txt", "a X\nb Y\n")
    assert read_tagged(path, label_names=("Y", "Z", "X")).tags == [[2, 0]]
    with pytest.raises(UserError, match=r"a.txt, line 1: .* the tag 'Y', .* not, expected one of "
                                        "X, Z"):
        read_tagged(path, label_names=("X", "Z"))

    found = read_tagged(path, label_names=("X", "Z"), more_labels=True)
    assert found.label_names == ("X", "Z", "Y") and found.tags == [[0, 2]]
    assert "has tags that the training file lacks" in found.notes[0]


@pytest.mark.parametrize("name, text, message", [
    ("a.conllu", "1\tDogs\tNOUN\n", "line 1: 3 columns, expected the 10 of CoNLL-U"),
    ("a.conllu", CONLLU.replace("\n3\t", "\nx\t"), "line 4: the word's number is 'x'"),
    ("a.conllu", CONLLU.replace("\tbark\tbark", "\t \tbark"), "line 3: the word is empty"),
    ("a.conllu", CONLLU.replace("VERB", ""), "line 3: the tag is empty"),
    ("a.txt", "a X\n\nb\n", "line 3: one column, expected a word and its tag"),
    ("a.txt", "a X\nb X\n", "every word has the tag 'X' in column -1, .* see tag_column"),
    ("a.txt", "-DOCSTART- O\n\n", "holds no sentence"),
    ("a.jsonl", '{"words": ["a"], "tags": ["X", "Y"]}', "line 1: 1 words but 2 tags"),
    ("a.jsonl", '{"words": ["a"]}', "line 1: tags is .*, expected a list"),
    ("a.jsonl", '{"words": "a", "tags": ["X"]}', "line 1: words is 'a'"),
    ("a.jsonl", '{"words": [1], "tags": ["X"]}', "line 1: words is"),
    ("a.jsonl", '{"words": [], "tags": []}', "line 1: words is"),
    ("a.jsonl", "[" * 100_000, "line 1: is no JSON"),
    ("a.jsonl", "x", "line 1: is no JSON")])
def test_faults_are_named(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_tagged(write(tmp_path, name, text))


@pytest.mark.parametrize("column", ["0", "5", "-5", "UPOS", ""])
def test_columns_that_are_not_there(tmp_path, column):
    with pytest.raises(UserError, match=r"line 3: no column .* expected a number up to 4"):
        read_tagged(write(tmp_path, "a.txt", COLUMNS), tag_column=column or "0")


def test_files_that_look_wrong_are_told(tmp_path):
    lonely = read_tagged(write(tmp_path, "a.txt", "a X\n\nb Y\n\nc X\n\nd X\n\ne X\n"))
    assert "every sentence is a single word" in lonely.notes[0]
    mixed = read_tagged(write(tmp_path, "b.txt", "a X\nb Y\nc Z\n"))
    assert "3 different tags" in mixed.notes[0]
    assert not read_tagged(write(tmp_path, "c.txt", COLUMNS + "x Y Z O\ny Y Z O\n" * 3)).notes


def test_tags_of_entities():
    assert is_bio(["O", "B-X", "I-X"]) and is_bio(["O", "I-X"])
    assert not any(map(is_bio, (["O"], ["B-X", "I-X"], ["O", "B-"], ["O", "NOUN"])))
