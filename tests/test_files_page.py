"""docs/files.md names every file and key that the code reads or writes, and those of transformers.
"""

import ast
import json
import os
import re
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

from minisft.data.special_tokens import ROLES, SpecialTokens
from minisft.data.text import train_tokenizer
from minisft.data.tokenizer_files import SWITCHES
from minisft.io import nanogpt
from minisft.io.architectures import hf_config
from minisft.io.model_folder import Columns, Preprocessing, save_tokenizer
from minisft.io.run_folder import CONTENTS, LOCK, STATE
from minisft.models.bert import BertConfig
from minisft.models.config import (
    BERT_UNSUPPORTED,
    GPT2_UNSUPPORTED,
    SEQ2SEQ_UNSUPPORTED,
    GPT2Config,
    Seq2SeqConfig,
)
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minisft"
PAGE = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0].strip("` "): part for part in
            re.split(r"^## ", PAGE, flags=re.M)[1:]}
FILE = re.compile(r"[\w*.-]*\.(json|jsonl|txt|safetensors|bin|pt|pkl|png|md|html|csv|tsv|conllu|h5|"
                  r"msgpack|bpe|gz|lock|model|jinja)")
INSIDE = {"data.pkl"}      # a member of an archive
# Files of others that the page names: not read, or named by their users.
OF_OTHERS = {"tokenizer.model", "chat_template.jinja", "chat_template.json",
             "adapter_model.bin", "ckpt.pt", "meta.pkl"}


