"""`minisft predict`: label and probabilities of new texts."""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from minisft.cli.arguments import add_model, add_table
from minisft.data.read import read_table
from minisft.data.text import clean, encode_all
from minisft.errors import UserError
from minisft.evaluate import log_probabilities
from minisft.folder import read_folder
from minisft.models.heads import Classifier

HELP = "label new texts, with probabilities"


def add_arguments(parser):
    """Texts on the command line, or a file."""
    add_model(parser, "folder of a classifier, as finetune leaves it")
    parser.add_argument("text", nargs="*", help="texts to label")
    parser.add_argument("--file", metavar="FILE", help="a file of texts; its columns are kept")
    parser.add_argument("--out", metavar="FILE",
                        help="where the labelled file goes (.csv or .jsonl; default: shown as csv)")
    add_table(parser)


def run(args):
    """Prints or writes a row for each text."""
    if bool(args.text) == bool(args.file):
        raise UserError("give texts or --file, one of the two")
    out = None if args.out is None else Path(args.out)
    if out and (out.exists() or not out.parent.is_dir() or out.suffix not in (".csv", ".jsonl")):
        raise UserError(f"--out {out}: expected a new file ending in .csv or .jsonl, in a folder "
                        "that is there")
    model, tokenizer, treatment = read_folder(args.model, args.download)
    if not isinstance(model, Classifier):
        raise UserError(f"{args.model} is a language model, expected a classifier")
    rows, texts = _texts(args, treatment.clean)
    room = model.trunk.config.n_positions
    ids, cut = encode_all(tokenizer, texts, min(treatment.max_length or room, room),
                          treatment.truncate)
    if cut:
        print(f"minisft: cut {cut} texts to the model's length", file=sys.stderr)
    p = np.exp(log_probabilities(model, ids, args.batch_tokens, "predicting"))
    names = list(model.names)
    taken = set(rows[0])
    label = _new("label", taken)
    columns = [_new(f"p_{name}", taken) for name in names]
    for row, each in zip(rows, p, strict=True):
        row[label] = names[int(each.argmax())]
        row |= {column: round(float(x), 6) for column, x in zip(columns, each, strict=True)}
    if out is None:
        _write(sys.stdout, rows, ".csv")
        return
    with open(out, "x", encoding="utf-8", newline="") as file:
        _write(file, rows, out.suffix)


def _texts(args, steps):
    """-> a row of columns for each text, and the cleaned texts."""
    if args.text:
        rows, columns = [{"text": text} for text in args.text], ["text"]
        where = [f"text {n}" for n in range(1, len(rows) + 1)]
    else:
        table = read_table(args.file, args.encoding, not args.no_header)
        columns = args.text_column
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise UserError(f"{args.file}: no column {missing[0]!r}, there are "
                            f"{', '.join(table.columns)}")
        rows = [dict(row) for row in table.rows]
        where = [f"{args.file}, line {line}" for line in table.lines]
    texts = [clean(" ".join(row[c] for c in columns), steps)[0] for row in rows]
    for text, place in zip(texts, where, strict=True):
        if not text:
            raise UserError(f"{place}: the text is empty after cleaning")
    return rows, texts


def _new(name, taken):
    """-> the name, or predicted_NAME when the file has such a column already."""
    while name in taken:
        name = f"predicted_{name}"
    taken.add(name)
    return name


def _write(file, rows, suffix):
    if suffix == ".jsonl":
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
