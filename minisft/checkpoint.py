"""GPT-2 folders as Hugging Face has them, in and out: config.json and model.safetensors.

Names are GPT-2's own, so a name in the code is a name in the file:

    ours and in the published files      in files of a model with a head        shape in the file
    wte.weight                           transformer.wte.weight                 (V,C)
    wpe.weight                           transformer.wpe.weight                 (n_positions,C)
    h.0.ln_1.weight, .bias               transformer.h.0.ln_1...                (C,)
    h.0.attn.c_attn.weight, .bias        transformer.h.0.attn.c_attn...         (C,3C), (3C,)
    h.0.attn.c_proj.weight, .bias        transformer.h.0.attn.c_proj...         (C,C), (C,)
    h.0.ln_2.weight, .bias               transformer.h.0.ln_2...                (C,)
    h.0.mlp.c_fc.weight, .bias           transformer.h.0.mlp.c_fc...            (C,M), (M,)
    h.0.mlp.c_proj.weight, .bias         transformer.h.0.mlp.c_proj...          (M,C), (C,)
    ln_f.weight, .bias                   transformer.ln_f...                    (C,)
    score.weight                         score.weight                           (K,C), ours (C,K)
    lm_head.weight                       lm_head.weight                         (V,C), ours (C,V)

M is n_inner. `lm_head.weight` is absent where the output matrix is the token table. Old files
also hold the causal mask of each block (`attn.bias`, `attn.masked_bias`); it is left out.
"""

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from minisft import random, tensors
from minisft.array import to_cpu
from minisft.errors import UserError
from minisft.files import read_json, write_json
from minisft.layers import INITIAL_SCALE
from minisft.models.gpt2 import UNSUPPORTED, GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.tensors import WEIGHTS

CONFIG = "config.json"
PREFIX = "transformer."
HEADS = "score.weight", "lm_head.weight"     # without prefix, and (out,in) as torch stores them
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
CLASSIFIER, LANGUAGE_MODEL = "GPT2ForSequenceClassification", "GPT2LMHeadModel"


def load(folder, dtype=np.float32, task=None, names=None, seed=0, dropout=None):
    """A checkpoint folder -> Classifier or LanguageModel, with `fresh`: what the folder lacked.

    `task` is "classify", "complete", or None for what the folder holds. With `names`, the labels
    to classify into, the head is kept if it has the same labels in the same order, and otherwise
    drawn anew from `seed`: `fresh` is then ("score.weight",), else (). `dropout` replaces the
    three rates of the config. Raises UserError.
    """
    folder = Path(folder)
    settings = read_json(folder / CONFIG)
    config = GPT2Config.from_dict(settings, folder / CONFIG)
    if dropout is not None:
        config = replace(config, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout)
        config.require_sound("dropout")
    table = _read_table(folder)
    if config.n_layer > len(table):      # before anything as deep as the config says is built
        raise UserError(f"{folder / CONFIG}: n_layer is {config.n_layer}, but there are only "
                        f"{len(table)} tensors")
    if _wants_classifier(folder, settings, table, task, names):
        names, fresh = _labels(folder, settings, table, names)
        model = Classifier(config, names, dtype=None)
        read, idle = () if fresh else ("score.weight",), HEADS
    else:
        tied, fresh = _is_tied(settings, table), ()
        model = LanguageModel(config, tied, dtype=None)
        read, idle = () if tied else ("lm_head.weight",), ("lm_head.weight",)
    wanted = {p.name: p.shape for p in model.trunk.parameters()}
    wanted |= {p.name: p.shape[::-1] for p in model.parameters() if p.name in read}
    _require_names_and_shapes(folder, table, wanted, idle)
    model.build(dtype)
    for name in wanted:
        _fill(model.store[name], table[name])
    if fresh:
        score = model.store["score.weight"]
        score.value[...] = score.scale * random.normal(score.shape, seed, len(model.store.all) - 1)
    model.fresh = fresh
    return model


