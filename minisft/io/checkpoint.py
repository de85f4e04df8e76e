"""Hugging Face folders in and out: config.json and model.safetensors, of GPT-2 and of BERT.

`families.py` holds the table of the names.
"""

from pathlib import Path

import numpy as np

from minisft.backend.array import to_cpu
from minisft.errors import UserError
from minisft.io import safetensors
from minisft.io.architectures import GPT2, family_of, family_of_model, pooling_of, settings_of
from minisft.io.files import read_json, write_json
from minisft.io.safetensors import WEIGHTS
from minisft.models.gpt2 import initialise
from minisft.models.heads import Classifier, LanguageModel

CONFIG = "config.json"


def load(folder, dtype=np.float32, task=None, label_names=None, seed=0, dropout=None, pooling=None):
    """A checkpoint folder -> Classifier or LanguageModel, with `fresh`: what the folder lacked.

    `task` is "classify", "complete", or None for what the folder holds. With `names`, the labels
    to classify into, the head is kept if it has the same labels in the same order, and otherwise
    drawn anew from `seed`: `fresh` then names its parameters, else it is (). `dropout` replaces
    the rates of the config, `pooling` what BERT's classifier reads. Raises UserError.
    """
    folder = Path(folder)
    settings = read_json(folder / CONFIG)
    family = family_of(settings, folder / CONFIG)
    config = family.config.from_dict(settings, folder / CONFIG)
    if dropout is not None:
        config = config.with_dropout(dropout)
        config.require_sound("dropout")
    table = _read_table(folder, family)
    if config.n_layer > len(table):      # before anything as deep as the config says is built
        raise UserError(f"{folder / CONFIG}: {family.depth} is {config.n_layer}, but there are "
                        f"only {len(table)} tensors")
    if _wants_classifier(folder, family, family.is_classifier(settings, table), task, label_names):
        model = _classifier(folder, family, config, settings, table, label_names, pooling)
    else:
        model = LanguageModel(config, _is_tied(settings, table), dtype=None)
    wanted = {p.name: family.shape_in_file(p) for p in model.parameters()
              if p.name not in model.newly_initialized}
    _require_names_and_shapes(folder, family, table, wanted)
    model.build(dtype)
    for name in wanted:
        _fill(model.store[name], table[name], family)
    initialise(model.parameters(), seed, model.newly_initialized)
    return model


