"""Offsets of a safetensors file that lie are refused, and a reader that trusts them is found."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisft.errors import UserError
from minisft.io import safetensors, training_state

ARRAYS = {"a": np.arange(6, dtype=np.float32), "b": np.arange(6, 13, dtype=np.float32),
          "c": np.arange(3, dtype=np.int32)}      # of one size each: no two can change places


def lies(header):
    """A header -> the same with one lie, or two, in its data_offsets, one after the other."""
    entries = {name: entry["data_offsets"] for name, entry in header.items()
               if name != "__metadata__"}
    for name, (start, stop) in entries.items():
        for offsets in ([start + 4, stop + 4], [start - 4, stop - 4], [start, stop + 4],
                        [start, stop - 4], [stop, start], [start + 10**9, stop + 10**9],
                        [-stop, -start], [start, 2**63], [start], [float(start), stop], None,
                        [str(start), str(stop)]):
            yield {**header, name: {**header[name], "data_offsets": offsets}}
        for other, theirs in entries.items():
            if other != name:
                yield {**header, name: {**header[name], "data_offsets": theirs}}
                yield {**header, name: {**header[name], "data_offsets": theirs},
                       other: {**header[other], "data_offsets": [start, stop]}}


def with_lies(path):
    """Writes each lie into the file, one after the other."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for header in lies(json.loads(data[8:8 + length])):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length:])
        yield header


def believed(path, read):
    """-> the lies that the reader neither refuses nor sees through."""
    found = []
    for header in with_lies(path):
        try:
            arrays = read(path)
        except UserError:
            continue
        except Exception:      # no refusal: the user would see a traceback
            arrays = {"a": None}
        if any(not np.array_equal(x, ARRAYS[name]) for name, x in arrays.items()):
            found.append(header)
    return found


def read_foreign(path):
    return {name: tensor.read() for name, tensor in safetensors.read_header(path)[0].items()}


def read_state(path):
    return training_state.load_state(path.parent)[0]


@contextmanager
def nothing_checked(path, framework):
    yield


@pytest.mark.parametrize("ours", [False, True])
def test_offsets_that_lie_are_refused(tmp_path, monkeypatch, ours):
    if ours:
        training_state.save_state(tmp_path, ARRAYS, {"step": 3})
        path, read = tmp_path / training_state.FILE, read_state
    else:
        path, read = tmp_path / "model.safetensors", read_foreign
        save_file(ARRAYS, path)
    whole = path.read_bytes()
    assert believed(path, read) == []
    # planted: the header is taken as it is, and so are the checksums
    monkeypatch.setattr(safetensors, "safe_open", nothing_checked)
    path.write_bytes(whole)
    monkeypatch.setattr(safetensors, "_checksum", lambda *tensor: None)
    monkeypatch.setattr(safetensors, "_checksums", lambda *header: {})
    assert len(believed(path, read)) > 5
