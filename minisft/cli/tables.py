"""What commands that read a file of rows do with its notes and its bad rows."""

import shlex
from contextlib import contextmanager
from pathlib import Path

from minisft.cli.arguments import say
from minisft.data.pairs import read_pairs, require_kinds, require_table
from minisft.data.read import MissingColumnError
from minisft.data.table import bad_rows_csv
from minisft.errors import UserError, as_flag
from minisft.io.files import write_text
from minisft.io.model_folder import Columns
from minisft.io.run_folder import unused_path


def add_bad_rows(parser):
    """What happens to rows that cannot be read."""
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out rows that cannot be read, and list them in a file")
    parser.add_argument("--bad-rows", metavar="FILE", help="that file, a new one (default: the "
                        "first free of bad_rows.csv, bad_rows-2.csv, ...)")


def chosen_columns(args, columns):
    """The Columns that the model's folder names -> those in force: an option comes first, and
    what neither says has the name that finetune expects."""
    usual = Columns(("text",), None, "label", ("prompt",), "completion")
    return Columns(**{
        name: first if (first := getattr(args, name, None)) is not None else
        remembered if (remembered := getattr(columns, name)) is not None else value
        for name, value in vars(usual).items()})


@contextmanager
def naming_columns_of_training(columns):
    """A file that lacks a column is told those that the model was trained with."""
    try:
        yield
    except MissingColumnError as error:
        flags = [f"{as_flag(name)} {shlex.join([value] if isinstance(value, str) else value)}"
                 for name, value in vars(columns).items() if value is not None]
        raise UserError(error.args[0] + (
            f" (the model was trained with {', '.join(flags)})" if flags else "")) from None


def table_options(args):
    """-> what `read_table` takes of the arguments."""
    return {"encoding": args.encoding, "header": not args.no_header, "delimiter": args.delimiter,
            "skip_bad_rows": getattr(args, "skip_bad_rows", False),
            "max_compression_ratio": args.max_compression_ratio}


def pairs_of(args, path, target_path, target_setting, columns, steps):
    """-> the TextPairs of a table, or of a file of lines and that of their translations; columns:
    those of training."""
    require_kinds(path, target_path, target_setting)
    require_table(args.changed, [path])
    with naming_columns_of_training(columns):
        return read_pairs(path, args.source_column or columns.source_column or "source",
                          args.target_column or columns.target_column or "target", target_path,
                          steps, **table_options(args))


def require_new_bad_rows(args):
    """Raises UserError when --bad-rows names what cannot be a new file."""
    if args.bad_rows is None:
        return
    path = Path(args.bad_rows)
    if not args.skip_bad_rows:
        raise UserError("--bad-rows is for --skip-bad-rows")
    if path.exists() or not path.parent.is_dir():
        raise UserError(f"--bad-rows {path}: expected a new file, in a folder that is there")


def report_table(args, notes, bad_rows):
    """Says what a reader of the file should know, and writes its bad rows; to stderr."""
    for note in notes:
        say(note)
    if bad_rows:
        path = Path(args.bad_rows or unused_path(".", "bad_rows", ".csv"))
        write_text(path, bad_rows_csv(bad_rows), new=True)
        say(f"they are listed in {path}")
