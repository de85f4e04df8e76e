"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(20261124)


@pytest.fixture(scope="session")
def shared_data():
    """The folder with real data sets; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MINISFT_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder} (set MINISFT_SHARED)")
    return folder
