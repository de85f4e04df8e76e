"""Table (h): tokens a second against the length of the texts, and against their number.

python -m benchmarks.growth
"""

import sys

import numpy as np

from benchmarks import harness, sides, texts


def run(options):
    """Writes both tables in one and draws them side by side on one axis."""
    sequences, names, said = texts.read(options)
    folder = sides.weights(options, "classify", names)
    ours, peer = sides.pair(folder, options, options.dropout[0])
    wanted = [("length", options.batch[0], length) for length in options.lengths]
    wanted += [("texts", size, options.length) for size in options.sizes]
    if peer is not None:
        first = list(texts.equal(sequences, *options.lengths[:1], options.batch[0]))
        sides.require_equal(ours, peer, first)
    steps, made = sides.steps(ours, peer, options.precision), []
    for grows, size, length in wanted:
        ids = texts.equal(sequences, length, size * options.steps).reshape(-1, size, length)
        items = [(list(rows), list(np.resize(sequences.labels, size))) for rows in ids]
        seconds = harness.alternate(steps, items, options.warmup)
        for row in harness.compared(f"{size}x{length}", seconds, [size * length] * len(items)):
            made.append(row | {"grows": grows, "texts": size, "length": length})
    harness.write("growth", "A classifier's training step against the length and number of texts",
                  made, options, f"{said}; joined and cut to equal length",
                  lambda axes: _draw(axes, made))


def _draw(axes, made):
    for grows, style, said in (("length", "-", "longer texts"), ("texts", "--", "more texts")):
        rows = [row for row in made if row["grows"] == grows]
        for peer in dict.fromkeys(row.get("peer") for row in rows):
            shown = [row for row in rows if row.get("peer") == peer
                     and row["side"] == rows[0]["side"]]
            tokens = np.array([row["texts"] * row["length"] for row in shown])
            if peer is not None:
                axes.plot(tokens, tokens / [row["theirs"]["median"] for row in shown],
                          style, marker="s", label=f"{peer}, {said}")
        for side, color in (harness.FAST, "black"), (harness.OURS, "#7f7f7f"):
            shown = [row for row in rows if row["side"] == side and row.get("peer") == peer]
            if shown:
                axes.plot(tokens, tokens / [row["ours"]["median"] for row in shown], style,
                          marker="o", color=color, label=f"{side}, {said}")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of a step")
    axes.set_ylabel("tokens a second")
    axes.legend(frameon=False, fontsize=8)


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, batch=[4], steps=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024],
                        help="tokens of a text, at the first --batch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32],
                        help="texts of a step, at --length")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text for --sizes")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
