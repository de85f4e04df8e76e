"""Cleaning and tokenizers: each step by itself, hostile texts, damaged files."""

import json
import time

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from minisft.data.special_tokens import END_OF_TEXT, SpecialTokens
from minisft.data.text import (
    CLEANING_STEPS,
    clean,
    clean_all,
    encode_all,
    load_tokenizer,
    parse_cleaning_steps,
    train_tokenizer,
)
from minisft.errors import UserError
from minisft.io.model_folder import save_tokenizer

MILLION = 10**6
ODD_TEXTS = ["", " two  spaces ", "line\n\nbreak\ttab", "caf\u00e9 \U0001f600 \u4e2d\u6587",
             "a<|endoftext|>b", "<|endoftext|>", "it's 12,345.67", "\x00\x7f\ufeff"]


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(["the cat sat on the mat", "the dog sat on the log"] * 5, 270)


@pytest.fixture(scope="module")
def gpt2(shared_data):
    return load_tokenizer(shared_data / "gpt2_bpe")


@pytest.mark.parametrize(("text", "expected"), [
    ("Tom &amp; Jo", "Tom & Jo"), ("&lt;#&gt;", "<#>"), ("caf&eacute;", "caf\u00e9"),
    ("&#8364;5 &#x41;", "\u20ac5 A"), ("&amp;amp;lt;", "<"), ("that&#146;s", "that\u2019s"),
    ("the dog #39;s bone", "the dog's bone"), ("they won #39;t", "they won't"),
    ("the dogs #39; bones", "the dogs ' bones"), ("quot;Yes, quot; he", '"Yes, " he'),
    ("B amp;B, Smith amp; Co.", "B&B, Smith & Co."), ("women amp;apos;s", "women's"),
    ("cost #36;5", "cost $5"), ("lt;b gt;", "<b >"), ("wait hellip;", "wait \u2026"),
])
def test_entities(text, expected):
    assert clean(text, ("entities",)) == (expected, ("entities",))


@pytest.mark.parametrize("text", [
    "AT&T; R&D", "a & b", "no&such;", "&amp", "x=1&copy=2", "bolt; salt; clamp;", "we are #12;",
    "revamp; Lt; unquot;", "house #4200; flat", "&#;", "&;", "amp up", "&" + "a" * 40 + ";",
])
def test_entities_leaves_words_alone(text):
    assert clean(text, ("entities",)) == (text, ())


def test_entities_decode_to_no_broken_character():
    assert clean("&#xD800;&#9999999;&#0;", ("entities",))[0] == "\ufffd" * 3


@pytest.mark.parametrize(("text", "expected"), [
    ("a <b>c</b> d", "a c d"), ('see <A HREF="http://x.org/?a=1">X.N</A>', "see X.N"),
    ("one<br/>two<BR>three", "one two three"), ("<p class=x>hi</p>", " hi "),
    ("a<!-- <b> -- x -->b", "ab"), ('<FONT face="v"\\ size="-2">x</FONT >', "x"),
    ("<h1>T</h1>", " T "),
])
def test_tags(text, expected):
    assert clean(text, ("tags",)) == (expected, ("tags",))


@pytest.mark.parametrize("text", [
    "a < b and c > d", "a <b and c> d", "I <3 you", "<user>", "<TIME>", "<#>", "<bold>", "<", "<>",
    "</>", "<!-- never closed", "a<b", "<b", "<p->", "</a href=x>", "x <i, j>", "<|endoftext|>",
])
def test_tags_leaves_comparisons_alone(text):
    assert clean(text, ("tags",)) == (text, ())


@pytest.mark.parametrize(("text", "expected"), [
    ("on\\Monday", "on Monday"), ("a \\$5", "a $5"), ("end.\\\\Next", "end. Next"),
    ("x\\\\$5", "x $5"), ("don\\'t", "don't"), ("\\n", " n"), ("Title:\\Sub", "Title: Sub"),
    ("C:\\temp\\x and\\y", "C:\\temp\\x and y"),
])
def test_backslashes(text, expected):
    assert clean(text, ("backslashes",)) == (expected, ("backslashes",))


def test_control():
    text = "a\x00b\x07c\x7f\ufeffd\u200be\u00adf\u202eg\tx\ny\x92s \ud83d \x81!"
    assert clean(text, ("control",))[0] == "abcdefg\tx\ny\u2019s \ufffd !"
    kept = "\u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f469 \ufffd \u00a0"
    assert clean(kept, ("control",)) == (kept, ())


def test_spaces():
    assert clean(" a\t\nb\u00a0\u3000c \r\n", ("spaces",)) == ("a b c", ("spaces",))
    assert clean(" \n ")[0] == ""


