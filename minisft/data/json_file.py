"""JSON objects of files, small enough to be what they should be, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from minisft.errors import UserError

# Bytes. The largest tokenizers have 40 MB; Python takes ten times the size of such a file.
LARGEST = 64 * 2**20


class JSONFileError(UserError):
    """A file that holds no JSON object, which the message names."""


def read_object(path: str | Path) -> dict[str, Any]:
    """-> the JSON object in a file as a dict; raises UserError."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise JSONFileError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > LARGEST:
        raise JSONFileError(f"{path}: has more than {LARGEST:,} bytes, expected settings of a "
                            "model, a tokenizer or a run")
    try:
        value = parse(data.decode("utf-8"))
    except ValueError as error:
        raise JSONFileError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise JSONFileError(f"{path}: holds a {type(value).__name__}, expected an object of keys")
    return value


def read_object_if_there(path: Path) -> dict[str, Any]:
    """-> the same, empty where there is no file."""
    return read_object(path) if path.is_file() else {}


def parse(text: str) -> Any:
    """JSON -> its value; raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
