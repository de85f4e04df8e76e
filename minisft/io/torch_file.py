"""What torch.save writes, read without torch and without running anything of it.

Since PyTorch 1.6 that is a zip archive whose members are stored, not compressed:

    NAME/data.pkl      the objects, as a pickle; each storage stands there by a persistent id
                       ("storage", its type, its key, a device, its number of elements)
    NAME/data/KEY      the bytes of that storage
    NAME/byteorder     "little" or "big"; old files have none and are little

A tensor is a view of a storage (offset, shape and strides in elements). Several may share one, as
tied matrices do. The archive's CRC-32 of a storage is compared when a tensor of it is read.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minisft.errors import UserError, short_repr
from minisft.io.restricted_pickle import LARGEST, PLAIN, Function, read_pickle
from minisft.io.safetensors import DTYPES, damage

# Storage classes of torch -> dtype as safetensors calls it.
STORAGES = {"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64",
            "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL"}
_BYTE_ORDERS = {b"little": "<", b"big": ">"}
# eight bytes times the first are a step that NumPy can take
_LARGEST_NUMBER, _LONGEST_NAME = 2**60, 500


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Member:
    """A file in the archive: where its bytes are."""

    start: int
    size: int
    crc: int


@dataclass(frozen=True)
class _Storage:
    """The values that tensors are views of, not yet read."""

    path: Path
    key: str
    dtype: str
    byte_order: str
    member: _Member
    verified: set[str] = field(compare=False)     # keys whose checksum is known to be right

    @property
    def size(self):
        """-> its number of elements."""
        return self.member.size // np.dtype(DTYPES[self.dtype]).itemsize

    def read(self, offset, count):
        """-> that many elements from an offset; raises UserError for a wrong checksum."""
        if self.key not in self.verified:
            if _crc(self.path, self.member) != self.member.crc:
                raise UserError(f"{self.path}: the storage {self.key} is damaged, its checksum "
                                "differs from the one saved with it")
            self.verified.add(self.key)
        dtype = np.dtype(self.byte_order + DTYPES[self.dtype][1:])
        values: np.ndarray = np.fromfile(self.path, dtype, count,
                                         offset=self.member.start + offset * dtype.itemsize)
        if values.size != count:
            raise UserError(f"{self.path}: ends within the storage {self.key}")
        if self.dtype == "BF16":      # the upper half of a float32
            return (values.astype("<u4") << 16).view("<f4")
        return values.astype(dtype.newbyteorder("<"), copy=False)


@dataclass(frozen=True)
class _Rebuilt:
    """The arguments of a tensor as they stand in the pickle: not checked, since nameless yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    metadata: Any


@dataclass(frozen=True)
class TorchTensor:
    """A tensor in a file of torch.save, not yet read; its view is known to lie in its storage."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    _view: _Rebuilt

    def read(self) -> np.ndarray:
        """-> the array, bfloat16 as float32; raises UserError when its checksum differs."""
        view = self._view
        values = view.storage.read(view.offset, _span(self.shape, view.strides))
        return np.lib.stride_tricks.as_strided(
            values, self.shape, [step * values.itemsize for step in view.strides]).copy()


def read_torch_file(path: str | Path) -> Any:
    """A file of torch.save -> its plain containers, with tensors that `named_tensors` takes.

    Raises UserError for another form, for damage, and for any object that is no tensor and no
    plain container.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start != b"PK\3\4":
                raise UserError(f"{path}: {_other_form(path, file)}")
            members = _members(path, file)
            pickled = _read(path, file, members, "data.pkl")
            byte_order = (_read(path, file, members, "byteorder") if "byteorder" in members
                          else b"little")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if byte_order not in _BYTE_ORDERS:
        raise UserError(f"{path}: its byteorder is {short_repr(byte_order)}, expected little or "
                        "big")
    known = {**PLAIN, "torch._utils._rebuild_tensor_v2": Function(_rebuild_tensor),
             "torch._utils._rebuild_parameter": Function(_rebuild_parameter),
             **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in STORAGES.items()}}
    return read_pickle(pickled, path, known, _storages(path, members, _BYTE_ORDERS[byte_order]))


def read_tensors(path: str | Path) -> dict[str, TorchTensor]:
    """A file that holds a state dict -> its tensors by name, unread; raises UserError."""
    return named_tensors(path, read_torch_file(path))


def named_tensors(path: str | Path, values: Any) -> dict[str, TorchTensor]:
    """What a file holds of a state dict -> its tensors by name, each known to lie in its storage.

    Raises UserError for what is none.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {_kind(values)}, expected tensors by name")
    return {name: _checked(Path(path), name, value) for name, value in values.items()}


def _checked(path, name, value):
    """-> TorchTensor; UserError unless it is a view of elements that its storage has."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise UserError(f"{path}: has the name {short_repr(name)}, expected names of tensors")
    if not isinstance(value, _Rebuilt):
        raise UserError(f"{path}: {name} is a {_kind(value)}, expected a tensor")
    shape, strides, offset = value.shape, value.strides, value.offset
    if not isinstance(value.storage, _Storage) or not (
            type(shape) is type(strides) is tuple and len(shape) == len(strides) <= 32 and
            all(type(n) is int and 0 <= n < _LARGEST_NUMBER for n in (*shape, *strides, offset))):
        # their values are not shown: they may be anything, and of any size
        raise UserError(f"{path}: {name} is no tensor: its offset, shape and strides are not "
                        f"numbers from 0 to {_LARGEST_NUMBER:,}")
    if value.metadata:
        raise UserError(f"{path}: {name} is a conjugate or negative view, expected plain values")
    # the second: strides of 0 would make a giant of one element
    if max(offset + _span(shape, strides), math.prod(shape)) > value.storage.size:
        raise UserError(f"{path}: {name} of shape {short_repr(shape)} and strides "
                        f"{short_repr(strides)} from {offset} on reaches beyond the "
                        f"{value.storage.size} elements of its storage")
    return TorchTensor(path, name, value.storage.dtype, shape, value)


