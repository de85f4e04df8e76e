"""What each recipe of fine-tuning does, one at a time, judged on training texts that are held out.

    python -m benchmarks.recipes ag_news/train.csv --texts 1000 --judged 1000 --model MiniLM \
        --seeds 0 1 2 --out recipes.json

No test file is read. Of the training file --judged texts are set aside for good, and --texts are
drawn of the rest; `minisft finetune` holds out a part of these to choose the epoch. Base and recipe
share texts and seeds, so the interval is that of the differences seed by seed. A recipe changes
the base in one thing: rate, epochs and batch are the base's own where it does not name them. An
interrupted call goes on where it stopped.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.real_sets import finetuned, given, read
from minisft.data.read import stratified_subset, train_valid_split
from minisft.errors import UserError
from minisft.evaluation import metrics
from minisft.io import provenance
from minisft.io.files import write_json

BASE = "base"
# Name -> what it changes: a value, or a factor of the base's own value as a string `x...`
RECIPES = {
    BASE: {},
    "rate / 3": {"lr": "x0.3333"}, "rate x 3": {"lr": "x3"},
    "schedule cosine": {"schedule": "cosine"}, "schedule constant": {"schedule": "constant"},
    "no warm-up": {"warmup_ratio": 0},
    "dropout 0": {"dropout": 0}, "dropout 0.2": {"dropout": 0.2},
    "weight decay 0": {"weight_decay": 0}, "weight decay 0.1": {"weight_decay": 0.1},
    "batch / 4": {"batch_tokens": "x0.25"}, "batch x 4": {"batch_tokens": "x4"},
    "word dropout 0.1": {"token_dropout": 0.1}, "word swaps 0.1": {"token_swap": 0.1},
    "layer decay 0.9": {"layer_decay": 0.9}, "layer decay 0.8": {"layer_decay": 0.8},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "epochs x 3": {"epochs": "x3"},
    "epochs x 3, early stopping 2": {"epochs": "x3", "early_stopping": 2},
    "the last epoch": {"select": "last"}, "mean of the last half": {"average": 0.5},
    "the last epoch, mean of the last half": {"select": "last", "average": 0.5},
}
SHARED = "lr", "epochs", "batch_tokens"     # their defaults depend on each other
KEPT = "accuracy", "macro_f1", "loss", "train_seconds", "epochs_run", "best_epoch"


def main(arguments=None):
    """Runs every recipe and seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("train", help="a file of labelled texts, or TREC's .label")
    add("--text-column", nargs="+", default=["text"])
    add("--label-column", default="label")
    add("--texts", type=int, default=1000, help="training texts")
    add("--judged", type=int, default=1000, help="texts that the recipes are judged on")
    add("--model", default="minisft-gpt2")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME",
        help=f"some of: {'; '.join(RECIPES)} (default: all); the base is always run")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="options of `minisft finetune` for the base, without their dashes")
    add("--out", required=True, help="JSON file of what was measured")
    add("--markdown", metavar="FILE", help="write the table to this file too")
    args = parser.parse_args(arguments)
    try:
        found = measured(args)
    except UserError as error:
        sys.exit(f"recipes: {error}")
    text = table(found["runs"])
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n", encoding="utf-8")


def measured(args):
    """Arguments -> what --out holds at the end."""
    options = {name: getattr(args, name) for name in (
        "text_column", "label_column", "texts", "judged", "model", "set")}
    options["file"] = provenance.file_sha256(args.train)
    out = Path(args.out)
    found = json.loads(out.read_text()) if out.exists() else {
        "machine": provenance.environment(), "options": options, "base": None, "runs": []}
    if found["options"] != options:
        raise UserError(f"{out}: was measured with {found['options']}, expected {options}")
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        for recipe in dict.fromkeys([BASE, *args.recipes]):
            for seed in args.seeds:
                key = {"recipe": recipe, "seed": seed}
                if any(key.items() <= run.items() for run in found["runs"]):
                    continue
                results, settings = one(Path(folder), args, recipe, seed, found["base"])
                found["base"] = found["base"] or {name: settings[name] for name in SHARED}
                found["runs"].append(key | {name: results[name] for name in KEPT})
                write_json(out, found)
                print(json.dumps(found["runs"][-1]), flush=True)
    return found


def prepare(args, folder):
    """Writes train.jsonl and judged.jsonl into the folder, the same for every recipe and seed."""
    rows = read(args.train, args)
    texts, names = [text for text, _ in rows], sorted({label for _, label in rows})
    labels = [names.index(label) for _, label in rows]
    if args.judged + args.texts > len(rows):
        raise UserError(f"{args.train}: holds {len(rows)} texts, expected {args.texts} to train on "
                        f"and {args.judged} to judge by")
    # equal texts stay on one side, so a few more or less than asked for may be set aside
    kept, held = train_valid_split(labels, texts, args.judged / len(rows), 0)
    count = min(args.texts, len(kept))
    chosen = kept[stratified_subset(args.train, [labels[i] for i in kept], len(kept), count, 0)]
    for name, numbers in (("train", chosen), ("judged", held)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(
            {"text": rows[i][0], "label": rows[i][1]}) + "\n" for i in numbers))


def one(folder, args, recipe, seed, base):
    """One run -> its results and settings."""
    changes = {name: value for name, value in (base or {}).items()}
    for name, value in RECIPES[recipe].items():
        if isinstance(value, str) and value.startswith("x"):
            value = type(base[name])(base[name] * float(value[1:]))
        changes[name] = value
    options = ["--test", str(folder / "judged.jsonl"), "--model", args.model, "--seed", str(seed),
               "--compare", "none", *given(args.set),
               *given(f"{name}={value}" for name, value in changes.items())]
    return finetuned(folder / "train.jsonl", options)


def table(found):
    """Runs -> a Markdown table: each recipe's mean, and its difference from the base by seed."""
    lines = ["| recipe | seeds | accuracy | difference from the base | its 95% interval | "
             "macro F1 | loss | seconds |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    base = {run["seed"]: run for run in found if run["recipe"] == BASE}
    for recipe in dict.fromkeys(run["recipe"] for run in found):
        rows = [run for run in found if run["recipe"] == recipe]
        both = [r["accuracy"] - base[r["seed"]]["accuracy"] for r in rows if r["seed"] in base]
        difference = metrics.mean_interval(both) if both and recipe != BASE else None
        interval = "-" if difference is None or difference["low"] is None else (
            f"{difference['low']:+.4f} to {difference['high']:+.4f}")

        def mean(name, rows=rows):
            return sum(r[name] for r in rows) / len(rows)
        lines.append(
            f"| {recipe} | {len(rows)} | {mean('accuracy'):.4f} | "
            f"{'-' if difference is None else format(difference['mean'], '+.4f')} | {interval} | "
            f"{mean('macro_f1'):.4f} | {mean('loss'):.4f} | {mean('train_seconds'):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
