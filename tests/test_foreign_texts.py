"""Folders of others whose tokenizer and model do not fit: a line that names it, or an answer."""

import csv
import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from minisft.cli import main
from minisft.data.sequences import encode_sequences, leading_ids, require_readable
from minisft.errors import UserError
from minisft.estimators import CompletionModel, TextClassifier
from minisft.io.checkpoint import save
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel

LETTERS = "abcdefgh"
GPT2 = GPT2Config(vocab_size=len(LETTERS) + 1, n_positions=16, n_embd=12, n_layer=1, n_head=2)
BERT = BertConfig(vocab_size=len(LETTERS) + 1, hidden_size=12, num_hidden_layers=1,
                  num_attention_heads=2, intermediate_size=20, max_position_embeddings=16)


def tokenizer(**more):
    """A letter a token, no token for what is unknown, <|endoftext|> behind them."""
    vocab = {letter: i for i, letter in enumerate(LETTERS)} | more
    made = Tokenizer(BPE(vocab, []))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def folder(path, model, made=None):
    save(model, path)
    (made or tokenizer()).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return str(path)


@pytest.fixture
def classifier(tmp_path):
    return folder(tmp_path / "classifier", Classifier(GPT2, ("no", "yes")))


@pytest.fixture
def writer(tmp_path):
    return folder(tmp_path / "writer", LanguageModel(GPT2))


def refusal(capsys, *argv):
    assert main(list(map(str, argv))) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("minisft: ")
    return err


LEFT = "nothing is left of the"
NO_LETTERS = [chr(0x416 + i) for i in range(20)]


def test_a_text_of_which_nothing_is_left(tmp_path, capsys, classifier):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nabc,yes\nhead,no\n\u0416\u0416,yes\n" + "bad,no\ncab,yes\n" * 9,
                    encoding="utf-8")
    assert f"text 2: {LEFT} text" in refusal(
        capsys, "predict", "--model", classifier, "abc", "\u0416")
    line = f"rows.csv, line 4: {LEFT} text"
    assert line in refusal(capsys, "predict", "--model", classifier, "--file", rows)
    assert line in refusal(capsys, "evaluate", "--model", classifier, "--test", rows)
    out = tmp_path / "out"
    assert line in refusal(capsys, "finetune", "--model", classifier, "--train", rows, "--out",
                           out, "--epochs", 1, "--compare", "none", "--quiet")
    assert not out.exists()
    with pytest.raises(UserError, match=rf"texts\[1\]: {LEFT} text"):
        TextClassifier.load(classifier).predict(["abc", "\u0416"])


@pytest.mark.parametrize("name", ["prompt", "completion"])
def test_a_prompt_or_completion_of_which_nothing_is_left(tmp_path, capsys, writer, name):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(
        {"prompt": letter, "completion": "cd"} | ({name: "\u0416"} if letter == "c" else {})) + "\n"
        for letter in LETTERS), encoding="utf-8")
    line = f"rows.jsonl, line 3: {LEFT} {name}"
    assert line in refusal(capsys, "evaluate", "--model", writer, "--test", rows)
    out = tmp_path / "out"
    assert line in refusal(capsys, "finetune", "--task", "complete", "--model", writer, "--train",
                           rows, "--out", out, "--epochs", 1, "--quiet")
    assert not out.exists()


