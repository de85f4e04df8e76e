"""Special tokens by their role: which one begins a text, which ends it, which pads a batch.

A folder of `transformers` says it in up to four files, as ids in config.json and
generation_config.json, as tokens in tokenizer_config.json and special_tokens_map.json. What it
says is used, and is written again with a model that was trained from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from minisft.data.json_file import read_object_if_there
from minisft.data.wordpiece import SPECIAL_TOKENS, TOKENIZER_CONFIG

END_OF_TEXT = "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
         "mask_token")
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens by their role; our own batches have no padding, those of others need it."""

    bos: int | None = None
    eos: tuple[int, ...] = ()      # generation stops at any; the first one ends what we train on
    pad: int | None = None
    # role as tokenizer_config.json has it -> token
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def end(self) -> int | None:
        """-> the id that ends a text."""
        return self.eos[0] if self.eos else None

    @property
    def settings(self) -> dict[str, Any]:
        """-> bos, eos and pad as config.json has them."""
        eos = list(self.eos) if len(self.eos) > 1 else self.end
        return {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}

    def within(self, tokenizer: Tokenizer, vocab_size: int) -> "SpecialTokens":
        """-> without the tokens beyond a model's table; the end then pads, as GPT-2's does.

        [PAD] is often added to a tokenizer whose model was not resized.
        """
        tokens = {role: token for role, token in self.tokens.items()
                  if (i := tokenizer.token_to_id(token)) is not None and i < vocab_size}
        bos, pad = (None if i is None or i >= vocab_size else i for i in (self.bos, self.pad))
        found = SpecialTokens(bos, tuple(i for i in self.eos if i < vocab_size), pad, tokens)
        if self.pad == pad or found.end is None:
            return found
        return replace(found, pad=found.end, tokens=tokens | {
            "pad_token": tokenizer.id_to_token(found.end)})


def default_special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """-> the roles by the published names: <|endoftext|> of GPT-2, [SEP] and others of BERT."""
    tokens = {}
    if isinstance(tokenizer.model, WordPiece):
        tokens = {role: token for role, token in SPECIAL_TOKENS.items()
                  if tokenizer.token_to_id(token) is not None}
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokens |= dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    elif tokenizer.token_to_id(SPECIAL_TOKENS["pad_token"]) is not None:
        tokens["pad_token"] = SPECIAL_TOKENS["pad_token"]
    return _with_ids(tokenizer, tokens, {}, {})


def read_special_tokens(folder: str | Path, tokenizer: Tokenizer) -> SpecialTokens:
    """A folder (or the file of its tokenizer), its tokenizer -> SpecialTokens.

    An id or a token that the tokenizer lacks has no role: a config.json often has the 50256 of
    another vocabulary. Roles that no file gives go by the published names. Raises UserError for a
    file that is not JSON.
    """
    folder, tokens = Path(folder), dict(default_special_tokens(tokenizer).tokens)
    if not folder.is_dir():
        return default_special_tokens(tokenizer)
    given: dict[str, str] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG):     # the second one wins
        settings = read_object_if_there(folder / name)
        for role in ROLES:
            token = settings.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
                given[role] = token
    config = {}
    for name in "config.json", GENERATION_CONFIG:     # the second one wins
        settings = read_object_if_there(folder / name)
        config |= {key: settings[key] for key in SpecialTokens().settings
                   if _ids(tokenizer, settings.get(key))}
    return _with_ids(tokenizer, tokens | given, config, given)


def _with_ids(tokenizer, tokens, config, given):
    """Tokens by role, ids as config.json has them, the tokens that files give -> SpecialTokens."""
    ids = {role: tokenizer.token_to_id(token) for role, token in tokens.items()}
    eos = _ids(tokenizer, config.get("eos_token_id")) or _ids(tokenizer, ids.get("eos_token"))
    bos = _ids(tokenizer, config.get("bos_token_id")) or _ids(tokenizer, ids.get("bos_token"))
    pad = ids.get("pad_token")
    if "pad_token" not in given:      # the tokenizer pads, so its own word counts first
        pad = (*_ids(tokenizer, config.get("pad_token_id")), pad)[0]
    if ids.get("eos_token") in eos:      # the one that the tokenizer knows ends a text
        eos = (ids["eos_token"], *(i for i in eos if i != ids["eos_token"]))
    roles = {"bos_token": (*bos, None)[0], "eos_token": (*eos, None)[0], "pad_token": pad}
    return SpecialTokens(roles["bos_token"], eos, pad, tokens | {
        role: name for role, i in roles.items()
        # the library may show an added token in lower case, and not know it by that name
        if i is not None and tokenizer.token_to_id(name := tokenizer.id_to_token(i)) == i})


def _ids(tokenizer, value):
    """An id, a list of them or anything else -> those that the tokenizer has."""
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in values if type(i) is int and 0 <= i < 2**32
                               and tokenizer.id_to_token(i) is not None))
