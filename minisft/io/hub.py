"""From a name to a model's folder: a path, the local Hugging Face cache, a bundled folder.

The network is used only on request: a name that is not on this machine is refused at once.
"""

import difflib
import os
import re
from pathlib import Path

from minisft.errors import UserError, setting
from minisft.io.files import CONFIG

ALIASES = {"gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
           "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl",
           "distilgpt2": "distilbert/distilgpt2",
           "bert-base-uncased": "google-bert/bert-base-uncased",
           "bert-base-cased": "google-bert/bert-base-cased",
           "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
DOWNLOAD_PATTERNS = [
    CONFIG, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "generation_config.json",
    "minisft.json"]
TORCH_PATTERNS = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
# all that is read of a folder; the last ones are of old ones
PATTERNS = [*DOWNLOAD_PATTERNS, *TORCH_PATTERNS, "encoder.json", "vocab.bpe"]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
BUNDLED = Path(__file__).resolve().parents[1] / "bundled"


def resolve(name: str | Path, online: bool = False) -> Path:
    """A folder's path or a model's name -> the folder; `online` allows to download it.

    Raises UserError that says which places were searched and how to get the model.
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
        hint = "; `minisft convert` makes one of a ckpt.pt of nanoGPT" * (path.suffix == ".pt")
        raise UserError(f"{path}: is a file, expected a model's folder{hint}")
    if not NAME.fullmatch(str(name)):
        raise UserError(f"{path}: no such folder{_meant(str(name), _beside(path))}")
    repository = ALIASES.get(str(name), str(name))
    for candidate in dict.fromkeys((repository, str(name))):     # old caches hold `gpt2` as such
        if folder := _cached(candidate):
            return folder
    if (BUNDLED / name / CONFIG).is_file():
        return BUNDLED / name
    if online:
        return _download(repository)
    if path.parent != Path() and path.parent.is_dir():     # a path, and no name of a repository
        raise UserError(f"{path}: no such folder{_meant(str(name), _beside(path))}")
    known = [*ALIASES, *_names_in(BUNDLED), *(
        n.removeprefix("models--").replace("--", "/") for n in _names_in(cache())
        if n.startswith("models--"))]
    if str(name) not in known and (hint := _meant(str(name), [*known, *_beside(path)])):
        raise UserError(f"{name}: no such folder or model{hint} ({setting('download')} looks for "
                        "that name on the Hugging Face hub)")
    raise UserError(f"{name}: no such folder, and not whole in the Hugging Face cache at "
                    f"{cache()}; give a folder's path, or allow the download of {repository} with "
                    f"{setting('download')}")


def _meant(name, known):
    """-> which of the known names may have been meant, as the end of a message."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f", did you mean {near[0]}?" if near else ""


def _beside(path):
    """-> the models' folders beside one that is not there."""
    return [str(path.with_name(name)) for name in _names_in(path.parent)
            if (path.with_name(name) / CONFIG).is_file()]


def _names_in(folder):
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir())
    except OSError:
        return []


def cache() -> Path:
    """-> the folder of the Hugging Face cache, by the rules of huggingface_hub."""
    environ = os.environ
    if path := environ.get("HF_HUB_CACHE"):
        return _expanded(path)
    if path := environ.get("HF_HOME"):
        return _expanded(path) / "hub"
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(base) / "huggingface" / "hub"


def _expanded(path):
    try:
        return Path(path).expanduser()
    except RuntimeError:     # nobody's home: containers run as users that the system does not know
        return Path(path)


def _cached(name):
    """-> the folder of the cached main version with config and weights, or None."""
    home = cache() / ("models--" + name.replace("/", "--"))
    try:
        commit = (home / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    folder = home / "snapshots" / commit
    complete = commit.isalnum() and (folder / CONFIG).is_file() and any(folder.glob("*model*.*"))
    return folder if complete else None


def _download(name):
    """-> the folder in the cache after the download; raises UserError with the reason."""
    try:
        # Imported here: it is slow to load and nobody else needs it.
        from huggingface_hub import snapshot_download
        folder = Path(snapshot_download(name, allow_patterns=DOWNLOAD_PATTERNS))
        if not any(folder.glob("*.safetensors")):      # the same weights, so only one of the two
            folder = Path(snapshot_download(name, allow_patterns=TORCH_PATTERNS))
    except Exception as error:     # the library and those below it raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: cannot be downloaded ({reason[:300]})") from None
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name}: has no {CONFIG} on the Hugging Face hub")
    return folder
