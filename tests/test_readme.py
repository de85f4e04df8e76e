"""What the README shows is what the code does: every code block of it is run.

The installation, and the gradient checks with every kernel, take minutes: they are marked slow.
"""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisft.cli import COMMANDS, main
from minisft.data import toy_news
from minisft.data.special_tokens import SpecialTokens
from minisft.data.text import train_tokenizer
from minisft.io.checkpoint import save
from minisft.io.model_folder import save_tokenizer
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\w*\n(.*?)```", README, re.S)
# what each block is known by, and the test that runs it
RUN_BY = {
    "minisft.TextClassifier(": "test_first_example_runs",
    "install . &&": "test_the_installation_runs",
    "-m pytest -q": "test_the_test_command_installs_the_extra_that_tests_need",
    "minisft predict ": "test_commands_for_ones_own_texts_run",
    "model.loss_backward()": "test_library_example_runs",
    "minisft check --break": "test_gradient_checks_run",
    "from minisft import gradcheck": "test_gradient_check_example_runs",
}


def test_every_code_block_is_run_by_a_test():
    for block in BLOCKS:
        tests = [test for words, test in RUN_BY.items() if words in block]
        assert len(tests) == 1 and tests[0] in globals(), block
    assert len(BLOCKS) == len(RUN_BY)


@pytest.mark.slow
def test_the_installation_runs(tmp_path):
    """In a copy of the tracked and new files; takes the network where pip has no cache."""
    (block,) = [block for block in BLOCKS if "install . &&" in block]
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.splitlines()):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, check=True,
                   env=environment)
    assert (tmp_path / "runs" / "toy-news-minisft-gpt2" / "report.html").is_file()


def test_the_test_command_installs_the_extra_that_tests_need():
    """CI runs the command itself, from the README."""
    (block,) = [block for block in BLOCKS if "-m pytest -q" in block]
    assert "pip install -e '.[test]'" in block and "<!-- the test command -->\n```sh" in README


def check_lines():
    """-> the commands of the block that checks gradients, without their comments."""
    (block,) = [block for block in BLOCKS if "minisft check --break" in block]
    return [line.split("  #")[0].rstrip() for line in block.splitlines()]


def test_planted_bug_is_found_and_a_checkpoint_checked(tmp_path, capsys):
    _, planted, checkpoint, _ = map(shlex.split, check_lines())
    assert main(planted[1:]) == 1
    assert main([tiny_folder(tmp_path) if word == "runs/news/model" else word
                 for word in checkpoint[1:]]) == 0
    assert "all pass" in capsys.readouterr().out


@pytest.mark.slow
def test_gradient_checks_run(tmp_path):
    folder = tiny_folder(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for line in check_lines():
        if "MINISFT_CUDA" in line and not (shutil.which("g++") or shutil.which("clang++")):
            continue
        command = line.replace("runs/news/model", folder).replace(
            "minisft check", f"{shlex.quote(sys.executable)} -m minisft check")
        ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, text=True,
                               capture_output=True)
        assert ended.returncode == ("--break" in line), ended.stdout + ended.stderr


def test_the_chinese_readme_is_as_complete():
    """The same sections, links, code but for comments, and figures of the tables."""
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    links = re.compile(r"\]\(([^)\s]+)\)")
    assert set(links.findall(README)) - {"README.zh-CN.md"} <= set(links.findall(chinese))
    sections = re.compile(r"^## ", re.M)
    assert len(sections.findall(chinese)) == len(sections.findall(README))
    code, blanks = re.compile(r"```\w+\n(.*?)```", re.S), re.compile(r" *#.*")
    assert [blanks.sub("", c) for c in code.findall(chinese)] == \
        [blanks.sub("", c) for c in code.findall(README)]
    rows = re.compile(r"^\|.*\|$", re.M)
    figures = re.compile(r"\d\.\d+")
    assert [figures.findall(row) for row in rows.findall(chinese)] == \
        [figures.findall(row) for row in rows.findall(README)]


def tiny_folder(folder):
    """-> the path of a small language model's folder."""
    tokenizer = train_tokenizer(["some text to learn from"], 270)
    config = GPT2Config(vocab_size=270, n_positions=64, n_embd=8, n_layer=1, n_head=2)
    save(LanguageModel(config), folder, special_tokens=SpecialTokens(269, (269,), 269))
    save_tokenizer(tokenizer, folder, 64)
    return str(folder)


def test_first_example_runs():
    example = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    texts, labels = toy_news.generate("train")
    names = {"texts": texts[:24], "labels": labels[:24], "new_texts": texts[:3]}
    exec(example.replace("epochs=5", "epochs=1, quiet=True"), names)
    classifier = names["classifier"]
    assert set(classifier.predict(texts[:3])) <= set(labels)


def test_library_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README.split("## As a library")[1], re.S)[:1]
    names = {}
    exec(example.replace('"gpt2"', repr(tiny_folder(tmp_path))), names)     # the README's own words
    assert np.isfinite(names["loss"]) and names["texts_counted"] == 2
    before = names["loss"]
    names["model"].loss(names["batch"])
    assert names["model"].loss(names["batch"])[0] < before


def test_gradient_check_example_runs(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README.split("## Check every gradient")[1],
                            re.S)[:1]
    from minisft.ops import linear
    rng = np.random.default_rng(0)
    names = {"x": rng.standard_normal((3, 2)), "w": rng.standard_normal((2, 4))}
    monkeypatch.setitem(__import__("sys").modules, "my_op", linear)
    with pytest.raises(ValueError, match="2 float64 inputs, 3 gradients"):
        exec(example, names)     # linear returns db too: the example's operation has no bias


def test_commands_for_ones_own_texts_run(tmp_path, monkeypatch):
    """With a tiny model in place of gpt2, and files that have the columns of the first line."""
    (example,) = re.findall(r"```sh\n(minisft finetune --model gpt2.*?)```", README, re.S)
    rows = [(text, "", label) for text, label in zip(*toy_news.generate("train"), strict=True)]
    monkeypatch.chdir(tmp_path)
    for name in ("news.csv", "news-test.csv", "more.csv", "inbox.csv"):
        with open(name, "w", newline="") as file:
            csv.writer(file).writerows([("title", "description", "topic"), *rows[:40]])
    commands = [shlex.split(line) for line in example.replace("\\\n", " ").splitlines()]
    tiny = "scratch --layers 1 --width 8 --heads 2 --vocab-size 260 --epochs 1 --compare none"
    for _, *arguments in commands:
        if "gpt2" in arguments:
            place = arguments.index("gpt2")
            arguments[place:place + 1] = [*tiny.split(), "--quiet"]
        assert main(arguments) == 0, arguments
    assert [command[1] for command in commands] == ["finetune", "evaluate", "predict", "predict"]


def test_commands_and_their_options_exist(capsys):
    shown = re.findall(r"(?<!from )minisft (\w+)((?:[^`\n|]|\\\n)*)", README)
    assert {name for name, _ in shown} <= {*COMMANDS}
    for name, rest in shown:
        with pytest.raises(SystemExit):
            main([name, "--help-all"])
        known = capsys.readouterr().out
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert option in known, f"minisft {name} has no {option}"


def test_files_that_it_names_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_it_is_at_most_150_lines():
    assert README.count("\n") <= 150
