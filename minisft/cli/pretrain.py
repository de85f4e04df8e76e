"""`minisft pretrain`: plain text in, a small pretrained GPT-2 out."""

from minisft.cli.arguments import add_settings, run_with_settings
from minisft.jobs import pretrain

HELP = "pretrain a small GPT-2 on plain text"


def add_arguments(parser):
    """One option for each setting, and --resume."""
    parser.usage = "minisft pretrain --text FILE [FILE ...] [--out DIR] [options]"
    add_settings(parser, pretrain.PretrainSettings)


def run(args):
    """-> exit code."""
    return run_with_settings(args, pretrain.PretrainSettings, "pretrain", pretrain.pretrain)
