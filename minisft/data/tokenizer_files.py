"""A folder's tokenizer, of all its files: what the newest `transformers` builds from the same.

    tokenizer.json                       the whole; where tokenizer_config.json (or config.json)
                                         names a class of GPT-2 or BERT, only its vocabulary,
                                         merges and, of GPT-2, its template count, as there
    vocab.json and merges.txt            GPT-2; also encoder.json and vocab.bpe
    vocab.txt                            BERT
    tokenizer_config.json                tokenizer_class, do_lower_case, strip_accents,
                                         tokenize_chinese_chars, add_prefix_space, add_bos_token,
                                         add_eos_token, special and added tokens
    special_tokens_map.json              special tokens, and
    added_tokens.json                    added ones, where tokenizer_config.json does not list them

Added tokens get the next free id, whatever the file says, as there. Unlike there, the tokens that
have a role (bos, eos, pad, ...) are not looked for in a text; the model's own ones are.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from minisft.data.json_file import read_object, read_object_if_there
from minisft.data.special_tokens import END_OF_TEXT, ROLES
from minisft.data.tokenizer_limits import require_sound
from minisft.data.wordpiece import TOKENIZER_CONFIG, VOCABULARY, read_vocabulary, wordpiece
from minisft.errors import UserError

TOKENIZER = "tokenizer.json"
BYTE_LEVEL = ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")
# What others call a token with a role: read as text too where no file says that it has one.
USUAL_ROLES = frozenset(
    "<s> </s> <pad> <unk> <mask> <bos> <eos> <cls> <sep> [PAD] [UNK] [CLS] [SEP] [MASK] [BOS] "
    "[EOS] <|endoftext|>".split())
# Classes of `transformers` by their names without "Fast"; None: tokenizer.json says it all.
CLASSES = {"GPT2Tokenizer": "gpt2", "BertTokenizer": "bert", "DistilBertTokenizer": "bert",
           "PreTrainedTokenizer": None, "TokenizersBackend": None, "PythonBackend": None}
DEFAULT_ROLES: dict[str | None, dict[str, str | None]] = {
    None: {}, "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    "bert": {role: f"[{role[:-6].upper()}]" for role in ROLES[2:]}}
SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space",
            "add_bos_token", "add_eos_token", "split_special_tokens")


@dataclass(frozen=True)
class _Declared:
    """The tokens that a folder's files name."""

    roles: dict[str, AddedToken]     # also under names of the model's own
    added: list[AddedToken]          # by id
    extra: list[AddedToken]


def tokenizer_files(folder: Path) -> list[Path] | None:
    """-> the files that hold its vocabulary, None where there are none."""
    for names in (TOKENIZER,), *BYTE_LEVEL, (VOCABULARY,):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    return None


def build_tokenizer(files: list[Path]) -> Tokenizer:
    """The files of a folder's vocabulary -> Tokenizer.

    Raises UserError, and whatever the tokenizers library raises.
    """
    folder, whole = files[0].parent, files[0].name not in (VOCABULARY, *sum(BYTE_LEVEL, ()))
    settings = read_object_if_there(folder / TOKENIZER_CONFIG)
    for key in SWITCHES:
        if not isinstance(settings.get(key), bool | None):
            raise UserError(f"{TOKENIZER_CONFIG}: {key} is {settings[key]!r}, expected true or "
                            "false")
    kind = _kind(settings, read_object_if_there(folder / "config.json"))
    if not whole:
        kind = "bert" if files[0].name == VOCABULARY else "gpt2"
    data = read_object(files[0]) if whole else {}
    declared = _declared(folder, settings, DEFAULT_ROLES[kind], data)
    if whole:
        require_sound(data)
    if kind == "bert":
        tokenizer = _bert(data, files, settings, declared)
    elif kind == "gpt2":
        tokenizer = _gpt2(data, files, settings)
    else:
        tokenizer = Tokenizer.from_str(json.dumps(data))
    _add_tokens(tokenizer, declared)
    if kind == "bert":
        _cls_and_sep(tokenizer, declared.roles)
    elif not whole and (settings.get("add_bos_token") or settings.get("add_eos_token")):
        _bos_and_eos(tokenizer, settings, declared.roles)
    if settings.get("split_special_tokens"):
        return tokenizer
    return _parse_own_tokens(tokenizer, declared)


