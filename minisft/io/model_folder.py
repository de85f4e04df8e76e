"""A model folder as a whole: weights, tokenizer, and the preprocessing of its texts."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from tokenizers import Tokenizer

from minisft.backend.array import device_name, require_gpu
from minisft.data.special_tokens import (
    GENERATION_CONFIG,
    SpecialTokens,
    default_special_tokens,
    read_special_tokens,
)
from minisft.data.text import CLEANING_STEPS, GPT2_INPUTS, TOKENIZER, load_tokenizer
from minisft.data.wordpiece import TOKENIZER_CONFIG
from minisft.errors import UserError
from minisft.io import adapters, checkpoint, hub
from minisft.io.architectures import family_of_model
from minisft.io.files import CONFIG, json_text, read_json, write_json, write_text
from minisft.models.heads import LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import AnyModel

PREPROCESSING = "minisft.json"     # `transformers` ignores it, and drops it when it saves
EXTRA_KEY = "minisft"              # of config.json, with the same: `transformers` keeps that


@dataclass(frozen=True)
class Columns:
    """The columns that the training file had, where evaluate and predict look again; None where
    the texts came from no file."""

    text_column: tuple[str, ...] | None = None
    pair_column: str | None = None
    label_column: str | None = None
    prompt_column: tuple[str, ...] | None = None
    completion_column: str | None = None
    word_column: str | None = None
    tag_column: str | None = None
    source_column: str | None = None
    target_column: str | None = None


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a text before the model reads it, the same in training and afterwards."""

    clean: tuple[str, ...] = CLEANING_STEPS
    max_length: int | None = None
    truncate: str = "head"
    separator: str | None = None     # between prompt and completion
    parse_special: bool = False      # are special tokens in a prompt tokens, or characters?
    columns: Columns = field(default_factory=Columns)
    # answers to questions: the margin (nats) below which none is given; None: one always is
    no_answer_margin: float | None = None
    max_answer_length: int | None = None     # in tokens; None: as the field has it

    def __str__(self) -> str:
        parts = [f"cleaning: {', '.join(self.clean) or 'none'}"]
        if self.max_length is not None:
            parts.append(f"at most {self.max_length} tokens of a text, its {self.truncate} is kept")
        if self.separator is not None:
            parts.append(f"{self.separator!r} behind a prompt")
        if self.parse_special:
            parts.append("special tokens in it are read as tokens")
        return "; ".join(parts)


def special_tokens_of(model: AnyModel, tokenizer: Tokenizer) -> SpecialTokens:
    """-> what the model's folder said of them, or else what the tokenizer has by name; those
    beyond the model's table are left out."""
    found = model.special_tokens or default_special_tokens(tokenizer)
    return found.within(tokenizer, model.trunk.config.vocab_size)


def require_vocab_fits(tokenizer: Tokenizer, config: Any, source: str | Path) -> None:
    """Raises UserError when the tokenizer's own vocabulary is larger than the model's table.

    Tokens that were added to it may lie beyond, as long as no text holds them.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > config.vocab_size:
        raise UserError(f"{source}: the tokenizer has {size} tokens, the model {config.vocab_size}")


def notes_of(model: AnyModel) -> list[str]:
    """-> lines on what loading has found: changes of config.json, another task's head."""
    heads = dict.fromkeys(name.split(".")[0] for name in model.unused_tensors)
    unused = f"the folder holds a head of another task, {', '.join(heads)}: it is not used"
    return [*model.notes, *([unused] if heads else [])]


