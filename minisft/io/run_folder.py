"""The folder of a run: what is written there, and that nothing in it is overwritten unasked."""

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minisft import __version__
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.processor import why_not_bfloat16
from minisft.errors import UserError, setting, tell
from minisft.io import hub
from minisft.io.files import (
    CONFIG,
    atomic_write,
    fenced,
    link_error,
    make_folder,
    make_new_folder,
    no_file_error,
    open_in_place,
    read_json,
    require_no_link,
    write_json,
)
from minisft.io.weights import has_weights

fcntl: Any
try:
    import fcntl
except ImportError:      # Windows
    fcntl = None

METRICS = "metrics.jsonl"
DAMAGED_METRICS = "metrics-damaged.jsonl"     # as a resumed run has found it
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


def check_output_folder(folder: str | Path, overwrite: bool) -> None:
    """Raises UserError when the folder is not empty and may not be overwritten."""
    folder = Path(folder)
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


def _own_file(path):
    """-> handle of a file to append to; one with a second name elsewhere is copied before."""
    handle = open_in_place(path, os.O_RDWR | os.O_APPEND)
    if os.fstat(handle).st_nlink == 1:
        return handle
    with os.fdopen(handle, "rb") as shared, atomic_write(path) as own:
        shutil.copyfileobj(shared, own)
    return open_in_place(path, os.O_RDWR | os.O_APPEND)


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


def file_sha256(path: str | Path | None) -> str | None:
    """-> sha256 of a file, None for no file; raises UserError."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def model_sha256(path: str | Path) -> str | None:
    """-> sha256 of the names and contents of what is read of a model's folder, or of a file."""
    if not (path := Path(path)).is_dir():
        return file_sha256(path)
    names = sorted(p.name for p in path.iterdir()
                   if p.is_file() and any(p.match(pattern) for pattern in hub.PATTERNS))
    return hashlib.sha256("".join(
        f"{name} {file_sha256(path / name)}\n" for name in names).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """-> what the bits of a run depend on besides its settings: versions, whether compiled loops
    ran and the processor multiplied bfloat16 numbers, processor, threads."""
    compiled = jit.enabled()
    return {
        "versions": {"minisft": __version__} | {name: version(name) for name in (
            "numpy", "safetensors", "tokenizers", *(("numba",) if compiled else ()))},
        "compiled": compiled,
        "bfloat16_products": not why_not_bfloat16(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": row_blocks.threads(),
    }


def environment_changes(config: dict[str, Any]) -> list[str]:
    """config.json of a run -> what of `machine` has changed since the run began, as phrases."""
    def flat(environment):
        versions = environment.get("versions")     # numba's shows in "compiled loops"
        versions = versions if isinstance(versions, dict) else {"versions": versions}
        return {name: n for name, n in versions.items() if name != "numba"} | {
            **{name: {"True": "on", "False": "off"}.get(str(environment.get(key)))
               for name, key in (
                ("compiled loops", "compiled"), ("bfloat16 products", "bfloat16_products"))},
            **{name: environment.get(name)
               for name in ("python", "platform", "processor", "threads")}}

    before, now = flat(config), flat(environment())
    return [f"{name} {before.get(name)}, now {now.get(name)}" for name in before | now
            if before.get(name) != now.get(name)]


def _processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor()


class Interrupts:
    """Signals that ask a run to end: the first is noted, a second one acts at once."""

    def __init__(self) -> None:
        self.received = self._held = False

    def record(self, number: int, frame: Any) -> None:
        """The handler."""
        if self.received and not self._held:
            raise KeyboardInterrupt
        self.received = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever comes meanwhile is noted only: a save is not cut short."""
        self._held = True
        try:
            yield
        finally:
            self._held = False


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """-> Interrupts that hear Ctrl-C, SIGTERM and, of a terminal that closes, SIGHUP.

    Signals can be caught in the main thread only; elsewhere none is heard. A SIGHUP that is ignored
    (nohup) stays so.
    """
    interrupts, previous_handlers = Interrupts(), {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and not (
                    name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                previous_handlers[number] = signal.signal(number, interrupts.record)
    except ValueError:
        pass
    try:
        yield interrupts
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
