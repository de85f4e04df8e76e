"""BERT's tokenizer from both kinds of folder, and sequences of one or two texts made with it."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from minisft.data.sequences import encode_sequences, special_ids
from minisft.data.special_tokens import SpecialTokens, read_special_tokens
from minisft.data.text import load_tokenizer, train_tokenizer
from minisft.errors import UserError
from minisft.io.architectures import BERT
from minisft.io.model_folder import save_tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "news", "##s", "##letter",
          "Paper", "paper", "é", "[", "]", "sep", "日", ","]
CLS, SEP = 2, 3
A = PIECES.index("a")


@pytest.fixture
def folder(tmp_path):
    """A folder with a vocabulary and nothing else, as old models come."""
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return tmp_path


def pieces(tokenizer, text):
    ids, types, _ = encode_sequences(tokenizer, [text])
    assert types is None
    return [PIECES[i] for i in ids[0]]


@pytest.mark.parametrize("text, expected", [
    ("newsletter", ["news", "##letter"]), ("Newss, PAPER", ["news", "##s", ",", "paper"]),
    ("É ü", ["e", "[UNK]"]), ("a日b", ["a", "日", "b"]), ("", []), ("news" + "s" * 100, ["[UNK]"]),
    ("a[SEP]\x00\u200bb", ["a", "[", "sep", "]", "b"])])
def test_wordpiece(folder, text, expected):
    assert pieces(load_tokenizer(folder), text) == ["[CLS]", *expected, "[SEP]"]


def test_the_folder_says_how(folder):
    settings = {"do_lower_case": False, "tokenize_chinese_chars": False,
                "cls_token": {"content": "[MASK]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for tokenizer in load_tokenizer(folder), load_tokenizer(folder / "vocab.txt"):
        assert pieces(tokenizer, "Paper é a日b") == ["[MASK]", "Paper", "é", "[UNK]", "[SEP]"]
    (folder / "tokenizer_config.json").write_text('{"strip_accents": false}')
    assert pieces(load_tokenizer(folder), "Paper É") == ["[CLS]", "paper", "é", "[SEP]"]


@pytest.mark.parametrize("content, words", [
    ("[PAD]\n[UNK]\n[CLS]\n", "lacks the sep_token '\\[SEP\\]'"),
    ("[UNK]\n[CLS]\n[SEP]\na\na\n", "5 lines but only 4 different tokens"), ("", "lacks")])
def test_damaged_vocabularies(tmp_path, content, words):
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(UserError, match=f"vocab.txt: damaged tokenizer: .*{words}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{"])
def test_damaged_settings(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer_config.json: (not valid|holds a list)"):
        load_tokenizer(folder)


def test_saved_and_loaded_again(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, tmp_path / "new", 64, input_names=BERT.input_names)
    foreign = Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    foreign.enable_truncation(4)      # as all-MiniLM-L6-v2 has them in its file
    foreign.enable_padding(length=9)
    foreign.save(str(tmp_path / "new" / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "new")
    for text in "newsletter, É a b c [SEP]", "":
        assert pieces(again, text) == pieces(tokenizer, text)
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text("utf-8"))
    assert config["cls_token"] == "[CLS]" and config["pad_token"] == "[PAD]"


def test_one_text(folder):
    tokenizer = load_tokenizer(folder)
    ids, types, cut = encode_sequences(tokenizer, ["a b c d", "a", ""], 5)
    assert [row.tolist() for row in ids] == [[CLS, A, A + 1, A + 2, SEP], [CLS, A, SEP], [CLS, SEP]]
    assert cut == 1 and types is None and ids[0].dtype == np.int64
    assert special_ids(tokenizer) == (CLS, SEP)
    tail, _, _ = encode_sequences(tokenizer, ["a b c d", "a", ""], 5, "tail")
    assert tail[0].tolist() == [CLS, A + 1, A + 2, A + 3, SEP] and tail[1].tolist() == [CLS, A, SEP]


def test_two_texts(folder):
    tokenizer = load_tokenizer(folder)
    ids, types, cut = encode_sequences(tokenizer, ["a b", ""], pairs=["c", "d e"])
    assert ids[0].tolist() == [CLS, A, A + 1, SEP, A + 2, SEP] and cut == 0
    assert types[0].tolist() == [0, 0, 0, 0, 1, 1] and types[1].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("first, second, room, kept", [
    (6, 2, 6, (4, 2)), (2, 6, 6, (2, 4)), (6, 6, 5, (2, 3)), (7, 6, 5, (3, 2)), (0, 6, 3, (0, 3)),
    (3, 3, 6, (3, 3)), (1, 1, 2, (1, 1)), (8, 1, 2, (1, 1))])
def test_the_longer_of_two_texts_is_cut_first(folder, first, second, room, kept):
    tokenizer = load_tokenizer(folder)
    texts = ["a b c d e f g h"[:2 * n] for n in (first, second)]
    for truncate in "head", "tail":
        (ids,), (types,), cut = encode_sequences(tokenizer, texts[:1], room + 3, truncate,
                                                 texts[1:])
        assert ((types == 0).sum() - 2, (types == 1).sum() - 1) == kept
        assert cut == (first + second > room) and len(ids) <= room + 3
        starts = [0 if truncate == "head" else n - k for n, k in zip((first, second), kept,
                                                                     strict=True)]
        assert ids[1:1 + kept[0]].tolist() == [A + starts[0] + i for i in range(kept[0])]
        assert ids[2 + kept[0]:-1].tolist() == [A + starts[1] + i for i in range(kept[1])]


def test_no_room(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UserError, match="length of 2 tokens leaves no room .* the 2 special"):
        encode_sequences(tokenizer, ["a"], 2)
    with pytest.raises(UserError, match="length of 4 tokens leaves no room .* the 3 special"):
        encode_sequences(tokenizer, ["a"], 4, pairs=["b"])


def test_gpt2s_tokenizer_adds_nothing():
    tokenizer = train_tokenizer(["the cat sat"], 260)
    for truncate, kept in ("head", "abc"), ("tail", "bcd"):
        ids, types, cut = encode_sequences(tokenizer, ["abcd", "z"], 3, truncate)
        assert [tokenizer.decode(row.tolist()) for row in ids] == [kept, "z"] and cut == 1
    assert types is None
    with pytest.raises(UserError, match="nothing between two texts"):
        encode_sequences(tokenizer, ["a"], pairs=["b"])


@pytest.mark.parity
def test_transformers_gives_the_same_sequences(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, tmp_path / "new", 64, input_names=BERT.input_names)
    (tmp_path / "new" / "config.json").write_text('{"model_type": "bert"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert theirs.pad_token == "[PAD]" and theirs.mask_token == "[MASK]"
    texts = ["newsletter, É a b c [SEP]", "a b c d e f g h", "a", "a b c d e"]
    pairs = ["a", "h g f e d c b a", "newsletter", "a b c d e f"]
    for n in 7, 8, 30:
        ids, _, _ = encode_sequences(tokenizer, texts, n)
        found = theirs(texts, truncation=True, max_length=n)
        assert found["input_ids"] == [row.tolist() for row in ids]
        ids, types, _ = encode_sequences(tokenizer, texts, n, pairs=pairs)
        found = theirs(texts, pairs, truncation=True, max_length=n)
        assert found["input_ids"] == [row.tolist() for row in ids]
        assert found["token_type_ids"] == [row.tolist() for row in types]


@pytest.mark.parity
def test_the_published_vocabulary_gives_the_same(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes((shared_data / "bert_vocab" / "vocab.txt").read_bytes())
    ours = load_tokenizer(tmp_path)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    texts = ["Unaffable Héllo\tWORLD's $3.50!?", "東京 is big", "a" * 200, "don't [MASK] ﬁ №"]
    ids, _, _ = encode_sequences(ours, texts)
    assert [row.tolist() for row in ids] == theirs(texts, split_special_tokens=True)["input_ids"]


def test_an_added_token_that_the_library_calls_otherwise(folder):
    """Not special, [PAD] is looked for in the lowered text: its id then has the name [pad]."""
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"added_tokens_decoder": {"0": {"content": "[PAD]", "special": False}}}))
    tokenizer = load_tokenizer(folder)
    found = read_special_tokens(folder, tokenizer)
    assert found.tokens["pad_token"] == "[PAD]" and found.within(tokenizer, 99).pad == found.pad
    unknown = SpecialTokens(tokens={"pad_token": "[pad]"})
    assert unknown.within(tokenizer, 99).tokens == {}


def test_an_id_beyond_all_is_none(folder):
    tokenizer = load_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 2**32, "eos_token_id": 2**70}))
    assert read_special_tokens(folder, tokenizer).eos == ()