def read_folder(name: str | Path, online: bool = False, device: str = "cpu",
                say: Callable[[str], Any] | None = None, precision: str = "float32",
                tokenizer: str | Path | None = None, revision: str | None = None,
                allow_http: bool = False,
                **options: Any) -> tuple[AnyModel, Tokenizer, Preprocessing]:
    """A path or a model's name -> model, tokenizer, Preprocessing; options as `checkpoint.load`.

    `device` and `precision` as `Model.to` takes them. `say` is told what of the folder is not
    used, and which commit it is. `tokenizer`: where it is read, if not in the folder. `revision`
    and `allow_http` as `hub.resolve`. Raises UserError, and ValueError for another device.
    """
    if device_name(device) == "cuda":
        require_gpu()
    folder = hub.resolve(name, online, revision, allow_http)
    model = checkpoint.load(folder, **options)
    model.to(device, precision)
    place = hub.base_of(folder) if tokenizer is None else Path(tokenizer)
    built = load_tokenizer(place, say)
    require_vocab_fits(built, model.trunk.config, place)
    model.special_tokens = read_special_tokens(place, built)
    if say is not None:
        if commit := hub.commit_of(folder):
            say(f"{name} is commit {commit}")
        for note in notes_of(model):
            say(f"note: {note}")
    return model, built, read_preprocessing(folder, say)


def read_preprocessing(folder: str | Path,
                       say: Callable[[str], Any] | None = None) -> Preprocessing:
    """-> the folder's Preprocessing; a folder that says nothing leaves its texts as they are.

    minisft.json counts before the same in config.json, whose checksum lies with the weights; `say`
    is told where the two differ. Raises UserError for one that cannot be.
    """
    if hub.is_adapter(folder):
        extra = adapters.extra_of(folder).get("preprocessing")
        if extra is None:      # PEFT's own
            return read_preprocessing(hub.base_of(folder), say)
        return _preprocessing(Path(folder) / adapters.WEIGHTS, extra)
    path, config = Path(folder) / PREPROCESSING, Path(folder) / CONFIG
    kept: Any = read_json(config).get(EXTRA_KEY) if config.exists() else None
    if not path.exists():
        return Preprocessing(clean=()) if kept is None else _preprocessing(config, kept)
    values = read_json(path)
    preprocessing = _preprocessing(path, values)
    if say is not None and isinstance(kept, dict):
        for key in sorted(values.keys() | kept.keys()):
            if values.get(key) != kept.get(key):
                say(f"note: {path}: {key} is not as {CONFIG} has it, which was written with it; "
                    f"{PREPROCESSING} counts")
    return preprocessing


def _preprocessing(path, values):
    """What a file says -> Preprocessing; UserError for what cannot be."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: {EXTRA_KEY} is {values!r}, expected an object of keys")
    unknown = sorted(values.keys() - asdict(Preprocessing()).keys())
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is not known, expected some of "
                        f"{', '.join(asdict(Preprocessing()))}")
    if not isinstance(steps := values.get("clean", CLEANING_STEPS), list | tuple) or \
            not set(map(str, steps)) <= set(CLEANING_STEPS):
        raise UserError(f"{path}: clean is {steps!r}, expected a list of some of "
                        f"{', '.join(CLEANING_STEPS)}")
    preprocessing = Preprocessing(**values | {
        "clean": tuple(steps), "columns": _columns(path, values.get("columns", {}))})
    for name in ("max_length", "max_answer_length"):
        length = getattr(preprocessing, name)
        if length is not None and (type(length) is not int or length < 1):
            raise UserError(f"{path}: {name} is {length!r}, expected a whole number above 0")
    if preprocessing.truncate not in ("head", "tail"):
        raise UserError(f"{path}: truncate is {preprocessing.truncate!r}, expected head or tail")
    if not isinstance(preprocessing.parse_special, bool):
        raise UserError(f"{path}: parse_special is {preprocessing.parse_special!r}, expected true "
                        "or false")
    margin = preprocessing.no_answer_margin
    if margin is not None and (type(margin) not in (int, float) or not math.isfinite(margin)):
        raise UserError(f"{path}: no_answer_margin is {margin!r}, expected a number")
    if not isinstance(preprocessing.separator, str | None):
        raise UserError(f"{path}: separator is {preprocessing.separator!r}, expected a text")
    return preprocessing


def _columns(path, values):
    """What a file holds of Columns -> Columns; UserError for what cannot be."""
    known = {name: tuple(value) if isinstance(value, list) else value
             for name, value in values.items()} if isinstance(values, dict) else {"": values}
    for name, value in known.items():
        several = name in ("text_column", "prompt_column")
        names = value if several and isinstance(value, tuple) and value else (value,)
        if name not in asdict(Columns()) or value is not None and (
                several != isinstance(value, tuple) or
                not all(isinstance(each, str) for each in names)):
            raise UserError(f"{path}: columns is {values!r:.200}, expected names of columns for "
                            f"some of {', '.join(asdict(Columns()))}")
    return Columns(**known)


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, model_max_length: int,
                   special_tokens: SpecialTokens | None = None, truncate: str = "head",
                   input_names: Sequence[str] = GPT2_INPUTS) -> None:
    """Tokenizer -> the files `transformers` loads.

    `special_tokens`: their roles (default: by the published names), `truncate`: what is kept of a
    longer text, `input_names`: the arrays that the model is given there. Raises UserError for a
    token that is not in the vocabulary.
    """
    texts = _tokenizer_texts(tokenizer, model_max_length, special_tokens, truncate, input_names)
    for name, text in texts.items():
        write_text(Path(folder) / name, text)


def _tokenizer_texts(tokenizer, model_max_length, special_tokens, truncate, input_names):
    """-> the texts of a tokenizer's files by their names."""
    special_tokens = special_tokens or default_special_tokens(tokenizer)
    for role, token in special_tokens.tokens.items():
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"the {role} {token!r} is not in the vocabulary")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "truncation_side": "right" if truncate == "head" else "left",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,      # a literal <|endoftext|> stays text there too
        # without it transformers 4 adds token type 0's embedding to every token of GPT-2
        "model_input_names": list(input_names),
        **special_tokens.tokens,
    }
    return {TOKENIZER: tokenizer.to_str(pretty=True),
            TOKENIZER_CONFIG: json.dumps(config, indent=2) + "\n"}


