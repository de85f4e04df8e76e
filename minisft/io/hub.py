"""From a name to a model's folder: a path, the local Hugging Face cache, a bundled folder.

The network is touched only when asked: a name that is not at hand is refused at once.
"""

import os
import re
from pathlib import Path

from minisft.errors import UserError

ALIASES = {"gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
           "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl",
           "distilgpt2": "distilbert/distilgpt2",
           "bert-base-uncased": "google-bert/bert-base-uncased",
           "bert-base-cased": "google-bert/bert-base-cased",
           "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
CONFIG = "config.json"
WANTED = [CONFIG, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
          "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
          "special_tokens_map.json", "vocab.txt"]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
BUNDLED = Path(__file__).resolve().parents[1] / "bundled"


def resolve(name, online=False):
    """A folder's path or a model's name -> the folder; `online` allows to download it.

    Raises UserError saying where was looked and how to get it.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:     # ~somebody who has no home here
        raise UserError(f"{name}: no such folder") from None
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{path}: holds no {CONFIG}, expected a model's folder")
        if (path / "model" / CONFIG).is_file():
            raise UserError(f"{path}: is the folder of a run, its model is {path / 'model'}")
        return path
    if path.exists():
        raise UserError(f"{path}: is a file, expected a model's folder")
    if not NAME.fullmatch(str(name)):
        raise UserError(f"{path}: no such folder")
    full = ALIASES.get(str(name), str(name))
    for known in dict.fromkeys((full, str(name))):     # old caches have `gpt2` under that name
        if folder := _cached(known):
            return folder
    if (BUNDLED / name / CONFIG).is_file():
        return BUNDLED / name
    if online:
        return _download(full)
    raise UserError(f"{name}: no such folder, and not whole in the Hugging Face cache at "
                    f"{cache()}; give a folder's path, or allow the download of {full} with "
                    "--download")


def cache():
    """-> the folder of the Hugging Face cache, found as their library finds it."""
    environ = os.environ
    if place := environ.get("HF_HUB_CACHE"):
        return Path(place).expanduser()
    if place := environ.get("HF_HOME"):
        return Path(place).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _cached(name):
    """-> the folder of the cached main version with config and weights, or None."""
    home = cache() / ("models--" + name.replace("/", "--"))
    try:
        commit = (home / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    folder = home / "snapshots" / commit
    whole = commit.isalnum() and (folder / CONFIG).is_file() and any(folder.glob("*model*.*"))
    return folder if whole else None


def _download(name):
    """-> the folder in the cache after the download; raises UserError with the reason."""
    try:
        # Imported here: it is slow to load and nobody else needs it.
        from huggingface_hub import snapshot_download
        folder = Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:     # the library and those below it raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: cannot be downloaded ({reason[:300]})") from None
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name}: has no {CONFIG} on the Hugging Face hub")
    return folder
