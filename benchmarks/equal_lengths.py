"""Table (c): a classifier on texts of equal length, no padding to win from.

python -m benchmarks.equal_lengths
"""

import sys

from benchmarks import harness, sides, texts


def run(options):
    """Writes the table for every shape and rate of dropout."""
    sequences, names, said = texts.read(options)
    folder, made = sides.weights(options, "classify", names), []
    for size, length in harness.shapes(options):
        items = [(list(ids), list(sequences.labels[:size])) for ids in
                 texts.equal(sequences, length, size * options.steps).reshape(-1, size, length)]
        for rate in options.dropout:
            made += sides.training_case(f"{size}x{length}, dropout {rate:g}", folder, items,
                                        options, rate)
    harness.write("equal_lengths", "A classifier's training step, texts of equal length", made,
                  options, f"{said}; joined and cut to equal length")


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, precision=list(harness.PRECISIONS))
    harness.add_shapes(parser, "8x128", "4x512")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
