"""--device cuda: every command through a stand-in for CuPy gives the CPU's bits, or says why not.

The stand-in refuses whatever crosses between card and CPU without a call (tests/standin_cupy.py).
"""

import importlib.util
import json
import os
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.gpu import cuda, emulator
from minisft.backend.random import Stream
from minisft.cli import main
from minisft.data.batch import pack
from minisft.dispatch import only
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, LanguageModel
from minisft.nn import parameters
from minisft.training import loop
from minisft.training.loss_scale import LossScale
from minisft.verify.kernel_checks import KERNEL_CHECKS
from tests import standin_cupy

needs_compiler = pytest.mark.skipif(emulator.compiler() is None,
                                    reason="no C++ compiler to emulate CUDA kernels")
TINY = ["--layers", "2", "--width", "16", "--heads", "2", "--vocab-size", "257", "--quiet"]


@pytest.fixture
def card(monkeypatch):
    """A card, as far as the package can tell; the CPU runs the formula of attention, too."""
    monkeypatch.setattr(array, "cupy", standin_cupy)
    monkeypatch.delenv("MINISFT_CUDA", raising=False)
    monkeypatch.setenv("MINISFT_COMPILED", "off")     # compiled loops round differently
    with only("tensor cores", "naive kernel", "fused kernel", operations=("attention",)):
        yield


@pytest.fixture
def no_gaps(monkeypatch):
    """A card's buffers without gaps: a sum over zeros between the numbers rounds differently."""
    monkeypatch.setattr(parameters, "ALIGN", 1)


@pytest.fixture
def texts(tmp_path):
    """24 short texts of two classes, also as prompts and completions."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({
        "text": f"day {i} " + ("sun " if i % 2 else "rain ") * (i % 5 + 1), "label": "xy"[i % 2],
        "prompt": f"day {i}", "completion": "sun" if i % 2 else "rain"}) + "\n"
        for i in range(24)))
    return file


def finetune(texts, out, device, *options):
    return main(["finetune", "--train", str(texts), "--test", str(texts), "--out", str(out),
                 "--device", device, "--kernels", "off", "--compare", "none", "--epochs", "2",
                 "--batch-tokens", "60", "--micro-tokens", "40", *options])


def left(folder):
    """-> what a run found and left, without times."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for step in steps:
        step.pop("tokens_per_second", None)
    return steps, (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("options", [
    ["--model", "scratch", *TINY],
    ["--model", "scratch", *TINY, "--task", "complete", "--max-new-tokens", "3"],
    ["--model", "scratch", *TINY, "--class-weights", "balanced", "--label-smoothing", "0.1",
     "--gradient-checkpointing", "--optimizer", "sgd", "--token-dropout", "0.2",
     "--adapt-epochs", "1"],
    ["--model", "scratch", *TINY, "--train-layers", "last:1", "--optimizer", "adam"],
], ids=["classify", "complete", "options", "frozen"])
def test_finetune_has_the_bits_of_the_cpu(card, no_gaps, texts, tmp_path, options):
    for device in ("cpu", "gpu"):
        assert finetune(texts, tmp_path / device, device, *options) == 0
    assert left(tmp_path / "gpu") == left(tmp_path / "cpu")


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_bert_has_the_bits_of_the_cpu(card, no_gaps, rng, pooling):
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=20)
    batch = pack([rng.integers(0, 50, n) for n in (1, 20, 7)], labels=[0, 2, 1],
                 types=[[0], [0] * 11 + [1] * 9, [0] * 7])
    found = []
    for device in ("cpu", "gpu"):
        model = BertClassifier(config, "abc", seed=3, pooling=pooling)
        if device == "gpu":
            model.store.to_gpu()
        with cuda.kernels("off"):
            loss, _, logits = model.loss(batch, Stream(0, 1))
            model.loss_backward()
        found.append([array.to_cpu(a) for a in (loss, logits, model.store.grads)])
    assert isinstance(model.store.values, standin_cupy.ndarray)
    for ours, expected in zip(*found, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(ours, expected)


def test_long_texts_attend_in_blocks(card, no_gaps, rng):
    model = LanguageModel(GPT2Config(vocab_size=30, n_positions=400, n_embd=16, n_layer=1,
                                     n_head=2))
    ids = rng.integers(0, 30, 300)
    batch = pack([ids, ids[:7]], labels=[ids, ids[:7]])
    found = []
    for to_gpu in (lambda: None, model.store.to_gpu):
        to_gpu()
        model.store.zero_grad()
        with cuda.kernels("off"), only("key blocks", operations=("attention",)):
            model.loss(batch, Stream(0, 1))
            model.loss_backward()
        found.append(array.to_cpu(model.store.grads).copy())
    np.testing.assert_array_equal(*found)


def test_a_run_goes_on_where_it_stopped(card, texts, tmp_path, monkeypatch):
    options = ["--model", "scratch", *TINY]
    assert finetune(texts, tmp_path / "whole", "gpu", *options) == 0
    step, steps = loop.train_step, []

    def stop_after_three(*args):
        steps.append(step(*args))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return steps[-1]

    monkeypatch.setattr(loop, "train_step", stop_after_three)
    assert finetune(texts, tmp_path / "cut", "gpu", *options) == 130
    monkeypatch.setattr(loop, "train_step", step)
    assert main(["finetune", "--resume", str(tmp_path / "cut"), "--kernels", "off"]) == 0
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_trained_model_says_the_same(card, texts, tmp_path, capsys):
    for task, more in (("classify", ()), ("complete", ("--max-new-tokens", "3"))):
        assert finetune(texts, tmp_path / task, "cpu", "--model", "scratch", *TINY,
                        "--task", task, *more) == 0
    for command in (["evaluate", "--model", tmp_path / "classify/model", "--test", texts],
                    ["evaluate", "--model", tmp_path / "complete/model", "--test", texts],
                    ["predict", "--model", tmp_path / "classify/model", "sun", "much rain today"],
                    ["generate", "--model", tmp_path / "complete/model", "day 3", "day",
                     "--max-new-tokens", "5", "--top-k", "4"]):
        said = []
        for device in ("cpu", "gpu"):
            capsys.readouterr()
            assert main([*map(str, command), "--device", device, "--kernels", "off"]) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1] != ""


