"""What a run began with: checksums of its files and model, versions, processor and threads."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minisft import __version__
from minisft.backend.cpu import jit, mkl, row_blocks
from minisft.backend.cpu.processor import bfloat16_by
from minisft.errors import UserError
from minisft.io import hub


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
    ran and what multiplied bfloat16 numbers, processor, threads."""
    compiled = jit.enabled()
    return {
        "versions": {"minisft": __version__} | {name: version(name) for name in (
            "numpy", "safetensors", "tokenizers", *(("numba",) if compiled else ()),
            *(() if mkl.why_not() else ("mkl",)))},
        "compiled": compiled,
        "bfloat16_products": bfloat16_by() or False,
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
            **{name: {"True": "on", "False": "off"}.get(str(environment.get(key)),
                                                        environment.get(key))
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
