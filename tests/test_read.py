"""Files in, examples out: every format, every fault with its line, the split."""

import csv
import gzip
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from minisft.data import encoding as encodings
from minisft.data.documents import read_documents
from minisft.data.read import (
    Table,
    read_examples,
    read_prompts,
    read_table,
    shared_texts,
    train_valid_split,
)
from minisft.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") and data[:2] != b"\x1f\x8b"
                         else data)
        return path
    return write


ROWS = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]


@pytest.mark.parametrize(("name", "content", "lines"), [
    ("x.csv", "text,label\none,a\ntwo,b\n", [2, 3]),
    ("x.CSV", '\ufefftext,label\r\n"one",a\r\n\r\ntwo,b', [2, 4]),
    ("x.csv.gz", "text,label\none,a\ntwo,b\n", [2, 3]),
    ("my.data.tsv", "text\tlabel\none\ta\ntwo\tb\n", [2, 3]),
    ("x.tsv.gz", "text\tlabel\r\n\r\none\ta\r\ntwo\tb", [3, 4]),
    ("x.jsonl", '{"text": "one", "label": "a"}\n\n{"label": "b", "text": "two"}', [1, 3]),
    ("x.jsonl.gz", "\ufeff" + "\n".join(map(json.dumps, ROWS)), [1, 2]),
    ("x.json", json.dumps(ROWS, indent=1), [2, 6]),
    ("x.json.gz", json.dumps(ROWS), [1, 1]),
])
def test_formats(write, name, content, lines):
    path = write(name, content)
    assert read_table(path) == Table(path, ("text", "label"), ROWS, lines)


def test_csv_quoting_and_line_numbers(write):
    path = write("x.csv", 'text,label\n"a ""b"", c\nd",x\n"",y\ne,\n')
    table = read_table(str(path))
    assert [row["text"] for row in table.rows] == ['a "b", c\nd', "", "e"]
    assert table.lines == [2, 4, 5]


def test_tsv_takes_quotes_and_odd_line_ends_as_text(write):
    table = read_table(write("x.tsv", 'a\t"b\n"c\td\u2028e\x85"\n'), header=False)
    assert table.columns == ("1", "2")
    assert [list(row.values()) for row in table.rows] == [["a", '"b'], ['"c', 'd\u2028e\x85"']]


def test_encodings(write):
    for encoding in ("latin-1", "cp1252", "utf-16"):
        path = write("x.csv", "text\ncaf\u00e9\n".encode(encoding))
        assert read_table(path, encoding).rows == [{"text": "caf\u00e9"}]


def test_a_field_of_a_million_characters(write):
    limit = csv.field_size_limit()
    path = write("x.csv", "text,label\n" + "a" * 10**6 + ",x\n")
    assert len(read_table(path).rows[0]["text"]) == 10**6
    with pytest.raises(UserError):
        read_table(write("y.csv", 'text\n"a'))
    assert csv.field_size_limit() == limit


