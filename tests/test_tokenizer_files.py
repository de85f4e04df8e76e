"""All of a tokenizer's files count: small folders of every kind, and what is read from them."""

import base64
import copy
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from minisft.data.sequences import encode_sequences
from minisft.data.text import encode_all, load_tokenizer, train_tokenizer
from minisft.data.tokenizer import (
    encode,
    encode_batch,
    special_tokens_note,
    without_panic_reports,
)
from minisft.data.tokenizer_limits import require_sound
from minisft.errors import UserError
from minisft.io.checkpoint import save
from minisft.io.model_folder import save_tokenizer
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier

WORDS = ("the quick brown fox says hello world and more covid19 cases in a good film about nobody "
         "who is it Paris na\u00efve caf\u00e9").split()
LINES = [
    "the quick brown fox", "Hello World film", " two  spaces ", "more covid19 cases",
    "morecovid19cases", "COVID19", "who is it <qsep> nobody", "<qsep><qsep> x", "a<br>b",
    "caf\u00e9 na\u00efve \u4e2d\u6587 \U0001f600", "", " ", "tab\tand\nline", "it's 12,345.67",
    "\u00c9COLE \u1e9e", "hello<ent>world", "  <ent>  spaced", "\x00\ufeff x"]
# These hold tokens with a role, which are text here unless it is asked otherwise.
ROLE_LINES = ["a<|endoftext|>b", "[CLS] x [SEP]", "<s>hi</s>", "[MASK] and [PAD]", "[UNK]",
              "<|end|> here"]
BERT_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz",
              *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"), *"0123456789",
              *"<>.,'[]|/", *dict.fromkeys([*WORDS, *map(str.lower, WORDS), "Hello", "World"]),
              "\u4e2d", "\u6587"]
ADDED = {"covid19": 0, "<qsep>": 1}
# What the newest transformers makes of some of these lines, by folder.
GOLDEN = Path(__file__).parent / "golden" / "tokenizer_files.json"
GOLDEN_LINES = LINES[1:7] + LINES[9:10] + LINES[15:17]


def write(folder, name, value):
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


def base():
    """A small GPT-2 tokenizer, as a dict of tokenizer.json."""
    return json.loads(train_tokenizer([" ".join(WORDS)] * 4, 330).to_str())


def slow_gpt2(folder, config=None, end=True, **files):
    """vocab.json and merges.txt, and what else is given."""
    model = base()["model"]
    vocab = model["vocab"] if end else {
        token: i for token, i in model["vocab"].items() if token != "<|endoftext|>"}
    write(folder, "vocab.json", vocab)
    write(folder, "merges.txt", "#version: 0.2\n" + "".join(
        " ".join(pair) + "\n" for pair in model["merges"]))
    write(folder, "config.json", {"model_type": "gpt2"} | (config or {}))
    for name, value in files.items():
        write(folder, f"{name}.json", value)


def slow_bert(folder, **files):
    write(folder, "vocab.txt", "\n".join(dict.fromkeys(BERT_VOCAB)) + "\n")
    write(folder, "config.json", {"model_type": "bert"})
    for name, value in files.items():
        write(folder, f"{name}.json", value)


def fast(folder, model_type, data, **files):
    """tokenizer.json, and what else is given."""
    write(folder, "tokenizer.json", data)
    write(folder, "config.json", {"model_type": model_type})
    for name, value in files.items():
        write(folder, f"{name}.json", value)


