"""The command line: one short module a command, each with add_arguments(parser), run(args).

An error that the user can mend is one line and exit code 2, never a traceback.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence

from tqdm import tqdm

from minisft.cli.parser import COMMANDS as COMMANDS
from minisft.cli.parser import parse
from minisft.cli.terminal import fail
from minisft.errors import UserError, as_flag, as_keyword, render


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments (default: the process's) -> exit code."""
    _require_streams()
    try:
        return _written(_run(argv))
    except SystemExit as end:     # of argparse, behind --help
        end.code = _written(end.code)
        raise


def _run(argv):
    args = None
    try:
        args = parse(argv)     # imports the command, and NumPy with it
        if args is None:
            return 0
        from minisft.backend.gpu import cuda  # here, since it imports NumPy
        with cuda.kernels(getattr(args, "kernels", cuda.VERSIONS[0])):
            return args.run(args) or 0
    except UserError as error:
        return _told(_with_flags(error, args))
    except BrokenPipeError:
        return 1     # `minisft predict ... | head`
    except OSError as error:     # a full disk, a folder that may not be written
        return _told(f"{error.filename or 'a file, or the output'}: {error.strerror or error}")
    except MemoryError as error:
        return _told(f"the memory is too small: {str(error) or _place(error)}")
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        return _told("the system allows no further thread, expected a higher limit (ulimit -u) or "
                     "OPENBLAS_NUM_THREADS=1")
    except KeyboardInterrupt:
        # so OpenBLAS ends a process that may have no thread
        return _told("interrupted" if args is not None else
                     "interrupted while it was loaded; if you did not do that, the system allows "
                     "no further thread: expected a higher limit (ulimit -u) or "
                     "OPENBLAS_NUM_THREADS=1", 130)


def _require_streams():
    """Standard streams that are closed lead nowhere, and no file that is opened takes their number.

    A library that prints would write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)      # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):     # a terminal may lack half of a user's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    tqdm.monitor_interval = 0      # its thread only redraws bars that have stopped


def _written(code):
    """An exit code -> the same, or that of an output that could not be written."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        _discard(sys.stdout)
        if code:
            return code     # it was told before
        return 1 if isinstance(error, BrokenPipeError) else _told(
            f"the output: {error.strerror or error}")


def _told(line, code=2):
    """Prints the line to stderr -> exit code."""
    try:
        fail(line)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)      # it is full or gone: the code says it
    return code


def _discard(stream):
    """What could not be written goes nowhere: else Python tries again as it ends, and ends with a
    code and a report of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _place(error):
    """-> where the memory ended, for one who reports it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)
              if "minisft" in frame.f_globals.get("__name__", "")]
    return f"{frames[-1].f_globals['__name__']}.{frames[-1].f_code.co_name} needed more"


def _with_flags(error, args):
    """-> the message, with the options that the command has as its flags."""
    flags = () if args is None else vars(args)
    return render(str(error.args[0]), lambda name, value: (
        as_flag if name in flags else as_keyword)(name, value))