def skipped(path):
    """-> line, reason and text of each row in a file of skipped rows, and the files they are of."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return ([(int(row["line"]), row["reason"], row["text"]) for row in rows],
            [row["file"].rpartition("/")[2] for row in rows])


def test_rows_of_which_nothing_is_left_are_skipped_when_asked(tmp_path, capsys, classifier):
    """Beside those that cannot be read at all: counted, and listed in the file."""
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label,no\nabc,yes,1\n\u0416\u0416,no,2\n ,yes,3\n"
                    + "bad,no,4\ncab,yes,5\n" * 9 + "\u0449,yes,6\n", encoding="utf-8")
    bad, out = tmp_path / "bad.csv", tmp_path / "out.csv"
    why = f"{LEFT} text, the tokenizer has no token for any of its characters"
    expected = [(3, why), (4, "the text (after cleaning) is empty"), (23, why)]
    for command in ["predict", "--file", rows, "--out", out], ["evaluate", "--test", rows]:
        assert main([*map(str, command), "--model", classifier, "--skip-bad-rows", "--bad-rows",
                     str(bad)]) == 0
        shown = capsys.readouterr()
        assert "skipped 1 of 22 rows" in shown.err
        assert f"skipped 2 more rows, which this model cannot read; the first, line 3: {LEFT}" in \
            shown.err
        found, files = skipped(bad)
        assert [row[:2] for row in found] == expected and files == ["rows.csv"] * 3
        assert json.loads(found[0][2])["text"] == "\u0416\u0416"
        bad.unlink()
    assert "19 texts" in shown.out
    with open(out, newline="") as file:      # each answer beside its own row
        assert [row["no"] for row in csv.DictReader(file)] == ["1", *"45" * 9]


def test_rows_of_a_list_on_one_line_are_told_apart(tmp_path, capsys, classifier):
    (tmp_path / "rows.json").write_text(json.dumps(
        [{"text": text, "no": no} for no, text in enumerate(["\u0416", "ab", "\u0449", "cd"])]))
    assert main(["predict", "--model", classifier, "--file", str(tmp_path / "rows.json"),
                 "--skip-bad-rows", "--bad-rows", str(tmp_path / "bad.csv")]) == 0
    assert [line.split(",")[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["text", "no"], ["ab", "1"], ["cd", "3"]]


def test_no_row_that_the_model_can_read(tmp_path, capsys, classifier):
    (tmp_path / "rows.csv").write_text("text,label\n\u0416,no\n\u0449,yes\n", encoding="utf-8")
    assert f"rows.csv: the model can read no row of it; the first, line 2: {LEFT}" in refusal(
        capsys, "predict", "--model", classifier, "--file", tmp_path / "rows.csv",
        "--skip-bad-rows")


@pytest.mark.parametrize("task", ["classify", "complete"])
def test_a_run_skips_them_in_each_of_its_files(tmp_path, capsys, monkeypatch, task, request):
    """Training and validation part are of one file: its rows are counted once."""
    monkeypatch.chdir(tmp_path)
    names = ("text", "label") if task == "classify" else ("prompt", "completion")
    values = [(a + b, "yes" if b > "d" else "no") for a in LETTERS for b in LETTERS]
    if task == "complete":
        values = [(text, text[::-1]) for text, _ in values]
    for part in "train", "test":
        lines = [",".join(row) for row in (names, *values)]
        lines[3:3] = [*(f"{text}," + values[0][1] for text in NO_LETTERS), " ,no"]
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = request.getfixturevalue("classifier" if task == "classify" else "writer")
    assert main(["finetune", "--task", task, "--model", model, "--train", "train.csv", "--test",
                 "test.csv", "--out", "run", "--epochs", "1", "--compare", "none", "--quiet",
                 "--skip-bad-rows", "--clean", "none"]) == 0
    found, files = skipped(tmp_path / "run" / "bad_rows.csv")
    assert files == ["train.csv"] * 21 + ["test.csv"] * 21
    assert [line for line, *_ in found] == [*range(4, 25)] * 2
    assert json.loads(found[0][2]) == dict(zip(names, (NO_LETTERS[0], values[0][1]), strict=True))
    assert "rows skipped, which cannot be read | 42" in (tmp_path / "run/report.md").read_text()
    said = " ".join(capsys.readouterr().out.split())      # long lines are wrapped
    assert "train.csv: skipped 1 of 85 rows" in said and "test.csv: skipped 20 more rows" in said
    more = re.findall(r"train.csv: skipped (\d+) more row", said)
    assert len(more) == 2 and sum(map(int, more)) == 20      # of training and validation part
    kept = re.search(r"(\d+) training, (\d+) validation and (\d+) test", said)
    assert int(kept[1]) + int(kept[2]) == int(kept[3]) == 64


def test_a_row_that_spells_the_end_is_skipped_too(tmp_path, capsys, writer):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in (
        ("ab", "cd"), ("a<|endoftext|>", "b"), ("\u0416", "a<|endoftext|>"), ("c", "\u0416"))))
    assert "line 2: the prompt holds <|endoftext|>" in refusal(
        capsys, "evaluate", "--model", writer, "--test", rows)
    bad = tmp_path / "bad.csv"
    assert main(["evaluate", "--model", writer, "--test", str(rows), "--skip-bad-rows",
                 "--bad-rows", str(bad), "--max-new-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1
    assert [(line, reason[:26]) for line, reason, _ in skipped(bad)[0]] == [
        (2, "the prompt holds <|endofte"), (3, "the completion holds <|end"),
        (4, "nothing is left of the com")]


def test_evaluate_says_how_to_name_labels(tmp_path, capsys, classifier):
    (tmp_path / "rows.csv").write_text("text,label\nab,1\ncd,0\n")
    assert ("rows.csv, line 2: unknown label '1'; known: 'no', 'yes'; if the file has other names "
            "for the model's labels, --label-map says them") in refusal(
        capsys, "evaluate", "--model", classifier, "--test", tmp_path / "rows.csv")
    assert main(["evaluate", "--model", classifier, "--test", str(tmp_path / "rows.csv"),
                 "--label-map", "no=0", "yes=1"]) == 0


def test_a_prompt_to_generate_from_of_which_nothing_is_left(capsys, writer):
    assert f"prompt 2: {LEFT} prompt" in refusal(
        capsys, "generate", "--model", writer, "ab", "\u0416")
    assert main(["generate", "--model", writer, "--max-new-tokens", "2", ""]) == 0


def test_an_id_beyond_the_model_is_named(tmp_path, capsys):
    path = folder(tmp_path, Classifier(GPT2, ("no", "yes")), tokenizer(a=10**6))
    assert "text 2: the token 'a' has the id 1000000, but the model has 9 tokens" in refusal(
        capsys, "predict", "--model", path, "bed", "bad")
    assert main(["predict", "--model", path, "bed"]) == 0
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "bed,no\nbe,no\nhe,yes\nfed,yes\n")
    assert "the token 'a' has the id 1000000" in refusal(
        capsys, "finetune", "--model", "scratch", "--tokenizer", path, "--train", rows)


def test_a_token_that_no_text_holds_may_lie_beyond_the_model(tmp_path, capsys, classifier):
    """[PAD] was added, the model not resized: as `transformers`, which pads no single text."""
    assert main(["predict", "--model", classifier, "abc"]) == 0
    answer = capsys.readouterr().out
    made = tokenizer()
    made.add_special_tokens(["[PAD]"])     # whose role the folder gives below
    assert made.token_to_id("[PAD]") == GPT2.vocab_size
    path = folder(tmp_path / "padded", Classifier(GPT2, ("no", "yes")), made)
    (tmp_path / "padded" / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    assert main(["predict", "--model", path, "abc"]) == 0
    assert capsys.readouterr().out == answer
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nbed,no\nbe,no\nhe,yes\nfed,yes\n")
    assert main(["finetune", "--model", path, "--train", str(rows), "--epochs", "1", "--compare",
                 "none", "--quiet", "--out", str(tmp_path / "out")]) == 0
    written = tmp_path / "out" / "model"      # pads with a token that the model has
    assert json.loads((written / "config.json").read_text())["pad_token_id"] == 8
    assert json.loads((written / "tokenizer_config.json").read_text())["pad_token"] == \
        "<|endoftext|>"


def with_template(**options):
    made = tokenizer()
    made.post_processor = TemplateProcessing(**options)
    return made


def test_a_template_with_an_id_or_a_type_beyond_the_model_is_named(tmp_path, capsys):
    model = BertClassifier(BERT, ("no", "yes"))
    path = folder(tmp_path / "id", model, with_template(
        single="[X] $A", pair="$A [X] $B:1", special_tokens=[("[X]", 10**6)]))
    assert "text 1: a token of its template has the id 1000000" in refusal(
        capsys, "predict", "--model", path, "bad")
    path = folder(tmp_path / "type", model, with_template(
        single="$A:7", pair="$A $B:1", special_tokens=[]))
    assert "text 1: the tokenizer gives the token type 7, but the model has 2 types" in refusal(
        capsys, "predict", "--model", path, "bad")


def test_a_token_that_opens_every_text_opens_prompts_too(tmp_path, writer):
    """As `add_bos_token` asks for; nothing closes a prompt."""
    made = with_template(single="h $A <|endoftext|>", pair="$A $B:1",
                         special_tokens=[("h", 7), ("<|endoftext|>", 8)])
    assert leading_ids(made).tolist() == [7] and leading_ids(tokenizer()).tolist() == []
    opened = folder(tmp_path / "opened", LanguageModel(GPT2, seed=0), made)
    first, second = CompletionModel.load(opened), CompletionModel.load(writer)
    assert first.generate("ab", temperature=0, max_new_tokens=3) == second.generate(
        "hab", temperature=0, max_new_tokens=3)
    assert first.perplexity(["ab"], ["cd"]) == pytest.approx(second.perplexity(["hab"], ["cd"]))


def test_wordpiece_without_its_unknown_token_is_one_line(tmp_path, capsys):
    made = Tokenizer(WordPiece({"a": 0, "b": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    path = folder(tmp_path, BertClassifier(BERT, ("no", "yes")), made)
    assert "the tokenizer fails: WordPiece error: Missing [UNK] token" in refusal(
        capsys, "predict", "--model", path, "xyz")


def test_a_tokenizer_that_lacks_the_letter_a():
    made = Tokenizer(BPE({"\u0416": 0, "\u0449": 1}, []))
    ids, types, cut = encode_sequences(made, ["\u0416\u0449"])
    assert ids[0].tolist() == [0, 1] and types is None and cut == 0
    require_readable(ids, made, GPT2, str)
    with pytest.raises(UserError, match="^0: nothing is left"):
        require_readable([np.array([], int)], made, GPT2, str)


def test_a_special_token_in_a_text_is_text_unless_it_is_asked_otherwise(tmp_path, capsys,
                                                                        classifier):
    def answer(text, *flags):
        assert main(["predict", "--model", classifier, *flags, text, "abc"]) == 0
        out, err = capsys.readouterr()
        return out.splitlines()[1].split(",", 1)[1], err

    literal = "bad<|endoftext|>"
    found, err = answer(literal)
    assert "note: 1 text holds <|endoftext|>, read as characters, not as that token" in err
    assert found == answer("badedfe")[0]      # the letters of it that the tokenizer has
    parsed, err = answer(literal, "--parse-special")
    assert parsed != found and "note" not in err

    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(
        f"{x}{y}<|endoftext|>,{'yes' if x < 'd' else 'no'}\n" for x in LETTERS for y in LETTERS))
    given = "evaluate", "--model", classifier, "--test", str(rows), "--json"
    assert main([*given]) == 0
    out, err = capsys.readouterr()
    assert "note: 64 texts hold <|endoftext|>, read as characters" in err
    assert main([*given, "--parse-special"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != json.loads(out)["loss"]

    train = "finetune", "--model", classifier, "--train", str(rows), "--epochs", "1", "--compare", \
        "none", "--quiet"
    assert main([*train, "--out", str(tmp_path / "text")]) == 0
    assert "texts hold <|endoftext|>, read as characters" in capsys.readouterr().out
    assert main([*train, "--parse-special", "--out", str(tmp_path / "parsed")]) == 0
    assert "note: " not in capsys.readouterr().out.replace("note: without a test file", "")
    classifier = str(tmp_path / "parsed" / "model")      # which remembers it
    assert answer(literal)[0] == answer(literal, "--parse-special")[0] != answer("badedfe")[0]
    assert TextClassifier.load(classifier).preprocessing_.parse_special
