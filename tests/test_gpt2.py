"""GPT-2's config and size: the published models, and what is refused by name."""

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.errors import UserError
from minisft.models.config import SIZES, GPT2Config
from minisft.models.gpt2 import count
from minisft.models.heads import Classifier, LanguageModel

PUBLISHED = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
             "gpt2-xl": 1_557_611_200}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    config = GPT2Config.size(name)
    assert count(config) == PUBLISHED[name]
    # the same number from the shapes of the model itself, the tied matrix counted once
    shapes = LanguageModel(config, dtype=None).parameters()
    assert sum(p.size for p in shapes) == PUBLISHED[name]
    assert config.n_embd // config.n_head == 64


@pytest.mark.parametrize("n_inner", [None, 7, 40])
def test_count_is_what_a_model_holds(n_inner):
    config = GPT2Config(vocab_size=13, n_positions=9, n_embd=6, n_layer=3, n_head=2,
                        n_inner=n_inner)
    assert LanguageModel(config).store.size == count(config)
    assert LanguageModel(config, tied=False).store.size == count(config) + 13 * 6
    assert Classifier(config, "ab").store.size == count(config) + 12


def test_initial_values_are_gpt2s():
    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=4, n_head=4)
    store = LanguageModel(config, seed=3).store
    for name, scale in (("wte.weight", 0.02), ("h.1.mlp.c_fc.weight", 0.02),
                        ("h.2.mlp.c_proj.weight", 0.02 / np.sqrt(8)),
                        ("h.2.attn.c_proj.weight", 0.02 / np.sqrt(8))):
        assert store[name].value.std() == pytest.approx(scale, rel=0.05)
        assert abs(store[name].value.mean()) < scale / 20
    assert (store["ln_f.weight"].value == 1).all() and (store["h.0.ln_1.bias"].value == 0).all()
    other = LanguageModel(config, seed=4).store
    assert (other["wte.weight"].value != store["wte.weight"].value).mean() > 0.99


@pytest.mark.parametrize("key, value", [
    ("scale_attn_by_inverse_layer_idx", True), ("add_cross_attention", True),
    ("scale_attn_weights", False), ("activation_function", "relu"), ("activation_function", []),
    ("n_head", 5), ("n_layer", 0), ("n_embd", "64"), ("vocab_size", True), ("resid_pdrop", 1),
    ("layer_norm_epsilon", 0), ("model_type", "llama"), ("n_inner", -1)])
def test_what_we_do_not_have_is_refused_by_name(key, value):
    settings = {"vocab_size": 11, "n_positions": 8, "n_embd": 64, "n_layer": 2, "n_head": 4}
    GPT2Config.from_dict(settings, "here/config.json")
    with pytest.raises(UserError, match=f"here/config.json: {key}|n_head"):
        GPT2Config.from_dict(settings | {key: value}, "here/config.json")


@pytest.mark.parametrize("kind", ["classifier", "language model"])
@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_what_a_zeroed_gradient_held_is_never_read(rng, kind, layers):
    config = GPT2Config(vocab_size=23, n_positions=12, n_embd=8, n_layer=2,
                        n_head=2).with_dropout(0)
    ids = [rng.integers(0, 23, n) for n in (5, 1, 7)]
    labels = [0, 1, 2] if kind == "classifier" else [np.append(x[1:], -100) for x in ids]

    def gradients(before):
        model = (Classifier(config, "abc", seed=1) if kind == "classifier" else
                 LanguageModel(config, seed=1))
        if layers != "all":
            model.train_layers(layers)
        model.store.grads[...] = before
        model.store.zero_grad()
        model.loss(pack(ids, labels))
        model.loss_backward()
        return model.store.grads.copy()

    np.testing.assert_array_equal(gradients(np.nan), gradients(0))
