"""`minisft finetune`: labelled texts in, a run folder out."""

from minisft.cli.arguments import add_settings, run_with_settings
from minisft.jobs import seeds
from minisft.training.config import Settings

HELP = "fine-tune GPT-2 or BERT on labelled texts, or on prompts and completions"


def add_arguments(parser):
    """One option for each setting, and --resume."""
    parser.usage = "minisft finetune [--train FILE] [--test FILE] [options]"
    add_settings(parser, Settings)


def run(args):
    """-> exit code."""
    return run_with_settings(args, Settings, "finetune", seeds.finetune)
