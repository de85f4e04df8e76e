"""Hugging Face folders in and out: config.json and model.safetensors, of every architecture.

`architectures.py` holds the tables of the names.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minisft.backend.array import to_cpu
from minisft.data.special_tokens import SpecialTokens
from minisft.errors import UserError, setting
from minisft.io import adapters, config_checksums, hub, safetensors
from minisft.io.architectures import (
    GPT2,
    SEQ2SEQ,
    TOKEN_HEADS,
    family_of,
    family_of_model,
    hf_config,
    pooling_of,
)
from minisft.io.files import CONFIG, read_json, write_json
from minisft.io.safetensors import WEIGHTS
from minisft.io.weights import (
    copy_tensor,
    folder_tensors,
    is_tied,
    require_names_and_shapes,
    some_of,
    tensors_by_name,
)
from minisft.models.adapters import values_to_save
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.init_weights import init_weights
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import AnyModel, SpanClassifier, TokenClassifier


def load(folder: str | Path, dtype: DTypeLike = np.float32, task: str | None = None,
         label_names: Iterable[str] | None = None, seed: int = 0, dropout: float | None = None,
         pooling: str | None = None, label_map: Mapping[str, str] | None = None,
         ) -> AnyModel:
    """A checkpoint folder, or that of an adapter, which is merged into its base -> the model;
    its `newly_initialized` names the parameters that the folder lacked and
    `new_head_reason` says why, `unused_tensors` what it has of another task's head, `notes` what
    else is worth a line.

    `task` is "classify", "complete", "tag" (a class for each token), "answer" (where an answer
    begins and ends), "translate", or None for what the folder holds. With `label_names`, the labels
    to classify into, the head is kept if it has the same labels, in the order given, and otherwise
    newly initialized from `seed`. `label_map` renames labels of the folder first. `dropout`
    replaces the rates of the config, `pooling` what BERT's classifier reads, "first" or "mean".

    Raises UserError, and ValueError for another task.
    """
    if task not in (None, "classify", "complete", "tag", "answer", "translate"):
        raise ValueError(f"task is {task!r}, expected classify, complete, tag, answer or "
                         "translate")
    stored, folder = Path(folder), hub.base_of(folder)      # an adapter's base, or the same
    settings = read_json(folder / CONFIG)
    notes = config_checksums.changes(folder / CONFIG, folder / WEIGHTS, settings)
    family = family_of(settings, folder / CONFIG)
    if folder != stored and family.classifier is None:
        raise UserError(f"{stored}: is an adapter of an encoder-decoder, expected one of a GPT-2 "
                        "or a BERT")
    adapter = None if folder == stored else adapters.read(stored, family)
    config = family.config.from_dict(settings, folder / CONFIG)
    if dropout is not None:
        config = config.with_dropout(dropout)
        config.require_sound("dropout")
    if adapter is not None:
        settings = adapter.settings_over(settings, family)
        notes += adapter.notes
    stored_task = family.token_task(settings)
    if task is None and label_names is None:
        task = stored_task
    tensors, unused = tensors_by_name(folder_tensors(folder), family,
                                      TOKEN_HEADS.get(task, ()) if task == stored_task else ())
    if family is GPT2 and settings.get("tie_word_embeddings", True) and \
            "wte.weight" not in tensors and \
            "lm_head.weight" in tensors:     # the same matrix, saved under its other name
        tensors["wte.weight"] = tensors.pop("lm_head.weight")
    if adapter is not None:
        tensors = adapter.merged_into(tensors, family)
        if "base_sha256" not in adapter.extra:
            notes += (f"{stored}: has no checksum of its base, which is taken to be {folder}",)
    if config.n_layer > len(tensors):      # before anything as deep as the config says is built
        raise UserError(f"{folder / CONFIG}: {family.n_layer_key} is {config.n_layer}, but there "
                        f"are only {len(tensors)} tensors")
    label_names = None if label_names is None else tuple(label_names)
    has_labels = family.is_classifier(settings, tensors)
    model: AnyModel
    rows = None
    if family.classifier is None:
        model = _encoder_decoder(folder, config, tensors, task, label_names)
    elif task == "translate":
        raise UserError(f"{folder}: holds a {config.TITLE}, expected an encoder-decoder, as a "
                        "translator is")
    elif task in TOKEN_HEADS:
        if task != stored_task:
            unused += tuple(name for name in TOKEN_HEADS[task] if tensors.pop(name, None))
        model, rows = _over_tokens(folder, task, config, settings, tensors, task == stored_task,
                                   label_names, label_map or {})
    elif _wants_classifier(folder, family, has_labels, task, label_names):
        model, rows = _classifier(folder, family, config, settings, tensors, label_names, pooling,
                                  label_map or {})
    else:
        # as transformers 5: two different matrices stay two, whatever the config says
        tied = settings.get("tie_word_embeddings", True) and is_tied(tensors)
        model = LanguageModel(config, tied, dtype=None)
    expected_shapes = {p.name: family.shape_in_file(p) for p in model.parameters()
                       if p.name not in model.newly_initialized}
    require_names_and_shapes(folder, CONFIG, family, tensors, expected_shapes)
    model.build(dtype)
    for name in expected_shapes:
        copy_tensor(model.store[name], tensors[name], family,
                    rows if name in (*family.head, *TOKEN_HEADS.get(task, ())) else None)
    init_weights(model.parameters(), seed, model.newly_initialized)
    dropped = set(family.optional) & set(tensors) - set(expected_shapes)
    if not has_labels or not isinstance(model, Classifier):     # else its reason is the labels'
        unused += tuple(sorted(name for name in dropped if _is_head(name, model)))
    model.unused_tensors, model.notes = unused, notes
    return model


def save(model: AnyModel, folder: str | Path,
         dtype: DTypeLike = np.float32, special_tokens: SpecialTokens | None = None,
         extra_config: dict[str, Any] | None = None,
         texts: Mapping[str, str] | None = None) -> None:
    """A model -> config.json and model.safetensors that `transformers` opens, same logits.

    `dtype` is float32 or float16. `special_tokens` (default: the model's own, if it has any) say
    where sequences begin and end, and what `transformers` pads with (without one, its classifier
    takes one text at a time). `extra_config` adds keys. `texts` of files by their names, which the
    caller writes beside: the weights keep their checksums. Raises UserError.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"a checkpoint is float32 or float16, not {dtype}")
    family, extra = family_of_model(model), dict(extra_config or {})
    settings = hf_config(model, dtype.name,
                         special_tokens or model.special_tokens or SpecialTokens())
    if reserved := sorted(settings.keys() & extra.keys()):
        raise ValueError(f"extra_config may not set {reserved[0]}")
    if isinstance(model, Classifier | TokenClassifier):
        _require_labels(folder / CONFIG, model.label_names)
    arrays = {}
    for p, value in values_to_save(model):
        with np.errstate(over="ignore"):
            value = family.convert_layout(p.name, to_cpu(value)).astype(dtype, copy=False)
        if not np.isfinite(value).all():
            raise UserError(f"{folder / WEIGHTS}: not written, {p.name} holds values that are "
                            f"not finite as {dtype}")
        arrays[family.to_hf(p.name)] = value
    settings |= extra
    safetensors.write(folder / WEIGHTS, arrays, {
        "format": "pt"} | config_checksums.entries(settings, texts or {}))
    # Last: a folder without it is an unfinished one.
    write_json(folder / CONFIG, settings)


