"""From a name to a model's folder: a path, the local Hugging Face cache, a bundled folder.

The network is used only on request: a name that is not on this machine is refused at once.
"""

import difflib
import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from minisft.errors import UserError, setting
from minisft.io.files import CONFIG, read_json, write_text

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
    "minisft.json", "adapter_config.json", "adapter_model.safetensors"]
TORCH_PATTERNS = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
# all that is read of a folder; the last ones are of old ones
PATTERNS = [*DOWNLOAD_PATTERNS, *TORCH_PATTERNS, "encoder.json", "vocab.bpe"]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
DOWNLOAD_HELP = "allow a model that is not here to be downloaded"
REVISION_HELP = "branch, tag or commit of a model of the Hugging Face hub (default: main)"
ALLOW_HTTP_HELP = ("allow a download over plain http, where HF_ENDPOINT names such a server: "
                   "whoever is on the way can change the model")
COMMIT = re.compile("[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
ADAPTER = "adapter_config.json"     # of a folder with an adapter in the place of a model
BUNDLED = Path(__file__).resolve().parents[1] / "bundled"


def resolve(name: str | Path, online: bool = False, revision: str | None = None,
            allow_http: bool = False) -> Path:
    """A folder's path or a model's name -> the folder; `online` allows to download it.

    `revision`: branch, tag or commit of a model by name (default: main). `allow_http`: also
    without encryption. It may be the folder of an adapter, whose base is then there as well: see
    `base_of`. Raises UserError that says which places were searched and how to get the model.
    """
    folder = _resolve(name, online, revision, allow_http)
    if revision is not None and commit_of(folder) is None:
        raise UserError(f"{setting('revision')} {revision} is for a model of the Hugging Face hub, "
                        f"{folder} is a folder")
    base_of(folder, online, allow_http)
    return folder


def is_adapter(folder: str | Path) -> bool:
    """-> whether a folder holds an adapter and no model."""
    folder = Path(folder)
    return (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file()


def base_of(folder: str | Path, online: bool = False, allow_http: bool = False) -> Path:
    """A model's folder -> the same; an adapter's -> the folder of its base.

    Raises UserError where there is no such model.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        return folder
    path = folder / ADAPTER
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: base_model_name_or_path is {name!r}, expected the name or the "
                        "folder of the model that it adapts")
    try:
        base = _resolve(name, online, None, allow_http)
    except UserError as error:
        raise UserError(f"{path}: base_model_name_or_path: {error.args[0]}; if the model lies "
                        "elsewhere, write its folder there") from None
    if is_adapter(base):
        raise UserError(f"{path}: its base {base} is an adapter itself, expected a model: minisft "
                        "merge makes one of it")
    return base


def _resolve(name, online, revision, allow_http):
    try:
        path = Path(name).expanduser()
    except RuntimeError:     # ~somebody who has no home here
        raise UserError(f"{name}: no such folder") from None
    if path.is_dir():
        if is_adapter(path):
            return path
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
    wanted = "main" if revision is None else revision
    if not REVISION.fullmatch(wanted):
        raise UserError(f"{setting('revision')} is {wanted!r}, expected a branch, tag or commit")
    for candidate in dict.fromkeys((repository, str(name))):     # old caches hold `gpt2` as such
        if folder := _cached(candidate, wanted):
            return folder
    if (BUNDLED / name / CONFIG).is_file():
        return BUNDLED / name
    if online:
        return _download(repository, wanted, allow_http)
    if path.parent != Path() and path.parent.is_dir():     # a path, and no name of a repository
        raise UserError(f"{path}: no such folder{_meant(str(name), _beside(path))}")
    known = [*ALIASES, *_names_in(BUNDLED), *(
        n.removeprefix("models--").replace("--", "/") for n in _names_in(cache())
        if n.startswith("models--"))]
    if str(name) not in known and (hint := _meant(str(name), [*known, *_beside(path)])):
        raise UserError(f"{name}: no such folder or model{hint} ({setting('download')} looks for "
                        "that name on the Hugging Face hub)")
    asked = f"{name} ({revision})" if revision else name
    raise UserError(f"{asked}: no such folder, and not whole in the Hugging Face cache at "
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


def portable_name(name: str | Path) -> str:
    """A path or a model's name -> what finds it from another folder: the whole path, or the name.
    """
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else str(name)


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


def commit_of(folder: Path) -> str | None:
    """A model's folder -> the commit that it is, where it lies in the cache."""
    named = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name if named else None


def _cached(name, revision):
    """-> the folder of the cached version with config and weights, or None."""
    home = cache() / ("models--" + name.replace("/", "--"))
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = (home / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    folder = home / "snapshots" / commit
    complete = commit.isalnum() and any(
        (folder / name).is_file() for name in (CONFIG, ADAPTER)) and any(folder.glob("*model*.*"))
    return folder if complete else None


def _download(name, revision, allow_http):
    """-> the folder in the cache after the download, every file compared with its checksum.

    Raises UserError with the reason.
    """
    try:
        # Imported here: it is slow to load and nobody else needs it.
        from huggingface_hub import HfApi, constants, snapshot_download
        endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        if not endpoint.startswith("https://") and not allow_http:
            raise UserError(f"{name}: would come from {endpoint} (HF_ENDPOINT), and whoever is on "
                            "the way there could change it; expected https://, or "
                            f"{setting('allow_http')}")
        info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True)
        files = _wanted(info.siblings, DOWNLOAD_PATTERNS)
        if not {CONFIG, ADAPTER} & {file.rfilename for file in files}:
            raise UserError(f"{name}: has no {CONFIG} on the Hugging Face hub")
        if not any(file.rfilename.endswith(".safetensors") for file in files):
            files += _wanted(info.siblings, TORCH_PATTERNS)      # the same weights
        # of one commit, whatever happens meanwhile to a branch
        folder = Path(snapshot_download(
            name, revision=info.sha, allow_patterns=[file.rfilename for file in files],
            cache_dir=cache(), endpoint=endpoint))
    except UserError:
        raise
    except Exception as error:     # the library and those below it raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: cannot be downloaded ({reason[:300]})") from None
    for file in files:
        _require_whole(name, folder / file.rfilename, file)
    if not COMMIT.fullmatch(revision):      # last: what was cut short is not found in the cache
        write_text(folder.parents[1] / "refs" / revision, info.sha)
    return folder


def _wanted(files, patterns):
    return [file for file in files
            if any(fnmatch(file.rfilename, pattern) for pattern in patterns)]


def _require_whole(name, path, file):
    """Raises UserError unless a file has the checksum that the hub says, and removes it."""
    sha256 = file.lfs["sha256"] if file.lfs else None
    if sha256 is None and file.blob_id is None:
        raise UserError(f"{path}: the hub says no checksum of it, expected one")
    if not path.is_file():
        raise UserError(f"{path}: was not downloaded, expected it; try again")
    if sha256 is None:      # as git has it
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    else:
        digest = hashlib.sha256()
    with open(path, "rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != (sha256 or file.blob_id):
        path.resolve().unlink()      # of the link what it leads to, else it would come again
        path.unlink(missing_ok=True)
        raise UserError(f"{name}: {path.name} was damaged on its way, its {digest.name} is "
                        f"{digest.hexdigest()}, expected {sha256 or file.blob_id}; it was removed, "
                        "try again")
