"""The folder of a run: what is written there, and that nothing in it is overwritten unasked."""

import hashlib
import json
import platform
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minisft.backend.cpu import jit, row_blocks
from minisft.errors import UserError, setting
from minisft.io.files import CONFIG, read_json, write_json

BAD_ROWS = "bad_rows.csv"     # rows of the data files that could not be read and were skipped
# What a run writes; `overwrite` removes these and touches nothing else in the folder.
CONTENTS = (CONFIG, "metrics.jsonl", "model", "training_state", "curves.png",
            "confusion.png", "results.json", "report.md", "curve.json", "curve.png", BAD_ROWS)
# A run of several seeds or training sizes has a folder for each inside.
INNER = re.compile(r"(seed|size)-\d+")
# A run killed while it wrote a file leaves a partial one (files.atomic_write).
PARTIAL = tuple(f".{name}.partial" for name in CONTENTS)


def unused_path(parent: str | Path, name: str, suffix: str = "") -> Path:
    """-> the first of parent/name, parent/name-2, ... that does not exist, the suffix behind."""
    path, number = Path(parent) / f"{name}{suffix}", 2
    while path.exists():
        path, number = Path(parent) / f"{name}-{number}{suffix}", number + 1
    return path


def check_output_folder(folder: str | Path, overwrite: bool) -> None:
    """Raises UserError when the folder is not empty and may not be overwritten."""
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, expected a folder or nothing")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if set(names) - set(PARTIAL) and not overwrite:
        raise UserError(f"{folder} is not empty ({', '.join(names[:3])}, ...): choose another "
                        f"{setting('out')}, or {setting('overwrite')}, or {setting('resume')} it")
    for name in names:
        if _inner(folder / name):
            check_output_folder(folder / name, overwrite)
        elif name not in CONTENTS + PARTIAL:
            raise UserError(f"{folder} holds {name!r}, which no run made: choose another "
                            f"{setting('out')}")


def remove_model(folder: str | Path) -> None:
    """Removes the model and the training state of a finished run; its results and figures stay."""
    for name in ("model", "training_state"):
        path = Path(folder) / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _inner(path):
    return bool(INNER.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def read_interrupted_run(folder: str | Path) -> dict[str, Any]:
    """-> config.json of an interrupted run; raises UserError for anything else."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or (folder / "model.safetensors").exists():
        raise UserError(f"{folder}: expected the folder of a run, with its {CONFIG}")
    if (folder / "results.json").exists():
        raise UserError(f"{folder}: is a finished run, there is nothing to resume")
    return read_json(folder / CONFIG)


def create(folder: str | Path, config: dict[str, Any]) -> None:
    """Creates the folder, removes what an earlier run wrote there, and writes config.json."""
    folder = Path(folder)
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)


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
            if not any(path.iterdir()):
                path.rmdir()


class MetricsLog:
    """metrics.jsonl, a line for each step and epoch; begins with the entries of a resumed run."""

    def __init__(self, folder: str | Path, entries: Iterable[dict[str, Any]] = ()) -> None:
        self.file = open(Path(folder) / "metrics.jsonl", "w", encoding="utf-8")
        for entry in entries:
            self(entry)

    def __call__(self, entry: dict[str, Any]) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def file_sha256(path: str | Path | None) -> str | None:
    """-> sha256 of a file, None for no file."""
    if path is None:
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment() -> dict[str, Any]:
    """-> what the bits of a run depend on besides its settings: versions, whether compiled loops
    ran, processor, threads."""
    compiled = jit.enabled()
    return {
        "versions": {name: version(name) for name in (
            "numpy", "safetensors", "tokenizers", *(("numba",) if compiled else ()))},
        "compiled": compiled,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": row_blocks.threads(),
    }


def environment_changes(config: dict[str, Any]) -> list[str]:
    """config.json of a run -> what of `machine` has changed since the run began, as phrases."""
    def flat(environment):
        versions = environment.get("versions", {})     # numba's shows in "compiled loops"
        return {name: n for name, n in versions.items() if name != "numba"} | {
            "compiled loops": {True: "on", False: "off"}.get(environment.get("compiled")),
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


@contextmanager
def catch_interrupts() -> Iterator[list[int]]:
    """-> a list that holds the signal once Ctrl-C or SIGTERM came; a second Ctrl-C acts at once.

    Signals can be caught in the main thread only; elsewhere the list stays empty.
    """
    received: list[int] = []

    def record(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous_handlers = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous_handlers[number] = signal.signal(number, record)
    except ValueError:
        pass
    try:
        yield received
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
