"""Tables as the world has them: delimiters, quoting, encodings, headers, rows that are damaged."""

import csv
import io
import json

import pytest

from minisft.data.delimited import guess, is_quoted_tsv
from minisft.data.encoding import read_text
from minisft.data.read import read_examples, read_prompts, read_table
from minisft.data.table import bad_rows_csv
from minisft.errors import UserError
from minisft.io.files import write_text

ROWS = [(f"The film{',' * (n % 3)} number {n}, was {'great' if n % 2 else 'dull; really'}",
         "pos" if n % 2 else "neg") for n in range(12)]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return write


def as_csv(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows(rows)
    return file.getvalue()


def content(table):
    return [tuple(row.values()) for row in table.rows]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_delimiter_and_line_end_is_read(write, name, delimiter, header, end, quoting):
    rows = [("text", "label")] * header + ROWS
    path = write(name, as_csv(rows, delimiter=delimiter, lineterminator=end, quoting=quoting))
    table = read_table(path, header=header)
    assert content(table) == ROWS
    assert table.lines == [n + 1 + header for n in range(12)]
    usual = {"x.csv": ",", "x.tsv": "\t"}[name]
    assert any("separated by" in note for note in table.notes) == (delimiter != usual)
    assert content(read_table(path, header=header, delimiter=delimiter)) == ROWS


def test_excel_names_its_delimiter(write):
    for first in ("sep=;\r\n", '"sep=;"\n', "SEP=;\n"):
        table = read_table(write("x.csv", first + "text;label\na, b, c;x\n"))
        assert content(table) == [("a, b, c", "x")] and table.lines == [3]
    assert read_table(write("x.csv", "sep=|\na,b|c\n1|2\n")).columns == ("a,b", "c")
    with pytest.raises(UserError, match="x.csv: is empty"):
        read_table(write("x.csv", "sep=;\n"))


def test_a_delimiter_is_guessed_from_many_rows_only(write):
    assert guess("text\na; b\nc\nd; e; f\n", ",") == (",", None)          # one column
    assert guess("a;b\n1;2\n5,6;7;8\n9;0;1\n8;2\n", ",") == (",", ";")     # not sure: the message
    assert guess("a,b;c\n" + "1,2;3\n" * 9, ",") == (",", None)          # the usual one fits
    path = write("x.csv", "text;label\na;x\nb;c;y\nd\n")
    with pytest.raises(UserError, match="no column 'text'; the columns are: text;label; looks "
                                        "separated by ';': see delimiter=';'$"):
        read_examples(path, ["text"], "label")
    path = write("x.csv", "text;label\n" + "a;x\n" * 30 + "b;c;y\n")
    with pytest.raises(UserError, match="x.csv, line 32: 3 fields, but line 1 has 2$"):
        read_examples(path, ["text"], "label")


def test_a_delimiter_that_cannot_be_is_named(write):
    path = write("x.csv", "text^label\na^x\n")
    assert content(read_table(path, delimiter="^")) == [("a", "x")]
    assert content(read_table(write("y.tsv", "a\tb\n\"c\td\n"), delimiter="tab")) == [('"c', "d")]
    for wrong in ("", ";;", '"', "\n", "a"):
        with pytest.raises(UserError, match="delimiter is .*, expected one character"):
            read_table(path, delimiter=wrong)
    with pytest.raises(UserError, match="delimiter is for .csv and .tsv"):
        read_table(write("x.jsonl", "{}"), delimiter=",")


def test_names_of_columns_are_stripped_and_empty_columns_dropped(write):
    table = read_table(write("x.csv", "text , label\na, x\n"))
    assert table.columns == ("text", "label") and content(table) == [("a", " x")]
    table = read_table(write("x.csv", "v1,v2,,,\nham,hello,,,\nspam,you\nham,there,,,,,\n"))
    assert table.columns == ("v1", "v2")
    assert content(table) == [("ham", "hello"), ("spam", "you"), ("ham", "there")]
    assert content(read_table(write("x.csv", "ham,hello,,\nspam,you,,\n"), header=False)) == [
        ("ham", "hello"), ("spam", "you")]
    assert read_table(write("x.csv", "text,label,why\na,x,\n")).columns == ("text", "label", "why")


def test_nameless_columns_that_hold_something_are_kept_and_said(write):
    table = read_table(write("x.csv", "v1,v2,,\nham,hello,,\nspam,you,there,\n"))
    assert table.columns == ("v1", "v2", "Unnamed: 2", "Unnamed: 3")
    assert table.rows[1]["Unnamed: 2"] == "there"
    assert "columns without a name hold something in 1 rows" in table.notes[0]
    assert read_table(write("x.csv", ",text\n0,a\n")).columns == ("Unnamed: 0", "text")


def test_tsv_that_is_quoted(write):
    rows = [("text", "label"), ('he said "fine"', "x"), ("plain", "y"), ("two\tfields", "x")]
    for options in ({}, {"quoting": csv.QUOTE_ALL}):
        path = write("x.tsv", as_csv(rows, delimiter="\t", lineterminator="\n", **options))
        table = read_table(path)
        assert content(table) == rows[1:] and "fields are quoted, as pandas" in table.notes[0]
    assert is_quoted_tsv('a\tb\n"two\tfields"\tx\n')      # only so every row has two
    for plain in ('a\tb\n"He said" so\tx\n', 'a\tb\n"well"\tx\n', 'a\tb\n5" or ""\tx\n', "a\tb\n",
                  'a\tb\n"half\tx\n', 'a\tb\n"""so""" he said\tx\n'):
        assert not is_quoted_tsv(plain), plain


def test_tsv_that_is_quoted_in_part_is_said(write):
    table = read_table(write("x.tsv", 'a\tb\nwell\tx\n"he said ""so"""\tx\n5" disk\ty\n'))
    assert table.rows[1]["a"] == '"he said ""so"""' and "x.tsv, line 3: " in table.notes[0]
    for plain in ('a\tb\n5" or ""\tx\n', 'a\tb\n"""so""" he said\tx\n', 'a\tb\n""\t"well"\n'):
        assert not read_table(write("x.tsv", plain)).notes


def test_json_named_the_wrong_way_round(write):
    lines = '{"text": "a"}\n{"text": "b"}\n'
    table = read_table(write("x.json", lines))
    assert content(table) == [("a",), ("b",)] and table.lines == [1, 2]
    assert content(read_table(write("x.jsonl", '[{"text": "a"},\n{"text": "b"}]'))) == [
        ("a",), ("b",)]
    with pytest.raises(UserError, match="starts with '{'; .* as pandas writes it with orient="):
        read_table(write("x.json", '{"text": {"0": "a"},\n "label": {"0": "x"}}'))


@pytest.mark.parametrize("start, what", [
    (b"PK\x03\x04", "save it as CSV"), (b"\xd0\xcf\x11\xe0", "save it as CSV"),
    (b"PAR1", "Parquet"), (b"%PDF-", "PDF"), (b"\x1f\x8b", "its name should end in .gz")])
def test_what_is_no_text_is_named(write, start, what):
    with pytest.raises(UserError, match=f"x.csv: is .*{what}"):
        read_table(write("x.csv", start + b"\0\1\2"))
    with pytest.raises(UserError, match="x.xlsx: cannot tell .*; save the spreadsheet as CSV"):
        read_table(write("x.xlsx", start))


@pytest.mark.parametrize("text, encoding, word", [
    ("Un café crème, s’il vous plaît", "cp1252", "café"),
    ("Größe: 5 €, schöner Tag", "cp1252", "Größe"),
    ("今天天气很好，我们去公园吧", "gb18030", "今天天气很好"),
    ("The word 天气 means weather", "gb18030", "天气"),
    ("我在图书馆里看书，外面下着雨。", "gb18030", "图书馆"),
    ("今天天氣很好，我們去公園散步吧", "big5", "今天天氣很好"),
    ("她說這家店的牛肉麵不好吃。", "big5", "牛肉麵"), ("The word 他們 means they", "big5", "他們"),
    ("きょうは天気がいいので、公園を歩きます", "shift_jis", "きょうは天気"),
    ("このカメラは重すぎる。", "shift_jis", "カメラ"), ("品質① とても良い", "cp932", "品質①"),
    ("きょうは天気がいいので、公園を歩きます", "euc_jp", "きょうは天気"),
    ("오늘은 날씨가 좋아서 공원에 갑니다", "euc_kr", "오늘은"),
    ("배송이 너무 늦고 상자가 찢어져 있었습니다", "euc_kr", "배송이"),
    ("이 펜은 똠방각하처럼 써진다", "cp949", "이"),
    ("Señor, ¿dónde está el baño? ¡Allí!", "cp1252", "Señor"),
    ("«Ça été dû à l’été»", "cp1252", "Ça"), ("È già là, perché così", "cp1252", "È"),
    ("Сегодня хорошая погода", "cp1251", "Сегодня"), ("Сегодня хорошая погода", "koi8-r", "Сегод"),
    ("hello", "utf-16", "hello"), ("hello", "utf-32", "hello")])
def test_a_wrong_encoding_suggests_the_likely_one(write, text, encoding, word):
    data = f"text,label\n{text.replace(',', ' ')},x\n".encode(encoding)
    path = write("x.csv", data)
    with pytest.raises(UserError, match=f"encoding='{encoding}' it would read .*") as error:
        read_table(path)
    assert encoding.startswith("utf") or word in str(error.value)
    assert read_table(path, encoding).rows[0]["label"] == "x"       # and is never taken unasked


def test_a_damaged_letter_is_no_other_encoding(write):
    text = "text\n" + "今天天气很好\n" * 40
    path = write("x.csv", text.encode()[:-3] + b"\n")
    with pytest.raises(UserError, match="line 41: .* is not utf-8; give the right encoding$"):
        read_table(path)


def test_utf8_read_as_another_encoding_is_said(write):
    path = write("x.csv", "text\ncafé\n")
    assert "is valid UTF-8" in read_table(path, "latin-1").notes[0]
    for encoding, data in (("utf-8", "café"), ("latin-1", b"caf\xe9"), ("latin-1", "cafe")):
        data = data if isinstance(data, bytes) else data.encode()
        assert not read_table(write("x.csv", b"text\n" + data), encoding).notes
    with pytest.raises(UserError, match="encoding='utf-16-be'"):
        read_text(write("x.txt", "hello".encode("utf-16-be")))


def test_a_header_read_as_a_row_is_refused(write):
    kaggle = "v1,v2,,,\n" + "".join(f'{y},"{x}",,,\n' for x, y in ROWS)
    for path in (write("x.csv", kaggle), write("y.csv", "class,text\nx,a\ny,b\n"),
                 write("z.csv", "kind,words\n" + as_csv([(y, x) for x, y in ROWS]))):
        with pytest.raises(UserError, match=f"{path.name}, line 1: .* look like the names of the "
                                            "columns.*leave out no_header"):
            read_examples(path, ["2"], "1", header=False)
    rows = "".join(f"{y},{x}\n" for x, y in [("fine", "good"), ("bad", "poor"), ("ok", "good"),
                                             ("so so", "soso")])
    found = read_examples(write("x.csv", rows), ["2"], "1", header=False)
    assert found.texts[0] == "fine"


def test_no_header_is_suggested_where_the_header_looks_like_a_row(write):
    for first in ("good,a text that somebody wrote to fill at least one line", "good,a"):
        path = write("x.csv", f"{first}\ngood,c\nbad,d\n")
        with pytest.raises(UserError, match="if that is no header, add no_header"):
            read_examples(path, ["text"], "label")
    with pytest.raises(UserError, match="the columns are: kind, words$"):
        read_examples(write("x.csv", "kind,words\ngood,c\nbad,d\n"), ["text"], "label")


def test_labels_and_texts_exchanged(write):
    path = write("x.csv", as_csv([("message", "kind"), *ROWS]))
    with pytest.raises(UserError, match="12 different labels for 12 texts: is 'message' the label"):
        read_examples(path, ["kind"], "message")
    assert read_examples(path, ["message"], "kind").label_names == ("neg", "pos")
    many = as_csv([("text", "label"), *((text, n % 8) for n, (text, _) in enumerate(ROWS))])
    assert len(read_examples(write("x.csv", many), ["text"], "label").label_names) == 8
    twice = as_csv([("text", "label"), *((kind, 3 * text) for text, kind in ROWS[:7] * 2)])
    with pytest.raises(UserError, match="8 different labels for 15 texts"):
        read_examples(write("x.csv", twice + "a," + "b" * 50 + "\n"), ["text"], "label")


BAD = {
    "x.csv": b'text,label\na,x\nb,y,z\n"c"d,x\ne\xff,y\nf\0,x\n , y\ng,\nh,y\n',
    "x.tsv": b"text\tlabel\na\tx\nb\ty\tz\nc\ne\xff\ty\nf\0\tx\n\xc2\xa0\ty\ng\t\nh\ty\n",
    "x.jsonl": b'{"text": "a", "label": "x"}\n{"text": \n["c"]\n{"text": "e\xff", "label": "y"}\n'
               b'{"text": "f\0", "label": "x"}\n{"text": " ", "label": "x"}\n{"text": "g"}\n'
               b'{"text": "h", "label": "y"}\n'}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_skipped_counted_and_kept(write, tmp_path, name):
    path = write(name, BAD[name])
    with pytest.raises(UserError, match="line [345]: "):
        read_examples(path, ["text"], "label")
    found = read_examples(path, ["text"], "label", skip_bad_rows=True)
    assert found.texts == ["a", "h"] and found.label_names == ("x", "y")
    lines = [bad.line for bad in found.bad_rows]
    assert lines == sorted(lines) and len(lines) == 6
    assert found.lines[1] == lines[-1] + 1
    assert f"skipped 6 of 8 rows, which cannot be read; the first, line {lines[0]}: " in \
        found.notes[-1]
    write_text(tmp_path / "bad.csv", bad_rows_csv(found.bad_rows))
    with open(tmp_path / "bad.csv", encoding="utf-8", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [int(row["line"]) for row in kept] == lines
    assert {row["file"] for row in kept} == {str(path)} and all(row["reason"] for row in kept)
    assert "0xff is not utf-8" in " ".join(row["reason"] for row in kept)


def test_nothing_is_skipped_that_hides_a_mistake(write):
    """Unknown labels, a quote without an end, a file of which nothing can be read."""
    path = write("x.csv", "text,label\na,x\nb,q\n")
    with pytest.raises(UserError, match="line 3: unknown label 'q'"):
        read_examples(path, ["text"], "label", ("x", "y"), skip_bad_rows=True)
    with pytest.raises(UserError, match="line 3: .* a quote is never closed"):
        read_table(write("x.csv", 'text,label\na,x\n"b,q\n'), skip_bad_rows=True)
    for content_of in ("text,label\na\nb\n", "text,label\n,x\n,y\n"):
        with pytest.raises(UserError, match="no row of it can be read; the first, line 2: |no row "
                                            "of it can be read, the first is line 2: "):
            read_examples(write("x.csv", content_of), ["text"], "label", skip_bad_rows=True)
    with pytest.raises(UserError, match="unknown cleaning step"):
        read_examples(path, ["text"], "label", steps=("soap",), skip_bad_rows=True)


@pytest.mark.parametrize("content", [
    b"te\xffxt,label\na,x\n", '"te"xt,label\na,x\n', "text,label\na,x\n".encode("utf-16"),
    b"text,label\xff\n"])
def test_a_header_is_never_skipped(write, content):
    with pytest.raises(UserError, match="line 1: the header cannot be read: "):
        read_table(write("x.csv", content), skip_bad_rows=True)


def test_without_header_the_first_row_tells_the_width(write):
    path = write("x.csv", "a,x\nb,y\nc,d,z\n")
    with pytest.raises(UserError, match="line 3: 3 fields, but line 1 has 2"):
        read_table(path, header=False)
    table = read_table(path, header=False, skip_bad_rows=True)
    assert content(table) == [("a", "x"), ("b", "y")] and table.bad_rows[0].line == 3


def test_prompts_skip_bad_rows_too(write):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "b"},
            {"prompt": "a"}, {"prompt": "c", "completion": 3}]
    path = write("x.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_prompts(path, ["prompt"], "completion", skip_bad_rows=True)
    assert found.prompts == ["a", "c"] and found.completions == ["b", "3"]
    assert [bad.line for bad in found.bad_rows] == [2, 3]
