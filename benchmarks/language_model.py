"""Table (d): a language model's step, loss over the full vocabulary.

python -m benchmarks.language_model
"""

import sys

import numpy as np

from benchmarks import harness, sides, texts
from minisft.ops.cross_entropy import IGNORE


def items(sequences, size, length, steps):
    """-> (ids, labels) of each step: every token's label is the next one."""
    made = texts.equal(sequences, length, size * steps).reshape(-1, size, length)
    return [(list(ids), [np.append(row[1:], IGNORE) for row in ids]) for ids in made]


def run(options):
    """Writes the table for every shape and rate of dropout."""
    sequences, _, said = texts.read(options)
    folder, made = sides.weights(options, "complete"), []
    for size, length in harness.shapes(options):
        for rate in options.dropout:
            made += sides.training_case(
                f"{size}x{length}, dropout {rate:g}", folder,
                items(sequences, size, length, options.steps), options, rate)
    harness.write("language_model", f"A language model's training step, {options.vocab} tokens in "
                  "the vocabulary", made, options, f"{said}; joined and cut to equal length")


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, precision=list(harness.PRECISIONS))
    harness.add_shapes(parser, "4x64", "4x256")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
