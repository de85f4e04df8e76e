"""What a user can get wrong: one clear line each, exit code 2, and nothing written."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisft import __version__
from minisft.backend.array import gpu_available
from minisft.cli import COMMANDS, main
from minisft.data.special_tokens import SpecialTokens
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from minisft.io import run_folder
from minisft.io.checkpoint import save
from minisft.io.model_folder import read_folder, save_tokenizer
from minisft.jobs.pretrain import PretrainConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.training.config import FinetuneConfig, require_sound

ROOT = Path(__file__).resolve().parents[1]
GOOD = "text,label\n" + "".join(f"a text with number {i},{'ab'[i % 2]}\n" for i in range(20))
CONFIG = GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two sound folders: `classifier` for the labels a and b, and `language`."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([GOOD], 290)
    for name, model in (("classifier", Classifier(CONFIG, ["a", "b"])),
                        ("language", LanguageModel(CONFIG))):
        save(model, folder / name, special_tokens=SpecialTokens(289, (289,), 289))
        save_tokenizer(tokenizer, folder / name, 16)
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch, models):
    """An empty folder to work in, good.csv and bad.csv beside it, no network."""
    def no_network(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "work").mkdir()
    for name in ("classifier", "language"):
        shutil.copytree(models / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def refused(capsys, arguments, *words):
    """The command fails as promised, and its one line holds all the words."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("minisft: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err, captured.err
    assert "Traceback" not in captured.err
    return captured


