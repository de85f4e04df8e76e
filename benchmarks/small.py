"""Table (i): small models, where everything but the matrix products weighs most.

python -m benchmarks.small
"""

import sys
from argparse import Namespace

from benchmarks import harness, sides, texts
from minisft.io import hub
from minisft.io.checkpoint import CONFIG
from minisft.io.files import read_json


def models(options):
    """-> {case: options}: each model that comes with the package, and the shape asked for."""
    made = {}
    for folder in sorted(hub.BUNDLED.glob(f"*/{CONFIG}")):
        shape = read_json(folder)
        made[folder.parent.name] = Namespace(**vars(options) | {
            "model": str(folder.parent), "tokenizer": str(folder.parent),
            "vocab": shape["vocab_size"], "positions": shape["n_positions"]})
    return made | {f"{options.layers} layers of {options.width}": options}


def run(options):
    """Writes the table for every model, batch size and rate of dropout."""
    made, said = [], []
    for name, chosen in models(options).items():
        sequences, names, about = texts.read(chosen)
        folder = sides.weights(chosen, "classify", names)
        said.append(f"{name}: {about}")
        for size in options.batch:
            items = [([sequences.ids[n] for n in numbers], [sequences.labels[n] for n in numbers])
                     for numbers in texts.batches(len(sequences), size, options.steps,
                                                  options.seed)]
            for rate in options.dropout:
                made += sides.training_case(f"{name}, {size} texts, dropout {rate:g}", folder,
                                            items, chosen, rate)
    harness.write("small", "A small classifier's training step, padding to the longest text", made,
                  options, "; ".join(said))


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, layers=6, width=384, vocab=30522, steps=10,
                            precision=list(harness.PRECISIONS))
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
