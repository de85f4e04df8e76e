"""Fixtures that more than one test file uses."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from minisft.data import toy_news
from minisft.evaluation import plots

# `-m quick`: one look at everything in less than a minute; see CONTRIBUTING.md.
QUICK = {
    "test_attention", "test_batch", "test_checkpoint", "test_cli", "test_cross_entropy",
    "test_dispatch", "test_docs", "test_dropout", "test_embedding", "test_gelu", "test_gpt2",
    "test_gradcheck", "test_layer_norm", "test_layers", "test_layout", "test_linear",
    "test_metrics", "test_optim", "test_parameters", "test_public_api", "test_random",
    "test_read", "test_row_blocks", "test_safetensors", "test_softmax", "test_text"}
NOT_QUICK = {"slow", "gpu", "parity"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in QUICK and not NOT_QUICK & {mark.name for mark in item.iter_markers()}:
            item.add_marker("quick")


# Pictures are drawn in the tests of what draws them, and by commands in a process of their own.
DRAWN = {"test_curve", "test_finetune", "test_hostile_text", "test_plots", "test_pretrain",
         "test_tag", "test_translate"}


@pytest.fixture(scope="module", autouse=True)
def blank_pictures(request):
    """In other tests they are made and saved, but not drawn: half of a small run's time."""
    def save(figure, path):
        figure.clear()
        figure.set_layout_engine("none")
        figure.set_size_inches(0.1, 0.1)
        drawn(figure, path)

    drawn = plots._save
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in DRAWN:
            patch.setattr(plots, "_save", save)
        yield


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard():
    """A shell's background job, and what it starts, ignores Ctrl-C, which tests send."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
