"""What the terminal shows: the width of lines, bold and colours, the command to go on with."""

import io
import shlex
from pathlib import Path

import pytest

from minisft.cli import main, terminal
from minisft.cli.parser import CommandParser
from minisft.evaluation.figures import Use, Verdict


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("environment, coloured", [
    ({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False),
    ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "xterm", "NO_COLOR": ""}, True)])
def test_colours_where_a_terminal_has_them_and_its_user_wants_them(monkeypatch, environment,
                                                                   coloured):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for paint, code in ((terminal.bold, "1"), (terminal.green, "32"), (terminal.red, "1;31")):
        assert paint("x", Terminal()) == (f"\033[{code}mx\033[0m" if coloured else "x")
        assert paint("x", io.StringIO()) == "x"


def test_a_verdict_is_bold_and_a_check_has_colours(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.show(Verdict("good"))
    terminal.show("plain")
    assert capsys.readouterr().out == "\033[1mgood\033[0m\nplain\n"
    assert main(["check", "softmax"]) == 0
    assert "\033[32mok\033[0m" in capsys.readouterr().out
    assert main(["check", "--break", "softmax-zeros"]) == 1
    assert "\033[1;31mFAIL\033[0m" in capsys.readouterr().out


def test_long_lines_are_wrapped_and_laid_out_ones_are_not(capsys):
    words = " ".join(["word"] * 40)
    terminal.show(words)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 99 and all(line.startswith("  ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == words
    terminal.show("  " + words)
    assert capsys.readouterr().out == f"  {words}\n"


@pytest.mark.parametrize("task, pairs, commands", [
    ("classify", False, ["predict"]), ("classify", True, ["predict"]), ("tag", False, ["predict"]),
    ("answer", False, ["predict"]), ("complete", False, ["generate"]),
    ("pretrain", False, ["generate", "finetune"])])
def test_the_command_to_go_on_with_can_be_copied(capsys, task, pairs, commands):
    folder = Path("runs/it's mine/model")
    terminal.show(Use(folder, task, pairs))
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "to use the model:" and len(lines) == len(commands)
    for line, name in zip(lines, commands, strict=True):
        program, command, *words = shlex.split(line)
        parser = CommandParser(command)
        parser.require_known(words)
        assert (program, command) == ("minisft", name)
        assert parser.parse_args(words).model == str(folder)
    assert str(Use(folder, task, pairs)) == f"the model is in {folder}"     # for Python
