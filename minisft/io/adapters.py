"""An adapter's folder in PEFT's own format, in and out: adapter_config.json and
adapter_model.safetensors.

    here                                       in the file
    h.0.attn.c_attn.lora_A.weight              base_model.model.transformer.h.0...     (r,in)
    h.0.attn.c_attn.lora_B.weight              the same                                (out,r)
    score.weight                               base_model.model.score.weight           (K,C)

and for BERT `bert.` in the place of `transformer.`, with `classifier` and `pooler.dense` saved
whole. What PEFT has no key for (the labels, the cleaning, which base) lies in the metadata of the
tensors' file: PEFT passes it by, and loses it when it saves the adapter anew.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minisft.backend.array import to_cpu
from minisft.errors import UserError, short_repr
from minisft.io import config_checksums, safetensors
from minisft.io.architectures import BERT_MEAN, GPT2, TOKEN_HEADS, Family, family_of_model
from minisft.io.files import read_json, write_json
from minisft.io.hub import ADAPTER
from minisft.models.adapters import LoraConfig, adapter_parameters
from minisft.models.heads import Classifier, LanguageModel, Model
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.ops import lora

WEIGHTS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"
EXTRA = "minisft"           # of the metadata: what PEFT has no key for, as JSON
PREFIX = "base_model.model."
LORA = re.compile(r"(.+)\.lora_(A|B)\.weight")
# What may be saved whole; PEFT names both heads whatever the model has.
WHOLE = ("score", "classifier", "qa_outputs", "pooler")
# PEFT's names for tasks over tokens -> ours.
TOKEN_TASKS = {"TOKEN_CLS": "tag", "QUESTION_ANS": "answer"}
TASK_TYPES = ((Classifier, "SEQ_CLS"), (LanguageModel, "CAUSAL_LM"),
              (TokenClassifier, "TOKEN_CLS"), (SpanClassifier, "QUESTION_ANS"))
# Keys that change nothing here: what a library kept for itself, or how values began.
IGNORED = {"peft_type", "peft_version", "task_type", "auto_mapping", "revision", "inference_mode",
           BASE, "fan_in_fan_out", "megatron_core", "qalora_group_size",
           "runtime_config", "layers_pattern", "eva_config"}
READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "use_rslora",
        "rank_pattern", "alpha_pattern", "modules_to_save"}
# Others must be off. Values that are not false, none or empty, and are all the same off:
OFF = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


@dataclass(frozen=True)
class MergedTensor:
    """A matrix of the base's file with its adapter added, read when it is asked for."""

    base: Any
    a: Any
    b: Any
    scale: float
    transposed: bool      # (out,in) in the base's file

    path = property(lambda self: self.base.path)
    name = property(lambda self: self.base.name)
    dtype = property(lambda self: self.base.dtype)
    shape = property(lambda self: self.base.shape)

    def read(self) -> np.ndarray:
        """-> the array, float32."""
        w, a, b = (t.read().astype(np.float32, copy=False) for t in (self.base, self.a, self.b))
        return (lora.merge(w.T, a, b, self.scale).T if self.transposed else
                lora.merge(w, a, b, self.scale))


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's folder: its config, its tensors by their names here, unread, and what minisft
    wrote beside them, {} of another's."""

    folder: Path
    config: LoraConfig
    tensors: dict[str, Any]
    extra: dict[str, Any]
    task_type: str | None
    notes: tuple[str, ...] = ()     # on what is not as it was saved

    def merged_into(self, tensors: Mapping[str, Any], family: Family) -> dict[str, Any]:
        """The base's tensors by name -> those of the merged model.

        Raises UserError for another base, and for an adapter that does not fit it.
        """
        self._require_base(tensors, family)
        maps = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items()
                if family.trunk_tensors.fullmatch(name) and len(tensor.shape) == 2
                and not re.match("wte|wpe|embeddings", name)}
        sides = self._sides(maps, family)
        merged = dict(tensors)
        for name, (a, b) in sides.items():
            merged[f"{name}.weight"] = MergedTensor(
                maps[name], a, b, self.config.scale(name), _turned(family, name))
        merged |= {name: t for name, t in self.tensors.items() if not LORA.fullmatch(name)}
        return merged

    def _require_base(self, tensors, family):
        kept = self.extra.get("base_sha256")
        if kept is not None and kept != base_sha256(
                family, ((name, t.shape, t.read) for name, t in tensors.items())):
            base = next(iter(tensors.values())).path.parent
            raise UserError(f"{self.folder}: was trained on another base, the weights in {base} "
                            "have another checksum than those it was trained on")

    def _sides(self, maps, family):
        """-> (A, B), unread, of each map that has an adapter; UserError where they do not fit."""
        path, found = self.folder / WEIGHTS, {}
        for name, tensor in self.tensors.items():
            if match := LORA.fullmatch(name):
                found.setdefault(match[1], {})[match[2]] = tensor
            elif not self.config.saves(name):
                raise UserError(f"{path}: {tensor.name} is unexpected, {ADAPTER} does not name it "
                                "in modules_to_save")
        expected = {name for name in maps if self.config.targets(name)}
        if wrong := sorted(expected ^ found.keys()):
            raise UserError(f"{path}: {wrong[0]} has " + (
                f"no adapter, {ADAPTER} says that it has one" if wrong[0] in expected else
                f"an adapter, but it is no linear map of the base that {ADAPTER} names"))
        if not found:
            raise UserError(f"{path}: holds no lora_A and lora_B")
        for name, sides in found.items():
            rank = self.config.rank(name)
            width_in, width_out = maps[name].shape[::-1 if _turned(family, name) else 1]
            for side, shape in ("A", (rank, width_in)), ("B", (width_out, rank)):
                if side not in sides:
                    raise UserError(f"{path}: {name}.lora_{side} is missing")
                self._require_shape(sides[side], shape)
        return {name: (sides["A"], sides["B"]) for name, sides in found.items()}

    def _require_shape(self, tensor, shape):
        if tensor.shape != shape:
            raise UserError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, {ADAPTER} and "
                            f"the base ask for {shape}")
        if tensor.dtype not in safetensors.FLOATS:
            raise UserError(f"{tensor.path}: {tensor.name} has dtype {tensor.dtype}, expected one "
                            f"of {', '.join(safetensors.FLOATS)}")

    def settings_over(self, settings: dict[str, Any], family: Family) -> dict[str, Any]:
        """The base's config.json -> that of the merged model: its labels, its pooling."""
        task = TOKEN_TASKS.get(self.task_type)
        head = self.tensors.get(TOKEN_HEADS[task][0] if task else family.head[0])
        if head is None:
            return settings
        if task == "answer":
            return settings | {"architectures": [family.token_architectures[task]]}
        names = self.extra.get("label_names")
        if names is None:      # of PEFT: those of the base, where it has as many
            known = settings.get("id2label")
            names = list(known.values()) if isinstance(known, dict) and \
                len(known) == head.shape[0] else [f"LABEL_{i}" for i in range(head.shape[0])]
        mean = self.extra.get("pooling", "first") == "mean"
        architecture = family.token_architectures[task] if task else family.architectures[0]
        return settings | {
            "model_type": BERT_MEAN if mean else family.model_type,
            "architectures": [BERT_MEAN if mean else architecture],
            "num_labels": len(names), "id2label": {str(i): n for i, n in enumerate(names)},
            "problem_type": None}


