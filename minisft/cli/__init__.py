"""The command line: one short module a command, each with HELP, add_arguments(parser), run(args).

An error that the user can mend is one line and exit code 2, never a traceback.
"""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from minisft import __version__
from minisft.backend.gpu import cuda
from minisft.cli.arguments import fail
from minisft.errors import UserError, as_flag, as_keyword, render

COMMANDS = ("finetune", "curve", "evaluate", "predict", "generate", "pretrain", "convert",
            "check", "plan", "why")


class _Formatter(argparse.HelpFormatter):
    """Shows the defaults that the help text does not tell itself."""

    def _get_help_string(self, action):
        default = action.default
        # 0 is a default worth showing, though it equals False
        if default in (None, (), argparse.SUPPRESS) or default is False or \
                "(default" in action.help:
            return action.help
        shown = " ".join(default) if isinstance(default, list | tuple) else default
        return f"{action.help} (default: {shown})"


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments (default: the process's) -> exit code."""
    parser = argparse.ArgumentParser(
        prog="minisft", description="A Transformer you can read, check and fine-tune.")
    parser.add_argument("--version", action="version", version=f"minisft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"minisft.cli.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.HELP, formatter_class=_Formatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):     # a terminal may lack half of a user's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with cuda.kernels(getattr(args, "kernels", cuda.VERSIONS[0])):
            return args.run(args) or 0
    except UserError as error:
        fail(_with_flags(error, args))
        return 2
    except BrokenPipeError:
        return 1     # `minisft predict ... | head`
    except OSError as error:     # a full disk, a folder that may not be written
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")
        return 2
    except MemoryError as error:
        fail(f"the memory is too small: {error or 'expected more of it'}")
        return 2
    except KeyboardInterrupt:
        fail("interrupted")
        return 130


def _with_flags(error, args):
    """-> the message, with the options that the command has as its flags."""
    return render(str(error.args[0]), lambda name, value: (
        as_flag if name in vars(args) else as_keyword)(name, value))
