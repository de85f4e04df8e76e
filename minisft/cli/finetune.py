"""`minisft finetune`: labelled texts in, a run folder out."""

import sys
from dataclasses import fields

from minisft import finetune
from minisft.errors import UserError
from minisft.settings import GROUPS, Settings, spelled
from minisft.train import Interrupted

HELP = "fine-tune GPT-2 on labelled texts, or on prompts and completions"


METAVARS = {int: "N", float: "X"}


def add_arguments(parser):
    """One option for each setting, and --resume."""
    parser.usage = "minisft finetune [--train FILE] [--test FILE] [options]"
    for setting in fields(Settings):
        if setting.name in GROUPS:
            group = parser.add_argument_group(GROUPS[setting.name])
        options = dict(setting.metadata)
        if options.get("action") != "store_true":
            options["default"] = setting.default
        if options.get("type") in METAVARS:
            options["metavar"] = METAVARS[options["type"]]
        group.add_argument(spelled(setting.name), **options)
    group.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, with the "
                        "settings that it began with")


def run(args):
    """-> exit code."""
    values = {f.name: getattr(args, f.name) for f in fields(Settings)}
    if args.resume is not None:
        for f in fields(Settings):
            if values[f.name] != f.default:
                raise UserError(f"{spelled(f.name)} beside --resume: expected no other option, the "
                                "settings of the run go on")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        finetune.finetune(Settings(**values), args.resume)
    except Interrupted as stopped:
        print(f"minisft: interrupted; to go on: minisft finetune --resume {stopped}",
              file=sys.stderr)
        return 130
    return 0
