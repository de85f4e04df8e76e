"""BERT's tokenizer from a folder without tokenizer.json: vocab.txt and tokenizer_config.json.

WordPiece (Wu et al. 2016, section 4.1) as BERT uses it: clean characters, perhaps lower case and no
accents, a space around each Chinese character, words and punctuation apart; then the longest
pieces first, `##` before those inside a word. [CLS] opens a sequence, [SEP] ends each text.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from minisft.errors import UserError

VOCABULARY = "vocab.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
# The names that `transformers` has for BERT's special tokens.
SPECIAL_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
                  "cls_token": "[CLS]", "mask_token": "[MASK]"}


def load_tokenizer_file(path: str | Path) -> Tokenizer:
    """A tokenizer.json or vocab.txt -> Tokenizer."""
    path = Path(path)
    return _from_vocabulary(path) if path.name == VOCABULARY else Tokenizer.from_file(str(path))


def _from_vocabulary(path):
    """A vocab.txt, a token a line -> Tokenizer, with the options of tokenizer_config.json.

    Raises UserError for a vocabulary without the special tokens, or with a token twice.
    """
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise UserError(f"{len(tokens)} lines but only {len(vocab)} different tokens")
    settings = _read_config(path.parent / TOKENIZER_CONFIG)
    names = {role: _content(settings.get(role, name)) for role, name in SPECIAL_TOKENS.items()}
    for role in ("unk_token", "sep_token", "cls_token"):
        if names[role] not in vocab:
            raise UserError(f"the vocabulary lacks the {role} {names[role]!r}")
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=names["unk_token"],
                                    max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True, lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),      # None: as the case
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    first, between = names["cls_token"], names["sep_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {between}", pair=f"{first} $A {between} $B:1 {between}:1",
        special_tokens=[(name, vocab[name]) for name in (first, between)])
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_special_tokens([name for name in names.values() if name in vocab])
    return tokenizer


def _read_config(path):
    """-> tokenizer_config.json as a dict, empty where there is none."""
    if not path.is_file():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise UserError(f"{TOKENIZER_CONFIG} holds no JSON object")
    return settings


def _content(name):
    return name.get("content") if isinstance(name, dict) else name     # as old files have it
