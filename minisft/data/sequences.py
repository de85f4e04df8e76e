"""From texts to the sequences that a model reads: one text or two, between the special tokens.

Which tokens stand where is the tokenizer's own matter: BERT's puts [CLS] before and [SEP] behind,
GPT-2's nothing.
"""

from itertools import groupby

import numpy as np

from minisft.data.text import encode_all
from minisft.errors import UserError


def encode_sequences(tokenizer, texts, max_length=None, truncate="head", pairs=None):
    """Texts, perhaps a second text for each -> ids and types of each sequence, how many were cut.

    ids: arrays of int64 (T,); types: the same with the number of the text that a token belongs to,
    or None where that is 0 everywhere. `max_length` counts the special tokens too; "head" keeps the
    beginning of a text, "tail" its end, and of two texts the longer one is cut first. Raises
    UserError for a length without room for a text, and for pairs that nothing would part.
    """
    template = _template(tokenizer, pairs is not None)
    special = sum(len(ids) for part, ids, _ in template if part is None)
    room = None if max_length is None else max_length - special
    if room is not None and room < 1 + (pairs is not None):
        raise UserError(f"a text of at most {max_length} tokens leaves no room beside the "
                        f"{special} special ones")
    encoded = [encode_all(tokenizer, part, None, truncate)[0]
               for part in (texts, pairs) if part is not None]
    sequences, types, cut = [], [], 0
    for parts in zip(*encoded, strict=True):
        if room is not None and sum(map(len, parts)) > room:
            parts = [_cut(part, n, truncate) for part, n in zip(parts, _shares(
                [len(part) for part in parts], room), strict=True)]
            cut += 1
        framed = [(ids if part is None else parts[part], kind) for part, ids, kind in template]
        sequences.append(np.concatenate([ids for ids, _ in framed]))
        types.append(np.repeat([kind for _, kind in framed], [len(ids) for ids, _ in framed]))
    return sequences, (types if any(kind for _, _, kind in template) else None), cut


def special_ids(tokenizer):
    """-> the ids of the tokens that it puts around a text, in order."""
    return tuple(sorted({int(i) for part, ids, _ in _template(tokenizer, False) if part is None
                         for i in ids}))


def _template(tokenizer, paired):
    """-> (part, ids, type) in order: part None for special tokens, 0 or 1 for the texts."""
    found = tokenizer.encode(*["a"] * (1 + paired))
    rows = zip(found.sequence_ids, found.ids, found.type_ids, strict=True)
    template = []
    for (part, kind), group in groupby(rows, key=lambda row: (row[0], row[2])):
        template.append((part, np.array([ids for _, ids, _ in group], dtype=np.int64), kind))
    parts = [part for part, _, _ in template]
    if parts.count(0) != 1 or paired != (1 in parts):
        raise UserError("the tokenizer makes no token of the letter a")
    if paired and parts.index(1) == parts.index(0) + 1:
        raise UserError("the tokenizer puts nothing between two texts, expected one with a token "
                        "that parts them, as BERT's [SEP]")
    return template


def _shares(lengths, room):
    """Lengths of one text or two -> how many tokens each keeps; the longer one is cut first."""
    if len(lengths) == 1:
        return [room]
    shorter = 0 if lengths[0] <= lengths[1] else 1
    kept = min(lengths[shorter], room // 2)
    return [kept, room - kept] if shorter == 0 else [room - kept, kept]


def _cut(ids, n, truncate):
    return ids[:n] if truncate == "head" else ids[len(ids) - min(n, len(ids)):]
