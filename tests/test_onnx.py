"""Folders of minisft, exported by optimum and computed by ONNX Runtime: the same logits.

    pip install "optimum-onnx[onnxruntime]" && python -m pytest -m parity tests/test_onnx.py
"""

import re
from pathlib import Path

import numpy as np
import pytest

import minisft
from minisft.data import toy_news
from minisft.data.text import train_tokenizer
from minisft.io.hub import BUNDLED
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.config import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "onnx.md"
TEXTS = ["The goalkeeper of Velden won a medal", "Shares", toy_news.generate("train")[0][0]]

pytestmark = [pytest.mark.parity, pytest.mark.slow,
              # of torch's exporter, which is not ours to silence one by one
              pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def export():
    return pytest.importorskip("optimum.exporters.onnx", reason="needs optimum-onnx").main_export


def folder_of(kind, folder):
    """-> the folder of a model with weights that are large enough to tell."""
    if kind == "bundled language model":
        return BUNDLED / "minisft-gpt2"
    tokenizer = train_tokenizer(TEXTS, 400)
    if kind == "GPT-2 classifier":
        model = Classifier(GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2,
                                      n_head=2), ["a", "b", "c"])
    else:
        model = BertClassifier(BertConfig(
            vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64), ["a", "b", "c"])
    model.store.values[...] += 0.1 * np.random.default_rng(0).standard_normal(
        model.store.values.shape).astype(np.float32)
    write_folder(folder, model, tokenizer, Preprocessing())
    return folder


@pytest.mark.parametrize("kind, task", [
    ("GPT-2 classifier", "text-classification"), ("BERT classifier", "text-classification"),
    ("bundled language model", "text-generation")])
def test_logits_are_the_same(kind, task, export, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    folder = folder_of(kind, tmp_path / "model")
    export(str(folder), tmp_path / "onnx", task=task)
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    wanted = [each.name for each in session.get_inputs()]
    model, tokenizer = minisft.load(folder, task={"text-generation": "complete"}.get(
        task, "classify"))
    for text in TEXTS:
        ids = np.array(tokenizer.encode(text).ids)
        inputs = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64),
                  "position_ids": np.arange(len(ids))[None],
                  "token_type_ids": np.zeros((1, len(ids)), np.int64)}
        (theirs,) = session.run(["logits"], {name: inputs[name] for name in wanted})
        ours = np.asarray(model.forward(minisft.pack([ids])))
        assert np.abs(ours).max() > 0.1
        assert np.abs(ours - theirs.reshape(ours.shape)).max() < 1e-5 * max(1, np.abs(ours).max())


def test_the_page_s_example_prints_the_logits(export, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    folder = folder_of("GPT-2 classifier", tmp_path / "runs/news/model")
    (command,) = re.findall(r"^optimum-cli export onnx (.*)$", PAGE.read_text("utf-8"), re.M)
    _, model, _, task, out = command.split()
    export(model, out, task=task)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    names = {}
    exec(example, names)
    ours, tokenizer = minisft.load(folder)
    ids = np.array(tokenizer.encode("The goalkeeper of Velden won a medal").ids)
    assert np.asarray(ours.forward(minisft.pack([ids]))) == pytest.approx(names["logits"], abs=1e-5)
    assert str(names["logits"]) in capsys.readouterr().out