def test_steps_work_together_and_each_can_be_left_out():
    text = "&lt;b&gt;on\\Monday&lt;/b&gt;\x00  x"
    assert clean(text) == ("on Monday x", CLEANING_STEPS)
    assert clean(text, ()) == (text, ())
    assert clean(text, ("spaces",)) == (text.replace("  ", " "), ("spaces",))
    texts, counts = clean_all([text, "plain", "two  spaces"])
    assert texts == ["on Monday x", "plain", "two spaces"]
    assert counts == {**dict.fromkeys(CLEANING_STEPS, 1), "spaces": 2}


def test_parse_steps():
    assert parse_cleaning_steps("all") == CLEANING_STEPS
    assert parse_cleaning_steps("none") == ()
    assert parse_cleaning_steps("tags, entities,tags") == ("entities", "tags")
    for wrong in ("tag", "", "all,tags", "Tags"):
        with pytest.raises(UserError, match="unknown cleaning step .*; known: all, none, or"):
            parse_cleaning_steps(wrong)
    with pytest.raises(UserError, match="unknown cleaning step 'bold'"):
        clean("x", ("bold",))


@pytest.mark.parametrize("unit", [
    "<", "<a ", "<!--", "&", "&amp;", "\\", " #39;s", "C:\\", "\x00", "a", " ", "lt;", "the news ",
    "<b>", "<a b=c", " amp;x", "&a", "-->", "\\$",
])
def test_a_million_characters_take_linear_time(unit):
    """In processor time, so that a busy machine does not matter."""
    begin = time.process_time()
    clean(unit * (MILLION // len(unit)))
    assert time.process_time() - begin < 2.5


def test_cleaning_real_texts(shared_data):
    from minisft.data.read import read_examples
    found = read_examples(shared_data / "ag_news" / "train.csv", ["text"], "label")
    assert found.cleaned == {"entities": 1659, "tags": 207, "backslashes": 533, "spaces": 37}
    assert not [text for text in found.texts if "#39;" in text or "quot;" in text or "\\" in text]
    again, counts = clean_all(found.texts)
    assert again == found.texts and not counts


def test_gpt2_ids(gpt2):
    ids, cut = encode_all(gpt2, ["Hello world", " Hello world", ""])
    assert [row.tolist() for row in ids] == [[15496, 995], [18435, 995], []]
    assert cut == 0 and ids[0].dtype == np.int64
    assert gpt2.token_to_id("<|endoftext|>") == 50256 and gpt2.get_vocab_size() == 50257


def test_a_literal_end_of_text_is_plain_text(small, tmp_path):
    save_tokenizer(small, tmp_path, 64)
    for tokenizer in (small, load_tokenizer(tmp_path), load_tokenizer(tmp_path / "tokenizer.json")):
        ids = encode_all(tokenizer, ["a<|endoftext|>b"])[0][0].tolist()
        assert small.token_to_id("<|endoftext|>") not in ids
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_truncate_keeps_head_or_tail(small):
    whole = encode_all(small, ["zyxwvu", "z"])[0]
    for truncate, kept in (("head", whole[0][:4]), ("tail", whole[0][-4:])):
        ids, cut = encode_all(small, ["zyxwvu", "z"], 4, truncate)
        assert ids[0].tolist() == kept.tolist() and ids[1].tolist() == whole[1].tolist()
        assert cut == 1
    assert encode_all(small, ["zyxwvu"], len(whole[0]))[1] == 0


def test_encode_all_refuses(small):
    with pytest.raises(UserError, match="truncate must be head or tail, not 'left'"):
        encode_all(small, ["x"], 4, "left")
    with pytest.raises(UserError, match="max_length must be 1 or more, not 0"):
        encode_all(small, ["x"], 0)
    with pytest.raises(UserError, match="text 2 holds half a character"):
        encode_all(small, ["x", "\ud83d"])


@pytest.mark.parametrize("unit", ["a", " ", "<|endoftext|>", "news of the day "])
def test_encoding_a_million_characters(small, unit):
    begin = time.process_time()
    ids, cut = encode_all(small, [unit * (MILLION // len(unit))], 8)
    assert time.process_time() - begin < 2.5
    assert len(ids[0]) == 8 and cut == 1


def test_train_tokenizer(small, capfd):
    texts = ["the cat sat on the mat", "the dog sat on the log"] * 5
    again = train_tokenizer(iter(texts), 270)
    assert again.to_str() == small.to_str()
    assert small.get_vocab_size() == 270 and small.token_to_id("<|endoftext|>") == 269
    assert set(ByteLevel.alphabet()) <= set(small.get_vocab())
    assert len(encode_all(small, [" the"])[0][0]) == 1
    ids = encode_all(small, ODD_TEXTS)[0]
    assert [small.decode(row.tolist(), skip_special_tokens=False) for row in ids] == ODD_TEXTS
    assert train_tokenizer([], 1000).get_vocab_size() == 257
    with pytest.raises(UserError, match="a vocabulary of 256 is too small: .* need 257"):
        train_tokenizer(texts, 256)
    assert capfd.readouterr() == ("", "")


def test_training_on_an_endless_word_is_quick():
    begin = time.process_time()
    train_tokenizer(["a" * MILLION, " " * MILLION, "short"], 400)
    assert time.process_time() - begin < 2.5


def test_saved_tokenizer_gives_the_same_ids(small, tmp_path):
    save_tokenizer(small, tmp_path / "new", 64)
    again = load_tokenizer(tmp_path / "new")
    for mine, theirs in zip(encode_all(small, ODD_TEXTS)[0], encode_all(again, ODD_TEXTS)[0],
                            strict=True):
        assert mine.tolist() == theirs.tolist()
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text("utf-8"))
    assert config["model_max_length"] == 64 and config["truncation_side"] == "right"
    assert {config[f"{role}_token"] for role in ("bos", "eos", "unk", "pad")} == {"<|endoftext|>"}
    with pytest.raises(UserError, match="the pad_token '<pad>' is not in the vocabulary"):
        save_tokenizer(small, tmp_path, 64, SpecialTokens(tokens={"pad_token": "<pad>"}))


def test_a_saved_cut_or_pad_is_not_applied(small, tmp_path):
    foreign = Tokenizer.from_str(small.to_str())
    foreign.enable_truncation(2)
    foreign.enable_padding(length=9)
    foreign.save(str(tmp_path / "tokenizer.json"))
    assert len(encode_all(load_tokenizer(tmp_path), ["zyxwvu"])[0][0]) == 6


ALPHABET = {symbol: number for number, symbol in enumerate(sorted(ByteLevel.alphabet()))}


@pytest.mark.parametrize(("files", "message"), [
    ({}, "no tokenizer in this folder; looked for tokenizer.json, vocab.json.merges.txt, encoder"),
    ({"vocab.json": "{}"}, "no tokenizer in this folder"),
    ({"tokenizer.json": "{"}, "tokenizer.json: not valid JSON .Expecting"),
    ({"tokenizer.json": "null"}, "tokenizer.json: holds a NoneType"),
    ({"vocab.json": "{}", "merges.txt": ""}, "vocab.json.*lacks 256 of the 256 byte symbols"),
    ({"vocab.json": "[", "merges.txt": ""}, "vocab.json: not valid JSON"),
    ({"vocab.json": '{"a": 1.5}', "merges.txt": ""}, "vocab.json: expected an id for each token"),
    ({"vocab.json": json.dumps(ALPHABET), "merges.txt": "#version: 0.2\na b\n"},
     "damaged tokenizer: .*`ab` out of vocabulary"),
    ({"vocab.json": json.dumps(ALPHABET), "merges.txt": "a b c\n"},
     "damaged tokenizer: .*merge 1 is 'a b c'"),
    ({"encoder.json": json.dumps(ALPHABET | {"ab": 999}), "vocab.bpe": "#version: 0.2\na b\n"},
     "encoder.json.*the ids of its 257 tokens are not 0 to 256"),
])
def test_damaged_tokenizers(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder or file"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parity
def test_transformers_gives_the_same_ids(gpt2, small, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, tokenizer in (("gpt2", gpt2), ("small", small)):
        folder = tmp_path / name
        save_tokenizer(tokenizer, folder, 64)
        config = {"model_type": "gpt2", "vocab_size": tokenizer.get_vocab_size()}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.model_max_length == 64
        assert theirs.pad_token == theirs.eos_token == "<|endoftext|>"
        for text, ids in zip(ODD_TEXTS, encode_all(tokenizer, ODD_TEXTS)[0], strict=True):
            assert theirs(text)["input_ids"] == ids.tolist(), text


def test_the_same_text_always_gives_the_same_tokens(small, tmp_path):
    """A tokenizer.json with BPE's dropout (Provilkov et al. 2020) is read without it."""
    state = json.loads(small.to_str())
    state["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    lines = []
    tokenizer = load_tokenizer(tmp_path, lines.append)
    for text, ids in zip(ODD_TEXTS, encode_all(small, ODD_TEXTS)[0], strict=True):
        assert {tuple(encode_all(tokenizer, [text])[0][0]) for _ in range(5)} == {tuple(ids)}
    assert len(lines) == 1 and "drops 50% of its merges" in lines[0]
    save_tokenizer(tokenizer, tmp_path, 64)
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["model"]["dropout"] is None


def test_a_token_that_pads_has_the_number_0():
    plain, padded = (train_tokenizer(["ab ab abc"] * 9, 262, pad) for pad in (None, "<pad>"))
    assert padded.token_to_id("<pad>") == 0 and padded.get_vocab_size() <= 262
    assert padded.token_to_id(END_OF_TEXT) == padded.get_vocab_size() - 1
    ids = padded.encode("abc ab", add_special_tokens=False).ids
    assert [i - 1 for i in ids[:1]] == plain.encode("abc ab", add_special_tokens=False).ids[:1]
    assert padded.decode([0, *ids]) == "abc ab"
    assert 0 not in padded.encode("<pad>").ids
    with pytest.raises(UserError, match="256 bytes and <pad> and .* need 258"):
        train_tokenizer(["a"], 257, "<pad>")
