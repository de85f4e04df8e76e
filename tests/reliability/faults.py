"""Faults to plant in a process: each is one that the harness beside it must find."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from minisft.io import files


def non_atomic_write():
    """Files are written under their own names."""
    @contextmanager
    def write(path, new=False):
        files.make_folder(Path(path).parent)
        with open(path, "wb") as file:
            yield file

    for module in list(sys.modules.values()):
        if module.__name__.startswith("minisft") and hasattr(module, "atomic_write"):
            module.atomic_write = write


def missing_sync():
    """Nothing is synced before it is renamed."""
    os.fsync = lambda handle: None


FAULTS = {f.__name__: f for f in (non_atomic_write, missing_sync)}
