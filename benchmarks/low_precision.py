"""Accuracy of fine-tuning in bfloat16 beside float32: the same sets, texts, seeds and order.

    python -m benchmarks.low_precision "AG News=train.csv:test.csv" --model MiniLM \
        --seeds 0 1 2 --out precision.json

Difference: accuracy in bfloat16 less that in float32 for the same seed, in points, and its mean
over the seeds. Files, options and an interrupted call are as of `benchmarks.real_sets`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import real_sets
from minisft.errors import UserError
from minisft.io import provenance
from minisft.io.files import write_json

PRECISIONS = "float32", "bfloat16"


def main(arguments=None):
    """Runs every set, seed and precision; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("sets", nargs="*", metavar="NAME=TRAIN:TEST", help="a name and its two files")
    add("--model", default="minisft-gpt2", help="as --model of `minisft finetune`")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--text-column", nargs="+", default=["text"])
    add("--label-column", default="label")
    add("--train-texts", type=int, metavar="N", help="draw N of the training texts")
    add("--test-texts", type=int, metavar="N", help="draw N of the test texts")
    add("--whole", action="store_true", help="as of `benchmarks.real_sets`")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="more options of `minisft finetune`, without their dashes: lr=1e-4 epochs=3")
    add("--out", required=True, help="JSON file of what was measured")
    args = parser.parse_args(arguments)
    try:
        found = measured(args)
    except UserError as error:
        sys.exit(f"low_precision: {error}")
    print(table(found))


def measured(args):
    """Arguments -> what --out holds at the end."""
    options = {name: value for name, value in vars(args).items()
               if name not in ("sets", "seeds", "out")}
    out = Path(args.out)
    found = json.loads(out.read_text()) if out.exists() else {
        "machine": provenance.environment(), "options": options, "sets": {}, "runs": []}
    if found["options"] != options:
        raise UserError(f"{out}: was measured with {found['options']}, expected {options}")
    for seed in args.seeds:
        for pair in args.sets:
            name, train, test = real_sets.files(pair)
            with tempfile.TemporaryDirectory() as folder:
                facts = real_sets.prepare(train, test, Path(folder), args)
                facts["test"] = _draw(Path(folder) / "test.jsonl", args.test_texts)
                found["sets"][name] = facts
                for precision in PRECISIONS:
                    key = {"set": name, "seed": seed, "precision": precision}
                    if any(key.items() <= run.items() for run in found["runs"]):
                        continue
                    results, _ = real_sets.finetuned(Path(folder) / "train.jsonl", [
                        "--test", str(Path(folder) / "test.jsonl"), "--model", args.model,
                        "--seed", str(seed), "--compare", "none", "--precision", precision,
                        *real_sets.given(args.set)])
                    found["runs"].append(key | {name: results[name] for name in (
                        "accuracy", "macro_f1", "loss", "train_seconds")})
                    write_json(out, found)
    return found


def _draw(path, n):
    """A file of test texts, how many or None -> how many it has now, drawn in any case alike."""
    lines = path.read_text().splitlines(keepends=True)
    chosen = sorted(np.random.default_rng(0).permutation(len(lines))[:n])
    path.write_text("".join(lines[i] for i in chosen))
    return len(chosen)


def table(found):
    """What was measured -> a row for each set: both accuracies, and the paired differences."""
    lines = ["| set | training texts | test texts | float32 | bfloat16 | differences, points | "
             "mean |", "|---|---:|---:|---:|---:|---|---:|"]
    for name, facts in found["sets"].items():
        by_seed = {}
        for run in found["runs"]:
            if run["set"] == name:
                by_seed.setdefault(run["seed"], {})[run["precision"]] = run["accuracy"]
        pairs = [[seed[p] for p in PRECISIONS] for seed in by_seed.values() if len(seed) == 2]
        if not pairs:
            continue
        exact, low = np.mean(pairs, axis=0)
        points = [100 * (b - a) for a, b in pairs]
        lines.append(f"| {name} | {facts['train']:,} | {facts['test']:,} | {exact:.4f} | {low:.4f} "
                     f"| {', '.join(f'{x:+.2f}' for x in points)} | **{np.mean(points):+.2f}** |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
