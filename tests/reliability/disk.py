"""A power cut: what a process wrote and did not sync is lost.

Kept as strictly as POSIX allows: a file has the bytes of its last fsync, and a new name, or a new
folder, is there only once the folder above it was synced. (A disk may also keep more, as it does
where a process is killed.)
"""

import os
import shutil
import tempfile


class Disk:
    """What is on disk of a folder, while the process that writes there goes on."""

    def __init__(self, folder):
        self.folder, self.at_work = folder, False
        # old files under their old names: beside the folder, since a link needs the same disk
        self.kept = tempfile.mkdtemp(dir=os.path.dirname(folder))
        self.sizes = {}      # file (inode) -> its bytes on disk
        self.names = []      # (path, its old file or None) of renames whose folder is not synced
        self.replaced, self.pending = {}, {}      # path -> its bytes, of files that were renamed
        for path in self._files():
            self.sizes[os.stat(path).st_ino] = os.path.getsize(path)
        self._fsync, os.fsync = os.fsync, self._synced

    def _files(self):
        return [os.path.join(place, name) for place, _, names in os.walk(self.folder)
                for name in names]

    def _synced(self, handle):
        self._fsync(handle)
        self.sizes[os.fstat(handle).st_ino] = os.fstat(handle).st_size
        place = os.readlink(f"/proc/self/fd/{handle}")
        self.names = [entry for entry in self.names if os.path.dirname(entry[0]) != place]

    def before(self, event, args):
        """A file event comes: what it would replace is kept, as it is on disk."""
        self.at_work = True
        self.replaced |= self.pending      # the writer has gone on: it takes them for safe
        self.pending = {}
        if event in ("os.remove", "shutil.rmtree"):
            gone = os.path.abspath(args[0])
            self.replaced = {path: size for path, size in self.replaced.items()
                             if path != gone and not path.startswith(gone + os.sep)}
        if event in ("os.rename", "os.link", "os.mkdir"):
            path, old = os.path.abspath(args[0 if event == "os.mkdir" else 1]), None
            if os.path.isfile(path):
                old = os.path.join(self.kept, str(len(os.listdir(self.kept))))
                os.link(path, old)
            if not os.path.isdir(path):      # else it is there, and nothing comes of the event
                self.names.append((path, old))
            if event == "os.rename":
                self.pending = {path: os.path.getsize(args[0])}
        self.at_work = False

    def lose(self):
        """The power goes -> the files that had been replaced, and are not whole."""
        self.at_work = True
        self.replaced |= self.pending
        for path, old in reversed(self.names):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif old is not None:
                os.replace(old, path)
            elif os.path.exists(path):
                os.remove(path)
        for path in self._files():
            size = self.sizes.get(os.stat(path).st_ino, 0)
            if os.path.getsize(path) > size:
                os.truncate(path, size)
        shutil.rmtree(self.kept)
        return sorted(path for path, size in self.replaced.items()
                      if not os.path.isfile(path) or os.path.getsize(path) != size)