def read(folder: str | Path, family: Family) -> StoredAdapter:
    """An adapter's folder, the architecture of its base -> StoredAdapter; raises UserError."""
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: holds no {WEIGHTS}" + (
            ", and adapter_model.bin is not read, since opening a pickle can run any code in it"
            if (folder / "adapter_model.bin").is_file() else ""))
    stored, metadata = safetensors.read_header(folder / WEIGHTS)
    tensors: dict[str, Any] = {}
    for name, tensor in stored.items():
        here = family.from_hf(name.removeprefix(PREFIX))
        if here is not None:
            tensors[here] = tensor
    settings = read_json(folder / ADAPTER)
    return StoredAdapter(folder, config, tensors, _extra(folder / WEIGHTS, metadata),
                         _task_type(folder, settings), config_checksums.changes(
                             folder / ADAPTER, folder / WEIGHTS, settings))


def _task_type(folder, settings):
    kind = settings.get("task_type")
    if not isinstance(kind, str | None):
        raise UserError(f"{folder / ADAPTER}: task_type is {short_repr(kind)}, expected a text")
    return kind


def extra_of(folder: str | Path) -> dict[str, Any]:
    """-> what minisft wrote into an adapter's folder beside PEFT's own, {} for nothing."""
    path = Path(folder) / WEIGHTS
    return _extra(path, safetensors.read_header(path)[1])


