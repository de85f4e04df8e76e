"""The one writer: whole or not at all, on disk, never through a link, and nobody else writes."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest

from minisft.errors import UserError
from minisft.io import files
from minisft.io.run_folder import FolderLock

PACKAGE = Path(__file__).resolve().parents[1] / "minisft"
WRITERS = {"write_text", "write_bytes", "savefig", "save", "save_file", "tofile", "memmap"}
# (module, what it calls): why this is not the work of io/files.py
EXEMPT = {
    ("io.files", "open"): "this is the writer",
    ("io.run_folder", "open"): "the lock: a file that stays, and names who holds it",
    ("io.metrics_log", "open"): "metrics.jsonl, synced before a save, grows by a line a step",
    ("evaluation.plots", "savefig"): "draws into the file that the writer has opened",
    ("backend.gpu.emulator", "write_text"): "source of a kernel, in a temporary folder",
    ("training.frozen_features", "memmap"): "a temporary file, gone with the process",
    ("cli.__init__", "open"): "the null device, where a standard stream is closed",
}


def written_by(path):
    """-> what a module calls to write files."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        if name in ("open", "fdopen", "open_in_place"):
            modes = [a for a in (*node.args[:2], *(k.value for k in node.keywords
                                                   if k.arg in ("mode", "flags")))
                     if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            flags = ast.unparse(node)
            if any(set("wax+") & set(a.value) and len(a.value) < 4 for a in modes) or \
                    any(f in flags for f in ("O_WRONLY", "O_RDWR", "O_CREAT")):
                found.add("open")
        elif name in WRITERS and not (     # our own function of that name, or a model's folder
                isinstance(called, ast.Name) or
                ast.unparse(called) in ("checkpoint.save", "self.save")):
            found.add(name)
    return found


def test_nobody_else_writes_files():
    writes = {(".".join(path.relative_to(PACKAGE).with_suffix("").parts), name)
              for path in PACKAGE.rglob("*.py") for name in written_by(path)}
    assert writes == EXEMPT.keys()


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "x.txt"
    files.write_text(path, "old\n")
    with pytest.raises(ValueError), files.atomic_write(path) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_text() == "old\n" and os.listdir(path.parent) == ["x.txt"]


def test_file_and_folder_are_synced(tmp_path, monkeypatch):
    synced = []
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (
        synced.append(os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd")
                      else handle), original(handle)))
    files.write_text(tmp_path / "new" / "x.txt", "text")
    if not os.path.isdir("/proc/self/fd"):
        assert len(synced) >= 2
        return
    # the folder's own name, the file under its first name, its name
    assert synced == [str(tmp_path), str(tmp_path / "new" / ".x.txt.partial"),
                      str(tmp_path / "new")]


@pytest.mark.parametrize("where", ["run", "run/adaptation"])
def test_a_new_folder_is_synced(tmp_path, monkeypatch, where):
    """Else a power cut would take it with all that is in it."""
    synced = []
    monkeypatch.setattr(files, "_sync_folder", synced.append)
    with FolderLock(tmp_path / "run") as folder:
        files.make_folder(tmp_path / where)
        assert synced == [tmp_path, folder][:len(where.split("/"))]
        with pytest.raises(FileExistsError):
            files.make_new_folder(folder)
        (folder / "file").touch()
        with pytest.raises(FileExistsError):
            files.make_folder(folder / "file")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
def test_gigabytes_are_written_in_pieces(tmp_path, monkeypatch):
    """Each is on disk before it leaves the system's cache; a small file stays there."""
    calls = []
    monkeypatch.setattr(files, "PIECE", 10)
    monkeypatch.setattr(os, "fdatasync", lambda handle: calls.append(os.fstat(handle).st_size))
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: calls.append(args[1:]))
    data = np.arange(25, dtype=np.uint8)
    drop = (0, 0, os.POSIX_FADV_DONTNEED)
    with files.atomic_write(tmp_path / "x") as file:
        files.write_large(file, data[:0])
        files.write_large(file, data[:10])
        assert not calls
        files.write_large(file, data)
    assert calls == [20, drop, 30, drop, 35, drop]
    assert (tmp_path / "x").read_bytes() == bytes([*range(10), *range(25)])


def test_what_a_killed_run_left_is_no_obstacle_and_no_way_out(tmp_path):
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / ".x.txt.partial").write_bytes(b"half")
    files.write_text(tmp_path / "x.txt", "text")
    (tmp_path / ".x.txt.partial").symlink_to(tmp_path / "elsewhere")
    files.write_text(tmp_path / "x.txt", "text")
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "x.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none_that_came_meanwhile(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError("no links")))
    path = tmp_path / "x.txt"
    files.write_text(path, "first", new=True)
    with pytest.raises(UserError, match="x.txt: is there by now, expected a new file"):
        files.write_text(path, "second", new=True)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["x.txt"]
