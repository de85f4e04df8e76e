"""Files as torch.save writes them, put together byte by byte: sound ones and others."""

import pickle
import struct
import zipfile

import numpy as np


class Raw(bytes):
    """Opcodes as they are."""


def opcodes(value):
    """A plain value -> the opcodes that build it, as torch.save has them."""
    if isinstance(value, Raw):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = pickle.encode_long(value)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    return b"}(" + b"".join(opcodes(x) for item in value.items() for x in item) + b"u"


def name(text):
    """module.name -> the opcode that asks for it."""
    module, _, function = text.rpartition(".")
    return Raw(f"c{module}\n{function}\n".encode())


def call(function, *arguments):
    return Raw(name(function) + opcodes(arguments) + b"R")


def storage(count, key="0", kind="torch.FloatStorage", first="storage"):
    return Raw(opcodes((first, name(kind), key, "cpu", count)) + b"Q")


def tensor(shape=(2, 3), strides=(3, 1), offset=0, stored=None, metadata=()):
    """-> a tensor of a storage of six numbers."""
    return call("torch._utils._rebuild_tensor_v2", storage(6) if stored is None else stored,
                offset, shape, strides, False, call("collections.OrderedDict"), *metadata)


def archive(path, value, members=(), folder="x", **options):
    """Writes a file as torch.save does: what it holds, members beside the storage of 0 to 5."""
    data = b"\x80\x02" + opcodes(value) + b"."
    with zipfile.ZipFile(path, "w", **options) as file:
        for key, content in {"data.pkl": data, "data/0": np.arange(6, dtype="<f4").tobytes(),
                             **dict(members)}.items():
            file.writestr(zipfile.ZipInfo(f"{folder}/{key}"), content,
                          options.get("compression", zipfile.ZIP_STORED))
    return path


def state_dict(path, arrays, beside=None, **options):
    """Writes arrays by name as float32; `beside` (their opcodes by name) -> what the file holds
    instead of them alone."""
    tensors, members = {}, {}
    for n, (key, x) in enumerate(arrays.items(), 1):
        number = str(n)
        members[f"data/{number}"] = np.ascontiguousarray(x, dtype="<f4").tobytes()
        steps = tuple(int(n) for n in np.cumprod((1, *x.shape[:0:-1]))[::-1]) if x.ndim else ()
        tensors[key] = tensor(x.shape, steps, 0, storage(x.size, number))
    return archive(path, tensors if beside is None else beside(tensors), members, **options)
