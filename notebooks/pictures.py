"""Pictures for the notebooks: matrices with their numbers, one beside the other."""

import matplotlib.pyplot as plt
import numpy as np


def matrices(named, form=".2f", rows=None, columns=None, cell=0.62):
    """Draws {title: array (M,) or (M,M')} side by side, red above zero and blue below.

    form: how numbers are written, None for colours alone. rows and columns: labels for all, or
    {title: labels}. -inf is grey.
    """
    arrays = {title: np.atleast_2d(np.asarray(a, dtype=float)) for title, a in named.items()}
    widths = [max(a.shape[1], 1.6) for a in arrays.values()]
    height = max(a.shape[0] for a in arrays.values())
    figure, axes = plt.subplots(
        1, len(arrays), squeeze=False, width_ratios=widths, layout="constrained",
        figsize=(cell * (sum(widths) + 1.3 * len(arrays)), cell * height + 0.9))
    for ax, (title, a) in zip(axes[0], arrays.items(), strict=True):
        _draw(ax, a, form)
        ax.set_title(title, fontsize=10)
        _label(ax.set_yticks, _of(rows, title), a.shape[0])
        _label(ax.set_xticks, _of(columns, title), a.shape[1])
    plt.show()


def _draw(ax, a, form):
    limit = np.abs(a[np.isfinite(a)]).max(initial=0) or 1.0
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.8")
    ax.imshow(np.where(np.isfinite(a), a, np.nan), cmap=colours, vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(a if form else np.empty((0, 0))):
        dark = np.isfinite(value) and abs(value) > 0.6 * limit
        ax.text(j, i, format(value + 0.0, form), ha="center", va="center", fontsize=8,
                color="white" if dark else "black")


def _of(labels, title):
    return labels.get(title) if isinstance(labels, dict) else labels


def _label(set_ticks, labels, n):
    labels = [] if labels is None else list(labels)[:n]
    set_ticks(range(len(labels)), labels, fontsize=8)
