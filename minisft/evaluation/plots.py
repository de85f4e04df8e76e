"""The pictures: learning curves, the confusion matrix, figures over training sizes, as PNG files.

Figures are made without pyplot, so neither the backend nor any global setting is touched.
Matplotlib takes half a second to import, and is imported when the first picture is drawn.
"""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from minisft.io.files import atomic_write

Target = str | Path | BinaryIO     # of a picture: a path, or an open file such as a BytesIO
_DPI = 120
PLAIN = 30     # classes of a confusion matrix that is an image without numbers
_LINES = "#d95f02", "#4c78a8", "#1b7837", "#7f7f7f", "#762a83"
_TRAIN, _VALID, _RATE, _BEST = "#4c78a8", "#d95f02", "#7f7f7f", "#1b7837"


def curves(history: dict[str, Any], path: Target, best_step: int | None = None) -> None:
    """history {"steps": [...], "epochs": [...]} -> PNG: losses left, accuracy and rate right."""
    steps, epochs = history.get("steps", []), history.get("epochs", [])
    best_step = history.get("best_step") if best_step is None else best_step
    figure = _figure((11, 4.6))
    left, right = figure.subplots(1, 2)
    _losses(left, steps, epochs)
    rate_axes = _accuracy_and_rate(right, steps, epochs)
    all_steps = [entry["step"] for entry in (*steps, *epochs)]
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(_whole_numbers(6))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", lw=0.6)
        if all_steps:
            span = max(all_steps) - min(all_steps) + 1
            axes.set_xlim(min(all_steps) - 1, max(all_steps) + 0.03 * span)
        else:
            axes.text(0.5, 0.5, "no steps were taken", transform=axes.transAxes, ha="center")
        if best_step is not None:
            label = _best_label(epochs, best_step) if axes is left else None
            axes.axvline(best_step, color=_BEST, ls="--", lw=1.2, zorder=1, label=label)
    lines = [axes.get_legend_handles_labels()[0] for axes in (left, right, rate_axes) if axes]
    handles = [handle for handles in lines for handle in handles]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles),
                      frameon=False)
    _save(figure, path)


def confusion(matrix: ArrayLike, names: Sequence[str], path: Target,
              title: str = "Confusion matrix") -> None:
    """matrix (K,K) rows = truth, names (K,) -> PNG: count and share of the row in each cell.

    From PLAIN classes on the cells are colour alone: their numbers could not be read.
    """
    counts = np.asarray(matrix)
    k = len(names)
    if counts.shape != (k, k):
        raise ValueError(f"confusion: matrix {counts.shape}, {k} names")
    if k >= PLAIN:
        return _plain_confusion(counts, path, title)
    cell = min(1.25, max(0.42, 4.2 / k))                            # inches
    font = min(11, max(7, cell * 72 * 0.30))                        # points
    letter = 0.58 * font / 72                                       # inches, about
    names = [_drawable(name, 24 if k <= 20 else 18) for name in names]
    wrapped = [textwrap.wrap(name, int(cell / letter), break_long_words=False) for name in names]
    if k <= 8 and all(len(lines) <= 2 for lines in wrapped):    # more would meet the next row
        names = ["\n".join(lines) for lines in wrapped]
    longest = max(len(line) for name in names for line in name.split("\n")) * letter
    upright = longest > cell * 1.05
    grid = cell * k
    size = (max(grid + longest + 2.0, 5.0), grid + (longest if upright else 0.35) + 1.4)

    figure = _figure(size, pad=0.12, compress=True)
    axes = figure.subplots()
    share = _write_cells(axes, counts, cell)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(k), names, fontsize=font, parse_math=False,
                    rotation=90 if upright else 0)
    axes.set_yticks(range(k), names, fontsize=font, parse_math=False)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#d9d9d9", lw=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class", labelpad=8)
    axes.set_ylabel("true class", labelpad=8)
    title = textwrap.fill(_drawable(title, 160), int(size[0] * 8.5))
    figure.suptitle(title, fontsize=13, parse_math=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.22 / grid, aspect=grid / 0.22, pad=0.15 / grid,
                          format=_percents(0))
    bar.set_label("share of the true class (row)")
    bar.outline.set_visible(False)
    _save(figure, path)