def _extra(path, metadata):
    try:
        extra = json.loads(metadata.get(EXTRA, "{}"))
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise UserError(f"{path}: its metadata holds {short_repr(metadata[EXTRA])} as {EXTRA}, "
                        "expected what minisft writes there")
    return extra


def read_config(folder: str | Path) -> LoraConfig:
    """adapter_config.json of a folder -> LoraConfig; raises UserError for what it names and
    minisft does not have."""
    path = Path(folder) / ADAPTER
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    for key, value in settings.items():
        if key in READ | IGNORED or not value or value in OFF.get(key, ()):
            continue
        raise UserError(f"{path}: {key} = {short_repr(value)} is not supported"
                        + (f" (only {', '.join(map(repr, OFF[key]))})" if key in OFF else ""))
    config = LoraConfig(**_checked(path, settings))
    for name in config.modules_to_save or ():
        if name not in WHOLE:
            raise UserError(f"{path}: modules_to_save names {name!r}, only {', '.join(WHOLE)} can "
                            "be saved whole")
    return config


def _checked(path, settings):
    """-> the keys that LoraConfig has, each of its type."""
    def number(value):
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

    def whole(value):
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    def texts(value):
        return isinstance(value, list) and all(isinstance(each, str) and each for each in value)

    def each(kind):
        return lambda value: isinstance(value, dict) and all(map(kind, value.values()))

    def regex(value):
        try:
            return isinstance(value, str) and bool(re.compile(value))
        except re.error:
            return False

    def blocks(value):
        return whole(value + 1 if isinstance(value, int) else value) or isinstance(
            value, list) and all(isinstance(i, int) and i >= 0 for i in value)

    kinds = {
        "r": (whole, "a whole number above 0"), "lora_alpha": (number, "a number above 0"),
        "lora_dropout": (lambda x: not x or number(x) and x < 1, "a number in [0, 1)"),
        "target_modules": (lambda x: texts(x) and x or regex(x), "names, or one expression"),
        "layers_to_transform": (blocks, "numbers of blocks"),
        "use_rslora": (lambda x: isinstance(x, bool), "true or false"),
        "rank_pattern": (each(whole), "whole numbers by name"),
        "alpha_pattern": (each(number), "numbers by name"),
        "modules_to_save": (texts, "names")}
    values = {}
    for key, (right, expected) in kinds.items():
        value = settings.get(key)
        if value is None and key not in ("r", "target_modules"):
            continue
        if not right(value):
            raise UserError(f"{path}: {key} is {short_repr(value)}, expected {expected}")
        values[key] = tuple(dict.fromkeys(value)) if isinstance(value, list) else value
    if isinstance(values.get("layers_to_transform"), int):
        values["layers_to_transform"] = (values["layers_to_transform"],)
    if not values.get("layers_to_transform", True):      # an empty list means all
        del values["layers_to_transform"]
    return {"modules_to_save": ()} | values


def base_sha256(family: Family, tensors: Iterable[tuple[str, tuple[int, ...], Any]]) -> str:
    """(name, shape in the file, read()) of a base's tensors -> sha256 of what adapters leave as it
    is: the trunk, as float32, whatever the files call it and however they store it."""
    made = hashlib.sha256()
    for name, shape, value in sorted(tensors, key=lambda entry: entry[0]):
        if family.trunk_tensors.fullmatch(name) and name not in family.optional \
                and not LORA.fullmatch(name):
            made.update(f"{name} {list(shape)}\n".encode())
            made.update(np.ascontiguousarray(value(), dtype="<f4").data)
    return made.hexdigest()


