"""The tensors of a model's folder, in whichever of the forms of `transformers` it has them, and
from there into a model.

safetensors come first, one file or shards with an index; then what torch.save has written.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minisft.data.json_file import read_object
from minisft.errors import UserError
from minisft.io import safetensors, torch_file
from minisft.io.architectures import Family
from minisft.nn.parameters import Parameter


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


def has_weights(folder: Path) -> bool:
    """-> whether a folder is a model's, by its weights."""
    return any((folder / name).exists() for form in FORMS for name in form[:2])


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
        weight_map = read_object(index)["weight_map"]
        shards = sorted(set(weight_map.values()))
        inside = [shard for shard in shards if shard == Path(shard).name and "\\" not in shard]
    except (ValueError, KeyError, TypeError, AttributeError):
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


def tensors_by_name(
    stored: Iterable[UnreadTensor], family: Family, own_head: Collection[str] = (),
) -> tuple[dict[str, UnreadTensor], tuple[str, ...]]:
    """Tensors of a file -> each by its name in the model, and the names of those that another
    task's head has, which is not `own_head`; raises UserError for one that is there twice."""
    stored, tensors, unused = list(stored), {}, []
    bare = family.without_wrappers(tensor.name for tensor in stored)
    for tensor in stored:
        name = family.from_hf(bare[tensor.name])
        if name in tensors:
            raise UserError(f"{tensor.path}: {name} is there twice, as {tensors[name].name} and as "
                            f"{tensor.name}")
        if name is not None and name not in (*family.optional, *own_head) and \
                family.other_heads.fullmatch(name):
            unused.append(name)
        elif name is not None:
            tensors[name] = tensor
    return tensors, tuple(sorted(unused))


def is_tied(tensors: Mapping[str, UnreadTensor]) -> bool:
    """GPT-2's tensors by name -> whether the output matrix is the token table."""
    head, wte = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    if head is None or wte is None:
        return True
    return head.shape == wte.shape and np.array_equal(head.read(), wte.read())


def require_names_and_shapes(source: Path, asking: str, family: Family,
                             tensors: Mapping[str, UnreadTensor],
                             expected_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError naming the first tensor that is missing, unexpected or misshapen.

    `source`, `asking`: where the tensors come from and what tells their shapes, for messages.
    """
    for name, shape in expected_shapes.items():
        if name not in tensors:
            raise UserError(f"{source}: the tensor {name} is missing, {asking} asks for it with "
                            f"shape {shape}; there are "
                            f"{some_of([tensor.name for tensor in tensors.values()])}")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise UserError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, {asking} "
                            f"asks for {shape}")
        if tensor.dtype not in safetensors.FLOATS:
            raise UserError(f"{tensor.path}: {tensor.name} has dtype {tensor.dtype}, expected "
                            f"one of {', '.join(safetensors.FLOATS)}")
    for name, tensor in tensors.items():
        if name not in expected_shapes and name not in family.optional:
            raise UserError(f"{tensor.path}: {tensor.name} is unexpected, the "
                            f"{family.config.TITLE} that {asking} describes has no such tensor")


def copy_tensor(parameter: Parameter, tensor: UnreadTensor, family: Family,
                rows: Sequence[int] | None = None) -> None:
    """Copies a tensor of the file, or these rows of it in their order, into the parameter; raises
    UserError unless it is finite."""
    value = tensor.read() if rows is None else tensor.read()[rows]
    with np.errstate(over="ignore"):     # a float64 too large for us is reported below
        parameter.value[...] = family.convert_layout(parameter.name, value)
    if not np.isfinite(parameter.value).all():
        raise UserError(f"{tensor.path}: {tensor.name} holds values that are not finite as "
                        f"{parameter.value.dtype}")


def some_of(names: Sequence[str]) -> str:
    """-> the first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
