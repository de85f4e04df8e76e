"""`minisft curve`: the same fine-tuning with more and more training texts."""

import argparse

from minisft.cli.arguments import add_config, run_with_config
from minisft.jobs import curve

EXAMPLES = ("minisft curve --sizes 50 100 500 --train mine.csv --test test.csv --out runs/curve",
            "minisft curve --resume runs/curve --sizes 1000")
BASIC = ("sizes", "train", "test", "text_column", "label_column", "model", "epochs", "seeds", "out",
         "resume")
FILE_OPTION = "--train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--sizes, one option for each option of fine-tuning, and --resume."""
    parser.usage = "minisft curve --sizes N [N ...] [--train FILE] [--test FILE] [options]"
    add_config(parser, curve.CurveConfig, ("sizes",))


def run(args: argparse.Namespace) -> int:
    """-> exit code."""
    args.sizes = tuple(sorted({size for part in args.sizes for size in part}))
    return run_with_config(args, curve.CurveConfig, "curve", _curve, ("sizes",))


def _curve(config, resume, show, given):
    return curve.curve(config, resume, show)      # it takes sizes from the config