def test_pretraining_has_the_bits_of_the_cpu(card, no_gaps, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"It rains on day {i}.\n<|endoftext|>\n" for i in range(20)))
    for device in ("cpu", "gpu"):
        assert main(["pretrain", "--text", str(text), "--valid-fraction", "0.2", "--context-length",
                     "16", "--batch-tokens", "40", "--validate-every", "3", "--epochs", "2",
                     "--dropout", "0.1", "--out", str(tmp_path / device), "--device", device,
                     "--kernels", "off", *TINY]) == 0
    assert left(tmp_path / "gpu") == left(tmp_path / "cpu")


@pytest.mark.parametrize("options", [["--lr", "1e30"], ["--lr", "1e30", "--adapt-epochs", "1"],
                                     ["--weight-decay", "1e30", "--optimizer", "sgd"]])
def test_a_run_that_diverges_is_explained_on_a_card_too(card, texts, tmp_path, capsys, options):
    told = []
    for device in ("cpu", "cuda"):
        assert finetune(texts, tmp_path / device, device, "--model", "scratch", *TINY,
                        "--save-every", "1", "--warmup-ratio", "0", *options) == 2
        told.append(capsys.readouterr().err.replace(str(tmp_path / device), ""))
    assert told[0] == told[1] and "is not finite" in told[0] and told[0].count("\n") == 1


@needs_compiler
@pytest.mark.parametrize("version", ["fused", "naive"])
def test_kernels_on_the_card_have_the_bits_of_the_emulator(card, no_gaps, texts, tmp_path,
                                                           monkeypatch, version):
    options = ["--model", "scratch", *TINY, "--epochs", "1", "--kernels", version]
    assert finetune(texts, tmp_path / "gpu", "gpu", *options) == 0
    monkeypatch.setattr(array, "cupy", None)
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    assert finetune(texts, tmp_path / "cpu", "cpu", *options) == 0
    assert left(tmp_path / "gpu") == left(tmp_path / "cpu")


@needs_compiler
@pytest.mark.parametrize("precision, version", [("bfloat16", "fused"), ("bfloat16", "off"),
                                                ("float16", "fused"), ("float16", "off")])
def test_16_bits_on_the_card_are_those_of_the_emulator(card, texts, tmp_path, monkeypatch,
                                                       precision, version):
    options = ["--model", "scratch", *TINY, "--width", "32", "--epochs", "1", "--kernels", version,
               "--precision", precision]
    used, whole = set(), cuda.launch_source
    monkeypatch.setattr(cuda, "launch_source", lambda text, kernel, *sizes, **given: (
        used.add(kernel), whole(text, kernel, *sizes, **given)))
    assert finetune(texts, tmp_path / "gpu", "gpu", *options) == 0
    monkeypatch.setattr(array, "cupy", None)
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    assert finetune(texts, tmp_path / "cpu", "cpu", *options) == 0
    tensor_cores = {f"attention_tensor_cores_{part}" for part in
                    ("forward", "backward_queries", "backward_keys")}
    tensor_cores |= {"bfloat16_round"} if precision == "bfloat16" else set()
    assert tensor_cores & used == (tensor_cores if version == "fused" else set())
    steps, expected = (left(tmp_path / device)[0] for device in ("gpu", "cpu"))
    # cuBLAS takes y^T = b^T a^T, whose sums the CPU adds in another order: some activations are
    # then rounded to the neighbouring number, 2^-8 (bfloat16) or 2^-11 (float16) away
    limit = {"bfloat16": 1e-3, "float16": 1e-4}[precision]
    for ours, theirs in zip(steps, expected, strict=True):
        key = "loss" if "loss" in ours else "train_loss"
        assert ours[key] == pytest.approx(theirs[key], rel=limit)


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["classify", "complete"])
@pytest.mark.parametrize("version, precision, limit", [
    ("off", "float32", 1e-3), ("naive", "float32", 1e-3), ("fused", "float32", 1e-3),
    ("fused", "bfloat16", 5e-2), ("fused", "float16", 1e-2), ("off", "float16", 1e-2)])