def save(model, folder, dtype=np.float32, end_token=None, extra_config=None, pad_token=None):
    """A model -> config.json and model.safetensors that `transformers` opens, same logits.

    `dtype` is float32 or float16. `end_token` is the id of the tokenizer's <|endoftext|>: where
    GPT-2's sequences begin and end, and, for its classifier, what `transformers` pads with (without
    it, it takes one text at a time); BERT's is `pad_token`. `extra_config` adds keys. Raises
    UserError.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"a checkpoint is float32 or float16, not {dtype}")
    family, extra = family_of_model(model), dict(extra_config or {})
    settings = settings_of(model, dtype.name, end_token, pad_token)
    if clash := sorted(settings.keys() & extra.keys()):
        raise ValueError(f"extra_config may not set {clash[0]}")
    if isinstance(model, Classifier):
        _require_labels(folder / CONFIG, model.label_names)
    arrays = {}
    for p in model.store:
        with np.errstate(over="ignore"):
            value = family.turned(p.name, to_cpu(p.value)).astype(dtype, copy=False)
        if not np.isfinite(value).all():
            raise UserError(f"{folder / WEIGHTS}: not written, {p.name} holds values that are "
                            f"not finite as {dtype}")
        arrays[family.to_hf(p.name)] = value
    safetensors.write(folder / WEIGHTS, arrays, {"format": "pt"})
    # Last, so that a new folder without it is seen to be unfinished.
    write_json(folder / CONFIG, settings | extra)


def _read_table(folder, family):
    """-> every tensor of the folder (Stored, unread) by our name for it."""
    table = {}
    for tensor in safetensors.folder_contents(folder):
        name = family.from_hf(tensor.name)
        if name in table:
            raise UserError(f"{tensor.path}: {name} is there twice, as {table[name].name} and as "
                            f"{tensor.name}")
        if name is not None:
            table[name] = tensor
    return table


def _classifier(folder, family, config, settings, table, label_names, pooling):
    """-> a classifier without values; its `fresh` names what the folder cannot give."""
    options = {}
    if family is GPT2 and pooling is not None:
        raise UserError(f"{folder}: pooling {pooling} is for BERT, a GPT-2 classifies by the last "
                        "token")
    if family is not GPT2:
        own = pooling_of(settings)
        options = {"pooling": pooling or own}
        trained = pooling in (None, own)
    label_names, newly_initialized = _labels(folder, settings, table, label_names, family)
    if options and not trained:     # a head that was trained on something else
        newly_initialized = family.head
    model = family.classifier(config, label_names, dtype=None, **options)
    if newly_initialized:     # a bare trunk may also lack the pooler
        newly_initialized = tuple(
            p.name for p in model.parameters() if p.name in newly_initialized or (
                p.name in family.optional and p.name not in table))
    model.newly_initialized = newly_initialized
    return model


def _wants_classifier(folder, family, labelled, task, label_names):
    """-> whether to build a classifier; raises UserError where the folder cannot serve the task."""
    if task not in (None, "classify", "complete"):
        raise ValueError(f"task is {task!r}, expected classify or complete")
    if family is not GPT2 and task == "complete":
        raise UserError(f"{folder}: holds a {family.config.TITLE}, which writes no text, expected "
                        "a language model such as GPT-2")
    if task is None:
        task = ("classify" if labelled or label_names is not None or family is not GPT2 else
                "complete")
    if task == "complete" and labelled:
        raise UserError(f"{folder}: holds a classifier, expected a language model")
    if task == "classify" and label_names is None and not labelled:
        raise UserError(f"{folder}: holds a {_what(family)} without labels, expected a classifier "
                        "(or the names of the labels to train one)")
    return task == "classify"


def _what(family):
    return "language model" if family is GPT2 else family.config.TITLE


def _is_tied(settings, table):
    """-> whether the output matrix is the token table.

    As transformers 5: two different matrices in the file stay two, whatever the config says.
    """
    if not settings.get("tie_word_embeddings", True):
        return False
    head, wte = table.get("lm_head.weight"), table.get("wte.weight")
    if head is None or wte is None:
        return True
    return head.shape == wte.shape and np.array_equal(head.read(), wte.read())


def _labels(folder, settings, table, label_names, family):
    """-> the names of the classes, and which parameters the folder cannot give."""
    if label_names is not None:
        label_names = tuple(label_names)
        _require_labels("names", label_names)
    if not family.is_classifier(settings, table):
        return label_names, family.head
    own = _own_labels(folder / CONFIG, settings, table.get(family.head[0]))
    if label_names not in (None, own):
        return label_names, family.head
    problem = settings.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise UserError(f"{folder / CONFIG}: problem_type is {problem!r}, expected "
                        "single_label_classification")
    _require_labels(f"{folder / CONFIG}: id2label", own)
    return own, ()


def _own_labels(path, settings, score):
    """-> the names in config.json, or LABEL_0, LABEL_1, ... as transformers has it without."""
    rows = 2 if score is None else score.shape[0]
    id2label = settings.get("id2label")
    if id2label is None:
        id2label = {str(i): f"LABEL_{i}" for i in range(rows)}
    if not isinstance(id2label, dict) or not all(
            isinstance(name, str | int) for name in id2label.values()):
        raise UserError(f"{path}: id2label is {id2label!r}, expected a name for each number")
    for key, count in ("id2label", len(id2label)), ("num_labels", settings.get("num_labels")):
        if score is not None and count not in (None, rows):
            raise UserError(f"{path}: {key} gives {count} labels, but {score.name} in "
                            f"{score.path.name} has {rows} rows")
    try:
        return tuple(str(id2label[str(i)]) for i in range(len(id2label)))
    except KeyError as error:
        raise UserError(f"{path}: id2label lacks the number {error.args[0]}") from None


def _require_labels(where, label_names):
    """Raises UserError unless there are two labels or more, all different and none empty."""
    if len(label_names) < 2:
        raise UserError(f"{where}: {len(label_names)} label, expected two or more")
    for i, name in enumerate(label_names):
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: label {i} is {name!r}, expected a name")
        if name in label_names[:i]:
            raise UserError(f"{where}: the label {name!r} is there twice")


def _require_names_and_shapes(folder, family, table, wanted):
    """Raises UserError naming the first tensor that is missing, unexpected or misshapen."""
    for name, shape in wanted.items():
        if name not in table:
            raise UserError(f"{folder}: the tensor {name} is missing, {CONFIG} asks for it with "
                            f"shape {shape}")
        tensor = table[name]
        if tensor.shape != shape:
            raise UserError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, {CONFIG} "
                            f"asks for {shape}")
        if tensor.dtype not in safetensors.FLOATS:
            raise UserError(f"{tensor.path}: {tensor.name} has dtype {tensor.dtype}, expected "
                            f"one of {', '.join(safetensors.FLOATS)}")
    for name, tensor in table.items():
        if name not in wanted and name not in family.optional:
            raise UserError(f"{tensor.path}: {tensor.name} is unexpected, a {family.config.TITLE} "
                            f"as {CONFIG} describes has no such tensor")


def _fill(parameter, tensor, family):
    """Copies a tensor of the file into the parameter; raises UserError unless it is finite."""
    value = tensor.read()
    with np.errstate(over="ignore"):     # a float64 too large for us is reported below
        parameter.value[...] = family.turned(parameter.name, value)
    if not np.isfinite(parameter.value).all():
        raise UserError(f"{tensor.path}: {tensor.name} holds values that are not finite as "
                        f"{parameter.value.dtype}")