def byte_level(vocab: dict[str, int], merges: Any, add_prefix_space: bool = False) -> Tokenizer:
    """Ids by token, pairs -> GPT-2's Tokenizer; UserError unless ids are 0..V-1 and all bytes are
    there."""
    missing = sorted(set(ByteLevel.alphabet()) - set(vocab))
    if missing:
        raise UserError(f"the vocabulary lacks {len(missing)} of the 256 byte symbols")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"the ids of its {len(vocab)} tokens are not 0 to {len(vocab) - 1}")
    tokenizer = Tokenizer(BPE(vocab, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _kind(settings, config):
    """tokenizer_config.json, config.json -> "gpt2", "bert" or None for what tokenizer.json says."""
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if name is None:
        kind = config.get("model_type")
        return kind if kind in ("gpt2", "bert") else None
    name = str(name)
    if name.removesuffix("Fast") not in CLASSES:
        raise UserError(f"tokenizer_class is {name!r}, expected one of "
                        f"{', '.join(CLASSES)}: save the tokenizer as PreTrainedTokenizerFast")
    return CLASSES[name.removesuffix("Fast")]


def _model(data, expected):
    """-> the model of tokenizer.json; raises UserError for another than the class reads."""
    model = data.get("model")
    found = model.get("type", expected) if isinstance(model, dict) else None
    if found != expected or not isinstance(model.get("vocab"), dict):
        raise UserError(
            f"holds a model of type {found!r}, but by its tokenizer_class (or the model_type of "
            f"config.json) it is {expected}; where the file says it all, tokenizer_class is "
            "PreTrainedTokenizerFast")
    return model


def _gpt2(data, files, settings):
    """-> GPT-2's Tokenizer from tokenizer.json, or from vocab.json and merges.txt."""
    prefix = bool(settings.get("add_prefix_space"))
    if not data:
        return byte_level(*_vocab_and_merges(*files), prefix)
    model = _model(data, "BPE")
    model = model | {"type": "BPE", "dropout": None, "fuse_unk": False, "byte_fallback": False,
                     "ignore_merges": False, "unk_token": None,
                     "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    pre = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
           "use_regex": True}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
               "use_regex": True}
    return Tokenizer.from_str(json.dumps(data | {
        "model": model, "normalizer": None, "pre_tokenizer": pre, "decoder": decoder,
        "added_tokens": []}))


def _vocab_and_merges(vocab, merges):
    """vocab.json, merges.txt -> ids by token, pairs; the library opens no path beyond UTF-8."""
    text = merges.read_text(encoding="utf-8")
    lines = text.removesuffix("\n").split("\n") if text else []
    pairs = [tuple(line.removesuffix("\r").split(" ")) for line in lines
             if not line.startswith("#version")]
    for n, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise UserError(f"{merges.name}: merge {n} is {' '.join(pair)!r:.80}, expected two "
                            "tokens")
    ids = read_object(vocab)
    if not all(type(i) is int and 0 <= i < 2**32 for i in ids.values()):
        raise UserError(f"{vocab.name}: expected an id for each token")
    return ids, pairs


def _bert(data, files, settings, declared):
    """-> BERT's Tokenizer with the vocabulary of tokenizer.json or vocab.txt."""
    if data:
        vocab = _model(data, "WordPiece")["vocab"]
    else:
        vocab = read_vocabulary(files[0])
    names = {role: str(token.content) for role, token in declared.roles.items()}
    for role in "unk_token", "sep_token", "cls_token":
        if names.get(role) not in vocab and names.get(role) not in [
                token.content for token in declared.added]:
            raise UserError(f"the vocabulary lacks the {role} {names.get(role)!r}")
    return wordpiece(vocab, names["unk_token"], settings.get("do_lower_case") is not False,
                     settings.get("strip_accents"),
                     settings.get("tokenize_chinese_chars") is not False)


def _cls_and_sep(tokenizer, roles):
    """[CLS] opens a sequence, [SEP] ends each text."""
    first, between = roles["cls_token"].content, roles["sep_token"].content
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {between}", pair=f"{first} $A {between} $B:1 {between}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, between)])


