"""The folder of a run: what is written there, and that nothing in it is overwritten unasked."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from minisft.errors import UserError, setting, tell
from minisft.io.files import (
    CONFIG,
    fenced,
    lies_in,
    link_error,
    make_folder,
    make_new_folder,
    no_file_error,
    open_in_place,
    read_json,
    require_no_link,
    write_json,
)
from minisft.io.metrics_log import DAMAGED_METRICS, METRICS
from minisft.io.weights import has_weights

fcntl: Any
try:
    import fcntl
except ImportError:      # Windows
    fcntl = None

RESULTS = "results.json"      # comes last: a run that has it is finished
STATE = "training_state"
ADAPTATION = "adaptation"     # the run before the classifier's, with a log and a state of its own
ADAPTER = "adapter"           # in PEFT's format, beside the merged model
LOCK = ".lock"
TRIES = 100     # for a folder that other processes make and remove meanwhile
SETTINGS_CHECKSUM = "settings_sha256"     # of config.json
RESULTS_CHECKSUM = "results_sha256"
BAD_ROWS = "bad_rows.csv"     # rows of the data files that could not be read and were skipped
# What a run writes; `overwrite` removes these and touches nothing else in the folder.
CONTENTS = (CONFIG, METRICS, DAMAGED_METRICS, "model", ADAPTER, STATE, ADAPTATION, "curves.png",
            "confusion.png", RESULTS, "report.md", "report.html", "curve.json", "curve.png",
            "seeds.png", "attention.png", BAD_ROWS)
# A run of several seeds or training sizes has a folder for each inside.
INNER = re.compile(r"(seed|size)-\d+")
# A run killed while it wrote a file leaves a partial one (files.atomic_write).
PARTIAL = tuple(f".{name}.partial" for name in CONTENTS)
HOLDER = re.compile(r"process \d{1,10} on [\w .-]{1,255}", re.ASCII)


def unused_path(parent: str | Path, name: str, suffix: str = "") -> Path:
    """-> the first of parent/name, parent/name-2, ... that does not exist, the suffix behind."""
    path, number = Path(parent) / f"{name}{suffix}", 2
    while os.path.lexists(path):
        path, number = Path(parent) / f"{name}-{number}{suffix}", number + 1
    return path


def check_output_folder(folder: str | Path, overwrite: bool,
                        read: Iterable[tuple[str, str | Path | None]] = ()) -> None:
    """Raises UserError when the folder is not empty and may not be overwritten, or holds what the
    run reads. `read`: options and the files or folders that they name."""
    folder = Path(folder)
    for name, path in read:
        if overwrite and path is not None and lies_in(path, folder):
            raise UserError(f"{setting(name)} {path}: lies in {folder}, which "
                            f"{setting('overwrite')} clears before the run begins; expected "
                            f"another {setting('out')}")
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, expected a folder or nothing")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if set(names) - {*PARTIAL, LOCK} and not overwrite:
        raise UserError(f"{folder} is not empty ({', '.join(names[:3])}, ...): choose another "
                        f"{setting('out')}, or {setting('overwrite')}, or {setting('resume')} it")
    for name in names:
        if _inner(folder / name):
            check_output_folder(folder / name, overwrite)
        elif name not in (*CONTENTS, *PARTIAL, LOCK):
            raise UserError(f"{folder} holds {name!r}, which no run made: choose another "
                            f"{setting('out')}")


def remove_model(folder: str | Path) -> None:
    """Removes the model and the training state of a finished run; its results and figures stay."""
    _remove(Path(folder) / "model")
    _remove(Path(folder) / ADAPTER)
    remove_state(folder)


def remove_state(folder: str | Path) -> None:
    """Removes the training states of a finished run: nothing is resumed from them."""
    for place in (Path(folder), Path(folder) / ADAPTATION):
        if not place.is_symlink():
            _remove(place / STATE)


def _remove(folder):
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def require_present(folder: str | Path) -> None:
    """Raises UserError where the folder of a run went away while the run went on."""
    if not (Path(folder) / CONFIG).is_file():
        raise UserError(f"{folder}: was removed while the run went on, its files are lost")


class FolderLock:
    """The folder of a run belongs to one process: `with FolderLock(folder, say) as folder`.

    Makes the folder and those above it, and removes them at the end where they are still empty.
    With `unnamed` it is the first of folder, folder-2, ... that is not there. Within it nothing in
    the folder is written through a link. Raises UserError while another process has the folder.
    The system drops the lock of a process that has died (where it has `flock`, as Linux and macOS;
    elsewhere nothing is locked).
    """

    def __init__(self, folder: str | Path, say: Callable[[str], Any] = tell,
                 unnamed: bool = False) -> None:
        self.asked = self.folder = Path(folder)
        self.say, self.unnamed = say, unnamed

    def __enter__(self) -> Path:
        require_no_link(self.folder)      # of a seed: it lies in the folder of the whole
        for tries_left in reversed(range(TRIES)):
            try:
                self._make()
                self.handle = self._lock()
                break
            except OSError as error:
                # another process, which wrote nothing, has removed what it made in between
                if not (isinstance(error, FileNotFoundError) and tries_left):
                    raise UserError(f"{self.folder}: cannot be written "
                                    f"({error.strerror or error})") from None
        self.stack = ExitStack()
        self.stack.enter_context(fenced(self.folder))
        return self.folder

    def __exit__(self, *error: Any) -> None:
        self.stack.close()
        path = self.folder / LOCK
        try:
            if os.path.samestat(os.fstat(self.handle), os.stat(path)):
                path.unlink()
            for made in self.made:
                made.rmdir()
        except OSError:
            pass      # it is not empty, as it should be, or the user has removed it
        os.close(self.handle)

    def _make(self):
        parent, name = self.asked.parent, self.asked.name
        self.made = [path for path in (parent, *parent.parents) if not path.is_dir()]
        make_folder(parent)
        while True:
            if self.unnamed:
                self.folder = unused_path(parent, name)
            try:
                make_new_folder(self.folder)
                self.made.insert(0, self.folder)
                return
            except FileExistsError:
                if not self.unnamed:      # else another process was faster: the next name
                    return

    def _lock(self):
        path = self.folder / LOCK
        while True:
            handle = open_in_place(path, os.O_RDWR)
            if os.fstat(handle).st_nlink > 1:      # its other name lies elsewhere
                os.close(handle)
                path.unlink()
                continue
            holder = os.read(handle, 1000).decode(errors="replace")
            if not HOLDER.fullmatch(holder):
                holder = "another process" if holder else ""
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise UserError(f"{self.folder}: {holder or 'another process'} works in this "
                                f"folder, expected one run at a time, or another {setting('out')}"
                                ) from None
            except OSError:
                pass      # a file system without locks
            if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
                break
            os.close(handle)      # it was released, and removed, in between
        if holder:
            self.say(f"note: {holder} died while it worked in {self.folder}")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node() or 'this host'}".encode(), 0)
        return handle


def _inner(path):
    return bool(INNER.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def read_interrupted_run(folder: str | Path) -> dict[str, Any]:
    """-> config.json of an interrupted run; raises UserError for anything else."""
    folder = Path(folder)
    for path in _written(folder):
        if path.is_symlink():
            raise link_error(path)
        if not (path.is_file() or path.is_dir()):      # a pipe would be waited for
            raise no_file_error(path)
    if not (folder / CONFIG).is_file() or has_weights(folder):
        raise UserError(f"{folder}: expected the folder of a run, with its {CONFIG}")
    if (folder / RESULTS).exists():
        left = f" ({STATE}/ in it is of no use any more)" if (folder / STATE).is_dir() else ""
        raise UserError(f"{folder}: is a finished run{left}, there is nothing to resume")
    config = read_json(folder / CONFIG)
    if config.get(SETTINGS_CHECKSUM) != _checksum(config.get("settings")):
        raise UserError(f"{folder / CONFIG}: its settings have changed since the run began, "
                        "expected those that it began with")
    return config


def _written(folder):
    """-> the paths that a run may have made in its folder, whatever they are now."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        inner = bool(INNER.fullmatch(path.name))
        if inner or path.name in (*CONTENTS, *PARTIAL, LOCK):
            yield path
            yield from _written(path) if inner else path.rglob("*")


