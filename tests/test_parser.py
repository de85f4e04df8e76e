"""The help of the commands, and what a slip of the fingers is told."""

import re
import shlex
import subprocess
import sys

import pytest

from minisft.cli import COMMANDS, main
from minisft.cli.parser import CommandParser


def ended(arguments, capsys):
    """-> exit code, stdout, stderr of a command that argparse ends."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_has_two_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = ended([name, "--help"], capsys)
    assert code == 0 and err == "" and out.startswith(f"usage: minisft {name} ")
    assert out.count("\n") <= 40
    examples = out.split("\nexamples:\n")[1].splitlines()
    assert len(examples) == 2 and all(len(line) < 100 for line in examples)
    assert ended([name, "-h"], capsys)[1] == out


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name):
    for line in CommandParser(name).module.EXAMPLES:
        program, command, *words = shlex.split(line.split(" > ")[0])
        parser = CommandParser(command)
        parser.require_known(words)
        assert program == "minisft" and parser.parse_args(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_has_every_option(name, capsys):
    code, out, _ = ended([name, "--help-all"], capsys)
    flags = {flag for action in CommandParser(name)._actions for flag in action.option_strings}
    assert code == 0 and flags <= {*re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", out)}


@pytest.mark.parametrize("arguments, words", [
    (["finetune", "--txt-column", "a"], ["--txt-column", "did you mean --text-column?"]),
    (["finetune", "--trian=x.csv"], ["--trian,", "did you mean --train?"]),
    (["finetune", "--epo", "3"], ["--epo,", "did you mean --epochs?"]),      # no abbreviation
    (["finetune", "--e", "3"], ["did you mean one of --encoding, --epochs"]),
    (["finetune", "--qqqq"], ["there is no --qqqq; see minisft finetune --help"]),
    (["predict", "--mdoel", "x", "y"], ["did you mean --model?"]),    # before --model is missed
    (["predict", "y"], ["required: --model"]),
    (["finetune", "my.csv"], ["'my.csv'", "--train my.csv"]),
    (["curve", "--sizes", "20", "--seeds", "2", "my.csv"], ["--train my.csv"]),
    (["pretrain", "book.txt"], ["--text book.txt"]),
    (["evaluate", "--model", "x", "--test", "y", "z"], ["what is 'z' for", "--test z"]),
    (["finetune", "--epochs", "many"], ["--epochs", "'many'"]),
    (["fintune"], ["'fintune'", "did you mean finetune?"]),
    (["zzz"], ["'zzz'", "expected one of finetune, curve"])])
def test_a_slip_is_one_line(arguments, words, capsys):
    code, out, err = ended(arguments, capsys)
    assert code == 2 and out == "" and err.startswith("minisft: ") and err.count("\n") == 1
    for word in words:
        assert word in err, err


def test_texts_behind_two_dashes_are_texts():
    args = CommandParser("predict").parse_args(["--model", "x", "--", "--txt", "-1"])
    assert args.text == ["--txt", "-1"]
    CommandParser("predict").require_known(["--model", "x", "--", "--txt"])


def test_alone_it_lists_the_commands(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name} " in out for name in COMMANDS)
    assert ended(["--help"], capsys)[:2] == (0, out)
    assert re.fullmatch(r"minisft [\d.]+\S*\n", ended(["--version"], capsys)[1])


@pytest.mark.parametrize("words, absent", [
    ([], {"numpy", "matplotlib", "numba", "tokenizers"}), (["--help"], {"numpy", "matplotlib"}),
    (["finetune", "--help"], {"matplotlib", "numba"}),
    (["predict", "--help"], {"matplotlib", "numba"})])
def test_help_loads_no_more_than_it_needs(words, absent):
    code = ("import sys\nfrom minisft.cli import main\ntry:\n    main(sys.argv[1:])\n"
            "except SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True,
                          check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "minisft" in loaded and not loaded & absent
