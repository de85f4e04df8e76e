"""Draw a small training and test file from a large labelled file: AG News, SST-2, or your own.

    python scripts/sample_texts.py train.csv --no-header --label-column 1 --text-column 2 3 \\
        --out notebooks/sample                                                        # AG News
    python scripts/sample_texts.py train.tsv --label-column label --text-column sentence \\
        --test-file dev.tsv --out notebooks/sample                                    # SST-2

Every class gives as many texts as any other. No text is drawn twice, whatever its case and spaces,
so no test text stands in training. Writes DIR/train.csv and DIR/test.csv with the columns `text`
and `label`, by UTF-8; files that are there already are not touched. The same seed draws the same.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np

from minisft.data.read import read_examples
from minisft.errors import UserError
from minisft.io.files import make_folder, write_text


def by_class(path, args, taken):
    """-> {label: its texts in the file's order}, each once and none of `taken`, which grows."""
    examples = read_examples(path, args.text_column, args.label_column, steps=(),
                             header=not args.no_header, delimiter=args.delimiter)
    found = {name: [] for name in examples.label_names}
    for text, label in zip(examples.texts, examples.labels, strict=True):
        key = " ".join(text.casefold().split())
        if key not in taken:
            taken.add(key)
            found[examples.label_names[label]].append(text)
    return found


def draw(found, n, rng, path):
    """{label: texts}, how many of each -> rows (text, label) in random order; they are taken out.

    Raises UserError where a class has fewer.
    """
    rows = []
    for name, texts in found.items():
        if len(texts) < n:
            raise UserError(f"{path}: {len(texts)} different texts of class {name!r} are left, "
                            f"expected {n}")
        chosen = set(rng.choice(len(texts), n, replace=False).tolist())
        rows += [(text, name) for i, text in enumerate(texts) if i in chosen]
        found[name] = [text for i, text in enumerate(texts) if i not in chosen]
    return [rows[i] for i in rng.permutation(len(rows))]


def write(path, rows):
    """Rows as CSV with a header, into a file that is not there yet."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    write_text(path, file.getvalue(), new=True)


def sample(args):
    """-> the two files."""
    files = args.out / "train.csv", args.out / "test.csv"
    for path in files:
        if path.exists():
            raise UserError(f"{path} is there already; expected a folder without it")
    rng, taken = np.random.default_rng(args.seed), set()
    source = by_class(args.file, args, taken)
    train = draw(source, args.train, rng, args.file)
    if args.test_file:
        # what is left of the training file stays out of the test file too
        source = by_class(args.test_file, args, taken)
    test = draw(source, args.test, rng, args.test_file or args.file)
    make_folder(args.out)
    for path, rows in zip(files, (train, test), strict=True):
        write(path, rows)
    return files


def main(argv=None):
    """-> exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a labelled file: .csv, .tsv, .jsonl or .json")
    parser.add_argument("--test-file", type=Path, help="draw the test texts from this file")
    parser.add_argument("--text-column", nargs="+", default=["text"], metavar="NAME")
    parser.add_argument("--label-column", default="label", metavar="NAME")
    parser.add_argument("--no-header", action="store_true", help="columns are named 1, 2, ...")
    parser.add_argument("--delimiter", metavar="CHAR")
    parser.add_argument("--train", type=int, default=1250, metavar="N", help="texts of each class")
    parser.add_argument("--test", type=int, default=250, metavar="N", help="texts of each class")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    try:
        files = sample(parser.parse_args(argv))
    except UserError as error:
        print(f"sample_texts: {error}", file=sys.stderr)
        return 2
    print("wrote", *files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
