"""The tensors of a model's folder, in whichever of the forms of `transformers` it has them.

safetensors come first, one file or shards with an index; then what torch.save has written.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minisft.errors import UserError
from minisft.io import safetensors, torch_file


class UnreadTensor(Protocol):
    """A tensor in a file, not yet read."""

    @property
    def path(self) -> Path:
        """-> the file."""
    @property
    def name(self) -> str:
        """-> its name there."""
    @property
    def dtype(self) -> str:
        """-> as safetensors calls it, F32 or BF16."""
    @property
    def shape(self) -> tuple[int, ...]:
        """-> its shape there."""
    def read(self) -> np.ndarray:
        """-> the array, bfloat16 as float32; raises UserError for damage."""


def _safetensors(path):
    return safetensors.read_header(path)[0]


TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# (one file, index of several, what reads a file), the first one that is there counts
FORMS: tuple[tuple[str, str, Callable[[Path], Mapping[str, UnreadTensor]]], ...] = (
    (safetensors.WEIGHTS, safetensors.INDEX, _safetensors),
    (TORCH_WEIGHTS, TORCH_INDEX, torch_file.read_tensors))
UNSUPPORTED = ("tf_model.h5", "flax_model.msgpack")


def folder_tensors(folder: str | Path) -> list[UnreadTensor]:
    """A checkpoint's folder -> its tensors, unread, from one file or from shards; UserError."""
    folder = Path(folder)
    for weights, index, read in FORMS:
        if (folder / weights).is_file():
            return list(read(folder / weights).values())
        if (folder / index).is_file():
            return _shards(folder / index, read)
    for name in UNSUPPORTED:
        if (folder / name).is_file():
            raise UserError(f"{folder / name}: not read, since only {safetensors.WEIGHTS} and "
                            f"{TORCH_WEIGHTS} are; load the folder once in transformers and call "
                            "save_pretrained, which writes the first")
    raise UserError(f"{folder}: holds neither " + " nor ".join(
        name for weights, index, _ in FORMS for name in (weights, index)))


def _shards(index: Path, read: Callable[[Path], Mapping[str, UnreadTensor]]) -> list[Any]:
    """-> the tensors of the index, each in the shard that it names."""
    folder = index.parent
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
        inside = [shard for shard in shards if shard == Path(shard).name and "\\" not in shard]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index}: expected a JSON object with a weight_map from each tensor to "
                        "the file that holds it") from None
    for shard in shards:
        # An index from elsewhere must not make us open files outside its folder.
        if shard not in inside:
            raise UserError(f"{index}: names the file {shard!r}, expected one beside the index")
        if not (folder / shard).is_file():
            raise UserError(f"{index}: names {shard}, which is not there")
    tensors: list[UnreadTensor] = []
    for shard in shards:
        in_shard = read(folder / shard)
        in_index = {name for name, file in weight_map.items() if file == shard}
        if in_shard.keys() != in_index:
            name = min(in_shard.keys() ^ in_index)
            raise UserError(f"{folder / shard}: {name} is " + (
                f"missing, {index.name} says that it is here" if name in in_index else
                f"here, but {index.name} does not say so"))
        tensors += in_shard.values()
    return tensors
