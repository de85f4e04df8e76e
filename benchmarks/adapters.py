"""A training step of adapters beside a step of the whole model, of the same classifier.

    python -m benchmarks.adapters MODEL --texts FILE

MODEL is a folder of a GPT-2 or BERT. Both take the same batches by turns, and every step is timed
twice: by the clock, and by the processor time of this process, which other programs disturb less.
The ratio is the median of those of each turn, whose two steps run one after the other.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks import harness
from minisft.backend import random
from minisft.backend.cpu import allocator
from minisft.data.batch import token_budget_batches
from minisft.data.dataset import TokenizedDataset
from minisft.data.read import read_examples
from minisft.data.sequences import encode_sequences
from minisft.data.text import load_tokenizer, parse_cleaning_steps
from minisft.io import adapters, checkpoint, hub
from minisft.io.provenance import environment
from minisft.models.adapters import LoraConfig, target_names
from minisft.training.config import TrainingConfig
from minisft.training.loop import train_step
from minisft.training.optim import AdamW

MOMENTS = 2     # AdamW's


class Side:
    """A classifier and its optimizer; `rank`: adapters of that rank, None for the whole model."""

    def __init__(self, folder, names, pooling, rank):
        self.model = checkpoint.load(folder, task="classify", label_names=names, pooling=pooling)
        if rank is not None:
            self.model.add_adapter(LoraConfig(rank, 2 * rank, 0.0, target_names(self.model)))
        self.optimizer = AdamW(self.model.store)
        self.config = TrainingConfig(micro_tokens=10**9)

    def step(self, sequences, indices):
        """-> seconds by the clock and of the processor."""
        clock, processor = time.perf_counter(), time.process_time()
        train_step(self.model, sequences, indices, self.optimizer, 1e-5, self.config,
                   random.Stream(0, self.optimizer.t), {})
        return time.perf_counter() - clock, time.process_time() - processor

    @property
    def trained(self):
        """-> bytes of gradients and moments."""
        return self.model.store.values.nbytes * (1 + MOMENTS)


def measure(args):
    """Prints the ratios."""
    folder = hub.resolve(args.model)
    tokenizer = load_tokenizer(folder)
    texts = read_examples(args.texts, ["text"], "label", None, parse_cleaning_steps("all"))
    ids, _, _ = encode_sequences(tokenizer, texts.texts[:args.most], args.max_length)
    sequences = TokenizedDataset(ids, texts.labels[:args.most])
    batches = token_budget_batches(sequences.lengths, random.permutation(len(ids), 0, 0),
                                   args.batch_tokens)[:args.steps + 1]
    sides = {"whole": Side(folder, texts.label_names, args.pooling, None),
             "adapters": Side(folder, texts.label_names, args.pooling, args.rank)}
    taken = {name: [] for name in sides}
    with allocator.reused():
        for turn, batch in enumerate(batches):
            for name in list(sides) if turn % 2 else list(sides)[::-1]:
                taken[name].append(sides[name].step(sequences, batch))
    here = environment()
    print(f"{here['processor']}, {here['threads']} threads, {harness.our_sides()[0]}, "
          f"{len(batches) - 1} steps of at most {args.batch_tokens} tokens")
    for i, what in enumerate(("clock", "processor")):
        whole, adapted = ([step[i] for step in taken[name][1:]] for name in sides)
        low, ratio, high = quantiles((b / a for a, b in zip(whole, adapted, strict=True)), n=4)
        print(f"{what}: whole {median(whole):.3f} s, adapters {median(adapted):.3f} s, ratio "
              f"{ratio:.3f} (half of the turns {low:.3f} to {high:.3f})")
    whole, adapted = (sides[name].trained for name in sides)
    print(f"gradients and moments: whole {whole / 2**20:.1f} MB, adapters {adapted / 2**20:.2f} MB,"
          f" {adapted / whole:.2%}")
    with tempfile.TemporaryDirectory() as place:
        adapters.write(place, sides["adapters"].model, args.model)
        size = sum(path.stat().st_size for path in Path(place).iterdir())
    print(f"the adapter's folder: {size / 1e6:.2f} MB")


def main(argv=None):
    """-> exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or a name in the cache")
    parser.add_argument("--texts", required=True, help="a labelled file")
    parser.add_argument("--most", type=int, default=2000, help="texts that are read of it")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--pooling", default=None, help="of a BERT: first or mean")
    parser.add_argument("--batch-tokens", type=int, default=1664)
    parser.add_argument("--steps", type=int, default=20)
    return harness.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
