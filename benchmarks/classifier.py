"""Table (a): GPT-2 124M as a classifier, AG News, 32 texts a step, the peer padding dynamically.

python -m benchmarks.classifier
"""

import sys

from benchmarks import harness, sides, texts


def run(options):
    """Writes the table for every batch size and rate of dropout."""
    sequences, names, said = texts.read(options)
    folder, made = sides.weights(options, "classify", names), []
    for size in options.batch:
        items = [([sequences.ids[n] for n in numbers], [sequences.labels[n] for n in numbers])
                 for numbers in texts.batches(len(sequences), size, options.steps, options.seed)]
        for rate in options.dropout:
            made += sides.training_case(f"{size} texts, dropout {rate:g}", folder, items, options,
                                        rate)
    harness.write("classifier", "A classifier's training step, padding to the longest text", made,
                  options, said)


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, dropout=[0.0, 0.1], precision=list(harness.PRECISIONS))
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
