"""Adapters of a whole model: which linear maps have one, their initial values, and the merge.

Hu et al. 2022, "LoRA: low-rank adaptation of large language models". The base lies frozen in the
store, without gradients; the adapters, and a classifier's head, are all that is trained.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

from minisft.backend import random
from minisft.backend.array import Array
from minisft.errors import UserError, setting
from minisft.models.init_weights import BLOCK
from minisft.nn.layers import Layer, Linear
from minisft.nn.lora import LoraLinear
from minisft.nn.parameters import Parameter
from minisft.ops import lora

ALL = "all-linear"
# What PEFT's names of a model with a head begin with: a regular expression may say so.
PREFIXES = ("", "transformer.", "bert.")
# Adapters draw from streams of their own: a new head's values do not depend on them.
FIRST_STREAM = 1 << 20


@dataclass(frozen=True)
class LoraConfig:
    """Which linear maps have an adapter, and of what size; the names are those of PEFT.

    `target_modules` are ends of names such as c_attn, a regular expression of whole names, or
    "all-linear"; `layers_to_transform` the numbers of the blocks, None for all. The patterns hold
    other ranks and alphas by ends of names. `modules_to_save` are trained and saved whole, None for
    what a model calls its head.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ALL
    layers_to_transform: tuple[int, ...] | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] | None = None

    def targets(self, name: str) -> bool:
        """A linear map's name -> whether it has an adapter."""
        if self.saves(name):
            return False
        if isinstance(self.target_modules, str) and self.target_modules != ALL:
            return any(re.fullmatch(self.target_modules, prefix + name) for prefix in PREFIXES)
        block = BLOCK.match(name)
        if self.layers_to_transform is not None and (
                block is None or int(block[2]) not in self.layers_to_transform):
            return False
        return self.target_modules == ALL or any(
            ends_in(name, target) for target in self.target_modules)

    def saves(self, name: str) -> bool:
        """A parameter's or a linear map's name -> whether it is trained and saved whole."""
        return name.split(".")[0] in (self.modules_to_save or ())

    def rank(self, name: str) -> int:
        """A linear map's name -> r of its adapter."""
        return _by_pattern(self.rank_pattern, name, self.r)

    def scale(self, name: str) -> float:
        """A linear map's name -> s: alpha / r, or alpha / sqrt(r) with `use_rslora`."""
        r, alpha = self.rank(name), _by_pattern(self.alpha_pattern, name, self.lora_alpha)
        return alpha / (sqrt(r) if self.use_rslora else r)


def ends_in(name: str, target: str) -> bool:
    """-> whether a name, or its end from some dot on, is the target."""
    return any(prefix + name == target for prefix in PREFIXES) or name.endswith(f".{target}")


def _by_pattern(patterns, name, default):
    for pattern, value in patterns.items():
        if any(re.match(rf"(.*\.)?({pattern})$", prefix + name) for prefix in PREFIXES):
            return value
    return default


def linear_maps(model: Any) -> dict[str, tuple[Layer, str, int]]:
    """A model -> the linear maps that may have an adapter: all but the head. By name: who holds
    each, the attribute there, and its number among those of its block."""
    found: dict[str, tuple[Layer, str, int]] = {}
    numbers: dict[int, int] = {}
    for layer in _layers(model):
        for attribute, part in vars(layer).items():
            if isinstance(part, Linear) and part.w.layer < model.trunk.config.head_layer:
                number = numbers.setdefault(part.w.layer, 0)
                numbers[part.w.layer] += 1
                found[part.w.name.removesuffix(".weight")] = layer, attribute, number
    return found


def adapted(model: Any) -> dict[str, LoraLinear]:
    """A model -> its linear maps that have an adapter, by name."""
    maps = {name: getattr(*place[:2]) for name, place in linear_maps(model).items()}
    return {name: part for name, part in maps.items() if isinstance(part, LoraLinear)}


