"""Real labelled sets: fine-tuned models against the most frequent class, naive Bayes and TF-IDF.

    python -m benchmarks.real_sets "AG News=train.csv:test.csv" --models minisft-gpt2 MiniLM \
        --seeds 0 1 2 --out news.json
    python -m benchmarks.real_sets --merge news.json other.json

Test texts that also stand in the training file (the same words, whatever their case and the
punctuation between them) are removed and counted. The training texts are
the same for every seed; a seed draws the part held out for validation (which chooses the epoch,
and the strength of logistic regression) and all random numbers of the training. Every run is
written to --out when it ends, and an interrupted call goes on where it stopped.
A file that ends in .label holds lines `COARSE:fine question`, in latin-1; the class is COARSE.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from minisft.cli import main as minisft
from minisft.data.read import read_examples
from minisft.data.text import parse_cleaning_steps
from minisft.errors import UserError
from minisft.evaluation import metrics
from minisft.evaluation.baselines import WORD
from minisft.evaluation.comparison import SIGNIFICANCE
from minisft.io import provenance
from minisft.io.files import write_json

BASELINES = {"majority_class": "most frequent class", "naive_bayes": "naive Bayes",
             "tfidf": "TF-IDF, logistic regression"}
KEPT = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss", "best_epoch", "epochs_run",
        "train_seconds", "tokens_per_second", "parameters")


def main(arguments=None):
    """Runs every set, model and seed, or merges what was measured; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("sets", nargs="*", metavar="NAME=TRAIN:TEST", help="a name and its two files")
    add("--models", nargs="+", default=["minisft-gpt2"], metavar="[NAME=]FOLDER",
        help="as --model of `minisft finetune`, perhaps with a name for the table")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--text-column", nargs="+", default=["text"])
    add("--label-column", default="label")
    add("--train-texts", type=int, metavar="N", help="draw N of the training texts")
    add("--whole", action="store_true", help="draw from those only that are no part of another "
        "one: the sentences among the phrases of SST-2")
    add("--max-tokens", type=int, metavar="N", help="cut texts to N tokens")
    add("--out", help="JSON file of what was measured")
    add("--merge", nargs="+", metavar="FILE", help="print one table of these files")
    add("--markdown", metavar="FILE", help="write the table to this file too")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="more options of `minisft finetune`, without their dashes: lr=1e-4 epochs=3")
    args = parser.parse_args(arguments)
    try:
        found = merged(args.merge) if args.merge else measured(parser, args)
    except UserError as error:
        sys.exit(f"real_sets: {error}")
    text = table(found)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n", encoding="utf-8")


def measured(parser, args):
    """Arguments -> what --out holds at the end."""
    if not args.sets or not args.out:
        parser.error("expected NAME=TRAIN:TEST and --out FILE, or --merge FILE ...")
    options = {name: getattr(args, name) for name in (
        "text_column", "label_column", "train_texts", "whole", "max_tokens", "set")}
    out = Path(args.out)
    found = json.loads(out.read_text()) if out.exists() else {
        "machine": provenance.environment(), "options": options, "sets": {}, "runs": []}
    if found["options"] != options:
        raise UserError(f"{out}: was measured with {found['options']}, expected {options}")
    for pair in args.sets:
        name, train, test = files(pair)
        with tempfile.TemporaryDirectory() as folder:
            facts = prepare(train, test, Path(folder), args)
            known = found["sets"].setdefault(name, facts)
            if known != facts:
                raise UserError(f"{name}: {out} was measured with {known}, these files have "
                                f"{facts}")
            for model in args.models:
                label, _, place = model.rpartition("=")
                for seed in args.seeds:
                    key = {"set": name, "model": label or Path(place).name, "seed": seed}
                    if any(key.items() <= run.items() for run in found["runs"]):
                        continue
                    found["runs"].append(key | one(Path(folder), place, seed, args))
                    write_json(out, found)
                    print(json.dumps(found["runs"][-1]), flush=True)
    return found


def files(pair):
    """NAME=TRAIN:TEST -> its three parts."""
    name, _, files = pair.partition("=")
    train, _, test = files.partition(":")
    if not (name and train and test):
        raise UserError(f"{pair!r}: expected NAME=TRAIN:TEST")
    return name, train, test


