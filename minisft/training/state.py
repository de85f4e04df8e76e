"""Where a training run stands, and the reading back of what it saved."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minisft.backend.array import to_cpu
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
        return arrays, {name: getattr(self, name) for name in self.INFO} | {
            "optimizer_t": t, "frozen": _frozen_checksum(model),
            "averaged": None if self.mean is None else self.mean.count,
            "scale": None if self.scale is None else asdict(self.scale)}

    def restore(self, model: Any, optimizer: optim.Optimizer,
                arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """The other way round, from what `to_save` gave; raises UserError for another model."""
        if arrays["values"].shape != model.store.values.shape:
            raise UserError(f"the saved state has {arrays['values'].size} values, "
                            f"the model {model.store.values.size}")
        if info.get("frozen", _frozen_checksum(model)) != _frozen_checksum(model):
            raise UserError("the layers that are not trained have changed since the run began, "
                            "expected the same model")
        for name in self.INFO:
            setattr(self, name, info[name])
        self.best_values = arrays.get("best_values")
        self.mean = None if info.get("averaged") is None else Mean(
            model.store.xp.asarray(arrays["mean"]), info["averaged"])
        self.scale = None if info.get("scale") is None else LossScale(**info["scale"])
        model.store.values[...] = model.store.xp.asarray(arrays["values"])
        optimizer.restore({name.removeprefix("optimizer."): a for name, a in arrays.items()
                           if name.startswith("optimizer.")}, info["optimizer_t"])
        model.store.refresh()


def _frozen_checksum(model):
    # a state keeps what is trained; the rest must be what it was, or the run goes on with another
    return zlib.crc32(to_cpu(model.store.frozen_values))
