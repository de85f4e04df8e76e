"""The same text gives the same answer in `transformers`: our folders there, and theirs here.

Each folder is a kind that people have: random weights, wide enough that logits differ.
"""

import os
import warnings

import numpy as np
import pytest

from minisft.data.sequences import encode_sequences
from minisft.data.text import clean, train_tokenizer
from minisft.evaluation.evaluate import log_probabilities
from minisft.io.model_folder import Preprocessing, read_folder, write_folder
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel

pytestmark = pytest.mark.parity

SHAPE = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
TEXTS = ["a film about a river", "first line\nsecond  line", "the river of a film", "a long film"]


@pytest.fixture(scope="module")
def hf():
    """transformers; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


def ours(tokenizer, labels=None):
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), **SHAPE)
    model = Classifier(config, labels) if labels else LanguageModel(config)
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(
        model.store.size).astype(np.float32)
    return model


def our_probabilities(folder, texts):
    """As `minisft predict` has them."""
    model, tokenizer, preprocessing = read_folder(folder)
    texts = [clean(text, preprocessing.clean)[0] for text in texts]
    ids, types, _ = encode_sequences(tokenizer, texts, preprocessing.max_length,
                                     preprocessing.truncate)
    return np.exp(log_probabilities(model, ids, 1000, types=types))


def their_probabilities(hf, folder, texts):
    """As the pipeline has them: tokenizer and model as they come."""
    pipe = hf.pipeline("text-classification", model=str(folder), top_k=None)
    names = list(pipe.model.config.id2label.values())
    return np.array([[next(p["score"] for p in row if p["label"] == name) for name in names]
                     for row in pipe(texts, truncation=True)])


def test_our_classifier_as_it_comes(hf, tokenizer, tmp_path):
    """Every argument that the tokenizer gives goes to the model: token types would be added."""
    write_folder(tmp_path, ours(tokenizer, ("neg", "pos", "so")), tokenizer,
                 Preprocessing(clean=()))
    expected = their_probabilities(hf, tmp_path, TEXTS)
    assert np.ptp(expected, axis=0).min() > 0.01
    np.testing.assert_allclose(our_probabilities(tmp_path, TEXTS), expected, atol=1e-5)
