"""`minisft predict`: label and probabilities of new texts."""

import argparse
import csv
import json
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from shutil import get_terminal_size

import numpy as np

from minisft.backend.cpu import jit
from minisft.cli import token_tasks
from minisft.cli.arguments import (
    add_model,
    add_preprocessing,
    add_table,
    chosen_preprocessing,
    lines_of_stdin,
    output_file,
    read_model,
    require_file,
    require_used,
    say,
)
from minisft.cli.tables import (
    add_bad_rows,
    chosen_columns,
    naming_columns_of_training,
    report_table,
    require_new_bad_rows,
    table_options,
)
from minisft.cli.terminal import bold
from minisft.data.in_memory import without_unreadable
from minisft.data.read import read_texts
from minisft.data.sequences import encode_sequences, require_readable
from minisft.data.text import clean
from minisft.data.tokenizer import special_tokens_note
from minisft.errors import UserError, short_repr
from minisft.evaluation.document import one_line
from minisft.evaluation.evaluate import log_probabilities
from minisft.evaluation.figures import count, percent
from minisft.io.files import write_text
from minisft.jobs.classify import unreadable_rows
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import SpanClassifier, TokenClassifier

EXAMPLES = ('minisft predict --model runs/mine/model "a new text" "another one"',
            "minisft predict --model runs/mine/model --file inbox.csv --out labelled.csv")
