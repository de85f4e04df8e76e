"""all-MiniLM-L6-v2, a real BERT: `MINISFT_MINILM=FOLDER python -m pytest -m slow tests`.

docs/how-to/bert.md says how to get the folder; a copy in the Hugging Face cache is found without.
"""

import os

import numpy as np
import pytest

from minisft.backend.array import to_cpu
from minisft.data.batch import pack
from minisft.data.sequences import encode_sequences
from minisft.data.text import load_tokenizer
from minisft.errors import UserError
from minisft.io.checkpoint import load, save
from minisft.io.hub import resolve
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.bert import count

pytestmark = pytest.mark.slow
NAMES = "business", "sports", "technology", "world"


@pytest.fixture(scope="module")
def folder():
    try:
        return resolve(os.environ.get("MINISFT_MINILM", "sentence-transformers/all-MiniLM-L6-v2"))
    except UserError as error:
        pytest.skip(f"no MiniLM here: {error}")


def test_size(folder):
    model = load(folder, label_names=NAMES)
    assert model.newly_initialized == ("classifier.weight", "classifier.bias")
    assert count(model.trunk.config) == 22_713_216


def test_published_similarities(folder):
    """The numbers that its authors print in the README of sentence-transformers."""
    model, tokenizer = load(folder, label_names=NAMES, pooling="mean"), load_tokenizer(folder)
    ids, _, _ = encode_sequences(tokenizer, [
        "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    batch = pack(ids)
    mean = to_cpu(model.pooler.forward(model.trunk.forward(batch), batch))
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(mean @ mean.T, expected, atol=6e-5)


def test_transformers_gives_the_same(folder, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load(folder, label_names=NAMES, seed=1), load_tokenizer(folder)
    model.store["classifier.weight"].value *= 50      # a new head would give flat rows
    write_folder(tmp_path, model, tokenizer, Preprocessing())
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    published = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["Shares fell in London.", "It's so sunny outside! " * 9, "Café 日本 [SEP] x", "a"]
    ids, _, _ = encode_sequences(tokenizer, texts)
    # the published folder's own way takes the literal [SEP] for the token
    assert [row.tolist() for row in ids] == peer_tokenizer(texts)["input_ids"] == published(
        texts, split_special_tokens=True)["input_ids"]
    with torch.no_grad():
        expected = peer(**peer_tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    logits = model.forward(pack(ids))
    assert expected.std(axis=1).min() > 0.1
    print(f"logits {np.abs(logits - expected).max():.1e}")
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    save(model, tmp_path, np.float16)
    np.testing.assert_allclose(load(tmp_path).forward(pack(ids)), expected, atol=5e-3)