def named(text):
    """-> the words in backquotes of a text, without those in code blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))


def modules():
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(PACKAGE.rglob("*.py"))}


def files_of_the_code():
    """-> the names of files that stand in the code, among them endings and patterns."""
    found = set()
    for tree in modules().values():
        docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            and isinstance(node.body[0], ast.Expr)}
        found |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
                  and isinstance(node.value, str) and id(node) not in docstrings
                  and FILE.fullmatch(node.value)}
    return found - INSIDE


def keys_read(*names):
    """-> the keys that modules look up in what they call settings, config, values or data."""
    found = set()
    for name, tree in modules().items():
        for node in ast.walk(tree) if name in names else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and \
                    node.func.attr == "get" and node.args:
                place, key = node.func.value, node.args[0]
            elif isinstance(node, ast.Subscript):
                place, key = node.value, node.slice
            else:
                continue
            if isinstance(place, ast.Name) and place.id in ("settings", "config", "values") and \
                    isinstance(key, ast.Constant) and isinstance(key.value, str):
                found.add(key.value)
    return found


def test_every_file_of_the_code_is_on_the_page():
    found = files_of_the_code()
    assert {"config.json", "vocab.bpe", "metrics.jsonl", ".tsv", "model-*.safetensors"} <= found
    shown = named(PAGE) | {"*.safetensors", ".safetensors", ".pt",
                           ".pkl"}     # which stand for files of the page
    assert found <= shown, sorted(found - shown)


def test_every_file_of_the_page_is_in_the_code():
    shown = {name for name in named(PAGE) if FILE.fullmatch(name)}
    assert OF_OTHERS <= shown
    unknown = shown - files_of_the_code() - OF_OTHERS
    assert not unknown, sorted(unknown)


def test_every_key_of_config_json_is_on_the_page():
    gpt2 = GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1)
    bert = BertConfig(9, 4, 1, 1, 4, max_position_embeddings=4)
    read = keys_read("io/architectures.py", "io/checkpoint.py", "data/special_tokens.py")
    assert {"problem_type", "id2label", "architectures", "tie_word_embeddings"} <= read
    written = {key for model in (
        Classifier(gpt2, ("a", "b")), LanguageModel(gpt2), BertClassifier(bert, ("a", "b")),
        BertClassifier(bert, ("a", "b"), pooling="mean"),
        EncoderDecoder(Seq2SeqConfig(vocab_size=9, d_model=4, encoder_layers=1, decoder_layers=1)))
        for key in hf_config(model, "float32", SpecialTokens())}
    known = {field.name for kind in (GPT2Config, BertConfig, Seq2SeqConfig)
             for field in fields(kind)}
    keys = read | written | known | GPT2_UNSUPPORTED.keys() | BERT_UNSUPPORTED.keys() | \
        SEQ2SEQ_UNSUPPORTED.keys()
    shown = named(SECTIONS["config.json"])
    assert keys <= shown, sorted(keys - shown)


def test_every_key_of_the_tokenizer_is_on_the_page(tmp_path):
    save_tokenizer(train_tokenizer(["a film"], 260), tmp_path, 9)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text()).keys()
    read = keys_read("data/tokenizer_files.py")
    assert {"added_tokens_decoder", "tokenizer_class", "extra_special_tokens"} <= read
    keys = written | (read - {"model_type"}) | {*SWITCHES, *ROLES}
    shown = named(SECTIONS["The tokenizer"])
    assert keys <= shown, sorted(keys - shown)


def test_every_key_of_minisft_json_is_on_the_page():
    keys = {field.name for kind in (Preprocessing, Columns) for field in fields(kind)}
    assert keys <= named(SECTIONS["minisft.json"])


def test_all_of_a_run_and_of_nanogpt_is_on_the_page():
    assert {*CONTENTS, LOCK, STATE} <= named(SECTIONS["A run's folder"])
    assert {*nanogpt._SHAPE, *nanogpt._OTHER, nanogpt.MODEL_ARGS} <= named(
        SECTIONS["Checkpoints of others"])


# What transformers reads and writes itself.

@pytest.fixture(scope="module")
def hf():
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        pytest.importorskip("torch")
        return pytest.importorskip("transformers")


TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast", "BertTokenizer", "BertTokenizerFast",
              "DistilBertTokenizer", "PreTrainedTokenizerFast")


@pytest.mark.parity
def test_their_names_of_files_are_on_the_page(hf):
    from transformers import tokenization_utils_base, utils
    names = {file for kind in TOKENIZERS for file in getattr(hf, kind).vocab_files_names.values()}
    assert {"vocab.json", "merges.txt", "vocab.txt", "tokenizer.json"} <= names
    for module, pattern in (
            (tokenization_utils_base, r".*TOKEN.*_FILE|CHAT_TEMPLATE_(FILE|DIR)"),
            (utils, r"(LEGACY_PROCESSOR_)?CHAT_TEMPLATE_(FILE|DIR)|(SAFE_|TF2_|FLAX_)?WEIGHTS_"
                    r"(INDEX_)?NAME|(GENERATION_)?CONFIG_NAME|ADAPTER_.*NAME")):
        found = {value for key, value in vars(module).items() if re.fullmatch(pattern, key)}
        assert len(found) > 3
        names |= found
    names -= {"tf_model.h5.index.json", "flax_model.msgpack.index.json"}      # beside the refused
    assert names <= named(PAGE), sorted(names - named(PAGE))


@pytest.mark.parity
def test_their_keys_of_config_json_are_on_the_page(hf):
    keys = {key for kind in (hf.GPT2Config, hf.BertConfig, hf.M2M100Config)
            for key in kind().to_dict()}
    keys -= hf.GenerationConfig().to_dict().keys() - {"bos_token_id", "eos_token_id",
                                                      "pad_token_id"}
    shown = named(SECTIONS["config.json"])
    assert len(keys) > 40 and keys <= shown, sorted(keys - shown)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "BertTokenizer",
                                  "BertTokenizerFast", "PreTrainedTokenizerFast"])
def test_what_their_tokenizers_save_is_on_the_page(hf, tmp_path, name):
    made = train_tokenizer(["a film"], 260)
    (tmp_path / "vocab.txt").write_text("\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] a b".split()))
    made.model.save(str(tmp_path))
    made.save(str(tmp_path / "tokenizer.json"))
    if name.startswith("Bert"):
        (tmp_path / "tokenizer.json").unlink()
    theirs = getattr(hf, name).from_pretrained(tmp_path)
    theirs.add_tokens(["<qsep>"])
    theirs.chat_template = "{{ messages }}"
    theirs.save_pretrained(tmp_path / "saved")
    shown = named(SECTIONS["The tokenizer"])
    for path in (tmp_path / "saved").iterdir():
        assert path.name in shown
        if path.name in ("tokenizer_config.json", "special_tokens_map.json"):
            keys = json.loads(path.read_text()).keys()
            assert keys <= shown, sorted(keys - shown)