# Of the texts together: so few are labelled in less time than importing Numba takes.
FEW_LETTERS = 4000
BASIC = ("text", "model", "file", "out", "overwrite", "text_column", "skip_bad_rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Texts on the command line, or a file."""
    add_model(parser, "folder of a classifier, as finetune leaves it")
    parser.add_argument("text", nargs="*",
                        help="texts to label (default: the lines of standard input)")
    parser.add_argument("--file", metavar="FILE", help="a file of texts; its columns are kept; - "
                        "is standard input, CSV or JSON lines; tagger: .conllu, columns or .jsonl; "
                        "answers: JSON as SQuAD's")
    parser.add_argument("--out", metavar="FILE", help="where the labelled file goes (.csv or "
                        ".jsonl; tags: .jsonl, answers: .json; default: a table on a terminal, CSV "
                        "where that is piped)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument("--word-column", metavar="NAME",
                        help="tagger: column of the word (default: as in training)")
    add_preprocessing(parser)
    add_table(parser)
    add_bad_rows(parser)


def run(args: argparse.Namespace) -> None:
    """Prints or writes a row for each text."""
    require_file(args)
    if args.text and args.file:
        raise UserError("give texts or --file, one of the two")
    if not args.text and not args.file:
        args.text = [line for line in lines_of_stdin() if line.strip()]
    require_new_bad_rows(args)
    out = output_file(args)
    few = not args.file and args.precision == "float32" and sum(map(len, args.text)) <= FEW_LETTERS
    with jit.compiled(False) if few else nullcontext():
        _predict(args, out)


def _predict(args, out):
    model, tokenizer, preprocessing = read_model(args)
    if isinstance(model, LanguageModel):
        raise UserError(f"{args.model} is a language model, expected a classifier")
    if isinstance(model, EncoderDecoder):
        raise UserError(f"{args.model} is an encoder-decoder, which translates, expected a "
                        "classifier")
    require_used(args, model)
    suffixes = {TokenClassifier: (".jsonl",), SpanClassifier: (".json",)}.get(
        type(model), (".csv", ".jsonl"))
    if out and out.suffix not in suffixes:
        raise UserError(f"--out {out}: expected a file ending in {' or '.join(suffixes)}")
    if not isinstance(model, Classifier):
        token_tasks.predict(args, model, tokenizer, preprocessing)
        return
    preprocessing, room = chosen_preprocessing(args, preprocessing), model.trunk.config.n_positions
    fitting = replace(preprocessing, max_length=min(preprocessing.max_length or room, room))
    columns, rows, texts, pairs, place = _texts(args, model, tokenizer, fitting)
    ids, types, cut = encode_sequences(tokenizer, texts, fitting.max_length, fitting.truncate,
                                       pairs, fitting.parse_special)
    require_readable(ids, tokenizer, model.trunk.config, place, types)
    if cut:
        say(f"cut {count(cut, 'text')} to the model's length")
    say(str(preprocessing))
    if not preprocessing.parse_special and (note := special_tokens_note(
            tokenizer, texts + (pairs or []))):
        say(note)
    p = np.exp(log_probabilities(model, ids, args.batch_tokens, "predicting", types))
    names = list(model.label_names)
    taken = set(columns)
    added = [_new(name, taken) for name in ("label", *(f"p_{name}" for name in names))]
    for row, each in zip(rows, p, strict=True):
        answer = names[int(each.argmax())], *(round(float(x), 6) for x in each)
        row |= zip(added, answer, strict=True)
    answers = Counter(names[k] for k in p.argmax(axis=1))
    if out is None:
        if sys.stdout.isatty():
            _show_table(texts, names, p)
        else:
            _write_csv(sys.stdout, rows, [*columns, *added])
            _warn_of_formulas(answers)
        return
    file = StringIO(newline="")
    if out.suffix == ".csv":
        _write_csv(file, rows, [*columns, *added])
        _warn_of_formulas(answers)
    else:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(out, file.getvalue(), new=not args.overwrite)
    say(f"labelled {count(len(rows), 'text')} in {out}: " + ", ".join(
        f"{n:,} {one_line(name, 40)}" for name, n in answers.most_common(10))
        + (", ..." if len(answers) > 10 else ""))


def _warn_of_formulas(labels):
    """A label goes into CSV as it is, so that programs find it again; a spreadsheet may run it."""
    for name in labels:
        if name.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(name):
            say(f"note: a spreadsheet takes the label {short_repr(name)} for a formula; import "
                "that column as text")
            return


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show_table(texts, names, p):
    """A line for each text: its label, how probable that is, and the beginning of the text."""
    width = max(len(one_line(name, 30)) for name in names)
    for text, each in zip(texts, p, strict=True):
        name = one_line(names[int(each.argmax())], 30)
        room = max(20, get_terminal_size().columns - width - 10)
        print(f"{bold(f'{name:{width}}')}  {percent(float(each.max())):>6}  {one_line(text, room)}")


def _texts(args, model, tokenizer, preprocessing):
    """-> names of the columns, a row for each text, the cleaned texts and second texts or None, a
    function from an index to where its text stands."""
    if args.file:
        columns = chosen_columns(args, preprocessing.columns)
        with naming_columns_of_training(preprocessing.columns):
            table, examples = read_texts(args.file, columns.text_column, preprocessing.clean,
                                         pair_column=columns.pair_column, **table_options(args))
        reasons = (unreadable_rows(examples, tokenizer, preprocessing, model)
                   if args.skip_bad_rows else {})
        examples = without_unreadable(examples, reasons)
        report_table(args, examples.notes, examples.bad_rows)
        rows = [dict(row) for n, row in enumerate(table.rows) if n not in reasons]
        return table.columns, rows, examples.texts, examples.pairs, examples.place
    texts = [clean(text, preprocessing.clean)[0] for text in args.text]
    for n, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"text {n} is empty after cleaning, expected some letters")
    return (("text",), [{"text": text} for text in args.text], texts, None,
            lambda n: f"text {n + 1}")


def _new(name, taken):
    """-> the name, or predicted_NAME when the file has such a column already."""
    while name in taken:
        name = f"predicted_{name}"
    taken.add(name)
    return name


def _write_csv(file, rows, columns):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        # of a JSON file: a list stays JSON, a key that this row lacks is empty
        writer.writerow([x if isinstance(x, str) else "" if x is None else
                         json.dumps(x, ensure_ascii=False) for x in map(row.get, columns)])
