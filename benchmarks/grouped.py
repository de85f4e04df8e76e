"""Table (b): the same step on texts of like length together, so that the peer pads little.

python -m benchmarks.grouped
"""

import sys

from benchmarks import harness, sides, texts


def run(options):
    """Writes the table for every batch size and rate of dropout."""
    sequences, names, said = texts.read(options)
    folder, made = sides.weights(options, "classify", names), []
    for size in options.batch:
        items = [([sequences.ids[n] for n in numbers], [sequences.labels[n] for n in numbers])
                 for numbers in texts.grouped(sequences.lengths, size, options.steps,
                                              options.seed)]
        for rate in options.dropout:
            made += sides.training_case(f"{size} texts by length, dropout {rate:g}", folder,
                                        items, options, rate)
    harness.write("grouped", "A classifier's training step, texts grouped by length", made,
                  options, said)


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, precision=list(harness.PRECISIONS))
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
