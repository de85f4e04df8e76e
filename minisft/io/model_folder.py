"""A model folder as a whole: weights, tokenizer, and how texts were treated before the model."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minisft.backend.array import require_gpu
from minisft.data.text import CLEANING_STEPS, load_tokenizer, save_tokenizer
from minisft.errors import UserError
from minisft.io import checkpoint, hub
from minisft.io.files import read_json, write_json

END = "<|endoftext|>"
PAD = "[PAD]"                    # BERT's; our batches have no padding
PREPROCESSING = "minisft.json"     # `transformers` passes it by


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a text on its way to the model, the same in training and afterwards."""

    clean: tuple = CLEANING_STEPS
    max_length: int | None = None
    truncate: str = "head"
    separator: str | None = None     # between prompt and completion


def end_token(tokenizer):
    """-> the id of <|endoftext|>, or None for a tokenizer without it."""
    return tokenizer.token_to_id(END)


def pad_token(tokenizer):
    """-> the token that `transformers` pads with, or None: then it takes one text at a time."""
    return next((name for name in (END, PAD) if tokenizer.token_to_id(name) is not None), None)


def require_fit(tokenizer, config, where):
    """Raises UserError when the tokenizer has ids beyond the model's table."""
    size = tokenizer.get_vocab_size()
    if size > config.vocab_size:
        raise UserError(f"{where}: the tokenizer has {size} tokens, the model {config.vocab_size}")


def read_folder(name, online=False, device="cpu", **options):
    """A path or a model's name -> model, tokenizer, Treatment; options as `checkpoint.load`.

    `device` is cpu or gpu. Raises UserError.
    """
    if device == "gpu":
        require_gpu()
    folder = hub.resolve(name, online)
    model = checkpoint.load(folder, **options)
    model.to(device)
    tokenizer = load_tokenizer(folder)
    require_fit(tokenizer, model.trunk.config, folder)
    return model, tokenizer, read_preprocessing(folder)


def read_preprocessing(folder):
    """-> the folder's Treatment; a folder that we did not write has the default one."""
    path = Path(folder) / PREPROCESSING
    if not path.exists():
        return Preprocessing()
    values = read_json(path)
    unknown = sorted(values.keys() - asdict(Preprocessing()).keys())
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is not known, expected some of "
                        f"{', '.join(asdict(Preprocessing()))}")
    if not isinstance(steps := values.get("clean", CLEANING_STEPS), list | tuple) or \
            not set(map(str, steps)) <= set(CLEANING_STEPS):
        raise UserError(f"{path}: clean is {steps!r}, expected a list of some of "
                        f"{', '.join(CLEANING_STEPS)}")
    preprocessing = Preprocessing(**values | {"clean": tuple(steps)})
    length = preprocessing.max_length
    if length is not None and (type(length) is not int or length < 1):
        raise UserError(f"{path}: max_length is {length!r}, expected a whole number above 0")
    if preprocessing.truncate not in ("head", "tail"):
        raise UserError(f"{path}: truncate is {preprocessing.truncate!r}, expected head or tail")
    if not isinstance(preprocessing.separator, str | None):
        raise UserError(f"{path}: separator is {preprocessing.separator!r}, expected a text")
    return preprocessing


def write_folder(folder, model, tokenizer, preprocessing, dtype=np.float32):
    """Writes a folder that `transformers` opens with the same logits, tokenizer and names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pad = pad_token(tokenizer)
    checkpoint.save(model, folder, dtype=dtype, end_token=end_token(tokenizer),
                    pad_token=None if pad is None else tokenizer.token_to_id(pad))
    save_tokenizer(tokenizer, folder, model.trunk.config.n_positions, pad)
    write_json(folder / PREPROCESSING, asdict(preprocessing))
