"""Files written whole or not at all, and JSON read with an error that names the file.

All that minisft leaves on a disk is written here: `tests/test_files.py` finds who does otherwise.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minisft.data.json_file import read_object
from minisft.errors import UserError

CONFIG = "config.json"      # of a model folder and of a run folder
PIECE = 2**24

_fenced: ContextVar[tuple[Path, ...]] = ContextVar("fenced", default=())


@contextmanager
def fenced(folder: Path) -> Iterator[None]:
    """Within it nothing below the folder is written through a link, which would lead out of it.

    The folder itself may be a link, or lie behind one: who named it meant that.
    """
    token = _fenced.set((*_fenced.get(), folder))
    try:
        yield
    finally:
        _fenced.reset(token)


def require_no_link(path: Path) -> None:
    """Raises UserError where the path, or a folder between a fenced one and it, is a link."""
    for folder in _fenced.get():
        if path.is_relative_to(folder):
            for part in (path, *path.parents):
                if part == folder:
                    break
                if part.is_symlink():
                    raise link_error(part)


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """-> whether what is at a path is the folder or lies in it, whatever links lead there."""
    place = Path(os.path.realpath(path))
    return place.exists() and os.path.isdir(folder) and any(
        os.path.samefile(part, folder) for part in (place, *place.parents))


def link_error(path: Path) -> UserError:
    """-> what is said of a link in the folder of a run."""
    return UserError(f"{path}: is a link, expected what a run wrote itself: nothing is read or "
                     "written through a link in its folder")


def no_file_error(path: Path) -> UserError:
    """-> what is said of a pipe or a device in the folder of a run."""
    return UserError(f"{path}: is no file, expected one that a run wrote")


def open_in_place(path: Path, flags: int) -> int:
    """-> handle of a file of a run that is changed where it is, made if it is not there.

    Raises UserError for a link, and for what is no file; OSError.
    """
    require_no_link(path)
    if path.is_symlink():      # for systems without O_NOFOLLOW
        raise link_error(path)
    handle = os.open(path, flags | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                     | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):      # a pipe would be waited for
        os.close(handle)
        raise no_file_error(path)
    return handle


@contextmanager
def atomic_write(path: str | Path, new: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write; it replaces `path` only once it is whole and on disk.

    `new`: a file that has come there meanwhile is not replaced. Raises UserError when it cannot be
    written; `path` is then as it was.
    """
    path = Path(path)
    partial = partial_path(path)
    require_no_link(path.parent)
    try:
        make_folder(path.parent)
        partial.unlink(missing_ok=True)      # of a killed run; and no link is followed
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            _rename_new(partial, path)
        else:
            os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError:
            pass      # the folder could not be made or read: the error above says it


def write_large(file: BinaryIO, data: np.ndarray) -> None:
    """Writes bytes (N,) in pieces; on Linux each is on disk before the next is written.

    Then it leaves the system's cache of files. Finding room in it for gigabytes takes several
    times as long as writing them, and what else lies there would go.
    """
    for start in range(0, len(data), PIECE):
        file.write(data[start:start + PIECE].data)
        if len(data) > PIECE and hasattr(os, "posix_fadvise"):
            file.flush()
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def partial_path(path: Path) -> Path:
    """-> what a file is called while it is written: one name, so a killed run leaves one."""
    return path.with_name(f".{path.name}.partial")


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, on disk as the files in it; OSError."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folder(folder.parent)
        try:
            make_new_folder(folder)
        except FileExistsError:      # another process was faster
            if not folder.is_dir():
                raise


def make_new_folder(folder: Path) -> None:
    """Makes a folder whose parent is there, on disk as the files in it; OSError."""
    folder.mkdir()
    _sync_folder(folder.parent)


def _rename_new(source, target):
    """As os.replace; UserError where the target is there."""
    try:
        os.link(source, target)
    except OSError:      # it is there, or a file system without hard links
        if os.path.lexists(target):
            raise UserError(f"{target}: is there by now, expected a new file") from None
        os.replace(source, target)


def _sync_folder(folder):
    """The new name is on disk too, where the system can be asked for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str, new: bool = False) -> None:
    """Text -> the file as UTF-8, replaced whole; half a character becomes its escape.

    `new` and what is raised as `atomic_write`.
    """
    with atomic_write(path, new) as file:
        file.write(encoded(text))


def encoded(text: str) -> bytes:
    """Text -> the bytes of its file."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """A JSON value -> the file, replaced whole."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """A JSON value -> the text of its file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """-> the JSON object in a file as a dict; raises UserError."""
    return read_object(path)
