"""Checksums of a config, in the metadata of the weights that it was saved with.

There damage to the config does not reach them: an edited value is told, a damaged key refused.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minisft.data.json_file import LARGEST
from minisft.errors import UserError
from minisft.io import safetensors
from minisft.io.files import encoded

# a checksum for each key of the config, and for the files beside it
CONFIG, FILES = "minisft_config_crc32", "minisft_files_crc32"


def entries(settings: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, str]:
    """A config and the texts of files by their names -> entries for the weights' metadata."""
    return {CONFIG: json.dumps(_checksums(settings)),
            FILES: json.dumps({name: zlib.crc32(encoded(text)) for name, text in texts.items()})}


def changes(config: Path, weights: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """A config's path, its weights' and what it says -> notes on what is not as it was saved.

    An edited value is a note, and so is a key that was taken out; a key under another name is
    damage. A config.json that `transformers` wrote is its own affair. Raises UserError.
    """
    if not weights.is_file() or "transformers_version" in settings:
        return ()
    metadata = safetensors.read_header(weights)[1]
    kept, of_files = (safetensors.parse_checksums(weights, metadata.get(key, "{}"))
                      for key in (CONFIG, FILES))
    new, found = settings.keys() - kept.keys(), _checksums(settings)
    for key in kept.keys() - settings.keys():
        if name := next((name for name in sorted(new) if len(name) == len(key)), None):
            raise UserError(f"{config}: is damaged, the key {key!r}, which was saved with the "
                            f"weights, is called {name!r}")
    changed = [f"{config}: {key}" for key, checksum in kept.items() if found.get(key) != checksum]
    changed += [f"{config.parent / name}:" for name, checksum in of_files.items()
                if Path(name).name == name and _crc32(config.parent / name) != checksum]
    return tuple(f"{what} is not as it was saved with the weights" for what in changed)


def _checksums(settings):
    """-> CRC-32 of each value, by its key."""
    return {key: zlib.crc32(json.dumps(value, sort_keys=True).encode())
            for key, value in settings.items()}


def _crc32(path):
    """-> CRC-32 of a file, None where it is not there."""
    try:
        with open(path, "rb") as file:
            return zlib.crc32(file.read(LARGEST + 1))
    except (OSError, ValueError):     # ValueError: no file can have this name
        return None
