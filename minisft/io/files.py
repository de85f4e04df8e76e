"""Files written whole or not at all, and JSON read with an error that names the file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from minisft.errors import UserError

CONFIG = "config.json"      # of a model folder and of a run folder


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write; it replaces `path` only once it is whole and on disk.

    Raises UserError when it cannot be written; `path` is then as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")    # one name, so a killed run leaves one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError:
            pass      # the folder could not be made or read: the error above says it


def _sync_folder(folder):
    """The new name is on disk too, where the system can be asked for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """A JSON value -> the file, replaced whole."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """-> the JSON object in a file as a dict; raises UserError."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected an object of keys")
    return value
