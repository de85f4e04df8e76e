"""From a name to a folder; nothing here may touch the network."""

import socket
import sys
import types

import pytest

from minisft.errors import UserError
from minisft.io import hub

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, an empty home, an empty folder to stand in."""
    for name in "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


def fill(cache, name, files=("config.json", "model.safetensors"), commit=COMMIT):
    """A repository in the cache as the Hugging Face library lays it, with links -> its snapshot."""
    home = cache / ("models--" + name.replace("/", "--"))
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for file in files:
        (home / "blobs" / file).write_text("{}")
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    return snapshot


def refused(name, *words, **options):
    with pytest.raises(UserError) as caught:
        hub.resolve(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_a_folder_comes_first(cache, tmp_path):
    fill(cache, "openai-community/gpt2")
    (tmp_path / "here" / "gpt2").mkdir()
    refused("gpt2", "gpt2: holds no config.json")
    (tmp_path / "here" / "gpt2" / "config.json").write_text("{}")
    assert hub.resolve("gpt2").resolve() == tmp_path / "here" / "gpt2"
    assert hub.resolve(tmp_path / "here" / "gpt2") == tmp_path / "here" / "gpt2"


def test_home_is_understood(cache, tmp_path):
    (tmp_path / "home" / "m").mkdir(parents=True)
    (tmp_path / "home" / "m" / "config.json").write_text("{}")
    assert hub.resolve("~/m") == tmp_path / "home" / "m"


@pytest.mark.parametrize("name, full", hub.ALIASES.items())
def test_short_names(cache, name, full):
    snapshot = fill(cache, full)
    assert hub.resolve(name) == hub.resolve(full) == snapshot


def test_cache_from_before_the_names_moved(cache):
    snapshot = fill(cache, "gpt2")
    assert hub.resolve("gpt2") == snapshot


def test_where_the_cache_is(cache, tmp_path, monkeypatch):
    places = [("HF_HUB_CACHE", "a", "a"), ("HF_HOME", "b", "b/hub"),
              ("XDG_CACHE_HOME", "c", "c/huggingface/hub"),
              ("HOME", "d", "d/.cache/huggingface/hub")]
    for variable, value, _ in places:
        monkeypatch.setenv(variable, str(tmp_path / value))
    for variable, _, place in places:      # the first that is set wins
        assert hub.cache() == tmp_path / place
        snapshot = fill(tmp_path / place, "someone/model")
        assert hub.resolve("someone/model") == snapshot
        if variable != "HOME":
            monkeypatch.delenv(variable)


def test_cache_that_is_not_whole(cache):
    fill(cache, "a/no-weights", files=["config.json"])
    fill(cache, "a/no-config", files=["model.safetensors"])
    fill(cache, "a/bad-ref", commit=COMMIT)
    (cache / "models--a--bad-ref" / "refs" / "main").write_text("..")
    for file in "config.json", "model.safetensors":
        (cache / "models--a--bad-ref" / file).write_text("{}")
    fill(cache, "a/no-ref")
    (cache / "models--a--no-ref" / "refs" / "main").unlink()
    snapshot = fill(cache, "a/dangling")
    (snapshot / "config.json").resolve().unlink()
    for name in "no-weights", "no-config", "bad-ref", "no-ref", "dangling":
        refused(f"a/{name}", f"a/{name}: ", "not whole in the Hugging Face cache", cache)


def test_bundled(cache, tmp_path):
    (tmp_path / "bundled" / "toy").mkdir(parents=True)
    refused("toy", "toy")
    (tmp_path / "bundled" / "toy" / "config.json").write_text("{}")
    assert hub.resolve("toy") == tmp_path / "bundled" / "toy"
    snapshot = fill(cache, "toy")
    assert hub.resolve("toy") == snapshot


def test_refusal_says_where_and_how(cache):
    refused("gpt2", "gpt2: no such folder", cache, "openai-community/gpt2", "with download")
    assert not cache.exists()


@pytest.mark.parametrize("name", ["./gpt2", "../gpt2", "/no/gpt2", "a/b/c", "a/../b", "~nobody/x",
                                  "", "..", "a\0b", "a b"])
def test_names_that_can_only_be_paths(cache, name):
    refused(name, "holds no config.json" if name in ("", "..") else "no such folder")
    refused(name, online=True)


def test_a_file_is_no_folder(cache, tmp_path):
    (tmp_path / "here" / "model.safetensors").write_text("")
    refused("model.safetensors", "is a file, expected a model's folder")


# Downloads, with a library that stands in for the real one; test_download.py has a server

EMPTY = "9e26dfeeb6e641a33dae4961196235bdb965b21b"      # of {} in git


@pytest.fixture
def library(monkeypatch):
    calls = []

    class HfApi:
        def __init__(self, endpoint):
            assert endpoint == "https://huggingface.co"

        def model_info(self, name, revision, files_metadata):
            if name == "a/broken":
                raise OSError("no\n  route")
            assert revision == "main" and files_metadata
            files = {"a/empty": [], "a/pickle": ["config.json", "pytorch_model.bin"]}.get(
                name, ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5",
                       "README.md", "onnx/model.safetensors"])
            return types.SimpleNamespace(sha=COMMIT, siblings=[
                types.SimpleNamespace(rfilename=file, lfs=None, blob_id=EMPTY) for file in files])

    def snapshot_download(name, revision, allow_patterns, cache_dir, endpoint):
        calls.append((name, *allow_patterns))
        folder = cache_dir / ("models--" + name.replace("/", "--")) / "snapshots" / revision
        folder.mkdir(parents=True)
        for file in allow_patterns:
            (folder / file).write_text("{}")
        return str(folder)

    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download, module.HfApi = snapshot_download, HfApi
    module.constants = types.SimpleNamespace(ENDPOINT="https://huggingface.co")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_download_only_when_asked(cache, library):
    refused("gpt2")
    assert library == []
    folder = cache / "models--openai-community--gpt2"
    assert hub.resolve("gpt2", online=True) == folder / "snapshots" / COMMIT
    assert library == [("openai-community/gpt2", "config.json", "model.safetensors")]
    assert (folder / "refs" / "main").read_text() == COMMIT


def test_files_of_torch_are_downloaded_only_where_there_are_no_others(cache, library):
    hub.resolve("a/pickle", online=True)
    assert library == [("a/pickle", "config.json", "pytorch_model.bin")]


def test_what_is_cached_is_not_downloaded(cache, library):
    snapshot = fill(cache, "distilbert/distilgpt2")
    assert hub.resolve("distilgpt2", online=True) == snapshot and library == []


def test_failed_download(cache, library):
    refused("a/empty", "a/empty: has no config.json", online=True)
    refused("a/broken", "a/broken: cannot be downloaded (no route)", online=True)


def test_download_without_the_library(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("gpt2", "openai-community/gpt2: cannot be downloaded", online=True)


def test_a_slip_in_a_name_is_told_what_it_may_have_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache" / "models--some--thing").mkdir(parents=True)
    for folder in ("mine", "runs/news/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    for name, meant in (("gtp2", "gpt2"), ("some/thng", "some/thing"), ("mien", "mine"),
                        ("minisft-gtp2", "minisft-gpt2")):
        with pytest.raises(UserError, match=rf"^{name}: .*did you mean {meant}\? \(download "):
            hub.resolve(name)
    # in a folder that is there, a name is a path
    for name, words in (("runs/news/modle", ", did you mean runs/news/model?"), ("runs/other", "")):
        with pytest.raises(UserError) as found:
            hub.resolve(name)
        assert str(found.value) == f"{name}: no such folder{words}"
    with pytest.raises(UserError, match="not whole .* allow the download of gpt2-giant-thing with"):
        hub.resolve("gpt2-giant-thing")
    with pytest.raises(UserError, match="the download of openai-community/gpt2 with download"):
        hub.resolve("gpt2")
