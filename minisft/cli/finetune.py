"""`minisft finetune`: labelled texts in, a run folder out."""

import sys
from dataclasses import fields

from minisft import finetune
from minisft.settings import Settings
from minisft.train import Interrupted

HELP = "fine-tune GPT-2 on labelled texts, or on prompts and completions"


def add_arguments(parser):
    """One option for each setting, and --resume."""
    for setting in fields(Settings):
        options = dict(setting.metadata)
        if options.get("action") != "store_true":
            options["default"] = setting.default
        parser.add_argument(f"--{setting.name.replace('_', '-')}", **options)
    parser.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, with the "
                        "settings that it began with")


def run(args):
    """-> exit code."""
    values = {f.name: getattr(args, f.name) for f in fields(Settings)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        finetune.finetune(Settings(**values), args.resume)
    except Interrupted as stopped:
        print(f"minisft: interrupted; to go on: minisft finetune --resume {stopped}",
              file=sys.stderr)
        return 130
    return 0
