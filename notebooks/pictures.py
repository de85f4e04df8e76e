"""Pictures for the notebooks: matrices with their numbers, one beside the other."""

import matplotlib.pyplot as plt
import numpy as np

WIDTH, GAP = 11.0, 1.3     # inches of a line; cells between two matrices


def matrices(named, form=".2f", rows=None, columns=None, cell=0.62, same_scale=False):
    """Draws {title: array (M,) or (M,M')} side by side, red above zero and blue below.

    form: how numbers are written, None for colours alone. rows and columns: labels for all, or
    {title: labels}. -inf is grey. Each matrix has its own scale of colours, unless same_scale: then
    equal colours are equal numbers. What is wider than a page goes on in the next line.
    """
    arrays = {title: np.atleast_2d(np.asarray(a, dtype=float)) for title, a in named.items()}
    limits = {title: np.abs(a[np.isfinite(a)]).max(initial=0) or 1.0 for title, a in arrays.items()}
    if same_scale:
        limits = dict.fromkeys(limits, max(limits.values()))
    lines = _lines(arrays, cell)
    width = max(map(_width, lines))
    heights = [cell * max(a.shape[0] for a in line.values()) + 0.9 for line in lines]
    figure = plt.figure(figsize=(cell * width, sum(heights)), layout="constrained")
    for part, line in zip(figure.subfigures(len(lines), squeeze=False, height_ratios=heights)[:, 0],
                          lines, strict=True):
        widths = [_cells(a) for a in line.values()]
        missing = width - _width(line)
        axes = part.subplots(1, len(line) + (missing > 0), squeeze=False,
                             width_ratios=widths + [missing] * (missing > 0))[0]
        for ax in axes[len(line):]:
            ax.axis("off")
        for ax, (title, a) in zip(axes, line.items(), strict=False):
            _draw(ax, a, form, limits[title])
            ax.set_title(title, fontsize=10)
            _label(ax.set_yticks, _of(rows, title), a.shape[0])
            _label(ax.set_xticks, _of(columns, title), a.shape[1])
    plt.show()


def _cells(a):
    return max(a.shape[1], 1.6)     # a single column still needs room for its title


def _width(line):
    return sum(_cells(a) + GAP for a in line.values())


def _lines(arrays, cell):
    """{title: array} -> the same in lines that fit a page."""
    lines = [{}]
    for title, a in arrays.items():
        if lines[-1] and cell * (_width(lines[-1]) + _cells(a) + GAP) > WIDTH:
            lines.append({})
        lines[-1][title] = a
    return lines


def _draw(ax, a, form, limit):
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
