"""What pretraining buys: the bundled model, the same architecture from random weights, and bags of
words, on labelled sets of several sizes and with several seeds.

    python -m benchmarks.transfer toy --out toy.json
    python -m benchmarks.transfer FILE --test FILE --sizes 100 500 5000 --out news.json

A seed draws the training texts of a size from FILE, the part that is held out for validation, and
all random numbers of the training. Files are those of `minisft finetune`: columns text and label.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from minisft.data.read import read_examples
from minisft.data.text import parse_cleaning_steps
from minisft.io import provenance
from minisft.io.files import write_json
from minisft.jobs.finetune import finetune
from minisft.training.config import FinetuneConfig


def main(arguments=None):
    """Runs every size and seed, going on where an earlier call stopped, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", help="toy, or a file of labelled texts")
    parser.add_argument("--test", help="the test file")
    parser.add_argument("--sizes", nargs="+", type=int, default=[500])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", required=True, help="JSON file of what was measured")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                        help="settings of `minisft finetune`, as Python names and values")
    args = parser.parse_args(arguments)
    options = {name: json.loads(value) for name, _, value in (x.partition("=") for x in args.set)}
    out = Path(args.out)
    found = json.loads(out.read_text()) if out.exists() else {
        "machine": provenance.environment(), "options": options, "runs": []}
    if found["options"] != options:
        sys.exit(f"{out}: was measured with {found['options']}, not with {options}")
    for size in [None] if args.train == "toy" else args.sizes:
        for seed in args.seeds:
            if any((r["size"], r["seed"]) == (size, seed) for r in found["runs"]):
                continue
            found["runs"].append({"size": size, "seed": seed} | one(args, options, size, seed))
            write_json(out, found)
            print(json.dumps(found["runs"][-1]), flush=True)
    print(table(found["runs"]))


def one(args, options, size, seed):
    """One run of `finetune` -> the accuracies that it found."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        if size is not None:
            train = read_examples(args.train, ["text"], "label", None, parse_cleaning_steps("none"))
            chosen = np.random.default_rng(seed).permutation(len(train.texts))[:size]
            files = {"train": str(Path(folder) / "train.jsonl"), "test": args.test}
            Path(files["train"]).write_text("".join(json.dumps(
                {"text": train.texts[n], "label": train.label_names[train.labels[n]]}) + "\n"
                for n in chosen))
        config = FinetuneConfig.from_options(
            **{"compare": "random", "quiet": True, "seed": seed} | files | options,
            out=str(Path(folder) / "run"))
        results = finetune(config, say=lambda line: None)
        bag = tfidf(train, chosen, args.test) if size else None
    return {"pretrained": results["accuracy"],
            "random weights": results.get("random_weights", {}).get("accuracy"),
            "naive Bayes": results.get("naive_bayes", {}).get("accuracy"),
            "TF-IDF, logistic regression": bag, "best_epoch": results["best_epoch"],
            "train_seconds": results["train_seconds"], "n_test": results["n"],
            "adaptation": results.get("adaptation")}


def tfidf(train, chosen, test_file):
    """Words and pairs of words, scikit-learn's logistic regression -> accuracy, None without it."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    test = read_examples(test_file, ["text"], "label", train.label_names,
                         parse_cleaning_steps("none"))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    fitted = LogisticRegression(C=10, max_iter=1000).fit(
        words.fit_transform([train.texts[n] for n in chosen]), [train.labels[n] for n in chosen])
    return float(fitted.score(words.transform(test.texts), test.labels))


def table(found):
    """-> a Markdown table: for each size the mean of the seeds and their standard deviation."""
    names = [name for name in ("pretrained", "random weights", "naive Bayes",
                               "TF-IDF, logistic regression")
             if all(r[name] is not None for r in found)]
    lines = [f"| training texts | seeds | {' | '.join(names)} |", "| ---: | ---: |" +
             " ---: |" * len(names)]
    for size in dict.fromkeys(r["size"] for r in found):
        rows = [r for r in found if r["size"] == size]
        cells = []
        for name in names:
            values = np.array([r[name] for r in rows])
            mean_interval = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{mean_interval}")
        lines.append(f"| {size or 400} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
