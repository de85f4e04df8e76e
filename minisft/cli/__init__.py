"""The command line: one short module a command, each with HELP, add_arguments(parser), run(args).

An error that the user can mend is one line and exit code 2, never a traceback.
"""

import argparse
import importlib
import sys

from minisft.errors import UserError

COMMANDS = ("finetune", "evaluate", "predict", "generate", "check")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        says = action.default is not None and action.default is not False
        return super()._get_help_string(action) if says else action.help


def main(argv=None):
    """Arguments (default: the process's) -> exit code."""
    parser = argparse.ArgumentParser(
        prog="minisft", description="A Transformer you can read, check and fine-tune.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"minisft.cli.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.HELP, formatter_class=_Formatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"minisft: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1     # `minisft predict ... | head`
    except OSError as error:     # a full disk, a folder that may not be written
        print(f"minisft: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minisft: interrupted", file=sys.stderr)
        return 130