def _classifier(folder, family, config, settings, tensors, label_names, pooling, label_map):
    """-> a classifier without values, whose `newly_initialized` names what the folder lacks, and
    the rows of the stored head in its order."""
    label_names, rows, reason = _labels(
        folder, settings, tensors.get(family.head[0]), label_names,
        family.is_classifier(settings, tensors), label_map)
    options = {}
    if family.has_pooling:
        stored_pooling = pooling_of(settings)
        options = {"pooling": pooling or stored_pooling}
        if options["pooling"] != stored_pooling:     # the head was trained on something else
            reason = reason or f"it reads the {options['pooling']} of the tokens, not the " \
                f"{stored_pooling}"
    elif pooling is not None:
        raise UserError(f"{folder}: pooling {pooling} is for BERT, a {family.config.TITLE} "
                        "classifies by the last token")
    model = family.classifier(config, label_names, dtype=None, **options)
    if reason:     # a bare trunk may also lack the pooler
        model.newly_initialized = tuple(
            p.name for p in model.parameters() if p.name in family.head or (
                p.name in family.optional and p.name not in tensors))
        model.new_head_reason = reason
    return model, rows


def _encoder_decoder(folder, config, tensors, task, label_names):
    """-> an encoder-decoder without values; raises UserError where the task is another, or where
    the folder has two tables that differ."""
    if task not in (None, "translate") or label_names is not None:
        wanted = {"complete": "a language model such as GPT-2", "tag": "a GPT-2 or a BERT",
                  "answer": "a GPT-2 or a BERT"}.get(task, "a classifier, a GPT-2 or a BERT")
        raise UserError(f"{folder}: holds an encoder-decoder, which translates and nothing else, "
                        f"expected {wanted}")
    copies = [name for name in SEQ2SEQ.optional if name in tensors]
    for name in copies:      # transformers may have saved the table under another of its names
        table = tensors.setdefault("shared.weight", tensors[name])
        if table.shape != tensors[name].shape or not np.array_equal(table.read(),
                                                                    tensors[name].read()):
            raise UserError(f"{folder}: {tensors[name].name} is not equal to {table.name}, "
                            "expected one table for both texts and the logits")
    return EncoderDecoder(config, dtype=None)


