"""`minisft finetune`: labelled texts in, a run folder out."""

import argparse

from minisft.cli.arguments import add_config, run_with_config
from minisft.jobs import seeds
from minisft.training.changes import CHANGEABLE
from minisft.training.config import FinetuneConfig

EXAMPLES = ("minisft finetune --train mine.csv --test test.csv --label-column topic",
            "minisft finetune --model gpt2 --download --train mine.csv --seeds 5 --out runs/five")
BASIC = ("train", "test", "text_column", "label_column", "model", "download", "epochs", "seeds",
         "out", "resume")
FILE_OPTION = "--train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each option of the config, and --resume."""
    parser.usage = "minisft finetune [--train FILE] [--test FILE] [options]"
    add_config(parser, FinetuneConfig, CHANGEABLE)


def run(args: argparse.Namespace) -> int:
    """-> exit code."""
    return run_with_config(args, FinetuneConfig, "finetune", seeds.finetune, CHANGEABLE)