def with_token(data, content, special, **flags):
    i = max([*data["model"]["vocab"].values(), *(t["id"] for t in data["added_tokens"])]) + 1
    token = {"id": i, "content": content, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": not special, "special": special} | flags
    return data | {"added_tokens": [*data["added_tokens"], token]}


def bert_json(**normalizer):
    made = Tokenizer(WordPiece(dict(zip(dict.fromkeys(BERT_VOCAB), range(1000))),   # noqa: B905
                               unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return json.loads(made.to_str())


def lower_json():
    """What a class would not build: a normalizer, words apart, an unknown token."""
    made = Tokenizer(BPE({c: i for i, c in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyz"])},
                         [], unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = Lowercase(), Whitespace()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return json.loads(made.to_str())


def token(content, special=False, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special} | flags


GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}
FOLDERS = {
    "slow": lambda f: slow_gpt2(f),
    "slow without its end token": lambda f: slow_gpt2(f, end=False),
    "slow, added": lambda f: slow_gpt2(f, tokenizer_config=GPT2, added_tokens=ADDED),
    "slow, added and special": lambda f: slow_gpt2(
        f, tokenizer_config=GPT2, added_tokens=ADDED | {"<|end|>": 2},
        special_tokens_map={"eos_token": "<|end|>", "additional_special_tokens": ["<qsep>"]}),
    "slow, special with flags": lambda f: slow_gpt2(f, special_tokens_map={
        "eos_token": token("<|end|>", lstrip=True), "pad_token": "<pad>"}),
    "slow, listed": lambda f: slow_gpt2(f, tokenizer_config=GPT2 | {"added_tokens_decoder": {
        "500": token("<qsep>", True), "501": token("covid19", single_word=True),
        "502": token("<ent>", lstrip=True, rstrip=True)}, "additional_special_tokens": ["<qsep>"]},
        added_tokens={"Hello": 503}, special_tokens_map={"pad_token": "<pad>"}),
    "slow, prefix": lambda f: slow_gpt2(f, tokenizer_config=GPT2 | {"add_prefix_space": True}),
    "slow, bos": lambda f: slow_gpt2(f, tokenizer_config=GPT2 | {"add_bos_token": True}),
    "slow, bos and eos": lambda f: slow_gpt2(f, tokenizer_config=GPT2 | {
        "add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"}),
    "slow, class of config.json": lambda f: slow_gpt2(f, {"tokenizer_class": "GPT2TokenizerFast"}),
    "fast, class by the model": lambda f: fast(f, "gpt2", base()),
    "fast, class of GPT-2": lambda f: fast(f, "gpt2", base(), tokenizer_config=GPT2 | {
        "add_prefix_space": True, "add_bos_token": True}),
    "fast, what a class drops": lambda f: fast(
        f, "gpt2", base() | {"normalizer": {"type": "Lowercase"}}, tokenizer_config=GPT2),
    "fast, what the file says": lambda f: fast(
        f, "gpt2", base() | {"normalizer": {"type": "Lowercase"}}, tokenizer_config=GENERIC),
    "fast, own": lambda f: fast(f, "gpt2", with_token(with_token(
        base(), "<qsep>", True), "covid19", False), tokenizer_config=GENERIC),
    "fast, own of a class": lambda f: fast(f, "gpt2", with_token(with_token(
        base(), "<qsep>", True), "covid19", False, single_word=True), tokenizer_config=GPT2),
    "fast, more": lambda f: fast(f, "gpt2", base(), tokenizer_config=GENERIC | {
        "extra_special_tokens": ["<qsep>", "<ent>"], "pad_token": "<pad>", "eos_token": "<|end|>",
        "image_token": "covid19"}, added_tokens={"Hello": 400}),
    "fast, named more": lambda f: fast(f, "gpt2", base(), tokenizer_config=GENERIC | {
        "extra_special_tokens": {"q_token": "<qsep>"}}),
    "fast, other": lambda f: fast(f, "gpt2", lower_json(), tokenizer_config=GENERIC),
    "BERT": lambda f: slow_bert(f),
    "BERT, cased": lambda f: slow_bert(f, tokenizer_config={"do_lower_case": False}),
    "BERT, accents": lambda f: slow_bert(f, tokenizer_config={
        "do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False}),
    "BERT, added": lambda f: slow_bert(f, added_tokens=ADDED),
    "BERT, other names": lambda f: slow_bert(f, tokenizer_config={
        "tokenizer_class": "BertTokenizer", "sep_token": "the", "cls_token": "fox"}),
    "BERT, fast": lambda f: fast(f, "bert", bert_json()),
    "BERT, fast and cased": lambda f: fast(f, "bert", bert_json(), tokenizer_config={
        "tokenizer_class": "BertTokenizerFast", "do_lower_case": False}),
    "BERT, what the file says": lambda f: fast(f, "bert", bert_json(), tokenizer_config=GENERIC),
    "BERT, own": lambda f: fast(f, "bert", with_token(bert_json(), "<qsep>", True),
                                tokenizer_config={"additional_special_tokens": ["<ent>"]}),
    "DistilBERT's class": lambda f: slow_bert(f, tokenizer_config={
        "tokenizer_class": "DistilBertTokenizer"}),
}


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path):
    FOLDERS[request.param](tmp_path)
    return tmp_path


def read(folder, lines, parse_special=False):
    ids, _, _ = encode_sequences(load_tokenizer(folder), lines, parse_special=parse_special)
    return [row.tolist() for row in ids]


def pieces(folder, line, **options):
    made = load_tokenizer(folder)
    (ids,), _, _ = encode_sequences(made, [line], **options)
    return [made.id_to_token(i) for i in ids]


def test_all_files_are_read(request, folder):
    expected = json.loads(GOLDEN.read_text())[request.node.callspec.params["folder"]]
    assert read(folder, GOLDEN_LINES) == expected


@pytest.mark.parity
def test_all_files_are_read_as_transformers_reads_them(folder):
    transformers = pytest.importorskip("transformers", minversion="5")
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [peer(line)["input_ids"] for line in [*LINES, *ROLE_LINES]]
    assert read(folder, LINES) == expected[:len(LINES)]
    assert read(folder, [*LINES, *ROLE_LINES], parse_special=True) == expected


@pytest.mark.parity
def test_what_we_write_is_read_as_we_read_it(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = load_tokenizer(folder)
    save_tokenizer(made, tmp_path / "new", 64, None)
    write(tmp_path / "new", "config.json", json.loads((folder / "config.json").read_text()))
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert [peer(line)["input_ids"] for line in [*LINES, *ROLE_LINES]] == read(
        folder, [*LINES, *ROLE_LINES]) == read(tmp_path / "new", [*LINES, *ROLE_LINES])


# Special tokens in a text

def test_own_tokens_are_parsed_and_those_with_a_role_are_text(tmp_path):
    FOLDERS["fast, more"](tmp_path)
    line, own = "a<qsep>b<|end|>", ["a", "<qsep>", "b"]
    assert pieces(tmp_path, line) == [*own, "<", "|", "e", "nd", "|", ">"]
    assert pieces(tmp_path, line, parse_special=True) == [*own, "<|end|>"]


def test_a_copy_reads_special_tokens_as_the_tokenizer_does(tmp_path):
    FOLDERS["fast, own"](tmp_path)
    made = load_tokenizer(tmp_path)
    for copied in copy.deepcopy(made), pickle.loads(pickle.dumps(made)):
        assert encode_all(copied, ["a<|endoftext|>b<qsep>"])[0][0].tolist() == \
            encode_all(made, ["a<|endoftext|>b<qsep>"])[0][0].tolist()


def test_texts_with_special_tokens_are_counted(tmp_path):
    FOLDERS["fast, own"](tmp_path)
    made = load_tokenizer(tmp_path)
    texts = ["none", "a<|endoftext|>", "<|endoftext|> <|endoftext|>", "<qsep>", "<|endoftext"]
    assert special_tokens_note(made, texts) == (
        "note: 2 texts hold <|endoftext|>, read as characters, not as that token")
    assert special_tokens_note(made, texts[1:2]).startswith("note: 1 text holds <|endoftext|>, ")
    assert special_tokens_note(made, texts[:1]) is None


# What is refused, by the name of its key

@pytest.mark.parametrize(("name", "files", "message"), [
    ("slow", {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}},
     "damaged tokenizer: .*tokenizer_class is 'RobertaTokenizer', expected one of GPT2Tokenizer"),
    ("BERT", {"tokenizer_config": {"do_lower_case": "no"}},
     "do_lower_case is 'no', expected true or false"),
    ("slow", {"tokenizer_config": {"extra_special_tokens": [3]}}, "a token is 3, expected a text"),
    ("slow", {"added_tokens": []}, "added_tokens.json: holds a list"),
    ("BERT", {"tokenizer_config": {"cls_token": "[GO]"}}, "lacks the cls_token '\\[GO\\]'"),
    ("BERT, fast", {"config": {"model_type": "gpt2"}},
     "a model of type 'WordPiece', but by its tokenizer_class .* it is BPE"),
    ("fast, class by the model", {"config": {"model_type": "bert"}},
     "a model of type 'BPE', but by its tokenizer_class .* it is WordPiece")])
def test_what_cannot_be_built_is_refused_by_name(tmp_path, name, files, message):
    FOLDERS[name](tmp_path)
    for file, value in files.items():
        write(tmp_path, f"{file}.json", value)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


PANICS = {
    "charsmap": lambda data: data | {"normalizer": {
        "type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "charsmap at a text": lambda data: data | {"normalizer": {
        "type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
    "template": lambda data: data | {"post_processor": {
        "type": "TemplateProcessing", "special_tokens": {},
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"Sequence": {"id": "B", "type_id": 0}}]}},
    "prefix": lambda data: data | {"model": data["model"] | {
        "continuing_subword_prefix": "####"}}}


@pytest.mark.parametrize("name", PANICS)
def test_a_panic_of_the_library_is_one_line(tmp_path, capfd, name):
    fast(tmp_path, "gpt2", PANICS[name](base()), tokenizer_config=GENERIC)
    with pytest.raises(UserError, match="tokenizer.json: damaged tokenizer: ") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def panics_at(letter, folder):
    """-> a tokenizer that loads, and whose library panics at texts with this letter alone.

    Its Precompiled normalizer is a double array: the unit of the letter leads beyond its end.
    """
    units = [0] * 256
    units[ord(letter)] = ord(letter) | 1 << 8 | 2**20 << 10
    charsmap = struct.pack("<I256I", 4 * 256, *units)
    fast(folder, "gpt2", base() | {"normalizer": {
        "type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}},
        tokenizer_config=GENERIC)
    return load_tokenizer(folder)


def test_a_panic_at_a_text_is_one_line(tmp_path, capfd):
    tokenizer = panics_at("q", tmp_path)
    assert capfd.readouterr().err == ""
    encode(tokenizer, "no such letter")
    for call in encode, lambda tokenizer, text: encode_batch(tokenizer, [text]):
        with pytest.raises(UserError, match="^the tokenizer fails: index out of bounds"):
            call(tokenizer, "a queen")
    assert threading.active_count() > 1 or capfd.readouterr().err == ""
    # the command: one line, whatever its test has left running
    save(Classifier(GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_positions=16, n_embd=8,
                               n_layer=1, n_head=2), ("no", "yes")), tmp_path)
    done = subprocess.run([sys.executable, "-m", "minisft", "predict", "--model", str(tmp_path),
                           "a queen"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("minisft: the tokenizer fails: index out of bounds")


def test_what_others_print_meanwhile_is_not_lost(capfd):
    with without_panic_reports():
        os.write(2, b"from elsewhere\n")
    assert capfd.readouterr().err == "from elsewhere\n"
    with pytest.raises(ValueError), without_panic_reports():
        os.write(2, b"no panic\n")
        raise ValueError
    assert capfd.readouterr().err == "no panic\n"


def test_stderr_stays_where_other_threads_may_print(tmp_path, capfd):
    """They keep theirs at any time; the error is the same, beside the library's own report."""
    tokenizer, done = panics_at("q", tmp_path), threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(UserError, match="the tokenizer fails: index out of bounds"):
            encode(tokenizer, "a queen")
    finally:
        done.set()
        other.join()
    assert "panicked at" in capfd.readouterr().err


# What would fill the memory, or take no end

def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(("changes", "message"), [
    ({"normalizer": {"type": "Sequence", "normalizers": [replace("e" * 11, String="e")] * 2}},
     "the normalizer can make a text 121 times as long, expected at most 100"),
    ({"normalizer": replace("x" * 100, Regex="")}, "the normalizer can make a text 101 times"),
    ({"normalizer": replace("x" * 101, Regex="a")}, "the normalizer can make a text 102 times"),
    ({"normalizer": replace("é" * 101, String="é")}, "the normalizer can make a text 101 times"),
    ({"decoder": {"type": "Sequence", "decoders": [replace("  " * 15, String=" ")] * 2}},
     "the decoder can make a text 900 times"),
    ({"model": {"vocab": {"a": 0, "b": 1_000_003}}},
     "the token 'b' has the id 1000003, but there are 2, expected ids with at most 1000000 left"),
    ({"model": {"type": "WordPiece", "max_input_chars_per_word": 1001, "vocab": {}}},
     "max_input_chars_per_word is 1001, expected at most 1000"),
    ({"post_processor": {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [0] * 501}},
                         "single": [{"SpecialToken": {"id": "x"}}] * 2}},
     "the template of post_processor adds 1,002 tokens to a text, expected at most 1000"),
    ({"normalizer": {"type": "Sequence", "normalizers": [
        replace("ab", String="a"), {"type": "NFKC"}, replace(" ", Regex=" +")]}}, None),
    ({"model": {"vocab": {"a": 0, "b": 1_000_002}, "merges": []}}, None)])
def test_limits(changes, message):
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        require_sound(changes)


def test_a_bomb_of_a_tokenizer_is_refused(tmp_path):
    FOLDERS["fast, own"](tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    data["normalizer"] = {"type": "Sequence", "normalizers": [replace("a" * 99, String="a")] * 9}
    write(tmp_path, "tokenizer.json", data)
    with pytest.raises(UserError, match="damaged tokenizer: the normalizer can make a text "):
        load_tokenizer(tmp_path)
