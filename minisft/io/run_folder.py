"""The folder that a run leaves behind, and the promise that nothing in it is lost unasked."""

import hashlib
import json
import platform
import re
import shutil
import signal
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from minisft.backend.cpu import jit, row_blocks
from minisft.errors import UserError
from minisft.io.files import read_json, write_json

# What a run writes; `--overwrite` removes these and touches nothing else in the folder.
CONTENTS = ("config.json", "metrics.jsonl", "model", "training_state", "curves.png",
            "confusion.png", "results.json", "report.md", "curve.json", "curve.png")
# Several seeds or sizes leave a folder for each, with the run of it inside.
INNER = re.compile(r"(seed|size)-\d+")
# A run killed while it wrote a file leaves the part it had (files.replacing).
PARTIAL = tuple(f".{name}.partial" for name in CONTENTS)


def first_free(parent, name):
    """-> the first of parent/name, parent/name-2, ... that is not there."""
    folder, number = Path(parent) / name, 2
    while folder.exists():
        folder, number = Path(parent) / f"{name}-{number}", number + 1
    return folder


def require_free(folder, overwrite):
    """Raises UserError when the folder holds something and may not be overwritten."""
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, expected a folder or nothing")
    found = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if found and not overwrite:
        raise UserError(f"{folder} is not empty ({', '.join(found[:3])}, ...): choose another "
                        "--out, or --overwrite, or --resume it")
    for name in found:
        if _inner(folder / name):
            require_free(folder / name, overwrite)
        elif name not in CONTENTS + PARTIAL:
            raise UserError(f"{folder} holds {name!r}, which no run made: choose another --out")


def keep_figures(folder):
    """Of a finished run only what was found stays: neither the model nor what resumes it."""
    for name in ("model", "training_state"):
        path = Path(folder) / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _inner(path):
    return bool(INNER.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def unfinished(folder):
    """-> config.json of an interrupted run; raises UserError for anything else."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or (folder / "model.safetensors").exists():
        raise UserError(f"{folder}: expected the folder of a run, with its config.json")
    if (folder / "results.json").exists():
        raise UserError(f"{folder}: is a finished run, there is nothing to resume")
    return read_json(folder / "config.json")


def start(folder, config):
    """Makes the folder, without what an earlier run left, and writes config.json."""
    folder = Path(folder)
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)


def _clear(folder):
    """Removes what runs left, and of the folders of seeds and sizes those that are then empty."""
    for name in CONTENTS + PARTIAL:
        path = folder / name
        if path.is_dir() and not path.is_symlink():     # a link goes, what it leads to stays
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _inner(path):
            _clear(path)
            if not any(path.iterdir()):
                path.rmdir()


class MetricsLog:
    """metrics.jsonl, a line for each step and epoch; starts from what a resumed run has told."""

    def __init__(self, folder, entries=()):
        self.file = open(Path(folder) / "metrics.jsonl", "w", encoding="utf-8")
        for entry in entries:
            self(entry)

    def __call__(self, entry):
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def close(self):
        self.file.close()


def fingerprint(path):
    """-> sha256 of a file, None for no file."""
    if path is None:
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def machine():
    """-> what a run's bits depend on beside its settings: versions, whether compiled twins ran,
    processor, threads."""
    compiled = jit.chosen()
    return {
        "versions": {name: version(name) for name in (
            "numpy", "safetensors", "tokenizers", *(("numba",) if compiled else ()))},
        "compiled": compiled,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": row_blocks.threads(),
    }


def changes(began):
    """config.json of a run (dict) -> what of `machine` is not as it was when the run began."""
    def flat(found):
        versions = found.get("versions", {})     # numba: told by the compiled twins
        return {name: n for name, n in versions.items() if name != "numba"} | {
            "compiled twins": {True: "on", False: "off"}.get(found.get("compiled")),
            **{name: found.get(name) for name in ("python", "platform", "processor", "threads")}}

    then, now = flat(began), flat(machine())
    return [f"{name} {then.get(name)}, now {now.get(name)}" for name in then | now
            if then.get(name) != now.get(name)]


def _processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor()


@contextmanager
def interruptions():
    """-> a list that is no longer empty once Ctrl-C or SIGTERM came; a second Ctrl-C acts at once.

    Signals can be caught in the main thread only; elsewhere the list stays empty.
    """
    came = []

    def note(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)

    kept = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            kept[number] = signal.signal(number, note)
    except ValueError:
        pass
    try:
        yield came
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
