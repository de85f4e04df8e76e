"""Initial values belong to the name: no order of lines or layers changes them."""

import numpy as np
import pytest

from minisft.backend import random
from minisft.errors import UserError
from minisft.models.config import BertConfig, GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.init_weights import init_weights, published_place

GPT2 = GPT2Config(vocab_size=7, n_positions=5, n_embd=8, n_layer=12, n_head=2)
BERT = BertConfig(vocab_size=7, max_position_embeddings=5, hidden_size=8, num_hidden_layers=12,
                  num_attention_heads=2, intermediate_size=9)
MODELS = [lambda: Classifier(GPT2, "ab", seed=3), lambda: LanguageModel(GPT2, tied=False, seed=3),
          lambda: BertClassifier(BERT, "ab", seed=3)]


@pytest.mark.parametrize("make", MODELS)
def test_no_order_changes_a_value(rng, make):
    model = make()
    parameters = model.parameters()
    expected = {p.name: p.value.copy() for p in parameters}
    for _ in range(3):
        for p in parameters:
            p.value[...] = 9
        init_weights([parameters[i] for i in rng.permutation(len(parameters))], seed=3)
        for p in parameters:
            assert np.array_equal(p.value, expected[p.name]), p.name


@pytest.mark.parametrize("make", MODELS)
def test_the_numbers_are_those_of_the_published_order(make):
    """The classes make their layers in that order too: values of older runs stay what they were."""
    parameters = make().parameters()
    assert [p.name for p in sorted(parameters, key=lambda p: published_place(p.name))] == \
        [p.name for p in parameters]
    for number, p in enumerate(parameters):
        drawn = p.scale * random.normal(p.shape, 3, number)
        assert np.array_equal(p.value, np.float32(p.fill) + drawn.astype(np.float32)), p.name


def test_some_names_leave_the_others_alone():
    model = Classifier(GPT2, "ab", seed=3)
    head = model.store["score.weight"].value.copy()
    for p in model.store:
        p.value[...] = 9
    init_weights(model.parameters(), 3, ("score.weight",))
    assert np.array_equal(model.store["score.weight"].value, head)
    assert all((p.value == 9).all() for p in model.store if p.name != "score.weight")


@pytest.mark.parametrize("name", ["decoder.layer.0.dense.weight", "wte.scale", "h.0.attn.bias"])
def test_a_name_without_a_place_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} has no place in models/init_weights.py"):
        published_place(name)


def test_the_scale_is_an_option_of_the_config():
    shape = {"vocab_size": 300, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 2}
    narrow, usual = (LanguageModel(GPT2Config(**shape, **options), seed=3)
                     for options in ({"initializer_range": 0.1}, {}))
    for p in usual.store:
        if p.scale:
            np.testing.assert_allclose(narrow.store[p.name].value, 5 * p.value, rtol=1e-5)
            assert p.scale == (0.01 if p.name.endswith("c_proj.weight") else 0.02)


@pytest.mark.parametrize("value", ["0.1", None, True, -0.1, 1e9, float("nan"), [0.02]])
def test_a_scale_that_cannot_be_is_refused(value):
    with pytest.raises(UserError, match="x: initializer_range is"):
        GPT2Config.from_dict({"initializer_range": value}, "x")
