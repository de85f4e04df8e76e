"""What a tokenizer.json may not hold, since the library would panic or fill the memory."""

import math
from typing import Any

from minisft.errors import UserError

# Those in use have a tenth of it.
MAX_GAP, MAX_WORD, MAX_GROWTH, MAX_ADDED = 1_000_000, 1000, 100, 1000


def require_sound(data: dict[str, Any]) -> None:
    """tokenizer.json as a dict; raises UserError for what would stop the process or never end."""
    model, template = data.get("model") or {}, data.get("post_processor") or {}
    prefix = model.get("continuing_subword_prefix")
    for pair in (model.get("merges") or ()) if prefix else ():
        second = (pair.split(" ") if isinstance(pair, str) else pair)[-1]
        if not second.startswith(prefix):
            raise UserError(f"the merge {pair!r} does not continue a word with "
                            f"continuing_subword_prefix {prefix!r}")
    for part in _templates(template):
        defined = part.get("special_tokens") or {}
        added = 0
        for piece in (*(part.get("single") or ()), *(part.get("pair") or ())):
            name = (piece.get("SpecialToken") or {}).get("id")
            if name is not None and name not in defined:
                raise UserError(f"the template of post_processor holds {name!r}, which its "
                                "special_tokens lack")
            added += len(defined[name].get("ids") or ()) if name is not None else 1
        if added > MAX_ADDED:
            raise UserError(f"the template of post_processor adds {added:,} tokens to a text, "
                            f"expected at most {MAX_ADDED}")
    vocab = model.get("vocab")
    if isinstance(vocab, dict) and vocab:
        # the library counts up to the last one when it saves
        token = max(vocab, key=lambda name: vocab[name])
        if vocab[token] > len(vocab) + MAX_GAP:
            raise UserError(f"the token {token!r} has the id {vocab[token]}, but there are "
                            f"{len(vocab)}, expected ids with at most {MAX_GAP} left out")
    if isinstance(length := model.get("max_input_chars_per_word"), int) and \
            length > MAX_WORD:      # the time grows with its square
        raise UserError(f"max_input_chars_per_word is {length}, expected at most {MAX_WORD}")
    for key in "normalizer", "decoder":
        if (growth := _growth(data.get(key) or {})) > MAX_GROWTH:
            raise UserError(f"the {key} can make a text {growth:,.0f} times as long, expected at "
                            f"most {MAX_GROWTH}")


def _growth(step):
    """A normalizer or decoder -> how many times as long it makes a text at most."""
    parts = step.get("normalizers") or step.get("decoders") or ()
    if parts:
        return math.prod(map(_growth, parts))
    if step.get("type") != "Replace":
        return 1
    pattern = step.get("pattern") or {}
    found = len(pattern["String"].encode()) if pattern.get("String") else 1
    # what matches an empty text stands between all letters
    more = 0 if pattern.get("String") else 1
    return max(1.0, more + len(str(step.get("content", "")).encode()) / found)


def _templates(post_processor):
    """-> the templates of a post_processor, which may be a sequence of several."""
    parts = post_processor.get("processors") or [post_processor]
    return [part for part in parts if part.get("type") == "TemplateProcessing"]