def sha256_of_base(model: Model) -> str:
    """A model whose base is frozen -> the checksum of that base."""
    family = family_of_model(model)

    def read_(p):
        return lambda: family.convert_layout(p.name, to_cpu(p.value))

    return base_sha256(family, ((p.name, family.shape_in_file(p), read_(p)) for p in model.store))


def write(folder: str | Path, model: Any, base: str,
          extra: Mapping[str, Any] | None = None) -> None:
    """The adapters of a model, and its head, into a folder that PEFT opens on the same base.

    `base`: the name or the folder of the base; `extra`: JSON values to keep beside. Raises
    ValueError for a model without adapters, UserError where values are not finite.
    """
    if model.adapter is None:
        raise ValueError("the model has no adapter to write")
    folder, family, arrays = Path(folder), family_of_model(model), {}
    for p in adapter_parameters(model):
        value = to_cpu(p.value)
        if not np.isfinite(value).all():
            raise UserError(f"{folder / WEIGHTS}: not written, {p.name} holds values that are not "
                            "finite")
        arrays[PREFIX + family.to_hf(p.name)] = (
            value if LORA.fullmatch(p.name) else family.convert_layout(p.name, value)
        ).astype(np.float32, copy=False)
    kept = {"base_sha256": sha256_of_base(model)} | dict(extra or {})
    if hasattr(model, "label_names"):
        kept["label_names"] = list(model.label_names)
    if isinstance(model, Classifier) and family.has_pooling:
        kept["pooling"] = model.pooling
    settings = peft_config(model, base)
    # where its base lies may change
    computing = {key: value for key, value in settings.items() if key != BASE}
    safetensors.write(folder / WEIGHTS, arrays, {
        "format": "pt", EXTRA: json.dumps(kept)} | config_checksums.entries(computing, {}))
    write_json(folder / ADAPTER, settings)     # last, as a model's config.json


def peft_config(model: Any, base: str) -> dict[str, Any]:
    """-> adapter_config.json as a dict."""
    values = asdict(model.adapter)
    for key, default in asdict(LoraConfig()).items():
        if key not in ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save") \
                and values[key] == default:
            del values[key]
    alpha = values["lora_alpha"]
    return {
        "peft_type": "LORA",
        "task_type": next(name for kind, name in TASK_TYPES if isinstance(model, kind)),
        BASE: base, "inference_mode": True, "bias": "none",
        "fan_in_fan_out": family_of_model(model) is GPT2,      # its matrices are (in,out)
        **values, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "modules_to_save": list(values["modules_to_save"]) or None}


def attach(model: Model, folder: str | Path) -> None:
    """Puts a stored adapter into a model of its base, in place, not merged; its head with it.

    Raises UserError for another base, and for an adapter that does not fit.
    """
    family = family_of_model(model)
    stored = read(folder, family)
    in_file = {p.name: _InModel(p, family) for p in model.store}
    stored.merged_into(in_file, family)
    model.add_adapter(stored.config, seed=None)
    for p in adapter_parameters(model):
        value = stored.tensors[p.name].read() if p.name in stored.tensors else None
        if value is None:
            continue
        if not LORA.fullmatch(p.name):
            stored._require_shape(stored.tensors[p.name], family.shape_in_file(p))
            value = family.convert_layout(p.name, value)
        p.value[...] = model.store.xp.asarray(value)
    model.store.refresh()


class _InModel:
    """A parameter as a file would hold it."""

    path = Path("model")

    def __init__(self, parameter, family):
        self.parameter, self.family, self.name = parameter, family, parameter.name
        self.shape = family.shape_in_file(parameter)

    def read(self):
        return self.family.convert_layout(self.name, to_cpu(self.parameter.value))


def _turned(family, name):
    return family.transposed.fullmatch(f"{name}.weight") is not None