def test_a_card_learns_as_the_cpu_does(texts, tmp_path, monkeypatch, task, version, precision,
                                       limit):
    if not array.gpu_available():
        pytest.skip("no CUDA card")
    # the first scale overflows, and the CPU's run leaves no step out
    monkeypatch.setattr(loop, "LossScale", partial(LossScale, 2.0**8))
    options = ["--model", "scratch", *TINY, "--width", "32", "--task", task,
               *(["--max-new-tokens", "3"] if task == "complete" else [])]
    assert finetune(texts, tmp_path / "cpu", "cpu", *options) == 0
    assert finetune(texts, tmp_path / "gpu", "gpu", *options, "--kernels", version,
                    "--precision", precision) == 0
    steps, expected = (left(tmp_path / device)[0] for device in ("gpu", "cpu"))
    assert all(step.get("grad_norm", 0) is not None for step in steps)
    for ours, theirs in zip(steps, expected, strict=True):
        key = "loss" if "loss" in ours else "train_loss"
        assert ours[key] == pytest.approx(theirs[key], rel=limit)


@pytest.mark.parametrize("cupy, expected", [
    (None, "CuPy is not installed, expected the extra cuda13 or cuda12"),
    (SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)),
     "CuPy finds no CUDA card or no driver"),
    (SimpleNamespace(cuda=standin_cupy.cuda, zeros=None), "the card takes no array"),
], ids=["no CuPy", "no card", "old driver"])
@pytest.mark.parametrize("command", [
    ["finetune", "--model", "scratch"], ["pretrain", "--text", "none.txt"],
    ["evaluate", "--model", "none", "--test", "none"], ["predict", "--model", "none", "text"],
    ["generate", "--model", "none", "text"], ["check", "softmax"]], ids=lambda c: c[0])
def test_without_a_card_one_line_says_what_is_missing(monkeypatch, capsys, cupy, expected, command):
    if hasattr(cupy, "zeros"):
        def zeros(n):
            raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")

        monkeypatch.setattr(cupy, "zeros", zeros)
    monkeypatch.setattr(array, "cupy", cupy)
    assert main([*command, "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minisft: --device cuda: ") and expected in error
    assert error.count("\n") == 1


@needs_compiler
def test_check_takes_the_kernels_to_the_card(card, capsys):
    # "dropout" alone is in the names of whole models too
    names = ["gelu", "embedding", "cross_entropy", "more, dropout"] + [
        f"{kernel}, 16 channels, dropout, few queries, causal"
        for kernel in ("naive", "fused", "bfloat16")]
    assert main(["check", *names, "--device", "cuda"]) == 0
    out = capsys.readouterr().out
    assert "cross_entropy (all options)" in out
    assert all(name in out for name in names)
    dropout = KERNEL_CHECKS["dropout"]
    assert all(row.error <= row.limit for row in dropout.results(put=array.to_gpu))
    assert main(["check", "embedding", "--device", "cpu"]) == 0
    assert "kernel, float32" not in capsys.readouterr().out


def test_the_stand_in_is_strict():
    here = np.arange(3.0)
    there = standin_cupy.asarray(here)
    for mixed in (lambda: here + there, lambda: there * here, lambda: there[np.array([0])],
                  lambda: there.__setitem__(0, here[:1]), lambda: standin_cupy.exp(here),
                  lambda: np.exp(there), lambda: np.asarray(there),
                  lambda: standin_cupy.where(there > 1, here, 0), lambda: there.__iadd__(here)):
        with pytest.raises(TypeError):
            mixed()
    assert isinstance(np.float64(2) * there, standin_cupy.ndarray)
    assert isinstance(there.sum(), standin_cupy.ndarray) and float(there.sum()) == 3
    here[0] = 5
    assert float(there[0]) == 0


def test_cupy_has_what_the_stand_in_has():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("no CuPy")
    import cupy
    for name in standin_cupy.FUNCTIONS + standin_cupy.TYPES:
        assert hasattr(cupy, name), name
    for name in standin_cupy.METHODS + standin_cupy.ATTRIBUTES:
        assert hasattr(cupy.ndarray, name), name
    assert hasattr(cupy.add, "reduceat")
