"""Labels, names and texts that would act on a terminal, a page or a sheet, fed in everywhere."""

import csv
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest

from minisft.cli import main
from minisft.cli.terminal import show
from minisft.data.text import train_tokenizer
from minisft.errors import LONGEST, UserError, disturbs, setting, shown, tell
from minisft.evaluation import metrics, plots, report
from minisft.evaluation.document import one_line
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel

ESCAPE, CLEAR = "\x1b]0;owned\x07\x1b[2J", "\x9b31m"
LABELS = ["a\x1b[31m red", "=1+cmd|' /C calc'!A0", "$\\frac{", "\u202egnp.exe", "two\nlines",
          "<script>alert(1)</script>", "|a|`b`[c](javascript:d)", "L" * 100_000, CLEAR + "c"]
NAME = f"x{ESCAPE}\n\u202e$\\frac`"
COLUMNS = ["--text-column", NAME, "--label-column", f"label{NAME}"]
TINY = ["--model", "scratch", "--layers", "1", "--width", "8", "--heads", "2", "--vocab-size",
        "300", "--epochs", "1"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                reason="names of files with line breaks")


def require_clean(text, longest=LONGEST + 200):
    """A terminal shows it and does nothing else, and no value fills the screen."""
    bad = {c for c in text if disturbs(c)} - {"\n"}
    assert not bad, bad
    assert max(map(len, text.split("\n"))) < longest


