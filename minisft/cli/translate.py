"""`minisft translate`: texts into the language that a model has learnt."""

import argparse
import sys

from minisft.cli.arguments import (
    add_model,
    add_preprocessing,
    chosen_preprocessing,
    lines_of_stdin,
    output_file,
    read_model,
    require_file,
    say,
    whole,
)
from minisft.cli.tables import naming_columns_of_training, pairs_of, report_table, table_options
from minisft.cli.terminal import visible
from minisft.data.encoding import COMPRESSION_RATIO_HELP, MAX_COMPRESSION_RATIO, read_text
from minisft.data.in_memory import without_unreadable
from minisft.data.pairs import is_table, read_pairs, require_table
from minisft.data.sequences import require_readable
from minisft.data.text import clean
from minisft.errors import UserError
from minisft.evaluation.figures import count
from minisft.io.files import write_text
from minisft.jobs import translate
from minisft.models.seq2seq import EncoderDecoder

EXAMPLES = ('minisft translate --model runs/mine/model "A dog runs."',
            "minisft translate --model runs/mine/model --file new.en --out new.fr")
BASIC = ("text", "model", "file", "out", "overwrite", "source_column", "beam_size")
FILE_OPTION = "--file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Texts on the command line, or a file."""
    add_model(parser, "folder of a translator, as finetune leaves it")
    parser.add_argument("text", nargs="*",
                        help="texts to translate (default: the lines of standard input)")
    parser.add_argument("--file", metavar="FILE", help="a file of texts, one on each line, or a "
                        "table (.csv, .tsv, .jsonl, .json), plain or .gz")
    parser.add_argument("--source-column", metavar="NAME", help="of a table: column of the text "
                        "(default: as in training; source)")
    parser.add_argument("--out", metavar="FILE", help="where the translations go, line n for text "
                        "n (default: standard output)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument("--no-header", action="store_true",
                        help="the table has no header: columns are named 1, 2, ...")
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help="encoding of the file")
    parser.add_argument("--delimiter", metavar="CHAR", help="what separates the fields of a table")
    parser.add_argument("--max-compression-ratio", type=whole(1), default=MAX_COMPRESSION_RATIO,
                        metavar="N", help=COMPRESSION_RATIO_HELP)
    add_search(parser)
    add_preprocessing(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    """--beam-size and --length-penalty."""
    parser.add_argument("--beam-size", type=whole(1, 1000), default=4, metavar="N",
                        help="translator: how many beginnings of a translation are kept; 1 takes "
                        "the most probable token each time")
    parser.add_argument("--length-penalty", type=float, default=1.0, metavar="X",
                        help="translator: power of the length by which the sum of "
                        "log-probabilities of a translation is divided; more prefers longer ones")


def run(args: argparse.Namespace) -> None:
    """Prints or writes a line for each text."""
    require_file(args)
    if args.text and args.file:
        raise UserError("give texts or --file, one of the two")
    out = output_file(args)
    require_penalty(args.length_penalty)
    model, tokenizer, preprocessing = read_model(args)
    if not isinstance(model, EncoderDecoder):
        raise UserError(f"{args.model} is a {type(model).__name__}, expected a translator, as "
                        "finetune --task translate leaves it")
    preprocessing = chosen_preprocessing(args, preprocessing)
    texts, place = _texts(args, preprocessing)
    # a blank line stays one, so that line n stays the translation of line n
    asked = [n for n, text in enumerate(texts) if text.strip()]
    sources, cut = translate.encode_sources(tokenizer, [texts[n] for n in asked], preprocessing,
                                            model)
    require_readable([row[:-1] for row in sources], tokenizer, model.trunk.config,
                     lambda i: place(asked[i]))
    if cut:
        say(f"cut {count(cut, 'text')} to the model's length")
    found = translate.translate(model, tokenizer, sources, args.beam_size, args.length_penalty,
                                "translating")
    lines = [""] * len(texts)
    for n, text in zip(asked, found, strict=True):
        lines[n] = " ".join(text.split())
    written = "".join(f"{line}\n" for line in lines)
    if out is None:
        sys.stdout.write(visible(written))
        return
    write_text(out, written, new=not args.overwrite)
    say(f"wrote {count(len(lines), 'translation')} to {out}")


def evaluate(args, model, tokenizer, preprocessing):
    """-> the figures, and the lines that show them; for the command `evaluate`."""
    require_penalty(args.length_penalty)
    pairs = pairs_of(args, args.test, args.test_target, "test_target", preprocessing.columns,
                     preprocessing.clean)
    if args.skip_bad_rows:
        pairs = without_unreadable(pairs, translate.unreadable_rows(
            pairs, tokenizer, preprocessing, model))
    report_table(args, pairs.notes, pairs.bad_rows)
    dataset, cut = translate.encode(tokenizer, pairs, preprocessing, model)
    figures, _ = translate.measure(model, tokenizer, dataset, pairs.targets, args.batch_tokens,
                                   args.beam_size, args.length_penalty, True,
                                   {"copied_source": pairs.sources})
    return figures | {"cut": cut}, translate.headlines("test", figures)


def require_penalty(value: float) -> None:
    """Raises UserError for a length penalty that cannot be."""
    if not 0 <= value <= 10:
        raise UserError(f"--length-penalty is {value}, expected from 0 to 10")


def _texts(args, preprocessing):
    """-> cleaned texts, of which some may be blank, and where each stands."""
    if not args.file:
        given = args.text or lines_of_stdin()
        return ([clean(text, preprocessing.clean)[0] for text in given],
                lambda n: f"text {n + 1}")
    if is_table(args.file):
        columns = preprocessing.columns
        with naming_columns_of_training(columns):
            pairs = read_pairs(args.file, args.source_column or columns.source_column or "source",
                               None, None, preprocessing.clean, **table_options(args))
        for note in pairs.notes:
            say(note)
        return pairs.sources, pairs.place
    require_table(args.changed, [args.file])
    text = read_text(args.file, args.encoding, max_compression_ratio=args.max_compression_ratio)
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    return ([clean(line, preprocessing.clean)[0] for line in lines],
            lambda n: f"{args.file}, line {n + 1}")
