"""What the commands show: lines of a width that fits, bold and colour where a terminal has them."""

import os
import shlex
import sys
import textwrap
from typing import Any, TextIO

from minisft.errors import shown
from minisft.evaluation.figures import Use, Verdict

WIDTH = 99


def show(line: Any) -> None:
    """A result, or what happens meanwhile -> stdout; indented lines stay as they are laid out."""
    if isinstance(line, Use):
        print("to use the model:")
        for command in _commands(line):
            print(f"  minisft {shown(command)}")
        return
    text = shown(line)
    lines = [text] if len(text) <= WIDTH or text.startswith("  ") else textwrap.wrap(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    for part in lines:
        print(bold(part) if isinstance(line, Verdict) else part)


def fail(line: Any) -> None:
    """What ends a command goes to stderr, its beginning in red."""
    print(f"{red('minisft:', sys.stderr)} {shown(line)}", file=sys.stderr)


def _commands(use):
    """-> the commands that a model's folder is for, without the program's name."""
    model = f"--model {shlex.quote(str(use.folder))}"
    if use.task == "classify":
        return [f"predict {model} " + ("--file FILE" if use.pairs else '"a new text"')]
    if use.task == "tag":
        return [f'predict {model} "some words of a sentence"']
    if use.task == "answer":
        return [f'predict {model} "a question" "the text that holds its answer"']
    if use.task == "translate":
        return [f'translate {model} "a text"']
    generate = f'generate {model} "a new prompt"'
    return [generate] if use.task == "complete" else [generate, f"finetune {model} --train FILE"]


def bold(text: str, stream: TextIO | None = None) -> str:
    """-> the text in bold where the stream (stdout) shows that."""
    return _in("1", text, stream or sys.stdout)


def green(text: str, stream: TextIO | None = None) -> str:
    """-> the text in green where the stream (stdout) shows that."""
    return _in("32", text, stream or sys.stdout)


def red(text: str, stream: TextIO | None = None) -> str:
    """-> the text in bold red where the stream (stdout) shows that."""
    return _in("1;31", text, stream or sys.stdout)


def has_colours(stream: TextIO) -> bool:
    """-> whether it is a terminal with colours, and its user wants them (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and \
        os.environ.get("TERM") != "dumb"


def _in(code, text, stream):
    return f"\033[{code}m{text}\033[0m" if has_colours(stream) else text


def visible(text: str, stream: TextIO | None = None) -> str:
    """A text that goes to a program or a file as it is -> the same, or, where the stream (stdout)
    is a terminal, its breaks of lines and tabs with the rest as `errors.shown`."""
    return shown(text, sys.maxsize, "\n\t") if (stream or sys.stdout).isatty() else text
