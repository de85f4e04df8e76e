"""The parsers of the commands: a short help with examples, a full one, and errors of one line.

A module of a command has add_arguments(parser) and run(args), and may have EXAMPLES, BASIC
(the names of the options that the short help shows; all without it) and FILE_OPTION (what a file's
name without an option was meant for).
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from minisft import __version__
from minisft.cli.terminal import fail

# Each command with its help, here so that `minisft --help` loads none of them.
COMMANDS = {
    "finetune": "fine-tune on labelled texts, prompts, tagged words, questions or translations",
    "curve": "learning curve: fine-tune with several numbers of texts, beside the baselines",
    "evaluate": "measure a model on texts with labels, completions, tags, answers or translations",
    "predict": "label new texts or words, or answer questions",
    "generate": "continue a prompt with a language model",
    "translate": "translate texts with an encoder-decoder",
    "merge": "write the model that an adapter makes of its base, as a folder of its own",
    "pretrain": "pretrain a small GPT-2 on plain text",
    "convert": "make a folder with safetensors of nanoGPT's checkpoint or pytorch_model.bin",
    "check": "compare every hand-written gradient with finite differences",
    "plan": "say what memory and how many operations a training step takes",
    "why": "say which implementation of an operation runs, and why the others do not",
}


class Formatter(argparse.HelpFormatter):
    """Shows the defaults that the help text does not tell itself."""

    def add_argument(self, action):
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            # argparse forgets that the names of commands are indented once more
            longest = max(map(len, action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 4)

    def _get_help_string(self, action):
        default = action.default
        # 0 is a default worth showing, though it equals False
        if default in (None, (), argparse.SUPPRESS) or default is False or \
                "(default" in action.help:
            return action.help
        shown = " ".join(default) if isinstance(default, list | tuple) else default
        return f"{action.help} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        fail(f"{message}; see {self.prog} --help")
        sys.exit(2)


class CommandParser(Parser):
    """The parser of one command."""

    def __init__(self, name: str) -> None:
        self.module = importlib.import_module(f"minisft.cli.{name}")
        super().__init__(prog=f"minisft {name}", description=COMMANDS[name], add_help=False)
        self.add_argument("-h", "--help", action=_Help, dest="help", nargs=0,
                          default=argparse.SUPPRESS, help="show this help and exit")
        self.add_argument("--help-all", action=_Help, dest="help_all", nargs=0,
                          default=argparse.SUPPRESS,
                          help="show all options in their groups and exit")
        self.module.add_arguments(self)
        self.set_defaults(run=self.module.run)

    def short_help(self) -> str:
        """-> the options that most runs need, and examples."""
        basic = getattr(self.module, "BASIC", None)
        if basic is None:
            return self.format_help() + self._examples()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        actions = {action.dest: action for action in self._actions}
        formatter.start_section("options")
        formatter.add_arguments([actions[name] for name in (*basic, "help_all")])
        formatter.end_section()
        return formatter.format_help() + self._examples()

    def _examples(self):
        examples = getattr(self.module, "EXAMPLES", ())
        return "".join(["\nexamples:\n", *(f"  {line}\n" for line in examples)] if examples else [])

    def require_known(self, words: Sequence[str]) -> None:
        """Refuses an option that the command does not have, before one that it lacks is missed."""
        known = self._option_string_actions     # argparse has no public way to them
        for word in words:
            flag = word.split("=")[0]
            if word == "--":
                return
            if word.startswith("--") and flag not in known:
                near = [name for name in known if name.startswith(flag)] or \
                    difflib.get_close_matches(flag, known, n=1)
                self.error(f"there is no {flag}" + (
                    f", did you mean {near[0]}?" if len(near) == 1 else
                    f", did you mean one of {', '.join(near)}?" if near else ""))

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Words behind the options that belong to none."""
        option = getattr(self.module, "FILE_OPTION", None)
        self.error(f"what is {words[0]!r} for?" + (
            f" A file is given by its option: {option} {words[0]}" if option else ""))


class _Help(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help() if option_string == "--help-all" else parser.short_help(),
              end="")
        parser.exit()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace | None:
    """Arguments (default: the process's) -> what they say, None where they name no command."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="minisft", description="A Transformer you can read, check and fine-tune.",
                    epilog="minisft COMMAND --help says more; begin with: minisft finetune")
    parser.add_argument("--version", action="version", version=f"minisft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    if not words or words[0] not in COMMANDS:
        for name in COMMANDS:
            commands.add_parser(name, help=COMMANDS[name], add_help=False)
        if words and not words[0].startswith("-"):
            near = difflib.get_close_matches(words[0], COMMANDS, n=1)
            parser.error(f"there is no command {words[0]!r}, " + (
                f"did you mean {near[0]}?" if near else
                f"expected one of {', '.join(COMMANDS)}"))
        parser.parse_args(words)
        parser.print_help()
        return None
    command = CommandParser(words[0])
    command.require_known(words[1:])
    args, rest = command.parse_known_args(words[1:])
    if rest:
        command.refuse(rest)
    args.command = words[0]
    args.changed = {name for name, value in vars(args).items()
                    if value != command.get_default(name)}
    return args