def test_json_keeps_types_and_places(write):
    path = write("x.json", '\n[ {"a": 1,\n "b": null}\n,\n\n{"c": [2]} ]\n')
    table = read_table(path)
    assert table.columns == ("a", "b", "c") and table.lines == [2, 6]
    assert table.rows == [{"a": 1, "b": None}, {"c": [2]}]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.csv", "", "x.csv: is empty"),
    ("x.csv", "\n \n", "x.csv: is empty"),
    ("x.csv.gz", "", "x.csv.gz: is empty"),
    ("x.csv", "text,label\n", "holds a header and no rows; if it has no header, add no_header"),
    ("x.txt", "a", "x.txt: cannot tell its format .*expected .* .csv .tsv .jsonl .json, alone or"),
    ("x", "a", "cannot tell its format"),
    ("x.gz", "a", "cannot tell its format"),
    ("x.csv", b"a,b\nc,d\ne\xff,f\n", r"line 3: byte 0xff \(number 2 of the line\) is not utf-8"),
    ("x.jsonl", b"{}\n\n\xe9", r"line 3: byte 0xe9 \(number 1 of the line\)"),
    ("x.csv", "a,b\nc,d\ne\0,f\n", "line 3: holds a NUL byte.*encoding='utf-16'"),
    ("x.csv.gz", gzip.compress(b"a,b\n" * 99, mtime=0)[:-9], "x.csv.gz: damaged gzip file"),
    ("x.csv", "a,b\n\nc,d\n1,2,3\n", "x.csv, line 4: 3 fields, but line 1 has 2"),
    ("x.csv", 'a,b\n"c\n",d\n1\n', "line 4: 1 fields, but line 1 has 2"),
    ("x.tsv", "a\tb\nc\td\te\n", "x.tsv, line 2: 3 fields, but line 1 has 2"),
    ("x.csv", "a,b,a\n1,2,3\n", "line 1: the column name 'a' stands there twice.*no_header"),
    ("x.csv", 'a,b\nc,d\n"e,f\ng,h\n', "line 3: the row that starts here .*: a quote is never"),
    ("x.csv", 'a,b\n"c"d,e\n', "line 2: the row that starts here is no CSV: .*should be .tsv"),
    ("x.jsonl", '{"a": 1}\n{"a": }\n', "x.jsonl, line 2: no valid JSON: Expecting value"),
    ("x.jsonl", '{"a": 1}\n["a"]\n', r"line 2: \['a'\] instead of an object"),
    ("x.jsonl", '{"a": 1}{"a": 2}\n', "line 1: more than one JSON value"),
    ("x.jsonl", '{"a": NaN}\n', "line 1: no valid JSON: NaN is no JSON"),
    ("x.jsonl", '{"a": 1, "a": 2}\n', "line 1: no valid JSON: the name 'a' stands twice"),
    ("x.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: no valid JSON: Exceeds the limit"),
    ("x.jsonl", '{"a": ' + "[" * 10**5, "line 1: no valid JSON: .*recursion"),
    ("x.json", "[]", "x.json: holds no rows"),
    ("x.json", '{"a": 1}', "x.json: starts with '{'; expected a list of objects"),
    ("x.json", '[{"a": 1},\n3]', "x.json, line 2: 3 instead of an object"),
    ("x.json", '[{"a": 1}\n\n{"a": 2}]', "line 3: no valid JSON: expected , or ]"),
    ("x.json", '[{"a": 1},\n]', "line 2: no valid JSON"),
    ("x.json", '[{"a": 1},\n{"b":\n"}]', "line 3: no valid JSON"),
    ("x.json", '[{"a": 1}', "line 1: no valid JSON: expected , or ]"),
    ("x.json", "[", "line 1: no valid JSON"),
    ("x.json", '[{"a": 1}] x', "something follows"),
])
def test_damaged_files(write, name, content, message):
    path = write(name, content)
    with pytest.raises(UserError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_wrong_paths_and_options(write, tmp_path):
    (tmp_path / "fake.csv.gz").write_bytes(b"plain")
    (tmp_path / "folder.csv").mkdir()
    for name, message in (("no.csv", "no such file"), ("folder.csv", "is a folder"),
                          ("fake.csv.gz", "damaged gzip file: Not a gzipped file")):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            read_table(tmp_path / name)
    path = write("x.csv", "a,b\n")
    for encoding in ("utf-9", "hex", ""):
        with pytest.raises(UserError, match=f"x.csv: unknown encoding '{encoding}'; expected one"):
            read_table(path, encoding)
    with pytest.raises(UserError, match="no_header is for .csv and .tsv"):
        read_table(write("x.jsonl", "{}"), header=False)


def test_read_examples(write):
    path = write("x.csv", "title,body,label\nT1,&lt;b&gt;x&lt;/b&gt;, spam \n,y  z,ham\nT3,,spam\n")
    found = read_examples(path, ["title", "body"], "label")
    assert found.texts == ["T1 x", "y z", "T3"]
    assert (found.label_names, found.labels, found.lines) == (("ham", "spam"), [1, 0, 1], [2, 3, 4])
    assert found.cleaned == {"entities": 1, "tags": 1, "spaces": 2}
    assert read_examples(path, ["body", "title"], None, steps=()).labels is None


def test_names_from_training(write):
    path = write("x.csv", "text,label\na,ham\nb,spam\n")
    found = read_examples(path, ["text"], "label", label_names=["spam", "egg", "ham"])
    assert found.labels == [2, 0] and found.label_names == ("spam", "egg", "ham")
    with pytest.raises(UserError, match="x.csv, line 3: unknown label 'spam'; known: 'ham', 'egg'"):
        read_examples(path, ["text"], "label", label_names=("ham", "egg"))


def test_label_names_are_sorted_by_number_only_if_all_are(write):
    path = write("x.csv", "text,label\na,10\nb,9\nc,-1\n")
    assert read_examples(path, ["text"], "label").label_names == ("-1", "9", "10")
    path = write("x.csv", "text,label\na,10\nb,9\nc,x\n")
    assert read_examples(path, ["text"], "label").label_names == ("10", "9", "x")


@pytest.mark.parametrize(("content", "message"), [
    ("text,label\na,x\nb,x\n", "every label is 'x'; a classifier needs two or more"),
    ("text,label\na,x\nb, \n", "x.csv, line 3: the label is empty"),
    ("text,label\na,x\n<b></b>,y\n", r"x.csv, line 3: the text \(after cleaning\) is empty"),
    ("b,x\na,x\nb,y\n", "no column 'text'; the columns are: b, x; .*no_header"),
    ("body,class\na,x\nb,y\n", "no column 'text'; the columns are: body, class$"),
    ("text,class\na,x\nb,y\n", "x.csv: no column 'label'; the columns are: text, class"),
])
def test_faulty_examples(write, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_examples(write("x.csv", content), ["text"], "label")
    assert "\n" not in str(error.value)


def test_columns_without_header(write):
    path = write("x.tsv", "ham\tone\nspam\ttwo\n")
    assert read_examples(path, ["2"], "1", header=False).texts == ["one", "two"]
    with pytest.raises(UserError, match="the columns are: 1, 2; no_header numbers the columns"):
        read_examples(path, ["text"], "1", header=False)
    with pytest.raises(UserError, match="column '1' cannot be both text and label"):
        read_examples(path, ["2", "1"], "1", header=False)
    long = write("y.csv", f"{'a' * 10**6},b\nc,d\n")
    with pytest.raises(UserError) as error:
        read_examples(long, ["text"], "b")
    assert len(str(error.value)) < 500


def test_json_values(write):
    path = write("x.jsonl", '{"text": 12, "label": true}\n{"text": 0.5, "label": false}\n')
    found = read_examples(path, ["text"], "label")
    assert found.texts == ["12", "0.5"] and found.label_names == ("false", "true")
    for value, kind in (("null", "null"), ("[1]", "a list"), ("{}", "an object")):
        path = write("x.jsonl", f'{{"text": "a", "label": 1}}\n{{"text": {value}, "label": 2}}\n')
        with pytest.raises(UserError, match=f"x.jsonl, line 2: column 'text' is {kind}; expected"):
            read_examples(path, ["text"], "label")
    path = write("x.jsonl", '{"text": "a", "label": 1}\n{"label": 2}\n')
    with pytest.raises(UserError, match="line 2: column 'text' is missing; expected a text"):
        read_examples(path, ["text"], "label")
    path = write("x.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match="line 2: column 'text' holds half a character"):
        read_examples(path, ["text"], None)


def test_read_prompts(write):
    code = "if x:\n    y  = '&lt;b&gt;'\n"
    rows = [{"task": "Do", "input": code, "out": " ok\n"},
            {"task": "Say", "input": " ", "out": "hi"}]
    path = write("x.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_prompts(path, ["task", "input"], "out")
    assert found.prompts == [f"Do\n{code}", "Say"] and found.completions == [" ok\n", "hi"]
    assert found.lines == [1, 2] and not found.cleaned
    cleaned = read_prompts(path, ["task", "input"], None, steps=("spaces",))
    assert cleaned.prompts[0] == "Do\nif x: y = '&lt;b&gt;'" and cleaned.completions is None
    assert cleaned.cleaned == {"spaces": 2}
    for columns, completion, message in (
            (["input"], "out", "x.jsonl, line 2: the prompt is empty"),
            (["task"], "input", r"line 2: the completion \(column 'input'\) is empty"),
            (["task", "out"], "out", "column 'out' cannot be both prompt and completion"),
            (["ask"], "out", "no column 'ask'; the columns are: task, input, out")):
        with pytest.raises(UserError, match=message):
            read_prompts(path, columns, completion)


def test_split_is_stratified_and_deterministic():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    texts = [f"text {number}" for number in range(100)]
    kept, held = train_valid_split(labels, texts, 0.2, seed=3)
    assert kept.dtype == held.dtype == np.int64
    assert sorted([*kept, *held]) == list(range(100))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    assert Counter(labels[number] for number in held) == {0: 12, 1: 6, 2: 2}
    assert (held == train_valid_split(labels, texts, 0.2, seed=3)[1]).all()
    assert (held != train_valid_split(labels, texts, 0.2, seed=4)[1]).any()
    assert len(train_valid_split(None, texts, 0.25, seed=0)[1]) == 25


def test_split_keeps_equal_texts_together(rng):
    texts = [f"Text {number}" for number in rng.integers(40, size=300)]
    texts = [text.upper() if rng.random() < 0.5 else f" {text}" for text in texts]
    labels = [len(text) % 2 for text in texts]
    for seed in range(5):
        kept, held = train_valid_split(labels, texts, 0.3, seed)
        assert shared_texts([texts[n] for n in kept], [texts[n] for n in held]) == 0


def test_split_puts_every_label_on_both_sides():
    labels, texts = [0] * 50 + [1, 1, 2, 3, 3], [*map(str, range(52)), "x", "same", "same"]
    for fraction in (0.01, 0.5, 0.99):
        kept, held = train_valid_split(labels, texts, fraction, seed=0)
        assert {labels[n] for n in held} == {0, 1}
        assert {labels[n] for n in kept} == {0, 1, 2, 3}


def test_split_refuses():
    for fraction in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            train_valid_split([0, 1], ["a", "b"], fraction, 0)
    for labels in (None, [0, 0, 0], [0, 0, 1]):
        reason = "no two of them differ" if labels is None else "no label has two distinct ones"
        with pytest.raises(UserError, match=f"cannot hold out .* any of 3 texts: {reason}"):
            train_valid_split(labels, ["a", "A ", "a" if labels != [0, 0, 1] else "b"], 0.5, 0)
    with pytest.raises(UserError, match="cannot hold out for validation any of 0 texts"):
        train_valid_split([], [], 0.5, 0)


def test_shared_texts():
    assert shared_texts(["A  b", "c"], ["a b", "A &amp; b", "C ", "c", "d"]) == 3


@pytest.mark.parametrize(("name", "columns", "label", "header", "counts"), [
    ("ag_news/train.csv", ["text"], "label", True,
     {"Business": 1250, "Sci-Tech": 1250, "Sports": 1250, "World": 1250}),
    ("bbc_news/test.csv", ["title", "text"], "label", True, dict.fromkeys(
        ["business", "entertainment", "politics", "sport", "tech"], 60)),
    ("sms_spam/SMSSpamCollection.tsv", ["2"], "1", False, {"ham": 4827, "spam": 747}),
    ("sms_spam/train.csv", ["text"], "label", True, {"ham": 528, "spam": 517}),
])
def test_real_data(shared_data, name, columns, label, header, counts):
    found = read_examples(shared_data / name, columns, label, header=header)
    assert Counter(found.label_names[number] for number in found.labels) == counts
    assert found.label_names == tuple(sorted(counts))


def test_real_splits(shared_data):
    train, test = (read_examples(shared_data / "sms_spam" / f"{name}.csv", ["text"], "label")
                   for name in ("train", "test"))
    assert shared_texts(train.texts, test.texts) >= 37
    prompts = read_prompts(shared_data / "instruction" / "instruction-data.json",
                           ["instruction", "input"], "output")
    assert len(prompts.prompts) == 1100


def test_a_gz_of_gigabytes_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" * 2**20) * 500)      # 2 GB
    tracemalloc.start()
    expected = (r"bomb.csv.gz: [\d,]+ bytes unpack to more than [\d,]+, expected at most 100 times "
                ".* raise max_compression_ratio")
    for read in (read_table, read_documents):
        with pytest.raises(UserError, match=expected):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 3 * max(2**26, 100 * path.stat().st_size)
    tracemalloc.stop()


def test_a_file_that_repeats_itself_is_read_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "_ANY_RATIO", 1000)
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"same,a\nsame,b\n" * 5000))
    for read in (lambda **options: read_table(path, **options).rows,
                 lambda **options: read_examples(path, ["text"], "label", **options).texts,
                 lambda **options: read_prompts(path, ["text"], "label", **options).prompts,
                 lambda **options: read_documents(path, **options)):
        with pytest.raises(UserError, match="max_compression_ratio"):
            read()
        assert read(max_compression_ratio=1000)
