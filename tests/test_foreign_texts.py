"""Folders of others whose tokenizer and model do not fit: a line that names it, or an answer."""

import json

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
