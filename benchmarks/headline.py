"""The article's headline beside transformers: BERT, labelled texts, the same recipe on both sides.

    python -m benchmarks.headline MODEL --train FILE --test FILE --out FILE.json

Both sides start from the same weights, new head included, and take the same batches in the same
order: fixed numbers of texts, AdamW, linear warm-up and decay, clipping, dropout, no selection of
an epoch. They train by turns, an epoch each, so that the ratio of their times means something;
then each scores the test set once.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import harness, sides
from minisft.backend import random
from minisft.backend.cpu import allocator
from minisft.data.batch import pack
from minisft.data.dataset import TokenizedDataset
from minisft.data.read import read_examples
from minisft.data.sequences import encode_sequences
from minisft.data.special_tokens import SpecialTokens
from minisft.data.text import load_tokenizer, parse_cleaning_steps
from minisft.evaluation import metrics
from minisft.evaluation.evaluate import log_probabilities
from minisft.io import checkpoint, hub
from minisft.io.files import read_json, write_json
from minisft.training import optim
from minisft.training.config import TrainingConfig
from minisft.training.loop import train_step

OURS, THEIRS = "minisft", "transformers"


class Ours:
    """Our side: the step of the training loop, and its evaluation."""

    def __init__(self, folder):
        self.model = checkpoint.load(folder)
        self.optimizer = optim.AdamW(self.model.store)
        self.config = TrainingConfig(micro_tokens=10**9)

    def epoch(self, sequences, batches, rates, seed, first):
        """Batches of text numbers and their learning rates -> trained; `first`: steps before."""
        with allocator.reused():
            for i, (numbers, rate) in enumerate(zip(batches, rates, strict=True)):
                train_step(self.model, sequences, numbers, self.optimizer, rate, self.config,
                           random.Stream(seed, first + i), {})

    def predictions(self, sequences):
        """-> the class of each text (M,)."""
        return log_probabilities(self.model, sequences.ids, 4096).argmax(axis=1)


class Theirs(sides.Peer):
    """The other side: BertForSequenceClassification, decay on the matrices only as in Trainer."""

    def __init__(self, folder, seed):
        self.torch, transformers = sides.packages()
        harness.set_threads()
        self.torch.manual_seed(seed)
        self.model = transformers.BertForSequenceClassification.from_pretrained(folder).train()
        self.pad = self.model.config.pad_token_id or 0
        self.live = list(self.model.parameters())
        self.optimizer = self.torch.optim.AdamW(
            [{"params": [p for p in self.live if p.ndim > 1], "weight_decay": 0.01},
             {"params": [p for p in self.live if p.ndim == 1], "weight_decay": 0.0}],
            fused=True)

    def epoch(self, sequences, batches, rates, seed, first):
        for numbers, rate in zip(batches, rates, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.step([sequences.ids[n] for n in numbers], [sequences.labels[n] for n in numbers])

    def predictions(self, sequences):
        order = np.argsort(-sequences.lengths, kind="stable")
        found = np.empty(len(order), dtype=int)
        for numbers in np.array_split(order, max(1, len(order) // 32)):
            found[numbers] = self.logits([sequences.ids[n] for n in numbers]).argmax(axis=1)
        return found


def read(args):
    """-> training and test TokenizedDatasets, the names of the classes."""
    folder = hub.resolve(args.model)
    tokenizer, clean = load_tokenizer(folder), parse_cleaning_steps("all")
    train = read_examples(args.train, ["text"], "label", None, clean)
    test = read_examples(args.test, ["text"], "label", train.label_names, clean)
    made = [TokenizedDataset(encode_sequences(tokenizer, part.texts, args.max_length)[0],
                      part.labels) for part in (train, test)]
    return *made, train.label_names


def one(args, seed):
    """-> accuracy and training seconds of each side."""
    train, test, names = read(args)
    orders = [random.permutation(len(train), seed, epoch) for epoch in range(args.epochs)]
    batches = [[order[i:i + args.batch] for i in range(0, len(order), args.batch)][:args.steps]
               for order in orders]
    steps = len(batches[0])
    total = steps * args.epochs
    rates = [args.lr * optim.schedule("linear", step, total, int(0.1 * total))
             for step in range(total)]
    with tempfile.TemporaryDirectory() as folder:
        start = checkpoint.load(hub.resolve(args.model), task="classify", label_names=names,
                                seed=seed)
        checkpoint.save(start, Path(folder), special_tokens=SpecialTokens(0, (0,), 0))
        models = {OURS: Ours(folder), THEIRS: Theirs(folder, seed)}
    logits = [side.logits(train.ids[:8]) if name == THEIRS else _logits(side, train.ids[:8])
              for name, side in models.items()]
    harness.require_equal(*logits)
    seconds = {name: [] for name in models}
    for epoch, todo in enumerate(batches):
        first = epoch * steps
        for name in list(models) if epoch % 2 == 0 else reversed(models):
            started = time.perf_counter()
            models[name].epoch(train, todo, rates[first:first + steps], seed, first)
            seconds[name].append(time.perf_counter() - started)
            print(f"seed {seed}, epoch {epoch + 1}, {name}: {seconds[name][-1]:.0f} s", flush=True)
    found = {"seed": seed, "seconds": seconds}
    right = {}
    for name, side in models.items():
        right[name] = side.predictions(test) == np.array(test.labels)
        found[name] = {"accuracy": float(right[name].mean()),
                       "interval": metrics.wilson(int(right[name].sum()), len(test))}
    found["only_one_right"] = [int((right[OURS] & ~right[THEIRS]).sum()),
                               int((right[THEIRS] & ~right[OURS]).sum())]
    found["ratio"] = sum(seconds[THEIRS]) / sum(seconds[OURS])
    return found


def _logits(ours, ids):
    found = ours.model.forward(pack(ids))
    ours.model.clear_cache()
    return found


def main(arguments=None):
    """Arguments -> one run for each seed that the file does not hold yet; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="the folder of a BERT")
    parser.add_argument("--train", required=True, help="columns text and label")
    parser.add_argument("--test", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=32, help="texts of a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--steps", type=int, help="steps of an epoch at most, to try it")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of what was measured")
    args = parser.parse_args(arguments)
    found = read_json(args.out) if args.out.exists() else {
        "machine": harness.machine(), "options": {
            name: value for name, value in vars(args).items() if name not in ("out", "seeds")},
        "runs": []}
    for seed in args.seeds:
        if seed not in [run["seed"] for run in found["runs"]]:
            found["runs"].append(one(args, seed))
            write_json(args.out, found)
    print(table(found["runs"]))


def table(found):
    """-> a Markdown table, a row for each seed."""
    lines = ["| seed | minisft | transformers | minisft, s | transformers, s | ratio |",
             "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for run in found:
        accuracies = [f"{run[name]['accuracy']:.3f} ({run[name]['interval'][0]:.3f} to "
                      f"{run[name]['interval'][1]:.3f})" for name in (OURS, THEIRS)]
        times = [f"{sum(run['seconds'][name]):.0f}" for name in (OURS, THEIRS)]
        lines.append(f"| {run['seed']} | {' | '.join(accuracies + times)} | {run['ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
