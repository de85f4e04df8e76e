"""The command line: one short module a command, each with HELP, add_arguments(parser), run(args).

An error that the user can mend is one line and exit code 2, never a traceback.
"""

import io
import sys
from collections.abc import Sequence

from minisft.backend.gpu import cuda
from minisft.cli.arguments import fail
from minisft.cli.parser import COMMANDS as COMMANDS
from minisft.cli.parser import parse
from minisft.errors import UserError, as_flag, as_keyword, render


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments (default: the process's) -> exit code."""
    args = parse(argv)
    if args is None:
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
