"""From a raw text to token ids: five cleaning steps, and a tokenizer, GPT-2's or BERT's."""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from minisft.data.special_tokens import END_OF_TEXT
from minisft.data.tokenizer import (
    encode_batch,
    library_errors,
    require_no_panic,
    without_panic_reports,
)
from minisft.data.tokenizer_files import (
    BYTE_LEVEL,
    TOKENIZER,
    build_tokenizer,
    byte_level,
    tokenizer_files,
)
from minisft.data.wordpiece import VOCABULARY
from minisft.errors import UserError

CLEANING_STEPS = ("entities", "tags", "backslashes", "control", "spaces")
GPT2_INPUTS = "input_ids", "attention_mask"

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Only names that are no English words; `amp;` alone could be one, but never was in 14,000 texts.
_BROKEN_ENTITY = re.compile(
    r"( ?)(?<![\w&#;])(#[0-9]{2,5}|quot|apos|amp|lt|gt|nbsp|hellip|mdash|ndash);")
_CONTRACTION = re.compile(r"(?:s|t|d|m|re|ve|ll)\b")
_ENTITY_PASSES = 4      # `&amp;amp;lt;` needs three; a bound keeps the time linear

# Names that people also write as placeholders (<time>, <data>, <title>, <address>) are left out.
_INLINE = frozenset("""a abbr acronym b big cite code del em font i ins mark q s small span strike
    strong sub sup tt u""".split())
_BLOCK = frozenset("""article blockquote body br button center dd div dl dt footer form h1 h2 h3 h4
    h5 h6 head header hr html iframe img input li link meta nav ol option p pre script section
    select style table tbody td tfoot th thead tr ul""".split())
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z1-6]{0,9})(?=[\s/>])([^<>]*)>")
_ATTRIBUTE = re.compile(r"[\w-]=")

_BACKSLASHES = re.compile(r"(?<!\w)[A-Za-z]:\\\S*|\\+[$']?")
# Zero-width joiners stay: Persian, Hindi and emoji are spelled with them. U+FFFD stays: it stands
# where a letter was lost, and taking it out would hide a wrongly read file.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069"
    "\ufeff\ud800-\udfff]")
_ENDLESS = re.compile(r"(?<!\S)\S{1001}|(?<!\s)\s{1001}")
_HALF = re.compile("[\ud800-\udfff]")
_WINDOWS = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}


def _broken_entity(match):
    """A match without ampersand -> its character; ` #39;s` joins its word again."""
    space, name = match.groups()
    if name[0] == "#" and not _likely_code(int(name[1:])):
        return match[0]
    char = html.unescape(f"&{name};")
    text, start, end = match.string, match.start(), match.end()
    before, after = text[max(start - 1, 0):start], text[end:end + 3]
    # The space stands where the ampersand was, so `it #39;s` is it's and `M amp;S` is M&S.
    if char in ("'", "\u2019"):
        joins = _CONTRACTION.match(after)
    else:
        joins = char == "&" and after[:1].isalnum()
    return char if joins and before.isalnum() else space + char


def _likely_code(code):
    """Is `#code;` an entity, and not a number in a list: punctuation, Latin-1, general symbols?"""
    if code < 0x80:
        return code > 0x20 and code != 0x7F and not chr(code).isalnum()
    return code <= 0xFF or 0x2000 <= code < 0x20D0


def _entities(text):
    for _ in range(_ENTITY_PASSES if ";" in text else 0):
        decoded = _BROKEN_ENTITY.sub(_broken_entity, text)
        decoded = _ENTITY.sub(lambda match: html.unescape(match[0]), decoded)
        if decoded == text:
            break
        text = decoded
    return text


def _tag(match):
    """A match of a tag -> what replaces it: nothing, a space, or itself when it is no tag."""
    slash, name, rest = match[1], match[2].lower(), match[3]
    bare = not rest.strip(" \t\r\n/\\")
    if not bare and (slash or not _ATTRIBUTE.search(rest)):
        return match[0]      # `a <b and c> d`
    if name in _INLINE:
        return ""
    return " " if name in _BLOCK else match[0]


def _tags(text):
    parts, end = [], 0
    # Not a regular expression: many `<!--` without an end would take quadratic time.
    while (start := text.find("<!--", end)) >= 0 and (stop := text.find("-->", start + 4)) >= 0:
        parts.append(text[end:start])
        end = stop + 3
    return _TAG.sub(_tag, "".join(parts) + text[end:])


def _backslash(match):
    text = match[0]
    if text[0] != "\\":
        return text          # a Windows path
    escaped = text.lstrip("\\")
    return escaped if escaped and len(text) == 2 else " " + escaped


def _control(match):
    char = match[0]
    if "\x1c" <= char <= "\x1f":
        return " "           # the four separators
    if _HALF.match(char):
        return "\ufffd"      # half a character, which no UTF-8 can hold
    return _WINDOWS.get(char, "")


_STEPS = {
    "entities": _entities,
    "tags": _tags,
    "backslashes": lambda text: _BACKSLASHES.sub(_backslash, text),
    "control": lambda text: _CONTROL.sub(_control, text),
    "spaces": lambda text: " ".join(text.split()),
}


def parse_cleaning_steps(text: str) -> tuple[str, ...]:
    """"all", "none" or names with commas between -> steps in their order; UserError if unknown."""
    names = [name.strip() for name in text.split(",")]
    if names in (["all"], ["none"]):
        return CLEANING_STEPS if names == ["all"] else ()
    for name in names:
        if name not in CLEANING_STEPS:
            raise UserError(f"unknown cleaning step {name!r}; known: all, none, or some of "
                            f"{','.join(CLEANING_STEPS)}")
    return tuple(step for step in CLEANING_STEPS if step in names)


