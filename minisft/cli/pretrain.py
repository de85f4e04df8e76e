"""`minisft pretrain`: plain text in, a small pretrained GPT-2 out."""

import argparse

from minisft.cli.arguments import add_config, run_with_config
from minisft.jobs import pretrain
from minisft.training.changes import CHANGEABLE

EXAMPLES = ("minisft pretrain --text books.txt --out runs/mine",
            'minisft generate --model runs/mine/model "It was"')
BASIC = ("text", "valid", "epochs", "layers", "width", "vocab_size", "out", "resume")
FILE_OPTION = "--text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each option of the config, and --resume."""
    parser.usage = "minisft pretrain --text FILE [FILE ...] [--out DIR] [options]"
    add_config(parser, pretrain.PretrainConfig, CHANGEABLE)


def run(args: argparse.Namespace) -> int:
    """-> exit code."""
    return run_with_config(args, pretrain.PretrainConfig, "pretrain", pretrain.pretrain,
                           CHANGEABLE)