def prepare(train_file, test_file, folder, args):
    """Writes train.jsonl and test.jsonl into the folder -> how many texts, how many removed."""
    train, test = read(train_file, args), read(test_file, args)
    kept = fresh(train, test)
    offered = whole([text for text, _ in train]) if args.whole else range(len(train))
    if (args.train_texts or 0) > len(offered):
        raise UserError(f"{train_file}: --train-texts {args.train_texts}, but it has "
                        f"{len(offered)}")
    chosen = sorted(np.random.default_rng(0).permutation(offered)[:args.train_texts])
    for name, rows in (("train", [train[n] for n in chosen]),
                       ("test", kept)):
        (folder / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return {"train": len(chosen), "offered": len(offered), "test": len(kept),
            "removed": len(test) - len(kept)}


def read(path, args):
    """A file -> [(text, label)]; .label is the form of the TREC questions."""
    if str(path).endswith(".label"):
        try:
            lines = Path(path).read_text(encoding="latin-1").split("\n")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        rows = [(line.partition(" ")[2].strip(), line.partition(":")[0]) for line in lines
                if line.strip()]
        if bad := [n for n, (text, label) in enumerate(rows, 1) if not text or " " in label]:
            raise UserError(f"{path}, line {bad[0]}: expected COARSE:fine question")
        return rows
    found = read_examples(path, args.text_column, args.label_column, None,
                          parse_cleaning_steps("none"))
    return [(text, found.label_names[k]) for text, k in zip(found.texts, found.labels, strict=True)]


def fresh(train, test):
    """Two lists of (text, label) -> those of test whose text does not stand in train."""
    known = {_words(text) for text, _ in train}
    return [row for row in test if _words(row[0]) not in known]


def _words(text):
    """Texts with the same words count as the same; one without any is its own key."""
    return tuple(WORD.findall(text.casefold())) or text


def whole(texts):
    """Texts -> the numbers of those whose words do not stand, one after another, in another's."""
    words = [tuple(text.split()) for text in texts]
    parts, kept = set(), []
    for n in sorted(range(len(texts)), key=lambda n: (-len(words[n]), n)):
        if words[n] in parts:
            continue
        kept.append(n)
        length = len(words[n])
        parts |= {words[n][i:j] for i in range(length) for j in range(i + 1, length + 1)}
    return sorted(kept)


def one(folder, model, seed, args):
    """One run of `minisft finetune` -> the figures that are kept of it."""
    command = ["--test", str(folder / "test.jsonl"), "--model", model, "--seed", str(seed),
               "--compare", "baselines", *given(args.set)]
    if args.max_tokens:
        command += ["--max-length", str(args.max_tokens)]
    results, settings = finetuned(folder / "train.jsonl", command)
    chosen = ("lr", "epochs", "batch_tokens", "max_length", "pooling")
    return {key: results[key] for key in KEPT} | {
        "n": results["n"], "recipe": {key: settings[key] for key in chosen},
        "baselines": {key: results[key] for key in BASELINES if key in results}}


def given(pairs):
    """NAME=VALUE, ... -> the options of the command line."""
    found = []
    for pair in pairs:
        name, _, value = pair.partition("=")
        found += [f"--{name.replace('_', '-')}", *([value] if value else [])]
    return found


def finetuned(train, options):
    """A training file, options of `minisft finetune` -> results and settings; no file is left."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        if code := minisft(["finetune", "--train", str(train), *options, "--quiet", "--out",
                            str(out)]):
            sys.exit(code)
        return (json.loads((out / "results.json").read_text()),
                json.loads((out / "config.json").read_text())["settings"])


def merged(files):
    """Files that `measured` wrote -> one of all their runs; a run may stand in one of them only."""
    found = {"sets": {}, "runs": []}
    for file in files:
        try:
            part = json.loads(Path(file).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: {error}, expected what --out wrote") from None
        for name, facts in part["sets"].items():
            if found["sets"].setdefault(name, facts) != facts:
                raise UserError(f"{file}: {name} has {facts}, another file "
                                f"{found['sets'][name]}")
        for run in part["runs"]:
            key = (run["set"], run["model"], run["seed"])
            if key in {(r["set"], r["model"], r["seed"]) for r in found["runs"]}:
                raise UserError(f"{file}: {key} stands in another file too")
            found["runs"].append(run)
    return found


def table(found):
    """What was measured -> two Markdown tables: the sets, and a row for each set and model."""
    lines = ["| set | training texts | test texts | test texts removed (also in training) |",
             "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {facts['train']:,} | {facts['test']:,} | {facts['removed']} |"
              for name, facts in found["sets"].items()]
    lines += ["", "| set | classifier | seeds | accuracy | interval over seeds | interval over "
              "texts | macro F1 | better by more than chance than |",
              "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for name in found["sets"]:
        here = [run for run in found["runs"] if run["set"] == name]
        for model in dict.fromkeys(run["model"] for run in here):
            mine = [run for run in here if run["model"] == model]
            lines.append(f"| {name} | {model} | {_cells(mine)} | {_beaten(mine)} |")
        # baselines depend on the set and the seed alone: each seed counts once
        by_seed = {run["seed"]: run["baselines"] | {"n": run["n"]} for run in here}
        for key, words in BASELINES.items():
            rows = [b[key] | {"n": b["n"]} for b in by_seed.values() if key in b]
            if rows:
                lines.append(f"| {name} | {words} | {_cells(rows)} | |")
    return "\n".join(lines)


def _cells(rows):
    """Figures of some seeds -> seeds, mean accuracy, two intervals, macro F1."""
    over = metrics.mean_interval([row["accuracy"] for row in rows])
    n = rows[0]["n"]
    low, high = metrics.wilson(over["mean"] * n, n)
    seeds = "-" if over["low"] is None else f"{over['low']:.3f} to {over['high']:.3f}"
    f1 = sum(row["macro_f1"] for row in rows) / len(rows)
    return (f"{len(rows)} | {over['mean']:.3f} | {seeds} | {low:.3f} to {high:.3f} | {f1:.3f}")


def _beaten(rows):
    """Runs of one model -> each baseline that it beat, in how many of the seeds, largest p."""
    said = []
    for key, words in BASELINES.items():
        tests = [run["baselines"][key]["mcnemar"] for run in rows if key in run["baselines"]]
        if not tests:
            continue
        won = sum(t["p"] < SIGNIFICANCE and t["only_model"] > t["only_baseline"] for t in tests)
        lost = sum(t["p"] < SIGNIFICANCE and t["only_model"] < t["only_baseline"] for t in tests)
        said.append(f"{words}: {won} of {len(tests)}" + (f", worse in {lost}" if lost else "")
                    + f" (largest p {max(t['p'] for t in tests):.2g})")
    return "; ".join(said)


if __name__ == "__main__":
    main()
