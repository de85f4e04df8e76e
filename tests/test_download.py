"""Downloads from a server of our own that answers as the Hugging Face hub does."""

import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minisft.cli import main
from minisft.errors import UserError
from minisft.io import hub
from minisft.io.model_folder import load, read_folder

GOLDEN = Path(__file__).parent / "golden" / "gpt2_tiny"
COMMITS = "a" * 40, "b" * 40


class Server(ThreadingHTTPServer):
    """Holds someone/tiny: its files, and which commit each of its branches is."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.refs = {"main": COMMITS[0], "v1": COMMITS[1]}
        self.damage = {}      # file name -> what is sent instead of its bytes
        self.cut = {}         # file name -> bytes after which the line is cut, once
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def entries(self):
        for name, data in self.files.items():
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            lfs = name.endswith(".safetensors")
            yield name, data, git, hashlib.sha256(data).hexdigest() if lfs else None


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if found := re.fullmatch("/api/models/someone/tiny(/revision/([^/]+))?", path):
            return self.json(found[2] or "main", lambda commit: {
                "id": "someone/tiny", "sha": commit, "siblings": [
                    {"rfilename": name, "size": len(data), "blobId": git} | (
                        {"lfs": {"size": len(data), "sha256": sha, "pointerSize": 130}}
                        if sha else {}) for name, data, git, sha in server.entries()]})
        if found := re.fullmatch("/api/models/someone/tiny/tree/([^/]+)", path):
            return self.json(found[1], lambda commit: [
                {"type": "file", "path": name, "size": len(data), "oid": git} | (
                    {"lfs": {"size": len(data), "oid": sha, "pointerSize": 130}} if sha else {})
                for name, data, git, sha in server.entries()])
        found = re.fullmatch("/someone/tiny/resolve/([^/]+)/(.+)", path)
        entry = found and next((e for e in server.entries() if e[0] == found[2]), None)
        if entry is None:
            return self.send_error(404)
        name, data, git, sha = entry
        data = server.damage.get(name, data)
        start = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "bytes=0-")[1])
        self.send_response(206 if start else 200)
        for key, value in {
                "X-Repo-Commit": server.refs.get(found[1], found[1]), "ETag": f'"{sha or git}"',
                "X-Linked-Etag": f'"{sha or git}"', "X-Linked-Size": len(entry[1]),
                "Accept-Ranges": "bytes", "Content-Length": len(data) - start,
                **({"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                   if start else {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            most = server.cut.pop(name, None)
            self.wfile.write(data[start:] if most is None else data[start:most])
            if most is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    def json(self, revision, value):
        commit = self.server.refs.get(revision, revision)
        if commit not in COMMITS:
            return self.send_error(404)
        data = json.dumps(value(commit)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if self.command == "GET" else b"")


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with Server() as made:
        folder = tmp_path / "source"
        model, tokenizer = load(hub.BUNDLED / "minisft-gpt2")
        shutil.copytree(hub.BUNDLED / "minisft-gpt2", folder)
        made.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        made.files["pytorch_model.bin"] = b"not for us"
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(**options):
    return hub.resolve("someone/tiny", online=True, allow_http=True, **options)


def test_plain_http_is_refused_unless_asked(server, capsys):
    with pytest.raises(UserError, match=f"someone/tiny: would come from {server.url} .HF_ENDPOINT.*"
                                        "expected https://, or allow_http"):
        hub.resolve("someone/tiny", online=True)
    assert main(["predict", "--model", "someone/tiny", "--download", "x"]) == 2
    assert "or --allow-http" in capsys.readouterr().err
    assert server.asked == []


def test_what_is_asked_for_comes_and_is_said(server, capsys):
    folder = get()
    assert folder.name == hub.commit_of(folder) == COMMITS[0]
    assert {path.name for path in folder.iterdir()} == {
        name for name in server.files if name in hub.DOWNLOAD_PATTERNS}
    for path in folder.iterdir():
        assert path.read_bytes() == server.files[path.name]
    server.asked.clear()
    assert hub.resolve("someone/tiny") == hub.resolve("someone/tiny", revision="main") == folder
    assert hub.resolve("someone/tiny", revision=COMMITS[0]) == folder and server.asked == []
    said: list[str] = []
    read_folder("someone/tiny", say=said.append)
    assert said[0] == f"someone/tiny is commit {COMMITS[0]}"


def test_a_revision(server):
    assert get(revision="v1").name == COMMITS[1]
    with pytest.raises(UserError, match="someone/tiny: no such folder, and not whole"):
        hub.resolve("someone/tiny")
    with pytest.raises(UserError, match=r"someone/tiny \(v2\): no such folder, and not whole"):
        hub.resolve("someone/tiny", revision="v2")
    server.refs["v1"] = COMMITS[0]      # it moves, the cache does not
    assert hub.resolve("someone/tiny", revision="v1").name == COMMITS[1]
    assert get(revision=COMMITS[0]).name == COMMITS[0]
    with pytest.raises(UserError, match="someone/tiny: cannot be downloaded"):
        get(revision="none")
    for wrong in "../main", "", "a b", "-x", "a//b":
        with pytest.raises(UserError, match="revision is .*expected a branch, tag or commit"):
            get(revision=wrong)
    with pytest.raises(UserError, match="revision main is for a model of the Hugging Face hub"):
        hub.resolve(hub.BUNDLED / "minisft-gpt2", revision="main")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_was_changed_on_its_way(server, name):
    """As large, but other bytes."""
    data = bytearray(server.files[name])
    data[len(data) // 2] ^= 1
    server.damage[name] = bytes(data)
    with pytest.raises(UserError, match=f"someone/tiny: {name} was damaged on its way, its sha"):
        get()
    with pytest.raises(UserError, match="not whole"):
        hub.resolve("someone/tiny")
    server.damage.clear()
    assert (get() / name).read_bytes() == server.files[name]


def test_a_download_that_was_cut_goes_on(server, monkeypatch):
    """Also where what came before was damaged: then it is had anew."""
    name = "model.safetensors"
    blob = hashlib.sha256(server.files[name]).hexdigest()
    blobs = hub.cache() / "models--someone--tiny" / "blobs"
    server.cut[name] = 1_000_000
    try:
        get()
    except UserError as error:
        assert "cannot be downloaded" in str(error)
    assert (get() / name).read_bytes() == server.files[name]
    shutil.rmtree(hub.cache())
    blobs.mkdir(parents=True)
    (blobs / f"{blob}.incomplete").write_bytes(bytes(1_000_000))
    try:
        folder = get()
    except UserError as error:
        assert "was damaged on its way" in str(error)
        folder = get()
    assert (folder / name).read_bytes() == server.files[name]


def test_a_hub_without_checksums(server, monkeypatch):
    monkeypatch.setattr(Server, "entries", lambda self: (
        (name, data, None, None) for name, data in self.files.items()))
    with pytest.raises(UserError):
        get()


def test_a_run_keeps_its_commit(server, toy_file, tmp_path, capsys):
    get()
    out = tmp_path / "run"
    assert main(["finetune", "--train", toy_file(40), "--model", "someone/tiny", "--epochs", "1",
                 "--train-layers", "head", "--compare", "none", "--quiet", "--out", str(out)]) == 0
    assert f"someone/tiny is commit {COMMITS[0]}" in " ".join(capsys.readouterr().out.split())
    assert json.loads((out / "config.json").read_text())["settings"]["revision"] == COMMITS[0]
    assert COMMITS[0] in (out / "report.md").read_text()
    # another commit becomes main: the run, resumed, has its own
    (out / "results.json").unlink()
    (hub.cache() / "models--someone--tiny" / "refs" / "main").write_text(COMMITS[1])
    assert main(["finetune", "--resume", str(out)]) == 0