def require_refused(arguments, capsys, words=""):
    assert main([str(a) for a in arguments]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("minisft: ") and found.err.count("\n") == 1
    require_clean(found.err), require_clean(found.out)
    assert words in found.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, and in it the data, all with such names."""
    folder = tmp_path_factory.mktemp("work") / NAME
    folder.mkdir()
    with open(folder / f"{NAME}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([NAME, f"label{NAME}"])
        for n in range(6):
            rows.writerows([f"{ESCAPE} \u202e text {n} of {label[:50]}", label] for label in LABELS)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    out = folder / "run"
    data = str(folder / f"{NAME}.csv")
    assert main(["finetune", "--train", data, "--test", data, *COLUMNS, *TINY, "--out",
                 str(out)]) == 0
    return out


def test_a_whole_run(folder, capsys):
    data, out = str(folder / f"{NAME}.csv"), folder / f"out{NAME}"
    assert main(["finetune", "--train", data, "--test", data, *COLUMNS, *TINY, "--out",
                 str(out)]) == 0
    found = capsys.readouterr()
    require_clean(found.out), require_clean(found.err)
    assert "a\ufffd[31m red" in found.out      # a label, among those that are named
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in results["per_class"]} == set(LABELS)      # exact for programs
    for name in ("report.md", "report.html"):
        page = (out / name).read_text(encoding="utf-8")
        require_clean(re.sub("base64,[^\"]*", "", page), 20_000)
        assert "<script" not in page and (
            name == "report.html" or not re.search(r"(?<!\\)\]\(javascript", page))
    shutil.rmtree(out)


def test_evaluate(folder, run, capsys):
    data = str(folder / f"{NAME}.csv")
    for json_flag in ([], ["--json"]):
        assert main(["evaluate", "--model", str(run / "model"), "--test", data, *COLUMNS,
                     *json_flag]) == 0
        found = capsys.readouterr()
        require_clean(found.err)
        require_clean(found.out, 10**6 if json_flag else 200)
    assert {row["name"] for row in json.loads(found.out)["per_class"]} == set(LABELS)


def test_a_file_of_predictions_holds_the_labels_as_they_are(folder, run, capsys):
    """Programs read it; who opens it in a spreadsheet is told what that does."""
    data, out = str(folder / f"{NAME}.csv"), folder / "answers.csv"
    assert main(["predict", "--model", str(run / "model"), "--file", data, "--out", str(out),
                 *COLUMNS[:2]]) == 0
    found = capsys.readouterr()
    require_clean(found.out), require_clean(found.err)
    csv.field_size_limit(10**6)
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} <= set(LABELS)
    assert set(rows[0]) >= {f"p_{label}" for label in LABELS}
    assert not any(name.startswith(tuple("=+-@")) for name in rows[0])


def model_of(tmp_path, *labels):
    place = tmp_path / "model"
    config = GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    write_folder(place, Classifier(config, labels), train_tokenizer(["a"], 257), Preprocessing())
    return place


@pytest.mark.parametrize("label, told", [("=1+1", True), ("@x", True), ("-a", True),
                                         ("-1", False), ("+2.5", False), ("a=b", False)])
def test_a_label_that_is_a_formula_to_a_spreadsheet(tmp_path, capsys, label, told):
    model = model_of(tmp_path, label, label + " ")
    for arguments in ([], ["--out", str(tmp_path / "x.csv")]):
        assert main(["predict", "--model", str(model), "a text", *arguments]) == 0
        assert ("a spreadsheet takes the label" in capsys.readouterr().err) == told
    assert main(["predict", "--model", str(model), "a text", "--out", str(tmp_path / "x.jsonl")]
                ) == 0
    assert "spreadsheet" not in capsys.readouterr().err


def test_a_terminal_is_shown_what_a_pipe_gets_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    config = GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    language_model, classifier = tmp_path / "lm", model_of(tmp_path, *LABELS[:3])
    write_folder(language_model, LanguageModel(config), train_tokenizer(["a"], 257),
                 Preprocessing(clean=()))
    for prompts in ([f"a{ESCAPE}\n"], [f"a{ESCAPE}\n", "b\u202e"]):
        command = ["generate", "--model", str(language_model), *prompts, "--max-new-tokens", "2",
                   "--temperature", "0"]
        assert main(command) == 0
        assert f"a{ESCAPE}\n" in capsys.readouterr().out
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            assert main(command) == 0
        found = capsys.readouterr().out
        require_clean(found)
        assert "a\\x1b]0;owned\\x07" in found
    command = ["predict", "--model", str(classifier), f"a{ESCAPE}"]
    assert main(command) == 0 and f"a{ESCAPE}" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(command) == 0
    require_clean(capsys.readouterr().out)


def test_messages_of_all_doors(folder, run, tmp_path, capsys):
    data, model = folder / f"{NAME}.csv", run / "model"
    missing = folder / f"missing{NAME}.csv"
    require_refused(["finetune", "--train", missing], capsys, "missing")
    require_refused(["finetune", "--train", data], capsys)                      # no such column
    require_refused(["finetune", "--train", data, *COLUMNS, "--class-weights", f"{NAME}=2"], capsys)
    require_refused(["finetune", "--train", data, *COLUMNS, "--model", f"m{NAME}"], capsys)
    require_refused(["predict", "--model", model, "--file", data, "--text-column", "y" * 10**5],
                    capsys)
    require_refused(["finetune", "--resume", folder / NAME], capsys)
    other = tmp_path / "other.csv"
    for label in LABELS:
        with open(other, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS[1::2], ["text", label + "?"]])
        require_refused(["evaluate", "--model", model, "--test", other, *COLUMNS], capsys)
    with pytest.raises(SystemExit):
        main(["predict", f"--{NAME}"])
    require_clean(capsys.readouterr().err)


def edited(source, name, change, tmp_path):
    place = tmp_path / "edited"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    value = json.loads((place / name).read_text(encoding="utf-8"))
    change(value)
    (place / name).write_text(json.dumps(value), encoding="utf-8")
    return place


@pytest.mark.parametrize("key", ["model_type", "n_embd", "activation_function", "id2label",
                                 "minisft", "architectures", "n_layer"])
@pytest.mark.parametrize("value", [NAME, "v" * 100_000, {NAME: "w" * 100_000}],
                         ids=["name", "long", "dict"])
def test_a_folder_s_config(run, tmp_path, capsys, key, value):
    place = edited(run / "model", "config.json", lambda c: c.update({key: value}), tmp_path)
    code = main(["predict", "--model", str(place), "text"])
    found = capsys.readouterr()
    require_clean(found.err)
    assert code in (0, 2) and (code == 0 or found.err.count("\n") == 1)


def test_names_of_shards_and_tensors(run, tmp_path, capsys):
    place = shutil.copytree(run / "model", tmp_path / "sharded")
    (place / "model.safetensors").unlink()
    index = place / "model.safetensors.index.json"
    for shard in (NAME.replace("/", ""), "s" * 100_000, f"../{NAME}"):
        index.write_text(json.dumps({"weight_map": {f"wte{NAME}": shard}}))
        require_refused(["predict", "--model", place, "text"], capsys)


def test_a_run_folder_s_own_files(run, tmp_path, capsys):
    place = shutil.copytree(run, tmp_path / "run")
    (place / "results.json").unlink()
    config = json.loads((place / "config.json").read_text())
    for change in ({"settings": {NAME: 1}, "settings_sha256": None}, {"settings": "z" * 10**5},
                   {"versions": {NAME: "1" * 10**5}}):
        written = {k: v for k, v in (config | change).items() if v is not None}
        (place / "config.json").write_text(json.dumps(written))
        assert main(["finetune", "--resume", str(place)]) in (0, 2)
        found = capsys.readouterr()
        require_clean(found.err), require_clean(found.out)


def test_the_card_of_a_pretrained_model(tmp_path, capsys):
    place = tmp_path / NAME
    place.mkdir()
    text = place / f"```{NAME}.txt"
    text.write_text("\n<|endoftext|>\n".join(f"the cat \x1b[2J sat on mat {i}" for i in range(60)))
    out = tmp_path / "out"
    assert main(["pretrain", "--text", str(text), "--source", f"x\n---\nlicense: {NAME}",
                 "--vocab-size", "280", "--context-length", "16", "--layers", "1", "--width", "8",
                 "--heads", "2", "--batch-tokens", "512", "--out", str(out)]) == 0
    found = capsys.readouterr()
    require_clean(found.out), require_clean(found.err)
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    require_clean(card, 10_000)
    lines = card.splitlines()
    assert [i for i, line in enumerate(lines) if line.startswith("---")] == [0, 6]
    assert not any(line.startswith("license") for line in lines)
    fences = [line for line in lines if line.startswith("````")]
    assert fences == ["````sh", "````"] and not any(re.fullmatch("`{3}", x) for x in lines)


def test_pictures(tmp_path):
    names = [*LABELS, "_hidden", "", "\ud800"]
    k = len(names)
    plots.confusion(np.eye(k, dtype=int).tolist(), names, tmp_path / "c.png", title=NAME)
    plots.over_sizes([10, 20], {"$\\frac{": [metrics.over_seeds([0.5, 0.6])] * 2},
                     tmp_path / "s.png", "y", NAME)
    assert os.path.getsize(tmp_path / "c.png") and os.path.getsize(tmp_path / "s.png")


def test_a_line_is_shown_as_it_is(capsys):
    assert shown("Füße, 日本語, 👩‍🚀, فارسی") == "Füße, 日本語, 👩‍🚀, فارسی"
    assert shown("a\tb\r\n\x1b\x7f\x85\u2028\u202e\ue000\udcff\U000e0041") == (
        "a\\tb\\r\\n\\x1b\\x7f\\x85\\u2028\\u202e\\ue000\\udcff\\U000e0041")
    assert shown("x" * (LONGEST + 7)) == "x" * LONGEST + "… (7 characters more)"
    assert str(UserError(f"{setting('lr')} of \x1b[2J\n")) == "lr of \\x1b[2J\\n"
    for say in (tell, show):
        say(f"a{ESCAPE}b\n")
        assert capsys.readouterr().out == "a\\x1b]0;owned\\x07\\x1b[2Jb\\n\n"
    assert one_line(f"a{ESCAPE}b\nc\u202e") == "a\ufffd]0;owned\ufffd\ufffd[2Jb c\ufffd"
    note = report.absent_classes_note({"per_class": [{"name": n, "support": 0} for n in LABELS]})
    require_clean(note, 500)