def _span(shape, strides):
    """-> how many elements of the storage lie between the first and the last of a view."""
    if math.prod(shape) == 0:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
    return _Rebuilt(storage, offset, shape, strides, metadata)


def _rebuild_parameter(tensor, requires_grad, hooks):
    if not isinstance(tensor, _Rebuilt):
        raise ValueError(f"a parameter of a {type(tensor).__name__}")
    return tensor


def _storages(path: Path, members: dict[str, _Member], byte_order: str) -> Callable[[Any], Any]:
    """-> what turns a persistent id into a _Storage."""
    verified: set[str] = set()

    def load(identifier):
        if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
            raise ValueError("a persistent id that is no storage's")
        _, kind, key, _, count = identifier
        if not isinstance(kind, _StorageType) or type(key) is not str or type(count) is not int:
            raise ValueError("a persistent id that is no storage's")
        member = members.get(f"data/{key}")
        if member is None:
            raise UserError(f"{path}: the storage {short_repr(key)} is not in the archive")
        if count * np.dtype(DTYPES[kind.dtype]).itemsize != member.size:
            raise UserError(f"{path}: the storage {short_repr(key)} should have "
                            f"{short_repr(count)} elements of {kind.dtype}, but has "
                            f"{member.size} bytes")
        return _Storage(path, key, kind.dtype, byte_order, member, verified)
    return load


def _members(path, file):
    """-> the members of the archive by their name within its folder; UserError for what torch.save
    does not write."""
    found: dict[str, _Member] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = info.orig_filename
                if "\\" in name or "\0" in name or {"", ".", ".."} & set(name.split("/")):
                    raise UserError(f"{path}: has a member called {short_repr(name)}, expected "
                                    "names as torch.save gives them")
                if name in found:
                    raise UserError(f"{path}: has two members called {short_repr(name)}")
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or \
                        info.compress_size != info.file_size:
                    raise UserError(f"{path}: its member {short_repr(name)} is compressed or "
                                    "encrypted, expected stored bytes as torch.save writes them")
                start = _start(file, info)
                if start + info.file_size > archive.start_dir:
                    raise zipfile.BadZipFile(f"{short_repr(name)} ends beyond the file")
                found[name] = _Member(start, info.file_size, info.CRC)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OverflowError, struct.error,
            UnicodeError) as error:
        raise UserError(f"{path}: not a whole file of torch.save ({error})") from None
    folders = [name.removesuffix("data.pkl") for name in found
               if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1 or not all(name.startswith(folders[0]) for name in found):
        raise UserError(f"{path}: a zip archive, but not one of torch.save: expected one folder "
                        "with data.pkl in it")
    return {name.removeprefix(folders[0]): member for name, member in found.items()}


def _start(file, info):
    """-> where the bytes of a member begin: behind its own header, which must have its name."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no header of {short_repr(info.orig_filename)}")
    name, extra = struct.unpack("<HH", header[26:])
    if file.read(name) != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        raise zipfile.BadZipFile(f"the header of {short_repr(info.orig_filename)} has another name")
    return info.header_offset + 30 + name + extra


def _read(path, file, members, name):
    """-> the bytes of a member that is no storage; raises UserError for a wrong checksum."""
    member = members[name]
    if member.size > LARGEST:
        raise UserError(f"{path}: its {name} has {member.size:,} bytes, expected at most "
                        f"{LARGEST:,}: tensors lie beside it")
    file.seek(member.start)
    data = file.read(member.size)
    if zlib.crc32(data) != member.crc:
        raise UserError(f"{path}: its {name} is damaged, its checksum differs from the one saved "
                        "with it")
    return data


def _crc(path, member):
    """-> CRC-32 of a member's bytes."""
    crc, left = 0, member.size
    with open(path, "rb") as file:
        file.seek(member.start)
        while left and (block := file.read(min(left, 2**20))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


def _other_form(path, file):
    """-> what a file is that is no zip archive, and what to do about it."""
    file.seek(0)
    start = file.read(262)
    if start.startswith(b"\x80") or start[257:] == b"ustar":
        return ("is of torch.save's old form, before PyTorch 1.6, which is not read; load it once "
                "in PyTorch with torch.load(weights_only=True) and save it again with torch.save")
    return f"not a file of torch.save ({damage(path, 'it is no zip archive')})"


def _kind(value):
    return "tensor" if isinstance(value, _Rebuilt) else type(value).__name__