def target_names(model: Any, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Ends of names that a user gave, none for all linear maps of the blocks -> the ends of names
    that an adapter's config holds. Raises UserError for one that is no linear map."""
    in_blocks = names_in_blocks(model)
    for target in targets:
        if not any(ends_in(name, target) for name in in_blocks):
            raise UserError(f"{setting('adapter_targets')}: no linear map of a block is called "
                            f"{target!r}, expected ends of {', '.join(in_blocks)}")
    return tuple(targets) or in_blocks


def names_in_blocks(model: Any) -> tuple[str, ...]:
    """-> the names of a block's linear maps, without the block."""
    return tuple(dict.fromkeys(BLOCK.sub("", name) for name in linear_maps(model)
                               if BLOCK.match(name)))


def from_layer_on(config: LoraConfig, layer: int, shape: Any) -> LoraConfig:
    """-> the same config for the blocks from this layer on; shape: the model's own config."""
    first = max(layer - shape.block_layer(0), 0)
    return replace(config, layers_to_transform=tuple(range(first, shape.n_layer)) if first else
                   None)


def add_adapter(model: Any, config: LoraConfig, seed: int | None = 0) -> None:
    """Puts adapters into the model in place, and trains them and the head alone.

    seed None: their values stay zeros. Raises ValueError where no linear map is meant, or the model
    has adapters already.
    """
    if model.adapter is not None:
        raise ValueError("the model has an adapter already: merge_adapter first")
    if config.modules_to_save is None:
        config = replace(config, modules_to_save=tuple(dict.fromkeys(
            p.name.split(".")[0] for p in model.head_parameters)))
    maps = linear_maps(model)
    chosen = {name: place for name, place in maps.items() if config.targets(name)}
    if not chosen:
        raise ValueError(f"no linear map of the chosen blocks is one of {config.target_modules}, "
                         f"expected ends of {', '.join(names_in_blocks(model))}")
    for name, (owner, attribute, number) in chosen.items():
        setattr(owner, attribute, LoraLinear(
            getattr(owner, attribute), config.rank(name), config.scale(name), config.lora_dropout,
            random.ADAPTER + number))
    model.adapter = config
    _tell_blocks(model)
    model.store.add([p for layer in adapted(model).values() for p in _own(layer)])
    if seed is not None:
        for number, name in enumerate(maps):
            if name in chosen:
                a = model.store[f"{name}.lora_A.weight"]
                a.value[...] = model.store.xp.asarray(
                    a.scale * random.normal(a.shape, seed, FIRST_STREAM + number))
    train_adapter(model)


def train_adapter(model: Any) -> None:
    """Trains the adapters and the head, and nothing else."""
    trained = set(adapter_parameters(model))
    model.store.train(trained.__contains__)


def adapter_parameters(model: Any) -> list[Parameter]:
    """-> what an adapter's folder holds: the adapters, and what is saved whole."""
    return [p for layer in adapted(model).values() for p in _own(layer)] + [
        p for p in model.parameters() if model.adapter.saves(p.name)]


def merge_adapter(model: Any) -> None:
    """Adds the adapters to the matrices that they adapt, and takes them out; in place.

    These matrices, and what was saved whole, are trained from then on: no layer below them is.
    """
    merged = adapted(model)
    trained = {layer.w for layer in merged.values()} | {
        p for p in model.parameters() if model.adapter.saves(p.name)}
    for layer in merged.values():
        layer.w.value[...] = merged_value(layer)
    for owner, attribute, _ in linear_maps(model).values():
        if isinstance(part := getattr(owner, attribute), LoraLinear):
            setattr(owner, attribute, part.without_adapter())
    model.adapter = None
    _tell_blocks(model)
    model.store.remove([p for layer in merged.values() for p in _own(layer)])
    model.store.train(trained.__contains__)


def merged_value(layer: LoraLinear) -> Array:
    """-> the matrix (in,out) of one map that gives what this one gives."""
    return lora.merge(layer.w.value, layer.lora_A.value, layer.lora_B.value, layer.scale)


def values_to_save(model: Any) -> Iterator[tuple[Parameter, Array]]:
    """A model -> each parameter of its base or head with its value, adapters merged into it."""
    layers = {layer.w.name: layer for layer in adapted(model).values()}
    own = {p for layer in layers.values() for p in _own(layer)}
    for p in model.store:
        if p not in own:
            yield p, merged_value(layers[p.name]) if p.name in layers else p.value


def _own(layer: LoraLinear) -> tuple[Parameter, Parameter]:
    return layer.lora_A, layer.lora_B


def _tell_blocks(model):
    layers = adapted(model)
    for i, block in enumerate(model.trunk.blocks):
        number = model.trunk.config.block_layer(i)
        block.adapters = tuple(a for a in layers.values() if a.w.layer == number)


def _layers(layer):
    yield layer
    for part in layer._parts(Layer):
        yield from _layers(part)
