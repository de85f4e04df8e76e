"""metrics.jsonl of a run's folder: a line for each step and epoch."""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minisft.errors import UserError
from minisft.io.files import atomic_write, open_in_place

METRICS = "metrics.jsonl"
DAMAGED_METRICS = "metrics-damaged.jsonl"     # as a resumed run has found it


class MetricsLog:
    """metrics.jsonl, a line for each step and epoch; a resumed run keeps those up to its state.

    Raises UserError, also where the file does not stay in the folder.
    """

    def __init__(self, folder: str | Path, step: int = 0, epoch: int = 0) -> None:
        self.path = Path(folder) / METRICS
        try:
            # unbuffered: a line that was written is in the file, whatever happens then
            self.file = os.fdopen(_own_file(self.path), "ab", buffering=0)
            with open(self.path, "rb") as file:
                length, self.checksum = _kept(file, step, epoch)
            self.file.truncate(length)
        except OSError as error:
            raise self._cannot(error) from None

    def __call__(self, entry: Mapping[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        self.checksum = zlib.crc32(line, self.checksum)
        try:
            while line:      # a full disk takes a part, and then says why
                line = line[self.file.write(line):]
        except OSError as error:
            raise self._cannot(error) from None

    def sync(self) -> None:
        """What was logged is on disk."""
        try:
            os.fsync(self.file.fileno())
            if os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._cannot(error) from None
        raise UserError(f"{self.path}: was removed or replaced while the run went on")

    def close(self) -> None:
        self.file.close()

    def _cannot(self, error):
        return UserError(f"{self.path}: cannot be written ({error.strerror or error})")


def is_step(entry: Mapping[str, Any]) -> bool:
    """-> whether an entry of metrics.jsonl is a step; it is an epoch otherwise."""
    return "train_loss" not in entry


def set_aside_damaged_log(folder: str | Path, step: int, epoch: int,
                          checksum: int | None) -> Path | None:
    """A metrics.jsonl whose lines up to these numbers are not those that a state was saved with
    -> its new name, or the old one where it is missing; None where they are."""
    path = Path(folder) / METRICS
    try:
        with open(path, "rb") as file:
            if checksum in (None, _kept(file, step, epoch)[1]):
                return None
    except FileNotFoundError:
        return None if checksum in (None, 0) else path
    damaged = path.with_name(DAMAGED_METRICS)
    os.replace(path, damaged)
    return damaged


def _kept(file, step, epoch):
    """-> length and CRC-32 of the lines up to these numbers; what a death tore, or came later, is
    behind."""
    length = checksum = 0
    for line in file:
        entry = _entry(line)
        if entry is None or (entry["step"] > step if is_step(entry) else entry["epoch"] > epoch):
            break
        length += len(line)
        checksum = zlib.crc32(line, checksum)
    return length, checksum


def _entry(line):
    """-> the entry of a line of metrics.jsonl, None for what is none."""
    try:
        entry = json.loads(line)
        whole = line.endswith(b"\n") and all(type(entry[key]) is int for key in ("step", "epoch"))
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return entry if whole else None


def read_history(folder: str | Path, most: int = 50_000) -> dict[str, list[dict[str, Any]]]:
    """-> {"steps", "epochs"} of metrics.jsonl; of very many steps every 2nd, 4th, ... alone."""
    steps: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    stride = 1
    with open(Path(folder) / METRICS, "rb") as file:
        for entry in filter(None, map(_entry, file)):
            if not is_step(entry):
                epochs.append(entry)
            elif (entry["step"] - 1) % stride == 0:
                steps.append({key: entry.get(key) for key in ("step", "loss", "lr")})
                if len(steps) == 2 * most:
                    steps, stride = steps[::2], 2 * stride
    return {"steps": steps, "epochs": epochs}


def _own_file(path):
    """-> handle of a file to append to; one with a second name elsewhere is copied before."""
    handle = open_in_place(path, os.O_RDWR | os.O_APPEND)
    if os.fstat(handle).st_nlink == 1:
        return handle
    with os.fdopen(handle, "rb") as shared, atomic_write(path) as own:
        shutil.copyfileobj(shared, own)
    return open_in_place(path, os.O_RDWR | os.O_APPEND)