def save(model, folder, dtype=np.float32, end_token=None, extra_config=None):
    """A model -> config.json and model.safetensors that `transformers` opens, same logits.

    `dtype` is float32 or float16. `end_token` is the id of the tokenizer's <|endoftext|>: where
    sequences begin and end, and, for a classifier, what `transformers` pads with (without it,
    it takes one text at a time). `extra_config` adds keys. Raises UserError.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"a checkpoint is float32 or float16, not {dtype}")
    settings, extra = _settings(model, dtype, end_token), dict(extra_config or {})
    if clash := sorted(settings.keys() & extra.keys()):
        raise ValueError(f"extra_config may not set {clash[0]}")
    if isinstance(model, Classifier):
        _require_labels(folder / CONFIG, model.names)
    arrays = {}
    for p in model.store:
        value = to_cpu(p.value).T if p.name in HEADS else to_cpu(p.value)
        with np.errstate(over="ignore"):
            value = value.astype(dtype, copy=False)
        if not np.isfinite(value).all():
            raise UserError(f"{folder / WEIGHTS}: not written, {p.name} holds values that are "
                            f"not finite as {dtype}")
        arrays[p.name if p.name in HEADS else PREFIX + p.name] = value
    tensors.write(folder / WEIGHTS, arrays, {"format": "pt"})
    # Last, so that a new folder without it is seen to be unfinished.
    write_json(folder / CONFIG, settings | extra)


def _settings(model, dtype, end_token):
    """-> config.json as a dict."""
    config = model.trunk.config
    settings = {"model_type": "gpt2", **asdict(config), "n_ctx": config.n_positions, **UNSUPPORTED,
                "initializer_range": INITIAL_SCALE, "bos_token_id": end_token,
                "eos_token_id": end_token, "pad_token_id": None, "dtype": dtype.name,
                "torch_dtype": dtype.name}      # the second for transformers before version 5
    if isinstance(model, LanguageModel):
        return settings | {"architectures": [LANGUAGE_MODEL],
                           "tie_word_embeddings": model.lm_head is None}
    return settings | {
        "architectures": [CLASSIFIER], "tie_word_embeddings": True, "pad_token_id": end_token,
        "problem_type": "single_label_classification", "num_labels": len(model.names),
        "id2label": {str(i): name for i, name in enumerate(model.names)},
        "label2id": {name: i for i, name in enumerate(model.names)}}


def _read_table(folder):
    """-> every tensor of the folder (Stored, unread) by our name for it, masks left out."""
    table = {}
    for tensor in tensors.folder_contents(folder):
        name = tensor.name.removeprefix(PREFIX)
        if name in table:
            raise UserError(f"{tensor.path}: {name} is there twice, with and without {PREFIX}")
        if not MASK.fullmatch(name):
            table[name] = tensor
    return table


def _wants_classifier(folder, settings, table, task, names):
    """-> whether to build a classifier; raises UserError where the folder cannot serve the task."""
    labelled = _is_classifier(settings, table)
    if task is None:
        task = "classify" if labelled or names is not None else "complete"
    if task == "complete" and labelled:
        raise UserError(f"{folder}: holds a classifier, expected a language model")
    if task == "classify" and names is None and not labelled:
        raise UserError(f"{folder}: holds a language model without labels, expected a classifier "
                        "(or the names of the labels to train one)")
    if task not in ("classify", "complete"):
        raise ValueError(f"task is {task!r}, expected classify or complete")
    return task == "classify"


def _is_classifier(settings, table):
    architectures = settings.get("architectures")
    named = CLASSIFIER in architectures if isinstance(architectures, list) else False
    return named or "score.weight" in table


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


def _labels(folder, settings, table, names):
    """-> the names of the classes, and which parameters the folder cannot give."""
    if names is not None:
        names = tuple(names)
        _require_labels("names", names)
    if not _is_classifier(settings, table):
        return names, ("score.weight",)
    own = _own_labels(folder / CONFIG, settings, table.get("score.weight"))
    if names not in (None, own):
        return names, ("score.weight",)
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
            raise UserError(f"{path}: {key} gives {count} labels, but score.weight in "
                            f"{score.path.name} has {rows} rows")
    try:
        return tuple(str(id2label[str(i)]) for i in range(len(id2label)))
    except KeyError as error:
        raise UserError(f"{path}: id2label lacks the number {error.args[0]}") from None


def _require_labels(where, names):
    """Raises UserError unless there are two labels or more, all different and none empty."""
    if len(names) < 2:
        raise UserError(f"{where}: {len(names)} label, expected two or more")
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: label {i} is {name!r}, expected a name")
        if name in names[:i]:
            raise UserError(f"{where}: the label {name!r} is there twice")


def _require_names_and_shapes(folder, table, wanted, idle):
    """Raises UserError naming the first tensor that is missing, unexpected or misshapen."""
    for name, shape in wanted.items():
        if name not in table:
            raise UserError(f"{folder}: the tensor {name} is missing, {CONFIG} asks for it with "
                            f"shape {shape}")
        tensor = table[name]
        if tensor.shape != shape:
            raise UserError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, {CONFIG} "
                            f"asks for {shape}")
        if tensor.dtype not in tensors.FLOATS:
            raise UserError(f"{tensor.path}: {tensor.name} has dtype {tensor.dtype}, expected "
                            f"one of {', '.join(tensors.FLOATS)}")
    for name, tensor in table.items():
        if name not in wanted and name not in idle:
            raise UserError(f"{tensor.path}: {tensor.name} is unexpected, a GPT-2 as {CONFIG} "
                            "describes has no such tensor")


def _fill(parameter, tensor):
    """Copies a tensor of the file into the parameter; raises UserError unless it is finite."""
    value = tensor.read()
    with np.errstate(over="ignore"):     # a float64 too large for us is reported below
        parameter.value[...] = value.T if parameter.name in HEADS else value
    if not np.isfinite(parameter.value).all():
        raise UserError(f"{tensor.path}: {tensor.name} holds values that are not finite as "
                        f"{parameter.value.dtype}")
