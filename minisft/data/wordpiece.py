"""BERT's tokenizer, and the names of its files and special tokens.

WordPiece (Wu et al. 2016, section 4.1) as BERT uses it: clean characters, perhaps lower case and no
accents, a space around each Chinese character, words and punctuation apart; then the longest
pieces first, `##` before those inside a word.
"""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from minisft.errors import UserError

VOCABULARY = "vocab.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
# The names that `transformers` has for BERT's special tokens.
SPECIAL_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
                  "cls_token": "[CLS]", "mask_token": "[MASK]"}


def read_vocabulary(path: Path) -> dict[str, int]:
    """A vocab.txt, a token a line -> ids by token; raises UserError for a token twice."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise UserError(f"{len(lines)} lines but only {len(vocab)} different tokens")
    return vocab


def wordpiece(vocab: dict[str, int], unk_token: str, lowercase: bool, strip_accents: bool | None,
              chinese_characters: bool) -> Tokenizer:
    """Ids by token, the token for unknown words, how a text is normalized -> Tokenizer.

    `strip_accents` None: as `lowercase`.
    """
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=unk_token, max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True, lowercase=lowercase, strip_accents=strip_accents,
        handle_chinese_chars=chinese_characters)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    return tokenizer
