"""Messages name options as Python does, and the command line shows them as its flags."""

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest

from minisft.cli import main
from minisft.errors import UserError, as_flag, render, setting
from minisft.training.config import FinetuneConfig, require_sound

PACKAGE = Path(__file__).resolve().parents[1] / "minisft"


def test_a_message_is_python_s_or_the_command_line_s():
    error = UserError(f"{setting('max_length')} is 0, see {setting('select', 'last')}")
    assert str(error) == "max_length is 0, see select='last'"
    assert render(error.args[0], as_flag) == "--max-length is 0, see --select last"
    assert as_flag("delimiter", ";") == "--delimiter ';'"      # as a shell needs it
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)
    assert str(UserError(f"{setting('sizes')} 9: {error.args[0]}")).startswith(
        "sizes 9: max_length is 0")


@pytest.mark.parametrize("text", ["{lr}", "`lr`", "lr", "--lr", "{0}", "%s", "\\1", "<lr>"])
def test_what_a_user_wrote_stays_as_it_is(tmp_path, capsys, text):
    message = f"the label {text} is unknown, see {setting('seed')}"
    assert str(UserError(message)) == f"the label {text} is unknown, see seed"
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\na,{text}\nb,{text}\n")
    assert main(["finetune", "--train", str(path)]) == 2
    assert f"every label is {text!r}" in capsys.readouterr().err


def test_an_option_that_a_command_lacks_is_no_flag(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("texts\na\n")
    assert main(["predict", "--model", "minisft-gpt2", "--file", str(path)]) == 2
    capsys.readouterr()
    with pytest.raises(UserError, match="^lr is 0.0, expected more"):
        require_sound(FinetuneConfig.from_options(lr=0.0))
    assert main(["finetune", "--lr", "0"]) == 2
    assert capsys.readouterr().err.startswith("minisft: --lr is 0.0, expected more")


@pytest.mark.parametrize("path", sorted(
    p for p in PACKAGE.rglob("*.py") if PACKAGE / "cli" not in p.parents and p.stem != "errors"),
    ids=lambda p: ".".join(p.relative_to(PACKAGE).with_suffix("").parts))
def test_only_the_command_line_speaks_of_flags(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"(?<![\w<!-])--[a-z]", node.value), node.value