def _over_tokens(folder, task, config, settings, tensors, has_head, label_names, label_map):
    """As `_classifier`, of the tokens."""
    head = TOKEN_HEADS[task]
    if task == "answer":
        model = SpanClassifier(config, dtype=None)
        if not has_head:
            model.newly_initialized = head
            model.new_head_reason = "the folder holds no head for answers"
        return model, None
    if label_names is None and not has_head:
        raise UserError(f"{folder}: holds no tags, expected a folder of a tagger (or the names of "
                        "the tags to train one)")
    label_names, rows, reason = _labels(folder, settings, tensors.get(head[0]), label_names,
                                        has_head, label_map)
    model = TokenClassifier(config, label_names, dtype=None)
    if reason:
        model.newly_initialized, model.new_head_reason = head, reason
        for name in head:
            tensors.pop(name, None)
    return model, rows


def _wants_classifier(folder, family, has_labels, task, label_names):
    """-> whether to build a classifier; raises UserError where the folder cannot serve the task."""
    if task == "complete" and not family.can_generate:
        raise UserError(f"{folder}: holds a {family.config.TITLE}, which writes no text, expected "
                        "a language model such as GPT-2")
    if task is None:
        classify = has_labels or label_names is not None or not family.can_generate
        task = "classify" if classify else "complete"
    if task == "complete" and has_labels:
        raise UserError(f"{folder}: holds a classifier, expected a language model")
    if task == "classify" and label_names is None and not has_labels:
        title = "language model" if family.can_generate else family.config.TITLE
        raise UserError(f"{folder}: holds a {title} without labels, expected a classifier "
                        "(or the names of the labels to train one)")
    return task == "classify"


def _is_head(name, model):
    """-> whether an optional tensor that the model leaves out is a head of its own."""
    if isinstance(model, EncoderDecoder):
        return False
    tied = isinstance(model, LanguageModel) and name == "lm_head.weight"
    return not tied and not name.startswith("pooler.")


def _labels(folder, settings, head, label_names, has_head, label_map):
    """-> the names of the classes, the rows of the stored head in their order, and why the head
    must be initialized, "" where it is kept."""
    if label_names is not None:
        _require_labels("label_names", label_names)
    if not has_head:
        if label_map:
            raise UserError(f"{folder}: holds no labels for {setting('label_map')} to rename")
        return label_names, None, "the folder holds no classifier"
    stored_names = _stored_labels(folder / CONFIG, settings, head)
    for name in label_map:
        if name not in stored_names:
            raise UserError(f"{setting('label_map')}: {folder} has no label {name!r}, expected "
                            f"some of {', '.join(stored_names)}")
    stored_names = tuple(label_map.get(name, name) for name in stored_names)
    if label_names is not None and set(label_names) != set(stored_names):
        return label_names, None, _different_labels(stored_names, label_names)
    problem = settings.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise UserError(f"{folder / CONFIG}: problem_type is {problem!r}, expected "
                        "single_label_classification")
    _require_labels(f"{folder / CONFIG}: id2label", stored_names)
    label_names = label_names or stored_names
    row = {name: i for i, name in enumerate(stored_names)}
    return label_names, [row[name] for name in label_names], ""


def _different_labels(stored_names, label_names):
    """-> in words why the stored head does not fit."""
    reason = (f"the folder's labels are {some_of(stored_names)}, the texts' are "
              f"{some_of(label_names)}")
    if len(stored_names) == len(label_names):
        # sorted: `NEG POS` beside `neg pos`, LABEL_0 and LABEL_1 beside 0 and 1
        pairs = zip(sorted(stored_names), sorted(label_names), strict=True)
        reason += ("; if they mean the same, label_map "
                   f"{' '.join(f'{a}={b}' for a, b in list(pairs)[:3])} keeps its head")
    return reason


def _stored_labels(path, settings, head):
    """-> the names in config.json, or LABEL_0, LABEL_1, ... as transformers has it without."""
    rows = 2 if head is None else head.shape[0]
    id2label = settings.get("id2label")
    if id2label is None:
        id2label = {str(i): f"LABEL_{i}" for i in range(rows)}
    if not isinstance(id2label, dict) or not all(
            isinstance(name, str | int) for name in id2label.values()):
        raise UserError(f"{path}: id2label is {id2label!r}, expected a name for each number")
    for key, count in ("id2label", len(id2label)), ("num_labels", settings.get("num_labels")):
        if head is not None and count not in (None, rows):
            raise UserError(f"{path}: {key} gives {count} labels, but {head.name} in "
                            f"{head.path.name} has {rows} rows")
    try:
        return tuple(str(id2label[str(i)]) for i in range(len(id2label)))
    except KeyError as error:
        raise UserError(f"{path}: id2label lacks the number {error.args[0]}") from None


def _require_labels(source, label_names):
    """Raises UserError unless there are two labels or more, all different and none empty."""
    if len(label_names) < 2:
        raise UserError(f"{source}: {len(label_names)} label, expected two or more")
    seen: set[str] = set()
    for i, name in enumerate(label_names):
        if not isinstance(name, str) or not name:
            raise UserError(f"{source}: label {i} is {name!r}, expected a name")
        if name in seen:
            raise UserError(f"{source}: the label {name!r} is there twice")
        seen.add(name)