def _bos_and_eos(tokenizer, settings, roles):
    """The template that add_bos_token and add_eos_token ask for."""
    names = [roles[role].content if settings.get(f"add_{role}") and role in roles else None
             for role in ("bos_token", "eos_token")]
    sides = [[name, part, names[1]] for name, part in zip([names[0]] * 2, "$A $B".split(),
                                                         strict=True)]
    single, second = (" ".join(f"{piece}:{kind}" for piece in side if piece)
                      for kind, side in enumerate(sides))
    tokenizer.post_processor = TemplateProcessing(
        single=single, pair=f"{single} {second}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in set(names) - {None}])


def _declared(folder, settings, defaults, data):
    """-> the tokens that the files name."""
    values = dict(settings)
    added = {}
    if isinstance(listed := values.get("added_tokens_decoder"), dict):
        added = {int(i): _token(token, False) for i, token in listed.items()}
    else:
        values |= read_object_if_there(folder / "special_tokens_map.json")
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    named = extra if isinstance(extra, dict) else {}
    roles = defaults | {key: value for key, value in values.items()
                        if key in ROLES or key.endswith("_token")
                        and isinstance(value, str | dict)} | named
    extra = [_token(token, True) for token in ([] if named else extra)]
    roles = {key: _token(value, True) for key, value in roles.items() if value is not None}
    if not isinstance(listed, dict):
        special = {token.content for token in (*roles.values(), *extra)}
        added |= {i: AddedToken(name, normalized=name not in special, special=name in special)
                  for name, i in read_object_if_there(folder / "added_tokens.json").items()}
        added |= {token["id"]: _token(token, False) for token in data.get("added_tokens") or ()}
    by_name = {token.content: token for token in added.values()}
    roles = {key: by_name.get(token.content, token) for key, token in roles.items()}
    return _Declared({key: roles[key] for key in sorted(roles, key=_rank)},
                     [added[i] for i in sorted(added)], extra)


def _rank(key):
    return ROLES.index(key) if key in ROLES else len(ROLES)


def _token(value, special):
    """A token as a JSON file has it, a str or an object -> AddedToken; raises UserError."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise UserError(f"a token is {value!r:.80}, expected a text or an object with content")
    flags = {key: bool(value[key]) for key in ("single_word", "lstrip", "rstrip", "normalized")
             if key in value}
    return AddedToken(value["content"], special=bool(value.get("special", special)), **flags)


def _add_tokens(tokenizer, declared):
    """The declared tokens join the tokenizer, in the order in which `transformers` adds them."""
    tokens = list(declared.added)
    known = {token.content for token in tokens}
    known |= {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in (*declared.roles.values(), *declared.extra):
        if token.content not in known:
            known.add(token.content)
            tokens.append(token)
    roles = {token.content for token in declared.roles.values()}
    tokenizer.add_tokens([_as_special(token) if token.content in roles else token
                          for token in tokens])


def _as_special(token):
    return token if token.special else AddedToken(
        token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
        normalized=token.normalized, special=True)


def _parse_own_tokens(tokenizer, declared):
    """-> the tokenizer whose special tokens are those with a role; the others are plain added ones.

    So they are found in a text while those with a role are not (`encode_special_tokens`), and a
    folder that is written with it is read the same way by `transformers`.
    """
    roles = USUAL_ROLES | {token.content for key, token in declared.roles.items() if key in ROLES}
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()
               if token.special}
    if special <= roles:
        return tokenizer
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["special"] and token["content"] in roles
    return Tokenizer.from_str(json.dumps(data))
