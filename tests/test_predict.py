"""`minisft predict` on files of every kind: what a row keeps, what is added, what is refused."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisft.cli import main
from minisft.data.batch import pack
from minisft.data.text import train_tokenizer
from minisft.io.files import write_json
from minisft.io.model_folder import Preprocessing, read_folder, write_folder
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.ops.cross_entropy import log_softmax

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a classifier for ham and spam."""
    folder = tmp_path_factory.mktemp("model")
    config = GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    write_folder(folder, Classifier(config, ["ham", "spam"]), train_tokenizer(["a"], 257),
                 Preprocessing())
    return folder


def predict(model, *arguments):
    return main(["predict", "--model", str(model), *map(str, arguments)])


def shown(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_probabilities_are_the_model_s(model, capsys):
    assert predict(model, "free money", 'a, "b"\nc') == 0
    rows = shown(capsys.readouterr().out)
    network, tokenizer, _ = read_folder(model)
    for row, text in zip(rows, ["free money", 'a, "b" c'], strict=True):     # cleaned
        logits = network.forward(pack([np.array(tokenizer.encode(text).ids)]))
        p = np.exp(log_softmax(logits.astype(np.float64)))[0]
        assert [float(row["p_ham"]), float(row["p_spam"])] == pytest.approx(list(p), abs=1e-6)
        assert row["label"] == ["ham", "spam"][p.argmax()]
    assert [row["text"] for row in rows] == ["free money", 'a, "b"\nc']      # as it was given


@pytest.mark.parametrize("options, most", [((), 2048), (("--batch-tokens", 9000), 9000)])
def test_a_cpu_computes_what_its_caches_hold(model, monkeypatch, tmp_path, options, most):
    (tmp_path / "x.csv").write_text("text\n" + "twelve chars\n" * 600)
    seen, forward = [], Classifier.forward
    monkeypatch.setattr(Classifier, "forward",
                        lambda self, batch: (seen.append(len(batch.ids)), forward(self, batch))[1])
    assert predict(model, "--file", tmp_path / "x.csv", *options) == 0
    assert sum(seen) == 7200 and max(seen) == min(most // 12 * 12, 7200)


@pytest.mark.parametrize("text, loaded", [("short", False), ("long " * 1000, True)])
def test_numba_is_loaded_only_where_its_loops_pay(model, text, loaded):
    pytest.importorskip("numba", reason="compiled loops need the extra fast")
    code = ("import sys\nfrom minisft.cli import main\nmain(sys.argv[1:])\n"
            "print(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, "predict", "--model", model, text],
                          capture_output=True, text=True, check=True, env={**os.environ,
                                                                           "MINISFT_COMPILED": ""})
    modules = {name.split(".")[0] for name in done.stderr.split()}
    assert "tokenizers" in modules and ("numba" in modules) == loaded
    assert not modules & {"matplotlib", "sklearn", "pandas"}


def test_names_that_are_taken(model, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("text,label,p_ham,predicted_label\nhello,1,2,3\n")
    assert predict(model, "--file", tmp_path / "x.csv") == 0
    row = shown(capsys.readouterr().out)[0]
    assert list(row) == ["text", "label", "p_ham", "predicted_label", "predicted_predicted_label",
                         "predicted_p_ham", "p_spam"]
    assert list(row.values())[:4] == ["hello", "1", "2", "3"]


def test_several_columns_without_header(model, tmp_path, capsys):
    (tmp_path / "x.tsv").write_text("free\tmoney\nhello\tyou\n")
    assert predict(model, "--file", tmp_path / "x.tsv", "--no-header", "--text-column", "1",
                   "2") == 0
    rows = shown(capsys.readouterr().out)
    assert predict(model, "free money", "hello you") == 0
    for row, other in zip(rows, shown(capsys.readouterr().out), strict=True):
        assert row["p_ham"] == other["p_ham"] and list(row)[:2] == ["1", "2"]


def test_json_keeps_what_it_is(model, tmp_path, capsys):
    given = [{"text": 3, "tags": ["ä", 1]}, {"text": "x", "more": None},
             {"text": True, "half": "\ud800"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    assert predict(model, "--file", tmp_path / "x.jsonl", "--out", tmp_path / "out.jsonl") == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    for row, kept in zip(found, given, strict=True):
        assert row | kept == row and row["label"] in ("ham", "spam")
    assert predict(model, "--file", tmp_path / "x.jsonl", "--out", tmp_path / "out.csv") == 0
    rows = shown((tmp_path / "out.csv").read_text("utf-8"))
    assert rows[0]["tags"] == '["ä", 1]' and rows[0]["more"] == rows[1]["more"] == ""
    assert [row["text"] for row in rows] == ["3", "x", "true"]
    assert float(rows[0]["p_ham"]) == found[0]["p_ham"]
    said = capsys.readouterr().err.splitlines()
    assert said[::2] == ["minisft: cleaning: entities, tags, backslashes, control, spaces"] * 2
    assert said[1].startswith(f"minisft: labelled 3 texts in {tmp_path / 'out.jsonl'}: ")


@pytest.mark.parametrize("row, words", [
    ({"text": None}, ["'text'", "null"]), ({"txt": "b"}, ["'text'", "missing"]),
    ({"text": ["b"]}, ["'text'", "a list"]), ({"text": "\ud800"}, ["'text'", "half a character"]),
    ({"text": "<p> </p>"}, ["empty"])])
def test_a_row_without_text_is_named(model, tmp_path, row, words, capsys):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + json.dumps(row) + "\n")
    assert predict(model, "--file", tmp_path / "x.jsonl", "--out", tmp_path / "out.csv") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("minisft: ") and captured.err.count("\n") == 1
    for word in ("x.jsonl, line 2", *words):
        assert word in captured.err
    assert not (tmp_path / "out.csv").exists() and captured.out == ""


def test_bad_rows_are_skipped_when_asked(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("text;label;no\na;ham;1\n ;spam;2\nb;spam\nc;spam;4\n")
    rows = ("--file", "x.csv", "--out", "out.csv")
    assert predict(model, *rows) == 2 and not Path("out.csv").exists()
    assert "x.csv, line 4: 2 fields" in capsys.readouterr().err
    assert predict(model, *rows, "--skip-bad-rows") == 0
    said = capsys.readouterr().err
    assert "skipped 2 of 4 rows" in said and "separated by ';'" in said and "bad_rows.csv" in said
    assert [row["no"] for row in shown(Path("out.csv").read_text())] == ["1", "4"]
    assert [row["line"] for row in shown(Path("bad_rows.csv").read_text())] == ["3", "4"]
    assert main(["evaluate", "--model", str(model), "--test", "x.csv", "--skip-bad-rows"]) == 0
    assert "2 texts" in capsys.readouterr().out and Path("bad_rows-2.csv").exists()
    assert main(["evaluate", "--model", str(model), "--test", "x.csv", "--skip-bad-rows",
                 "--bad-rows", "mine.csv", "--delimiter", ";"]) == 0
    assert Path("mine.csv").exists() and "separated" not in capsys.readouterr().err
    for given in (["--skip-bad-rows", "--bad-rows", "mine.csv"], ["--bad-rows", "new.csv"],
                  ["--skip-bad-rows", "--bad-rows", "no/new.csv"]):
        assert predict(model, "--file", "x.csv", *given) == 2
        assert "--bad-rows" in capsys.readouterr().err


class Input(io.TextIOWrapper):
    """Standard input that holds these bytes, or is a terminal."""

    def __init__(self, data, terminal=False):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.isatty = lambda: terminal


def test_lines_of_standard_input_are_texts(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Input("free money\n\nhéllo, you\n".encode()))
    assert predict(model) == 0
    rows = shown(capsys.readouterr().out)
    assert predict(model, "free money", "héllo, you") == 0
    assert rows == shown(capsys.readouterr().out) and len(rows) == 2
    # what splitlines would break
    monkeypatch.setattr("sys.stdin", Input("free\x0cmoney\u2028now\n".encode()))
    assert predict(model) == 0 and len(shown(capsys.readouterr().out)) == 1
    monkeypatch.setattr("sys.stdin", Input(b"x\n", terminal=True))     # nobody is made to wait
    assert predict(model) == 2


@pytest.mark.parametrize("data", [
    b"no;text\n1;free money\n2;h\xc3\xa9llo\n",
    b'{"no": "1", "text": "free money"}\n{"no": "2", "text": "h\xc3\xa9llo"}\n'])
def test_a_file_called_minus_is_standard_input(model, data, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Input(data))
    assert predict(model, "--file", "-") == 0
    rows = shown(capsys.readouterr().out)
    assert [(row["no"], row["text"]) for row in rows] == [("1", "free money"), ("2", "héllo")]
    assert predict(model, "free money", "héllo") == 0
    for row, other in zip(rows, shown(capsys.readouterr().out), strict=True):
        assert row["p_ham"] == other["p_ham"]
    monkeypatch.setattr("sys.stdin", Input(b"no,txt\n1,a\n"))
    assert predict(model, "--file", "-") == 2
    assert "-: no column 'text'" in capsys.readouterr().err


def test_a_terminal_shows_a_table(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    assert predict(model, "free money", "word " * 40 + "\x1b[31m") == 0
    first, second = capsys.readouterr().out.splitlines()
    label, share, *words = first.split()
    assert label in ("ham", "spam") and words == ["free", "money"]
    assert share.endswith("%") and 50 <= float(share[:-1]) <= 100
    assert len(second) <= 60 and second.endswith("…") and "\x1b" not in second
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert predict(model, "free money") == 0
    assert f"\033[1m{label}" in capsys.readouterr().out
    monkeypatch.setenv("TERM", "dumb")
    assert predict(model, "free money") == 0
    assert "\033" not in capsys.readouterr().out


def test_out_is_replaced_when_asked(model, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert predict(model, "free money", "hello", "--out", out) == 0
    said = capsys.readouterr().err
    counts = [row["label"] for row in shown(out.read_text())]
    shares = re.search(f"labelled 2 texts in {re.escape(str(out))}: (.*)\n", said)[1]
    assert {part.split()[1]: int(part.split()[0]) for part in shares.split(", ")} == {
        name: counts.count(name) for name in set(counts)}
    kept = out.read_bytes()
    assert predict(model, "other", "--out", out) == 2 and out.read_bytes() == kept
    assert predict(model, "other", "--out", out, "--overwrite") == 0
    assert [row["text"] for row in shown(out.read_text())] == ["other"]
    assert "labelled 1 text in" in capsys.readouterr().err
    kept = out.read_bytes()     # which has a column of texts
    assert predict(model, "--file", out, "--overwrite", "--out", out) == 2
    assert "is the file that is read" in capsys.readouterr().err and out.read_bytes() == kept


@pytest.mark.parametrize("content, word", [
    ({"clean": ["soap"]}, "soap"), ({"clean": 3}, "clean"), ({"max_length": 0}, "max_length"),
    ({"max_length": "9"}, "max_length"), ({"truncate": "middle"}, "truncate"),
    ({"separator": 1}, "separator"), ({"columns": 3}, "columns"),
    ({"columns": {"text_column": "a"}}, "columns"),
    ({"columns": {"label_column": ["a"]}}, "columns"),
    ({"columns": {"text_column": []}}, "columns"), ({"columns": {"text_column": [1]}}, "columns"),
    ({"columns": {"column": "a"}}, "columns"), ({"sep": ""}, "sep")])
def test_a_damaged_treatment(model, tmp_path, content, word, capsys):
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_json(tmp_path / "minisft.json", content)
    assert predict(tmp_path, "a text") == 2
    err = capsys.readouterr().err
    assert "minisft.json" in err and word in err and err.count("\n") == 1


def test_in_a_pipe_that_closes_early(model, tmp_path):
    """A real process: half letters in its arguments, an output that knows ASCII only."""
    (tmp_path / "x.csv").write_text("text\n" + "a text\n" * 20_000)
    command = [sys.executable, "-m", "minisft", "predict", "--model", str(model)]
    found = subprocess.run([*command, b"a \xff b", "ä"], cwd=ROOT, capture_output=True, check=False,
                           env={"PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0 and found.stdout.count(b"\n") == 3
    assert found.stderr.startswith(b"minisft: cleaning:") and found.stderr.count(b"\n") == 1
    process = subprocess.Popen([*command, "--file", str(tmp_path / "x.csv")], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == found.stderr
    assert process.wait() == 1