def _plain_confusion(counts, path, title):
    """The matrix as an image, its classes by their numbers; one size however many there are."""
    figure = _figure((7.4, 6.6))
    axes = figure.subplots()
    # a cell beyond the picture's own pixels would be lost in a smoothed image
    image = axes.imshow(_share(counts), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for axis, words in ((axes.xaxis, "predicted class"), (axes.yaxis, "true class")):
        axis.set_major_locator(_whole_numbers(8))
        axis.set_major_formatter(lambda i, _: f"{i + 1:.0f}")
        axis.set_label_text(f"number of the {words}, in the order of the report")
    figure.suptitle(textwrap.fill(_drawable(title, 160), 62), fontsize=13, parse_math=False)
    bar = figure.colorbar(image, ax=axes, format=_percents(0))
    bar.set_label("share of the true class (row)")
    bar.outline.set_visible(False)
    _save(figure, path)


def over_sizes(sizes: Sequence[int], lines: Mapping[str, Sequence[Mapping[str, Any]]],
               path: Target, ylabel: str, title: str = "", shares: bool = True) -> None:
    """sizes (S,), lines {name: [metrics.over_seeds of each size] (S,)} -> PNG, log scale of sizes.

    `shares`: the figures are told in per cent.

    A bar spans the interval where there is one; elsewhere each of several seeds is a small dot. The
    first line is drawn strongest.
    """
    figure = _figure((7.5, 4.8))
    axes = figure.subplots()
    apart = any(point["low"] is not None for points in lines.values() for point in points)
    for i, (name, points) in enumerate(lines.items()):
        if len(points) != len(sizes):
            raise ValueError(f"over_sizes: {len(sizes)} sizes, {len(points)} points of {name}")
        means = np.array([point["mean"] for point in points], dtype=float)
        # a little apart, so that the bars of one size do not cover each other
        x = np.array(sizes) * (1.02 ** (i - (len(lines) - 1) / 2) if apart else 1)
        colour, strong = _LINES[i % len(_LINES)], i == 0
        for place, point in zip(x, points, strict=True):
            if point["low"] is None and len(point["values"]) > 1:
                axes.plot([place] * len(point["values"]), point["values"], ls="", marker=".", ms=5,
                          color=colour, alpha=0.45, zorder=1)
        axes.errorbar(x, means, yerr=_bars(points, means), color=colour,
                      lw=2.4 if strong else 1.5, marker="os^Dv"[i % 5], ms=6 if strong else 5,
                      ls="-" if strong else "--", capsize=3, elinewidth=1.2,
                      label=_drawable(name, 60), zorder=3 if strong else 2)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training texts")
    axes.set_ylabel(ylabel)
    if shares:
        axes.yaxis.set_major_formatter(_percents())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", lw=0.6)
    axes.set_title(_drawable(title, 90), parse_math=False, fontsize=12)
    legend = figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, path)


def over_seeds(lines: Mapping[str, Mapping[str, Any]], path: Target, xlabel: str,
               shares: bool = True) -> None:
    """{name: metrics.over_seeds} -> PNG: a row for each name, a dot for each seed, the mean, and
    the interval where there is one. The first row is drawn strongest. `shares` as `over_sizes`."""
    figure = _figure((7.5, 1.3 + 0.55 * len(lines)))
    axes = figure.subplots()
    for i, (_, found) in enumerate(lines.items()):
        colour, means = _LINES[i % len(_LINES)], np.array([found["mean"]])
        axes.plot(found["values"], [i] * len(found["values"]), ls="", marker="o", ms=5,
                  color=colour, alpha=0.5, zorder=2)
        axes.errorbar(means, [i], xerr=_bars([found], means), ls="", marker="|", ms=20, mew=2,
                      capsize=4, color=colour, zorder=3)
    axes.set_yticks(range(len(lines)), [_drawable(name, 45) for name in lines], parse_math=False)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(f"{xlabel}: each seed a dot, the mean a line")
    if shares:
        axes.xaxis.set_major_formatter(_percents())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", lw=0.6)
    _save(figure, path)


def attention(source: Sequence[str], target: Sequence[str], weights: ArrayLike,
              path: Target) -> None:
    """Tokens of a text (S,), of its translation (T,), weights (T,S) -> PNG: where each token of the
    translation looks."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(target), len(source)):
        raise ValueError(f"attention: {len(source)} source and {len(target)} target tokens, "
                         f"weights {weights.shape}")
    cell = 0.32     # inches
    figure = _figure((1.8 + cell * len(source), 1.4 + cell * len(target)), compress=True)
    axes = figure.subplots()
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=max(weights.max(), 1e-9))
    axes.set_xticks(range(len(source)), [_drawable(token, 16) for token in source], rotation=90)
    axes.set_yticks(range(len(target)), [_drawable(token, 16) for token in target])
    axes.tick_params(length=0)
    axes.set_xlabel("source")
    axes.set_ylabel("translation")
    _save(figure, path)


def _bars(points, means):
    """-> lengths of the error bars (2,S) from the intervals, 0 where there is none."""
    ends = np.array([(m, m) if p["low"] is None else (p["low"], p["high"])
                     for p, m in zip(points, means, strict=True)])
    return np.abs(ends.T - means)


def _whole_numbers(most):
    """-> ticks at whole numbers, at most so many and one."""
    from matplotlib.ticker import MaxNLocator
    return MaxNLocator(most, integer=True)


def _percents(decimals=None):
    """-> labels of shares in per cent."""
    from matplotlib.ticker import PercentFormatter
    return PercentFormatter(1, decimals=decimals)


def _figure(size, pad=0.1, compress=False):
    """-> a Figure of this size and padding in inches; `compress` suits a fixed aspect ratio."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad, compress=compress)
    return Figure(figsize=size, dpi=_DPI, layout=layout)