BAD_FILES = {
    "empty": (b"", [], ["bad.csv", "empty"]),
    "header only": (b"text,label\n", [], ["bad.csv", "no rows"]),
    "missing column": (b"title,label\nx,a\ny,b\n", [], ["bad.csv", "'text'", "title"]),
    "missing label column": (GOOD.encode(), ["--label-column", "topic"], ["bad.csv", "'topic'"]),
    "one label": (b"text,label\nx,a\ny,a\n", [], ["bad.csv", "every label is 'a'"]),
    "blank text": (b"text,label\nx,a\n <b> ,b\n", [], ["bad.csv", "line 3", "empty"]),
    "blank label": (b"text,label\nx,a\ny,\n", [], ["bad.csv", "line 3"]),
    "invalid utf-8": (b"text,label\nx,a\n\xff,b\n", [], ["bad.csv", "line 3", "0xff"]),
    "too many fields": (b"text,label\nx,a\ny,z,b\n", [], ["bad.csv", "line 3", "3 fields"]),
    "two texts": (b"text,label\nx,a\ny,b\n", [], ["validation", "2 texts"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_training_files(work, capsys, case):
    content, options, words = BAD_FILES[case]
    (work / "bad.csv").write_bytes(content)
    refused(capsys, ["finetune", "--train", str(work / "bad.csv"), *options], *words)
    assert not list((work / "work").iterdir())


BAD_OPTIONS = {
    "no such file": (["--train", "none.csv"], ["none.csv", "no such file"]),
    "a folder": (["--train", ".."], ["..", "folder"]),
    "unknown suffix": (["--train", "../language/config.json.bak"], ["config.json.bak"]),
    "epochs": (["--epochs", "0"], ["--epochs", "0", "from 1 to 100000"]),
    "lr zero": (["--lr", "0"], ["--lr"]),
    "lr nan": (["--lr", "nan"], ["--lr", "nan"]),
    "valid fraction": (["--valid-fraction", "1"], ["--valid-fraction", "1.0"]),
    "nothing held out": (["--valid-fraction", "0"], ["valid"]),
    "heads": (["--model", "scratch", "--heads", "3"], ["--heads", "128", "3"]),
    "class weights": (["--class-weights", "a"], ["--class-weights", "NAME=W"]),
    "class weight": (["--class-weights", "a=-1"], ["--class-weights", "above 0"]),
    "max length": (["--max-length", "0"], ["--max-length"]),
    "seed": (["--seed", "-1"], ["--seed"]),
    "layers": (["--train-layers", "last:99"], ["--train-layers", "last:99", "1 to 6"]),
    "cleaning": (["--clean", "tags,soap"], ["soap", "tags"]),
    "encoding": (["--encoding", "klingon"], ["good.csv", "klingon"]),
    "vocabulary": (["--vocab-size", "10"], ["--vocab-size", "257"]),
    "unknown model": (["--model", "no-such-model"], ["no-such-model", "--download"]),
    "no tokenizer": (["--tokenizer", "../good.csv"], ["good.csv"]),
    "out is a file": (["--out", "../good.csv"], ["good.csv", "file"]),
    "out below a file": (["--out", "../good.csv/run"], ["good.csv"]),
    "out not empty": (["--out", "../classifier"], ["classifier", "not empty", "--overwrite"]),
    "class weight twice": (["--class-weights", "a=1,a=2"], ["--class-weights", "a has a weight"]),
    "a size beyond use": (["--vocab-size", str(10**11)], ["--vocab-size", "1000000"]),
    "an empty name": (["--out", ""], ["--out is empty"]),
    "layers of a pretrained model": (["--model", "../classifier", "--layers", "3"],
                                     ["--layers", "../classifier has its own"]),
    "the folder of a run": (["--model", ".."], ["is the folder of a run", "../model"]),
    "resume with options": (["--resume", "../classifier"], ["--train beside --resume"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(work, capsys, case):
    options, words = BAD_OPTIONS[case]
    if case == "the folder of a run":
        (work / "config.json").write_text("{}")
        shutil.copytree(work / "classifier", work / "model")
    before = sorted(p for p in work.rglob("*"))
    refused(capsys, ["finetune", "--train", "../good.csv", *options], *words)
    assert sorted(p for p in work.rglob("*")) == before


def test_what_only_a_file_makes_sense_with(work, capsys):
    refused(capsys, ["finetune", "--task", "complete"], "--task complete needs --train")
    for option in ("--test", "--valid"):
        refused(capsys, ["finetune", option, "../good.csv"], f"{option} without --train")
    assert not list((work / "work").iterdir())


@pytest.mark.parametrize("task", ["classify", "complete"])
@pytest.mark.parametrize("batch_tokens", ["50", "10000"])
def test_a_run_that_diverges_says_it_in_one_line(work, task, batch_tokens):
    """In the second step, or in the validation after the only one.

    In a process of its own: a warning would be a line more there.
    """
    columns = ["--prompt-column", "text", "--completion-column", "label"]
    found = subprocess.run(
        [sys.executable, "-m", "minisft", "finetune", "--train", "../good.csv", "--task", task,
         *(columns if task == "complete" else []), "--model", "scratch", "--width", "8",
         "--heads", "2", "--lr", "1e30", "--warmup-ratio", "0", "--epochs", "1", "--batch-tokens",
         batch_tokens],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert found.returncode == 2
    assert found.stderr.startswith("minisft: ") and found.stderr.count("\n") == 1
    assert "--lr" in found.stderr


def test_label_unknown_at_test_time(work, capsys):
    (work / "bad.csv").write_text("text,label\nx,a\ny,zebra\n")
    for arguments in (["finetune", "--train", "../good.csv", "--test", "../bad.csv"],
                      ["evaluate", "--model", "../classifier", "--test", "../bad.csv"]):
        refused(capsys, arguments, "bad.csv", "line 3", "zebra", "'a', 'b'")
    assert not list((work / "work").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "bit flip", "config", "tokenizer", "no tokenizer",
                                    "pickle"])
def test_damaged_models(work, capsys, damage):
    weights, words = work / "classifier" / "model.safetensors", ["classifier", "model.safetensors"]
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "bit flip":
        data = bytearray(weights.read_bytes())
        data[-1000] ^= 16
        weights.write_bytes(data)
        words.append("damaged")
    elif damage == "config":
        path = work / "classifier" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"n_inner": 40}))
        words += ["h.0.mlp.c_fc.weight", "(8, 32)", "(8, 40)"]
    elif damage == "tokenizer":
        save_tokenizer(train_tokenizer([GOOD * 2, "more words than that"], 310),
                       work / "classifier", 16, None)
        path = work / "classifier" / "tokenizer.json"
        tokens = json.loads(path.read_text())
        if len(tokens["model"]["vocab"]) <= 300:
            for i in range(len(tokens["model"]["vocab"]), 305):
                tokens["model"]["vocab"][f"new{i}"] = i
            path.write_text(json.dumps(tokens))
        words = ["classifier", "tokens", "300"]
    elif damage == "no tokenizer":
        (work / "classifier" / "tokenizer.json").unlink()
        words = ["classifier", "no tokenizer", "tokenizer.json"]
    else:
        weights.rename(work / "classifier" / "pytorch_model.bin")
        words = ["pytorch_model.bin", "not a file of torch.save"]
    refused(capsys, ["finetune", "--model", "../classifier", "--train", "../good.csv"], *words)
    refused(capsys, ["predict", "--model", "../classifier", "a text"], *words)
    assert not list((work / "work").iterdir())


def test_wrong_kind_of_model(work, capsys):
    refused(capsys, ["predict", "--model", "../language", "x"], "language")
    refused(capsys, ["evaluate", "--model", "../language", "--test", "../good.csv"], "'prompt'",
            "text, label")
    refused(capsys, ["generate", "--model", "../classifier", "x"], "classifier")


def test_predict_refuses(work, capsys, monkeypatch):
    model = ["predict", "--model", "../classifier"]
    for lines in ("", " \n\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        refused(capsys, model, "texts or --file, or lines of text on standard input")
    refused(capsys, [*model, "x", "--overwrite"], "--overwrite is for --out")
    refused(capsys, [*model, "x", "--out", "..", "--overwrite"], "new file")
    refused(capsys, [*model, "x", "--file", "../good.csv"], "texts or --file")
    refused(capsys, [*model, "x", " "], "text 2", "empty")
    refused(capsys, [*model, "x", "--out", "../good.csv"], "good.csv", "new file")
    refused(capsys, [*model, "x", "--out", "new.xls"], "new.xls", ".csv or .jsonl")
    refused(capsys, [*model, "x", "--out", "none/new.csv"], "none/new.csv")
    refused(capsys, [*model, "--file", "../good.csv", "--text-column", "body"], "body",
            "text, label")
    assert not list((work / "work").iterdir())


def test_generate_refuses_and_says_when_it_stops(work, capsys):
    model = ["generate", "--model", "../language"]
    refused(capsys, [*model, "x", "--temperature", "-1"], "temperature -1")
    refused(capsys, [*model, "x", "--top-p", "0"], "top-p 0")
    assert main([*model, "a text", "--max-new-tokens", "99", "--temperature", "0"]) == 0
    assert "16 positions" in capsys.readouterr().err
    assert main([*model, "text " * 99, "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert "prompt 1 is longer than 16 tokens: the last 13 were" in capsys.readouterr().err


def test_a_changed_data_file_is_not_resumed(work, capsys):
    out = work / "run"
    assert main(["finetune", "--train", "../good.csv", "--out", str(out), "--model", "scratch",
                 "--layers", "1", "--width", "8", "--heads", "2", "--epochs", "1", "--quiet"]) == 0
    refused(capsys, ["finetune", "--resume", str(out)], "finished")
    (out / "results.json").unlink()
    (work / "good.csv").write_text(GOOD + "one more,a\n")
    refused(capsys, ["finetune", "--resume", str(out)], "good.csv", "the same for --train")
    (work / "good.csv").unlink()
    refused(capsys, ["finetune", "--resume", str(out)], "../good.csv", "where the run began")
    (work / "good.csv").write_text(GOOD)
    config = json.loads((out / "config.json").read_text())
    settings = config["settings"]
    for change, words in (({"files": None}, ["run/config.json"]),
                          ({"settings": None}, ["run/config.json"]),
                          ({"settings": {"seed": 1}}, ["run/config.json"]),
                          ({"settings": settings | {"lr": "fast"}}, ["--lr", "fast"]),
                          ({"settings": settings | {"select": "luck"}}, ["--select", "luck"])):
        run_folder.write_config(out, config | change)
        refused(capsys, ["finetune", "--resume", str(out)], *words)
    for folder in ("../classifier", "none", "../good.csv"):
        refused(capsys, ["finetune", "--resume", folder], folder, "the folder of a run")


def test_too_little_memory(work, capsys, monkeypatch):
    def full(*args):
        raise MemoryError("Unable to allocate 5.8 TiB")

    monkeypatch.setattr("minisft.jobs.finetune._build", full)
    refused(capsys, ["finetune", "--train", "../good.csv"], "memory", "5.8 TiB")
    assert not list((work / "work").iterdir())


def test_a_full_disk_leaves_no_half_model(work, capsys, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = np.fromfile(work / "classifier" / "model.safetensors", np.uint8)
    arguments = ["finetune", "--train", "../good.csv", "--model", "../classifier", "--epochs", "1",
                 "--quiet", "--out", "run"]
    refused(capsys, arguments, "run", "No space left")
    assert not list((work / "work").rglob("*.safetensors"))
    assert (np.fromfile(work / "classifier" / "model.safetensors", np.uint8) == before).all()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_default(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help-all"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert not any(word in out for word in ("None", "False", "('", "_TOKENS", "default: )"))
    if command == "finetune":
        for group in ("data", "model", "training", "output"):
            assert f"\n{group}:\n" in out


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: minisft") and all(command in out for command in COMMANDS)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"minisft {__version__}\n"


def test_gpu_is_another_word_for_cuda(work, capsys):
    for name in ("cuda", "gpu"):
        config = FinetuneConfig.from_options(device=name)
        assert config.options()["device"] == "cuda" == PretrainConfig.from_options(
            device=name).model.device
        if not gpu_available():
            for command in (["finetune"], ["predict", "--model", "../classifier", "x"], ["check"],
                            ["pretrain", "--text", "../good.csv"]):
                refused(capsys, [*command, "--device", name], "--device cuda: CuPy")
    for command in (["finetune"], ["check"]):
        with pytest.raises(SystemExit):
            main([*command, "--device", "gpuu"])
        assert "gpuu" in capsys.readouterr().err


def test_names_of_devices_and_precisions_that_do_not_exist(models):
    model = Classifier(CONFIG, ["a", "b"])
    with pytest.raises(ValueError, match="device is 'gpuu', expected one of cpu, cuda"):
        model.to("gpuu")
    with pytest.raises(ValueError, match="precision is 'float8', expected one of float32, bf"):
        model.to("cpu", "float8")
    with pytest.raises(ValueError, match="device is 'tpu'"):
        read_folder(models / "classifier", device="tpu")
    with pytest.raises(UserError, match="device is 'tpu', expected one of cpu, cuda"):
        require_sound(FinetuneConfig.from_options(device="tpu"))


def test_unknown_commands_and_options_exit_with_2(capsys):
    for arguments in (["fly"], ["finetune", "--fly"], ["finetune", "--epochs", "many"],
                      ["predict", "--model", "x", "y", "--batch-tokens", "0"],
                      ["generate", "--model", "x", "y", "--max-new-tokens", "-1"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
