"""The pictures of a run exist, survive odd input, and leave matplotlib's settings alone."""

import math
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from matplotlib.axes import Axes

from minisft.evaluation import plots


def png_size(path):
    """PNG file -> (width, height) in pixels, from its header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def history(n_steps, n_epochs, accuracy=0.9):
    steps = [{"step": i + 1, "loss": 1 / (i + 1), "lr": 1e-4, "grad_norm": 1.0}
             for i in range(n_steps)]
    epochs = [{"epoch": e + 1, "step": (e + 1) * n_steps // n_epochs, "valid_loss": 0.5,
               "valid_accuracy": accuracy} for e in range(n_epochs)]
    return {"steps": steps, "epochs": epochs}


@pytest.mark.parametrize("n_steps, n_epochs, accuracy", [
    (0, 0, None), (1, 0, None), (1, 1, 1.0), (2, 1, None), (500, 3, 0.9),
])
def test_curves(n_steps, n_epochs, accuracy, tmp_path):
    path = tmp_path / "curves.png"
    plots.curves(history(n_steps, n_epochs, accuracy), path, best_step=n_steps or None)
    assert png_size(path) == (1320, 552)


def test_curves_with_gaps(tmp_path):
    broken = history(30, 1)
    broken["steps"][4]["loss"] = math.nan
    broken["steps"][5]["loss"] = math.inf
    broken["steps"][6] = {"step": 7}
    broken["epochs"][0] |= {"valid_loss": None}
    del broken["epochs"][0]["valid_accuracy"]
    plots.curves(broken, tmp_path / "gaps.png")
    for entry in broken["steps"]:
        entry["loss"] = math.nan
    plots.curves(broken | {"best_step": 30}, tmp_path / "nothing.png")
    assert png_size(tmp_path / "gaps.png") == png_size(tmp_path / "nothing.png") == (1320, 552)


def test_smoothing_is_a_centred_mean_that_skips_gaps():
    line = np.arange(60.0)
    assert plots._smooth(line)[5:-5] == pytest.approx(line[5:-5])
    line[30] = math.nan
    smooth = plots._smooth(line)
    assert np.isfinite(smooth).all()
    assert smooth[30] == pytest.approx(30) and smooth[31] == pytest.approx(31 + 1 / 10)
    assert np.isnan(plots._smooth(np.full(3, math.nan))).all()


@pytest.mark.parametrize("k", [2, 4, 20])
def test_confusion(k, tmp_path, rng):
    counts = rng.integers(0, 20_000, (k, k))
    counts[0] = 0
    path = tmp_path / "confusion.png"
    plots.confusion(counts.tolist(), [f"class {i}" for i in range(k)], path, "A title")
    width, height = png_size(path)
    assert 120 * 0.42 * k < min(width, height) and max(width, height) < 120 * (1.25 * k + 5)


def test_many_classes_are_an_image_of_one_size_without_numbers(tmp_path, rng, monkeypatch):
    counts = rng.integers(0, 20, (250, 250))
    plots.confusion(counts, [f"class {i}" for i in range(250)], tmp_path / "many.png")
    assert png_size(tmp_path / "many.png") == (888, 792)

    def drawn(*args):
        raise AssertionError("numbers were written into cells")
    monkeypatch.setattr(plots, "_write_cells", drawn)
    plots.confusion(counts[:30, :30], ["a"] * 30, tmp_path / "c.png")
    with pytest.raises(AssertionError, match="numbers"):
        plots.confusion(counts[:29, :29], ["a"] * 29, tmp_path / "c.png")


def of_seeds(*values, low=None, high=None):
    return {"mean": float(np.mean(values)), "low": low, "high": high, "values": list(values)}


def drawn_at(monkeypatch):
    """-> the x of each errorbar that is drawn from now on."""
    found, real = [], Axes.errorbar

    def errorbar(self, x, *args, **kwargs):
        found.append(np.asarray(x).tolist())
        return real(self, x, *args, **kwargs)
    monkeypatch.setattr(Axes, "errorbar", errorbar)
    return found


def test_points_without_an_interval_stand_on_their_ticks(tmp_path, monkeypatch):
    found = drawn_at(monkeypatch)
    lines = {"the model": [of_seeds(0.5), of_seeds(0.7)], "other": [of_seeds(0.4), of_seeds(0.6)]}
    plots.over_sizes([50, 100], lines, tmp_path / "a.png", "accuracy", "one seed")
    assert found == [[50, 100], [50, 100]]
    found.clear()
    lines["the model"] = [of_seeds(*[0.5] * 5, low=0.4, high=0.6)] * 2
    plots.over_sizes([50, 100], lines, tmp_path / "b.png", "accuracy", "five seeds")
    assert found[0] != found[1]     # bars would cover each other


def test_the_picture_of_seeds(tmp_path, monkeypatch):
    found = drawn_at(monkeypatch)
    plots.over_seeds({"the model": of_seeds(0.5, 0.6, 0.9), "naive Bayes": of_seeds(0.4, 0.4, 0.4),
                      "$x_{ \ud800": of_seeds(*[0.5, 0.6] * 3, low=0.4, high=0.6)},
                     tmp_path / "seeds.png", "test accuracy")
    assert [x[0] for x in found] == pytest.approx([2 / 3, 0.4, 0.55])
    assert png_size(tmp_path / "seeds.png") == (900, 354)


def test_confusion_with_hostile_names(tmp_path):
    names = ["$x_{$", "a|b\n\tc", "", "\x00\x1b", "日本語", "long " * 40, "𝒜\ud800", r"\frac"]
    plots.confusion(np.eye(8, dtype=int), names, tmp_path / "c.png", "$title_{ " + "long " * 60)
    assert png_size(tmp_path / "c.png")[0] < 2000
    with pytest.raises(ValueError, match="3 names"):
        plots.confusion(np.eye(2), ["a", "b", "c"], tmp_path / "no.png")


def test_same_input_same_bytes(tmp_path):
    for name in "ab":
        plots.curves(history(40, 2), tmp_path / f"curves_{name}")
        plots.confusion([[3, 1], [0, 4]], ["no", "yes"], tmp_path / f"confusion_{name}")
    for kind in ("curves", "confusion"):
        a, b = (tmp_path / f"{kind}_{name}" for name in "ab")
        assert a.read_bytes() == b.read_bytes()
        assert b"Software" not in a.read_bytes()


def test_matplotlib_is_left_as_it_was(tmp_path):
    """In a fresh process, since any other test may have imported pyplot."""
    code = f"""
import sys, matplotlib
from minisft.evaluation import plots
before = list(dict.items(matplotlib.rcParams))    # reading them one by one imports pyplot
plots.curves({history(3, 1)!r}, {str(tmp_path / "curves.png")!r})
plots.confusion([[1, 0], [0, 1]], ["a", "b"], {str(tmp_path / "confusion.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert list(dict.items(matplotlib.rcParams)) == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_picture_may_go_into_an_open_file(tmp_path):
    """As notebooks show them, without a file."""
    picture = BytesIO()
    plots.confusion([[3, 1], [0, 2]], ["no", "yes"], picture)
    plots.confusion([[3, 1], [0, 2]], ["no", "yes"], tmp_path / "confusion.png")
    assert picture.getvalue() == (tmp_path / "confusion.png").read_bytes()