def _share(counts):
    """counts (K,K) -> share of each row (K,K)."""
    totals = counts.sum(axis=1, keepdims=True)                      # (K,1)
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def _write_cells(axes, counts, cell):
    """counts (K,K), cell in inches -> share of each row (K,K); both written into the cells."""
    k = len(counts)
    share = _share(counts)
    decimals = 1 if k <= 8 else 0
    letters = max(len(f"{counts.max():,}"), 4 + 2 * decimals)
    size = min(13, cell * 72 * 0.26, cell * 72 * 0.86 / (0.62 * letters))
    for i, j in np.ndindex(k, k):
        if counts[i, j]:
            percent = f"{share[i, j]:.{decimals}%}"
            if share[i, j] < 0.5 * 0.1**(2 + decimals):
                percent = f"<{0.1**(2 + decimals):.{decimals}%}"
            text = f"{counts[i, j]:,}\n{percent}"
        else:
            text = "0" if k <= 8 else ""     # zeros would hide the pattern of a large matrix
        axes.text(j, i, text, ha="center", va="center", fontsize=size, linespacing=1.15,
                  color="white" if share[i, j] > 0.55 else "#222222")
    return share


def _losses(axes, steps, epochs):
    """Training loss of each step, smoothed over it, validation loss at the ends of epochs."""
    x, loss = _column(steps, "step"), _column(steps, "loss")
    axes.set_title("Loss")
    axes.set_ylabel("cross-entropy (nats)")
    if len(x):
        few = "." if len(x) <= 60 else None
        axes.plot(x, loss, color=_TRAIN, alpha=0.3 if len(x) > 2 else 1, lw=1, marker=few,
                  label="training, each step")
    if len(x) > 2:
        axes.plot(x, _smooth(loss), color=_TRAIN, lw=2, label="training, smoothed")
    xv, valid = _column(epochs, "step"), _column(epochs, "valid_loss")
    if np.isfinite(valid).any():
        axes.plot(xv, valid, color=_VALID, lw=1.5, marker="o", ms=5, label="validation")
    if not np.isfinite(loss).all():
        axes.text(0.98, 0.97, f"no finite loss at {(~np.isfinite(loss)).sum()} of {len(x)} steps",
                  transform=axes.transAxes, ha="right", va="top", color="#b2182b",
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85})


def _accuracy_and_rate(axes, steps, epochs):
    """Accuracy on the left scale, learning rate on the right one; the right one or None."""
    x, rate = _column(steps, "step"), _column(steps, "lr")
    xv, accuracy = _column(epochs, "step"), _column(epochs, "valid_accuracy")
    scored, rated = np.isfinite(accuracy).any(), np.isfinite(rate).any()
    if scored:
        axes.plot(xv, accuracy, color=_VALID, lw=1.5, marker="s", ms=5,
                  label="validation accuracy", zorder=3)
        axes.set_ylabel("validation accuracy")
        axes.yaxis.set_major_formatter(_percents())
    rates = axes.twinx() if scored and rated else axes
    if rated:
        rates.plot(x, rate, color=_RATE, lw=1.3, marker="." if len(x) <= 2 else None,
                   label="learning rate")
        rates.set_ylabel("learning rate")
        rates.set_ylim(bottom=0)
        rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        rates.spines["top"].set_visible(False)    # the second axes draw all four again
    axes.set_title("Validation accuracy and learning rate" if scored else "Learning rate")
    return rates if rates is not axes else None


def _best_label(epochs, best_step):
    """The legend's words for the chosen state of the model."""
    # pretraining is validated within its epochs, so only the step says which state it is
    chosen = [entry["epoch"] for entry in epochs
             if entry.get("step") == best_step and "bits_per_byte" not in entry]
    return f"chosen: epoch {chosen[0]}" if chosen else f"chosen: step {best_step}"


def _column(entries, key):
    """list of dicts -> (n,) floats; absent, None and infinite become NaN (a gap in the line)."""
    values = [entry.get(key) for entry in entries]
    values = np.array([math.nan if value is None else float(value) for value in values])
    return np.where(np.isfinite(values), values, math.nan)


def _smooth(values):
    """values (n,) -> mean of the finite neighbours on both sides (n,): no lag."""
    n, i = len(values), np.arange(len(values))
    radius = min(25, n // 12)
    # Halved towards the ends: a full window would bend the line there, a tiny one be noise.
    radius = np.clip(np.minimum(i, n - 1 - i), radius // 2, radius)    # (n,)
    start, stop = np.maximum(i - radius, 0), np.minimum(i + radius + 1, n)
    finite = np.isfinite(values)
    total = np.concatenate([[0], np.cumsum(np.where(finite, values, 0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    total = total[stop] - total[start]                              # (n,)
    count = count[stop] - count[start]                              # (n,)
    return np.divide(total, count, out=np.full(n, math.nan), where=count > 0)


def _drawable(text, limit):
    """Any string -> one printable line of at most `limit` characters."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line) or "(no name)"
    return line if len(line) <= limit else line[:limit - 1] + "…"


def _save(figure, path):
    """Writes the PNG to a path, or into an open file; the same figure gives the same bytes."""
    with warnings.catch_warnings():
        # The default font lacks many scripts; a name drawn as boxes must not stop a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        opened = nullcontext(path) if hasattr(path, "write") else atomic_write(path)
        with opened as file:
            figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
