"""What a model folder says beside the weights, and what is made of it when it is read again."""

import numpy as np
import pytest

from minisft.data.text import train_tokenizer
from minisft.io.files import read_json
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel

SHAPE = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
TEXTS = ["a film about a river", "the river of a film", "a long, long film"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


def gpt2(tokenizer, labels=("neg", "pos"), **shape):
    """A classifier whose weights are no zeros and no ties."""
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), **SHAPE | shape)
    model = Classifier(config, labels) if labels else LanguageModel(config)
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(
        model.store.size).astype(np.float32)
    return model


def test_the_model_says_what_its_tokenizer_gives(tokenizer, tmp_path):
    """Not the kind of the tokenizer: GPT-2 has no token types, whatever splits its words."""
    write_folder(tmp_path / "gpt2", gpt2(tokenizer), tokenizer, Preprocessing())
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=8, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=8, max_position_embeddings=32)
    write_folder(tmp_path / "bert", BertClassifier(config, "ab"), tokenizer, Preprocessing())
    names = {family: read_json(tmp_path / family / "tokenizer_config.json")["model_input_names"]
             for family in ("gpt2", "bert")}
    assert names == {"gpt2": ["input_ids", "attention_mask"],
                     "bert": ["input_ids", "token_type_ids", "attention_mask"]}
