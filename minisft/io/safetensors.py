"""A safetensors file in and out: checked when read, replaced whole when written.

The file is eight bytes with the header's length, a JSON header (dtype, shape and place of each
tensor, and text entries under `__metadata__`), then the tensors' bytes. The `safetensors` library
checks the header; the bytes are read here, one tensor at a time, because the library has no
bfloat16 for NumPy. Files are written here too: the library does not fix the order of the metadata,
and the same model should give the same bytes.

Files that minisft writes carry a CRC-32 for each tensor (name, dtype, shape and bytes) and one for
the other metadata, so a single flipped bit is detected. Files from elsewhere need none. Those of
config.json's keys lie here too (checkpoint.py).
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from minisft.data.json_file import parse
from minisft.errors import UserError, short_repr
from minisft.io.files import atomic_write, write_large

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CHECKSUMS = "minisft_crc32"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
          "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
          "BOOL": "|b1"}
FLOATS = "F64", "F32", "F16", "BF16"
LARGEST_HEADER = 10_000_000     # bytes; Python takes twenty times the size of a larger one
_CODES = {np.dtype(d): code for code, d in DTYPES.items() if code != "BF16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read."""

    path: Path
    name: str
    dtype: str               # a key of DTYPES, or one that cannot be read
    shape: tuple[int, ...]
    start: int               # its first byte in the file
    checksum: int | None

    def read(self) -> np.ndarray:
        """-> the array, bfloat16 as float32; raises UserError when its checksum differs."""
        if self.dtype not in DTYPES:
            raise UserError(f"{self.path}: {self.name} has dtype {self.dtype}, expected one of "
                            f"{', '.join(DTYPES)}")
        size = math.prod(self.shape)
        array: np.ndarray = np.fromfile(self.path, DTYPES[self.dtype], size, offset=self.start)
        if array.size != size:
            raise UserError(f"{self.path}: ends within {self.name}")
        if self.checksum not in (None, _checksum(self.name, self.dtype, self.shape, array)):
            raise UserError(f"{self.path}: {self.name} is damaged, its checksum differs from "
                            "the one saved with it")
        if self.dtype == "BF16":      # the upper half of a float32
            array = (array.astype("<u4") << 16).view("<f4")
        return array.reshape(self.shape)


def read_header(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """A safetensors file -> its tensors by name (StoredTensor, unread), its metadata (dict of str).

    Raises UserError when the file is absent, cut off or garbled.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            too_large = LARGEST_HEADER < length <= path.stat().st_size
            if not too_large:
                safe_open(path, framework="np")     # checks the header
                header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({damage(path, error)})") from None
    if too_large:
        raise UserError(f"{path}: not a whole safetensors file (a header of {length:,} bytes, "
                        f"expected at most {LARGEST_HEADER:,}: 50,000 tensors take as many)")
    metadata = header.pop("__metadata__", None) or {}
    checksums = _checksums(path, header, metadata)
    tensors = {name: StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]),
                                  8 + length + entry["data_offsets"][0], checksums.get(name))
               for name, entry in header.items()}
    return tensors, metadata


def write(path: str | Path, arrays: Mapping[str, np.ndarray],
          metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays by name and text entries as one safetensors file, with checksums.

    Raises ValueError for a dtype that the format lacks, UserError when it cannot be written.
    """
    header, entries, ready, start = {}, dict(metadata or {}), [], 0
    checksums = {"__metadata__": _text_checksum(entries)}
    # Wide items first: every tensor then begins at a multiple of its item, as the library wants.
    for name in sorted(arrays, key=lambda n: (-np.asarray(arrays[n]).itemsize, n)):
        x = np.asarray(arrays[name], order="C")
        x = x.astype(x.dtype.newbyteorder("<"), copy=False)
        if x.dtype not in _CODES:
            raise ValueError(f"{name} has dtype {x.dtype}, which a safetensors file cannot hold")
        code = _CODES[x.dtype]
        checksums[name] = _checksum(name, code, x.shape, x)
        header[name] = {"dtype": code, "shape": list(x.shape),
                        "data_offsets": [start, start + x.nbytes]}
        ready.append(x)
        start += x.nbytes
    entries[CHECKSUMS] = json.dumps(checksums)
    text = json.dumps({"__metadata__": entries} | header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in ready:
            write_large(file, _bytes(x))


def _checksum(name, code, shape, x):
    """-> CRC-32 of a tensor's name, dtype, shape and bytes."""
    start = zlib.crc32(f"{name} {code} {list(shape)}".encode())
    return zlib.crc32(_bytes(x), start)


def _bytes(x):
    return x.reshape(-1).view(np.uint8)


def _text_checksum(entries):
    """-> CRC-32 of the text entries."""
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


def _checksums(path, header, metadata):
    """-> the checksum of each tensor, {} for a file without; that of the metadata is verified."""
    if CHECKSUMS not in metadata:
        # a damaged name must not switch off the check: the entry is known by what it holds, too
        for key, text in metadata.items():
            if '"__metadata__"' in text:
                raise UserError(f"{path}: its header is damaged, {CHECKSUMS} is called {key!r}")
        return {}
    entries = {key: text for key, text in metadata.items() if key != CHECKSUMS}
    checksums = parse_checksums(path, metadata[CHECKSUMS])
    if checksums.pop("__metadata__", None) != _text_checksum(entries):
        raise UserError(f"{path}: its header is damaged, the checksum of the metadata differs")
    if checksums.keys() != header.keys():
        name = min(checksums.keys() ^ header.keys())
        raise UserError(f"{path}: its header is damaged, {name!r} stands in only one of the two "
                        "lists, tensors and checksums")
    return checksums


def parse_checksums(path: Path, text: str) -> dict[str, int]:
    """The text of checksums in a file's metadata -> each by its name; raises UserError."""
    try:
        checksums = parse(text)
    except ValueError:
        checksums = None
    if not isinstance(checksums, dict) or not all(type(n) is int for n in checksums.values()):
        raise UserError(f"{path}: its header is damaged, what should be checksums is "
                        f"{short_repr(text)}")
    return checksums


def damage(path: Path, error: Any) -> str:
    """-> what is wrong with a file that cannot be read, in a few words."""
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(23) == b"version https://git-lfs":
                return "a Git LFS pointer; fetch the file itself with `git lfs pull`"
    return " ".join(str(error).split())
