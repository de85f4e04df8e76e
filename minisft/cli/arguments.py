"""Arguments that several commands share."""

import argparse


def add_model(parser, help):
    """--model and --download."""
    parser.add_argument("--model", required=True, metavar="NAME", help=help)
    parser.add_argument("--download", action="store_true",
                        help="allow a model that is not here to be downloaded")


def at_least_one(text):
    """An option's text -> a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number above 0")
    return int(text)


def add_table(parser):
    """How a file of texts is read."""
    parser.add_argument("--text-column", nargs="+", default=["text"], metavar="NAME",
                        help="column of the text; several are joined by a space")
    parser.add_argument("--no-header", action="store_true",
                        help="the file has no header: columns are named 1, 2, ...")
    parser.add_argument("--encoding", default="utf-8", help="encoding of the file")
    parser.add_argument("--batch-tokens", type=at_least_one, default=8192,
                        help="most tokens computed at once")
