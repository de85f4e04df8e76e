"""Fixtures that more than one test file uses."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from minisft.data import toy_news


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


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory):
    """toy_file(n) -> a CSV file of the first n training texts of toy-news."""
    def write(n):
        path = tmp_path_factory.mktemp("files") / "train.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *list(
                zip(*toy_news.generate("train"), strict=True))[:n]])
        return str(path)
    return write
