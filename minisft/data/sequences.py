"""From texts to the sequences that a model reads: one text or two, between the special tokens.

The tokenizer says which special tokens stand where: BERT's puts [CLS] before a text and [SEP]
behind it, GPT-2's puts none.
"""

from collections.abc import Callable, Sequence
from itertools import chain, groupby, takewhile
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from minisft.data.text import encode_all
from minisft.data.tokenizer import decode, encode, encode_batch
from minisft.errors import UserError


def encode_sequences(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None,
                     truncate: str = "head", pairs: Sequence[str] | None = None,
                     parse_special: bool = False,
                     ) -> tuple[list[np.ndarray], list[np.ndarray] | None, int]:
    """Texts, perhaps a second text for each -> ids and types of each sequence, how many were cut.

    ids: arrays of int64 (T,); types: 0 for tokens of the first text and 1 for those of the second
    (T,), or None where all are 0. `max_length` counts the special tokens too; "head" keeps the
    beginning of a text, "tail" its end, and of two texts the longer one is cut first.
    `parse_special` as in `encode_all`. Raises
    UserError for a length without room for a text, and for a tokenizer that does not separate the
    two texts of a pair.
    """
    template = _template(tokenizer, pairs is not None)
    special = sum(len(ids) for part, ids, _ in template if part is None)
    room = None if max_length is None else max_length - special
    if room is not None and room < 1 + (pairs is not None):
        raise UserError(f"a maximum sequence length of {max_length} tokens leaves no room for a "
                        f"text besides the {special} special tokens")
    encoded = [encode_all(tokenizer, part, None, truncate, parse_special)[0]
               for part in (texts, pairs) if part is not None]
    sequences, types, cut = [], [], 0
    for parts in zip(*encoded, strict=True):
        if room is not None and sum(map(len, parts)) > room:
            parts = tuple(_truncate(part, n, truncate) for part, n in zip(parts, _shares(
                [len(part) for part in parts], room), strict=True))
            cut += 1
        pieces = [(ids if part is None else parts[part], kind) for part, ids, kind in template]
        sequences.append(np.concatenate([ids for ids, _ in pieces]))
        types.append(np.repeat([kind for _, kind in pieces], [len(ids) for ids, _ in pieces]))
    return sequences, (types if any(kind for _, _, kind in template) else None), cut


def unreadable(ids: Sequence[np.ndarray], tokenizer: Tokenizer, config: Any,
               types: Sequence[np.ndarray] | None = None, what: str = "text") -> dict[int, str]:
    """Sequences -> why the model of this config cannot read some of them, by index.

    That is one without tokens, or with an id or a type beyond the model's tables. A token that no
    text holds may lie beyond: the one that was added for padding, say.
    """
    reasons = {}
    for n, row in enumerate(ids):
        if len(row) == 0:
            reasons[n] = (f"nothing is left of the {what}, the tokenizer has no token for any of "
                          "its characters")
        elif (highest := int(row.max())) >= config.vocab_size:
            token = tokenizer.id_to_token(highest)
            name = "a token of its template" if token is None else f"the token {token!r}"
            reasons[n] = (f"{name} has the id {highest}, but the model has {config.vocab_size} "
                          "tokens")
    known = getattr(config, "type_vocab_size", None)
    for n, row in enumerate(() if types is None or known is None else types):
        if n not in reasons and (highest := int(row.max())) >= known:
            reasons[n] = (f"the tokenizer gives the token type {highest}, but the model has "
                          f"{known} types")
    return reasons


def require_readable(ids: Sequence[np.ndarray], tokenizer: Tokenizer, config: Any,
                     place: Callable[[int], str], types: Sequence[np.ndarray] | None = None,
                     what: str = "text") -> None:
    """Raises UserError for the first sequence that is `unreadable`; `place(n)` says where the text
    of index n stands."""
    for n, reason in unreadable(ids, tokenizer, config, types, what).items():
        raise UserError(f"{place(n)}: {reason}")


def special_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """-> the ids of the special tokens that it puts around a text, sorted."""
    return tuple(sorted({int(i) for part, ids, _ in _template(tokenizer, False) if part is None
                         for i in ids}))


def leading_ids(tokenizer: Tokenizer) -> np.ndarray:
    """-> the ids of the special tokens that it puts before a text: those of add_bos_token."""
    leading = takewhile(lambda piece: piece[0] is None, _template(tokenizer, False))
    return np.concatenate([np.array([], dtype=np.int64), *(ids for _, ids, _ in leading)])


def special_frame(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """-> the ids of the special tokens before and behind a text, and the token types of the three.
    """
    template = _template(tokenizer, False)
    at = [part for part, _, _ in template].index(0)
    before, behind = (np.concatenate([np.array([], np.int64), *(ids for _, ids, _ in part)])
                      for part in (template[:at], template[at + 1:]))
    kinds = [kind for _, _, kind in template]
    return before, behind, [kinds[0], kinds[at], kinds[-1]]


def pair_frame(tokenizer: Tokenizer,
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """-> the ids before, between and behind two texts, and the token types of the five parts.

    A tokenizer that has nothing to put between them parts them by a line break. Raises UserError
    where it has no token for that either.
    """
    try:
        template = _template(tokenizer, True)
    except UserError:
        before, behind, kinds = special_frame(tokenizer)
        between = np.array(encode_batch(tokenizer, ["\n"])[0].ids, np.int64)
        if not len(between):
            raise UserError("the tokenizer has nothing to part two texts by: neither a token of "
                            "its own nor a line break") from None
        return before, between, behind, [kinds[0], kinds[1], kinds[1], kinds[1], kinds[2]]
    parts = [part for part, _, _ in template]
    first, second = parts.index(0), parts.index(1)
    before, between, behind = (
        np.concatenate([np.array([], np.int64), *(ids for _, ids, _ in part)])
        for part in (template[:first], template[first + 1:second], template[second + 1:]))
    kinds = [kind for _, _, kind in template]
    return before, between, behind, [kinds[0], kinds[first], kinds[second - 1], kinds[second],
                                     kinds[-1]]


def _template(tokenizer, paired):
    """-> (part, ids, type) in order: part None for special tokens, 0 or 1 for the texts."""
    encoding = encode(tokenizer, *[_some_text(tokenizer)] * (1 + paired))
    rows = zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True)
    template = []
    for (part, kind), group in groupby(rows, key=lambda row: (row[0], row[2])):
        template.append((part, np.array([ids for _, ids, _ in group], dtype=np.int64), kind))
    parts = [part for part, _, _ in template]
    if parts.count(0) != 1 or paired != (1 in parts):
        raise UserError("the tokenizer makes no token of any text")
    if paired and parts.index(1) == parts.index(0) + 1:
        raise UserError("the tokenizer puts nothing between two texts, expected one with a token "
                        "that parts them, as BERT's [SEP]")
    return template


def _some_text(tokenizer):
    """-> a text that the tokenizer has tokens for."""
    texts = (decode(tokenizer, [i]) for i in range(min(tokenizer.get_vocab_size(), 1000)))
    return next((text for text in chain("a", texts) if encode_batch(tokenizer, [text])[0].ids), "a")


def _shares(lengths, room):
    """Lengths of one text or two -> how many tokens each keeps; the longer one is cut first."""
    if len(lengths) == 1:
        return [room]
    shorter = 0 if lengths[0] <= lengths[1] else 1
    share = min(lengths[shorter], room // 2)
    return [share, room - share] if shorter == 0 else [room - share, share]


def _truncate(ids, n, truncate):
    return ids[:n] if truncate == "head" else ids[len(ids) - min(n, len(ids)):]
