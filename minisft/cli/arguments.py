"""Arguments that several commands share."""

import argparse


def add_model(parser, help):
    """--model and --download."""
    parser.add_argument("--model", required=True, metavar="NAME", help=help)
    parser.add_argument("--download", action="store_true",
                        help="allow a model that is not here to be downloaded")


def whole(low, high=10**12):
    """-> a reader of an option's text: a whole number from low to high."""
    def read(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from {low} to "
                                             f"{high}")
        return int(text)
    return read


def add_table(parser):
    """How a file of texts is read."""
    parser.add_argument("--text-column", nargs="+", default=["text"], metavar="NAME",
                        help="column of the text; several are joined by a space")
    parser.add_argument("--no-header", action="store_true",
                        help="the file has no header: columns are named 1, 2, ...")
    parser.add_argument("--encoding", default="utf-8", metavar="NAME",
                        help="encoding of the file")
    parser.add_argument("--batch-tokens", type=whole(1), default=8192, metavar="N",
                        help="most tokens computed at once")
