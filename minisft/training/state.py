"""Where a training run stands, and the reading back of what it saved."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minisft.errors import UserError
from minisft.training import optim
from minisft.training.averaging import Mean
from minisft.training.loss_scale import LossScale


@dataclass
class State:
    """Where a run stands: all that `resume` needs beside the config and the data."""

    epoch: int = 0
    index: int = 0      # steps done of this epoch
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss_sum: float = 0.0                           # of the steps of this epoch
    best: dict | None = None                        # the epoch that counts so far
    best_values: np.ndarray | None = None
    mean: Mean | None = None                        # of the values, with config.average
    scale: LossScale | None = None                  # of float16 alone
    metrics_crc32: int | None = None                # of metrics.jsonl up to here

    INFO = ("epoch", "index", "step", "seconds", "tokens", "loss_sum", "best",
            "metrics_crc32")

    def to_save(self, model: Any, optimizer: optim.Optimizer) -> tuple[dict, dict]:
        """-> arrays by name, and the rest as plain numbers."""
        arrays, t = optimizer.state()
        arrays = {f"optimizer.{name}": a for name, a in arrays.items()}
        arrays["values"] = model.store.values
        if self.best_values is not None:
            arrays["best_values"] = self.best_values
        if self.mean is not None:
            arrays["mean"] = self.mean.values
        arrays = {name: model.store.without_gaps(a) for name, a in arrays.items()}
        return arrays, {name: getattr(self, name) for name in self.INFO} | {
            "optimizer_t": t, "frozen": _frozen_checksum(model),
            "averaged": None if self.mean is None else self.mean.count,
            "scale": None if self.scale is None else asdict(self.scale)}

    def restore(self, model: Any, optimizer: optim.Optimizer,
                arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """The other way round, from what `to_save` gave.

        Raises UserError for another model's, and for a record that no run writes: checksums say
        that a file is as it was written, not who wrote it.
        """
        require_sound(info)
        for problem in _wrong_arrays(arrays, info, model, optimizer):
            raise UserError(f"the saved state is not of this model: {problem}")
        if info.get("frozen", _frozen_checksum(model)) != _frozen_checksum(model):
            raise UserError("the layers that are not trained have changed since the run began, "
                            "expected the same model")
        for name in self.INFO:
            setattr(self, name, info[name])
        arrays = {name: model.store.with_gaps(a) for name, a in arrays.items()}
        self.best_values = arrays.get("best_values")
        self.mean = None if info.get("averaged") is None else Mean(
            arrays["mean"], info["averaged"])
        self.scale = None if info.get("scale") is None else LossScale(**info["scale"])
        model.store.values[...] = arrays["values"]
        optimizer.restore({name.removeprefix("optimizer."): a for name, a in arrays.items()
                           if name.startswith("optimizer.")}, info["optimizer_t"])
        model.store.refresh()


def _frozen_checksum(model):
    # a state keeps what is trained; the rest must be what it was, or the run goes on with another
    return zlib.crc32(model.store.without_gaps(model.store.frozen_values, trained=False))


def _wrong_arrays(arrays, info, model, optimizer):
    """-> a line for what is missing, unknown, or not of the model's size or type."""
    values = model.store.values
    like = {"values": values} | {f"optimizer.{name}": a for name, a in optimizer.state()[0].items()}
    like |= {name: values for name, key in (("best_values", "best"), ("mean", "averaged"))
             if info.get(key) is not None}
    if arrays.keys() != like.keys():
        yield f"it holds {', '.join(sorted(arrays))}, expected {', '.join(sorted(like))}"
        return
    shape = (sum(p.size for p in model.store.trainable),)     # without the gaps of a card's buffers
    for name, a in like.items():
        found = arrays[name]
        if (found.shape, found.dtype) != (shape, a.dtype):
            yield f"{name} is {found.dtype} {found.shape}, expected {a.dtype} {shape}"
        elif not (name.startswith("optimizer.") or np.isfinite(found).all()):
            yield f"{name} holds values that are not finite"


def require_sound(info: Mapping[str, Any]) -> None:
    """Raises UserError for a figure of a saved state that is missing or not of its kind."""
    for name, (sound, kind) in FIGURES.items():
        if name in State.INFO and name not in info:
            raise UserError(f"the saved state is not what a run writes: it has no {name}")
        if not sound(info.get(name)):
            raise UserError(f"the saved state is not what a run writes: {name} is "
                            f"{str(info.get(name))[:40]!r}, expected {kind}")


def _is_count(x):
    return type(x) is int and 0 <= x < 2**53


def _is_number(x):
    return type(x) in (int, float) and math.isfinite(x)


def _is_epoch(x):
    """Whether x is what the loop reports of an epoch: figures, a list of them, a sample's text."""
    return isinstance(x, dict) and EPOCH <= x.keys() and all(
        _is_count(value) if name in ("epoch", "step") else
        all(map(_is_number, value)) if isinstance(value, list) else
        _is_number(value) or name == "sample" and isinstance(value, str)
        for name, value in x.items())


def _is_scale(x):
    return isinstance(x, dict) and x.keys() == {"value", "good"} and \
        _is_number(x["value"]) and x["value"] > 0 and _is_count(x["good"])


def _optional(sound):
    return lambda x: x is None or sound(x)


EPOCH = {"epoch", "step", "train_loss", "valid_loss", "score"}
COUNT = _is_count, "a whole number"
FIGURES = {
    "epoch": COUNT, "index": COUNT, "tokens": COUNT, "optimizer_t": COUNT,
    # random numbers are drawn for a step by its 32 bits
    "step": (lambda x: _is_count(x) and 0 < x < 2**32, "a whole number of 1 or more"),
    "seconds": (lambda x: _is_number(x) and x > 0, "a number above 0"),
    "loss_sum": (_is_number, "a number"),
    "best": (_optional(_is_epoch), "the figures of an epoch"),
    "scale": (_optional(_is_scale), "a scale and how many steps it was good for"),
    "metrics_crc32": (_optional(_is_count), "a checksum"),
    "averaged": (_optional(_is_count), "a whole number")}