def clean(text: str, steps: Iterable[str] = CLEANING_STEPS) -> tuple[str, tuple[str, ...]]:
    r"""A text, steps in the order to apply -> the cleaned text, the steps that changed something.

    entities     HTML entities that end in `;`, encoded up to four times over. Without ampersand, as
                 AG News has them, only quot apos amp lt gt nbsp hellip mdash ndash and `#code;` of
                 a character that is no digit or letter of ASCII; the space before `#39;s` goes too.
    tags         comments and tags of HTML. <b>, </a>, <A HREF="x"> count as tags, `a < b`, `<3`,
                 `<user>` and `<b and c>` do not. Inline tags vanish, <br>, <p>, ... become a space.
    backslashes  a single one before `$` or `'` is dropped; any other run of them stands for a line
                 break and becomes a space, except in a path that opens with a drive (`C:\a\b`).
                 What follows is kept: `\n` spelled as two characters becomes a space and an n.
    control      control and invisible characters vanish, white space and joiners stay; U+0080 to
                 U+009F are read as Windows-1252 (as browsers do), lone surrogates become U+FFFD.
    spaces       every run of white space becomes one space, the ends are stripped.
    """
    changed = []
    for step in steps:
        if step not in _STEPS:
            parse_cleaning_steps(step)
        cleaned = _STEPS[step](text)
        if cleaned != text:
            changed.append(step)
            text = cleaned
    return text, tuple(changed)


def clean_all(texts: Iterable[str],
              steps: Sequence[str] = CLEANING_STEPS) -> tuple[list[str], Counter[str]]:
    """Texts -> cleaned texts, Counter of how many texts each step changed."""
    cleaned = []
    counts: Counter[str] = Counter()
    for text in texts:
        text, changed = clean(text, steps)
        cleaned.append(text)
        counts.update(changed)
    return cleaned, counts


def load_tokenizer(path: str | Path, say: Callable[[str], Any] | None = None) -> Tokenizer:
    """A folder, or a tokenizer.json -> Tokenizer; UserError if there is none or it is damaged.

    A literal <|endoftext|> or [SEP] in a text is those characters, never the special token. The
    same text always gives the same tokens: BPE's dropout is switched off, and `say` is told.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such folder or file to load a tokenizer from")
    files = tokenizer_files(path) if path.is_dir() else [path]
    if files is None:
        raise UserError(f"{path}: no tokenizer in this folder; looked for {TOKENIZER}, "
                        f"{', '.join(map('+'.join, BYTE_LEVEL))}, {VOCABULARY}")
    with library_errors(f"{'+'.join(map(str, files))}: damaged tokenizer"), \
            without_panic_reports():
        tokenizer = _without_extras(build_tokenizer(files))
        require_no_panic(tokenizer)
    if dropout := getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
        if say is not None:
            say(f"note: {files[0]} drops {dropout:.0%} of its merges at random, which is switched "
                "off here")
    return tokenizer


def _without_extras(tokenizer):
    """Tokenizer -> the same, reading special tokens in a text as text, no truncation, no padding.
    """
    tokenizer.encode_special_tokens = True      # the library does not save this with the file
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, pad: str | None = None) -> Tokenizer:
    """Texts, at most this many tokens (257 or more, else UserError) -> Tokenizer.

    Its last id is <|endoftext|>, as in GPT-2, and 0 is `pad`, if there is to be such a token. The
    same texts give the same tokenizer; it is smaller than asked for when the texts hold no more
    pairs to merge.
    """
    special = [token for token in (pad, END_OF_TEXT) if token is not None]
    minimum = len(ByteLevel.alphabet()) + len(special)
    if vocab_size < minimum:
        raise UserError(f"a vocabulary of {vocab_size} is too small: 256 bytes and "
                        f"{' and '.join(special)} need {minimum}")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=vocab_size - len(special), show_progress=False,
                         initial_alphabet=sorted(ByteLevel.alphabet()))
    pieces = (piece for text in texts for piece in _trainable(text))
    tokenizer.train_from_iterator(pieces, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocab = {token: i for i, token in enumerate([*special[:-1], *tokens, END_OF_TEXT])}
    tokenizer = byte_level(vocab, [tuple(pair) for pair in model["merges"]])
    tokenizer.add_special_tokens(special)
    return _without_extras(tokenizer)


def _trainable(text):
    """Text -> itself, or pieces of it: training takes quadratic time over one endless word."""
    if not _ENDLESS.search(text):
        return (text,)
    return (text[start:start + 1000] for start in range(0, len(text), 1000))


def encode_all(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None,
               truncate: str = "head", parse_special: bool = False,
               ) -> tuple[list[np.ndarray], int]:
    """Texts -> arrays of int64 ids (T,), how many texts were longer than max_length and cut.

    "head" keeps the first max_length tokens, "tail" the last. No special token is added, and those
    that stand literally in a text are read as characters unless `parse_special`. Raises UserError
    with the number of a text (from 1) that holds half a character.
    """
    if truncate not in ("head", "tail"):
        raise UserError(f"truncate must be head or tail, not {truncate!r}")
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length must be 1 or more, not {max_length}")
    for number, text in enumerate(texts, 1):
        if not text.isascii() and _HALF.search(text):
            raise UserError(f"text {number} holds half a character (a lone surrogate), which the "
                            "cleaning step `control` replaces")
    sequences, cut = [], 0
    for start in range(0, len(texts), 256):      # one text's encoding is far larger than its ids
        for encoding in encode_batch(tokenizer, texts[start:start + 256], parse_special):
            ids = encoding.ids
            if max_length is not None and len(ids) > max_length:
                ids = ids[:max_length] if truncate == "head" else ids[-max_length:]
                cut += 1
            sequences.append(np.array(ids, dtype=np.int64))
    return sequences, cut
