"""The state of a training run for an exact resume: arrays and a JSON record in one file.

One file, so that a crash at any moment leaves the old state or the new one, never a mixture.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minisft.backend.array import to_cpu
from minisft.data.json_file import parse
from minisft.errors import UserError
from minisft.io import safetensors

FILE = "state.safetensors"


def save_state(folder: str | Path, arrays: Mapping[str, Any], info: dict[str, Any]) -> None:
    """Arrays by name and a dict of JSON values -> `folder`/state.safetensors, replaced whole.

    Raises UserError when it cannot be written.
    """
    arrays = {name: to_cpu(x) for name, x in arrays.items()}
    safetensors.write(Path(folder) / FILE, arrays, {"info": json.dumps(info)})


def has_state(folder: str | Path) -> bool:
    """-> whether a state was saved; a run that died in its first save leaves an empty folder, or
    the part of a file."""
    return (Path(folder) / FILE).is_file()


def remove_state(folder: str | Path) -> None:
    """Removes a saved state, so that its run starts anew; OSError."""
    (Path(folder) / FILE).unlink(missing_ok=True)


def load_info(folder: str | Path) -> dict[str, Any]:
    """-> the dict alone; raises UserError as `load_state`."""
    return _read(Path(folder) / FILE)[1]


def load_state(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """-> arrays by name, the dict; raises UserError when the file is absent or damaged."""
    stored, info = _read(Path(folder) / FILE)
    return {name: tensor.read() for name, tensor in stored.items()}, info


def _read(path):
    if not path.is_file():
        raise UserError(f"{path}: no training state here")
    stored, metadata = safetensors.read_header(path)
    if safetensors.CHECKSUMS not in metadata or "info" not in metadata:
        raise UserError(f"{path}: its header lacks the checksums or the record of the run, so "
                        "minisft did not write it or it is damaged")
    try:
        info = parse(metadata["info"])
    except ValueError as error:
        raise UserError(f"{path}: the record of the run is no JSON ({error})") from None
    if not isinstance(info, dict):
        raise UserError(f"{path}: the record of the run is of type {type(info).__name__}, expected "
                        "an object")
    return stored, info