def create(folder: str | Path, config: dict[str, Any]) -> None:
    """Creates the folder, removes what an earlier run wrote there, and writes config.json."""
    folder = Path(folder)
    _clear(folder)
    write_config(folder, config)


def write_config(folder: str | Path, config: dict[str, Any]) -> None:
    """Writes config.json with a checksum of its settings: who resumes sees that they are the same.
    """
    checksum = {SETTINGS_CHECKSUM: _checksum(config["settings"])} if "settings" in config else {}
    write_json(Path(folder) / CONFIG, {**config, **checksum})


def write_results(folder: str | Path, results: dict[str, Any]) -> None:
    """Writes results.json, with a checksum for who reads it again."""
    # as JSON has it: a key that was a number is a text there
    checksum = _checksum(json.loads(json.dumps(results)))
    write_json(Path(folder) / RESULTS, {**results, RESULTS_CHECKSUM: checksum})


def read_results(folder: str | Path) -> dict[str, Any]:
    """-> the results of a finished run; raises UserError where they are not as they were written.
    """
    path = Path(folder) / RESULTS
    results = read_json(path)
    if results.pop(RESULTS_CHECKSUM, None) != _checksum(results):
        raise UserError(f"{path}: is not as the run wrote it, its checksum differs; remove it and "
                        f"the run is finished once more by {setting('resume')}")
    return results


def _checksum(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _clear(folder):
    """Removes what runs wrote, and the folders of seeds and sizes that are then empty."""
    for name in CONTENTS + PARTIAL:
        path = folder / name
        if path.is_dir() and not path.is_symlink():     # of a link only the link is removed
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _inner(path):
            _clear(path)
            (path / LOCK).unlink(missing_ok=True)      # of a killed run: the whole is locked
            if not any(path.iterdir()):
                path.rmdir()