def write_folder(folder: str | Path, model: AnyModel, tokenizer: Tokenizer,
                 preprocessing: Preprocessing, dtype: DTypeLike = np.float32) -> None:
    """Writes a folder that `transformers` opens with the same logits, tokenizer and label names."""
    folder = Path(folder)
    special_tokens, positions = special_tokens_of(model, tokenizer), model.trunk.config.n_positions
    texts = _tokenizer_texts(
        tokenizer, min(preprocessing.max_length or positions, positions), special_tokens,
        preprocessing.truncate, family_of_model(model).input_names)
    if isinstance(model, LanguageModel):
        given = {key: i for key, i in special_tokens.settings.items() if i is not None}
        texts[GENERATION_CONFIG] = json_text(given | {"max_length": positions})
    if isinstance(model, EncoderDecoder):
        config = model.trunk.config
        texts[GENERATION_CONFIG] = json_text({
            "decoder_start_token_id": config.decoder_start_token_id,
            "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id,
            "max_length": positions})
    checkpoint.save(model, folder, dtype, special_tokens, {EXTRA_KEY: asdict(preprocessing)}, texts)
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / PREPROCESSING, asdict(preprocessing))


def load(name: str | Path, task: str | None = None, *,
         label_names: Sequence[str] | None = None, download: bool = False, device: str = "cpu",
         precision: str = "float32", dropout: float | None = None, pooling: str | None = None,
         seed: int = 0, revision: str | None = None) -> tuple[AnyModel, Tokenizer]:
    """A folder, or a model's name such as gpt2 -> model, tokenizer.

    `task` is "classify", "complete", "translate", or None for what the folder holds; with
    `label_names` it is a classifier of these labels, whose head is drawn from `seed` unless the
    folder has it. `dropout` replaces the model's rates. A name that is not in the local
    Hugging Face cache is downloaded only with `download`; `revision` is its branch, tag or commit
    (default: main). Raises UserError.
    """
    model, tokenizer, _ = read_folder(name, download, device, precision=precision, task=task,
                                      label_names=label_names, dropout=dropout, pooling=pooling,
                                      seed=seed, revision=revision)
    return model, tokenizer
