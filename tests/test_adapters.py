"""Adapters in a model: what is trained, what stays, what company and order change (nothing)."""

import copy
import pickle

import numpy as np
import pytest

from minisft.backend.cpu import jit
from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.dispatch import FLOAT16, watched
from minisft.errors import UserError
from minisft.models import bert
from minisft.models.adapters import (
    LoraConfig,
    adapted,
    from_layer_on,
    linear_maps,
    target_names,
)
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.token_heads import TokenClassifier
from minisft.nn import layers, lora
from minisft.nn.parameters import Parameters
from minisft.verify.gradcheck import MODEL_LIMIT, require
from minisft.verify.gradient_checks import check_model

GPT2 = GPT2Config(vocab_size=101, n_positions=9, n_embd=8, n_layer=3, n_head=2, embd_pdrop=0.2,
                  attn_pdrop=0.2, resid_pdrop=0.2)
BERT = BertConfig(vocab_size=101, max_position_embeddings=9, hidden_size=8, num_hidden_layers=3,
                  num_attention_heads=2, intermediate_size=12, hidden_dropout_prob=0.2,
                  attention_probs_dropout_prob=0.2)
LABELS = "a", "b", "c"
KINDS = {
    "gpt2": lambda **o: Classifier(GPT2, LABELS, **o),
    "bert": lambda **o: BertClassifier(BERT, LABELS, **o),
    "bert mean": lambda **o: BertClassifier(BERT, LABELS, pooling="mean", **o),
    "tied": lambda **o: LanguageModel(GPT2, **o),
    "separate": lambda **o: LanguageModel(GPT2, False, **o),
    "tags": lambda **o: TokenClassifier(BERT, LABELS, **o)}
HEADS = {"gpt2": ["score.weight"],
         "bert": ["pooler.dense.weight", "pooler.dense.bias", "classifier.weight",
                  "classifier.bias"],
         "bert mean": ["classifier.weight", "classifier.bias"],
         "tags": ["classifier.weight", "classifier.bias"], "tied": [], "separate": []}
TEXTS = [[3], [1, 4, 1, 10, 9, 8, 7], [2, 6, 3], [5, 5]]


def model_of(name, dtype=np.float64, config=None):
    """-> a model with wide values, and adapters whose B is none of zeros."""
    model = KINDS[name](dtype=dtype)
    rng = np.random.default_rng(0)
    model.store.values += 0.2 * rng.standard_normal(model.store.values.size).astype(dtype)
    model.add_adapter(config or LoraConfig(r=2, lora_alpha=3, lora_dropout=0.3))
    for layer in adapted(model).values():
        layer.lora_B.value[...] = 0.3 * rng.standard_normal(layer.lora_B.shape)
    return model


def labelled(model, ids, numbers):
    labels = ([i % 3 for i in numbers] if isinstance(model, Classifier) else
              [np.roll(x, -1) % len(LABELS) for x in ids])
    return pack(ids, example_ids=numbers, labels=labels)


def gradients(model, ids=TEXTS, numbers=range(4), stream=None):
    model.store.zero_grad()
    model.loss(labelled(model, ids, list(numbers)), stream)
    model.loss_backward()
    return model.store.grads.copy()


@pytest.mark.parametrize("name", KINDS)
def test_the_base_stays_and_the_head_is_trained(name):
    model = KINDS[name](dtype=np.float32)
    batch, plain = pack(TEXTS), model.forward(pack(TEXTS)).copy()
    base = {p.name: p.value.copy() for p in model.store}
    model.add_adapter(LoraConfig(r=2))
    assert np.array_equal(model.forward(batch), plain)     # B is zero
    trained = [p.name for p in model.store.trainable]
    assert sorted(trained) == sorted(HEADS[name] + [
        f"{linear}.lora_{side}.weight" for linear in linear_maps(model) for side in "AB"
        if not linear.startswith("pooler")])
    assert all(model.store[n].grad is None for n in base if n not in HEADS[name])
    assert len(model.store.values) == len(model.store.grads) == sum(
        model.store[n].size for n in trained)
    grads = gradients(model)
    assert np.isfinite(grads).all() and not any(
        model.store[n].grad.any() for n in trained if "lora_A" in n)     # since B is zero
    model.store.values -= 0.1 * grads
    assert gradients(model) is not None and any(
        model.store[n].grad.any() for n in trained if "lora_A" in n)
    assert all(np.array_equal(model.store[n].value, base[n]) for n in base
               if n not in HEADS[name])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rate", [0.3, 0.0])
def test_whole_model_matches_finite_differences(name, rate):
    """With dropout before A, and without it: then most maps are merged."""
    model = model_of(name, config=LoraConfig(r=2, lora_alpha=3, lora_dropout=rate))
    rows = check_model(model)
    assert len(rows) == 2 * len(model.store.trainable)
    require(rows, MODEL_LIMIT / 10)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("drops", [False, True])
def test_company_and_order_change_nothing(name, drops):
    """Also of the adapter's own dropout, and of a last block that computes a few rows only."""
    model, stream = model_of(name), Stream(5, 2) if drops else None
    alone = sum(gradients(model, [ids], [i], stream) for i, ids in enumerate(TEXTS))
    together = gradients(model, TEXTS[::-1], range(4)[::-1], stream)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-9 * np.abs(alone).max())


@pytest.mark.parametrize("name, rows", [("gpt2", "last"), ("bert", "first")])
def test_a_pruned_last_block_gives_the_same(name, rows):
    model, batch = model_of(name), pack(TEXTS)
    whole = model.trunk.forward(batch, Stream(1, 1))
    pruned = model.trunk.forward(batch, Stream(1, 1), True)
    np.testing.assert_allclose(pruned, whole[getattr(batch, rows)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_gradient_checkpointing_gives_the_same_bits(name):
    model = model_of(name, np.float32)
    plain = gradients(model, stream=Stream(5, 2))
    for block in model.trunk.blocks:
        block.gradient_checkpointing = True
    assert np.array_equal(gradients(model, stream=Stream(5, 2)), plain)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype, limit", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_merged_gives_the_same(name, dtype, limit):
    model, batch = model_of(name, dtype), pack(TEXTS)
    apart, size = model.forward(batch).copy(), KINDS[name](dtype=dtype).store.size
    model.merge_adapter()
    assert model.adapter is None and not adapted(model) and model.store.size == size
    assert not any(block.adapters for block in model.trunk.blocks)
    np.testing.assert_allclose(model.forward(batch), apart, rtol=0, atol=limit)
    assert np.abs(apart).max() > 0.1
    gradients(model)     # and it can be trained on


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("which", ["all", "last:2"])
def test_a_step_of_merged_maps_is_that_of_separate_ones(name, which, monkeypatch):
    """The same loss and gradients, of a fused and pruned map too, and fewer large products."""
    model, products = KINDS[name](dtype=np.float64), {}
    model.train_layers(which)
    model.add_adapter(from_layer_on(LoraConfig(r=2, lora_alpha=3),
                                    model.trunk.first_trainable_layer, model.trunk.config))
    rng = np.random.default_rng(0)
    for layer in adapted(model).values():
        layer.lora_B.value[...] = 0.3 * rng.standard_normal(layer.lora_B.shape)
    for kind, merged, together in (("apart", False, False), ("merged", True, False),
                                   ("together", True, True)):
        monkeypatch.setattr(lora, "is_merged", lambda *sizes, merged=merged: merged)
        monkeypatch.setattr(bert, "merges_together",
                            lora.merges_together if together else lambda maps, x: False)
        seen = []
        with watched(lambda operation, direction, y, seen=seen: seen.append(
                (operation, direction))):
            found = gradients(model, stream=Stream(5, 2))
        products[kind] = found, model.forward(pack(TEXTS)), seen
    for kind in ("merged", "together"):
        for merged, apart in zip(products[kind][:2], products["apart"][:2], strict=True):
            np.testing.assert_allclose(merged, apart, rtol=0, atol=1e-12 * np.abs(apart).max())
    assert np.abs(products["apart"][0]).max() > 0
    apart, merged, together = (seen for _, _, seen in products.values())
    assert ("lora", "forward") in apart and ("lora", "forward") not in merged
    assert [x for x in apart if x[0] != "lora"] == [x for x in merged if x[0] != "factor_gradients"]
    # of BERT's queries, keys and values, where all of a block's tokens ask
    assert (together.count(("linear", "forward")) < merged.count(("linear", "forward"))) == (
        "bert" in name or name == "tags")


@pytest.mark.parametrize("sizes, merged", [
    ((193, 384, 384), True), ((192, 384, 384), False), ((1, 8, 8), False), ((4, 8, 8), False),
    ((5, 8, 8), True)])
def test_a_map_is_merged_where_that_is_less_to_pass_over(sizes, merged, monkeypatch):
    assert lora.is_merged(*sizes) == merged
    rows, width_in, width_out = sizes
    layer = lora.LoraLinear(layers.Linear("c_fc", width_in, width_out, 1), 2, 1.5, 0.1)
    store = Parameters(layer.parameters())
    store.train(lambda p: "lora" in p.name)
    x = np.ones((rows, width_in), np.float32)

    def kept():
        return len(layer.forward_columns(x, slice(None))[1])

    assert (kept() == 2) == merged
    store.set_compute_dtype(FLOAT16)      # in which a sum would lose a small update
    assert kept() == 3
    store.set_compute_dtype(None)
    layer.begin(pack([[1] * rows]), Stream(0, 0), None)
    assert kept() == 3
    layer.rate = 0.0
    assert (kept() == 2) == merged
    store.train(lambda p: True)           # the matrix has a gradient of its own
    assert kept() == 3


@pytest.mark.skipif(not jit.enabled(), reason="the formula keeps more than the adapter does")
def test_gelu_runs_once_where_an_adapter_keeps_its_output():
    model, runs = model_of("gpt2", np.float32), []
    with watched(lambda operation, direction, y: runs.append((operation, direction))):
        gradients(model)
    assert runs.count(("gelu", "forward")) == runs.count(("gelu", "backward")) == len(
        model.trunk.blocks)


@pytest.mark.parametrize("rows, merges", [(15, 2), (16, 1)])
def test_a_merged_matrix_is_kept_where_it_is_no_larger_than_x(rows, merges, monkeypatch, rng):
    layer = lora.LoraLinear(layers.Linear("c_fc", 8, 16, 1), 2, 1.5)
    store = Parameters(layer.parameters())
    store.train(lambda p: "lora" in p.name)
    for p in store:
        p.value[...] = rng.standard_normal(p.shape)
    plain, calls = lora._merge, []
    monkeypatch.setattr(lora, "_merge", lambda *given: (calls.append(1), plain(*given))[1])
    y, cache = layer.forward_columns(np.eye(rows, 8, dtype=np.float32), slice(None))
    dx = layer.backward_columns(np.eye(rows, 16, dtype=np.float32), cache, slice(None))
    assert len(calls) == merges
    np.testing.assert_allclose(dx[:8, :8], (y[:8, :8] - layer.b.value[:8]).T, rtol=0, atol=1e-6)


def test_dropout_is_drawn_for_each_map_alone():
    model = model_of("gpt2", config=LoraConfig(r=2, lora_dropout=0.5))
    x, batch = np.ones((13, 8)), pack(TEXTS)
    kept = {}
    for name, layer in adapted(model).items():
        layer.begin(batch, Stream(0, 0), None)
        kept[name] = (layer._dropped(x)[0] > 0).tobytes()
        layer.begin(batch, None, None)
        assert layer._dropped(x) == (x, None)
    assert len(set(kept.values())) == len(kept)


def test_values_are_drawn_for_each_map_alone():
    """Not from the stream of any other parameter, whatever maps are adapted."""
    def a_of(config, seed=0, **options):
        model = Classifier(GPT2, LABELS, **options)
        head = model.store["score.weight"].value.copy()
        model.add_adapter(config, seed)
        assert np.array_equal(model.store["score.weight"].value, head)
        return {p.name: p.value for p in model.store if ".lora_" in p.name}

    every = a_of(LoraConfig(r=64))
    some = a_of(LoraConfig(r=64, target_modules=("c_proj",), layers_to_transform=(1, 2)))
    assert len(every) == 24 and len(some) == 8
    assert all(np.array_equal(every[name], some[name]) for name in some)
    assert all(not value.any() for name, value in every.items() if "lora_B" in name)
    values = [value.ravel() for name, value in every.items() if "lora_A" in name]
    # the variance of PEFT's uniform values, 1 / (3 in)
    widths = [value.shape[1] for name, value in every.items() if "lora_A" in name]
    for value, width in zip(values, widths, strict=True):
        assert value.std() == pytest.approx(1 / np.sqrt(3 * width), rel=0.1)
    table = Classifier(GPT2, LABELS).store["wte.weight"].value.ravel()     # drawn first of all
    assert abs(np.corrcoef(values[0][:512], table[:512])[0, 1]) < 0.25
    correlations = np.corrcoef([value[:512] for value in values])
    assert np.abs(correlations - np.eye(len(values))).max() < 0.25
    other = a_of(LoraConfig(r=64), seed=1)
    assert not np.array_equal(other["h.0.attn.c_attn.lora_A.weight"],
                              every["h.0.attn.c_attn.lora_A.weight"])


@pytest.mark.parametrize("config, expected", [
    (LoraConfig(), ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    (LoraConfig(target_modules=("c_attn",)), ["attn.c_attn"]),
    (LoraConfig(target_modules=("mlp.c_proj", "c_attn")), ["attn.c_attn", "mlp.c_proj"]),
    (LoraConfig(target_modules=r".*\.attn\.c_(attn|proj)"), ["attn.c_attn", "attn.c_proj"]),
    (LoraConfig(target_modules=r"transformer\.h\.\d\.mlp.*"), ["mlp.c_fc", "mlp.c_proj"]),
    (LoraConfig(target_modules=("transformer.h.0.attn.c_attn", "h.1.attn.c_attn",
                                "h.2.attn.c_attn", "attn.c_at", "c_fc.x")), ["attn.c_attn"])])
def test_targets_are_meant_as_peft_means_them(config, expected):
    model = Classifier(GPT2, LABELS)
    model.add_adapter(config)
    assert list(adapted(model)) == [f"h.{i}.{name}" for i in range(3) for name in expected]


def test_ranks_and_scales_by_pattern():
    config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"c_proj": 16, r"h\.1\.attn\.c_attn": 2},
                        alpha_pattern={"mlp.c_proj": 32})
    assert [config.rank(n) for n in ("h.0.attn.c_attn", "h.1.attn.c_attn", "h.1.mlp.c_proj")] == \
        [4, 2, 16]
    assert [config.scale(n) for n in ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.1.mlp.c_proj")] == \
        [2.0, 0.5, 2.0]
    assert LoraConfig(r=4, lora_alpha=8, use_rslora=True).scale("h.0.attn.c_attn") == 4.0
    model = Classifier(GPT2, LABELS)
    model.add_adapter(config)
    assert model.store["h.1.attn.c_attn.lora_A.weight"].shape == (2, 8)
    assert model.store["h.1.attn.c_proj.lora_B.weight"].shape == (8, 16)


def test_upper_blocks_only():
    model = BertClassifier(BERT, LABELS)
    model.train_layers("last:2")
    config = from_layer_on(LoraConfig(), model.trunk.first_trainable_layer, BERT)
    model.add_adapter(config)
    assert {name.split(".")[2] for name in adapted(model)} == {"1", "2"}
    assert model.trunk.first_trainable_layer == 2
    assert from_layer_on(config, 0, BERT) == from_layer_on(config, 1, BERT) == LoraConfig()


def test_names_that_a_user_gives():
    model = BertClassifier(BERT, LABELS)
    assert target_names(model) == (
        "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", "intermediate.dense", "output.dense")
    assert target_names(model, ["query", "value"]) == ("query", "value")
    for name in ("quer", "pooler.dense", "classifier", "c_attn"):
        with pytest.raises(UserError, match=f"adapter_targets: no linear map of a block is called "
                                            f"'{name}', expected ends of attention.self.query"):
            target_names(model, [name])


@pytest.mark.parametrize("name", KINDS)
def test_pickles_and_copies_keep_the_adapter(name):
    model, batch = model_of(name, np.float32), pack(TEXTS)
    for other in pickle.loads(pickle.dumps(model)), copy.deepcopy(model):
        assert other.adapter == model.adapter
        assert np.array_equal(other.forward(batch), model.forward(batch))
        assert [p.name for p in other.store.trainable] == [p.name for p in model.store.trainable]


def test_refused():
    model = Classifier(GPT2, LABELS)
    with pytest.raises(ValueError, match="no linear map of the chosen blocks is one of .'query',., "
                                         "expected ends of attn.c_attn, attn.c_proj, mlp.c_fc"):
        model.add_adapter(LoraConfig(target_modules=("query",)))
    model.add_adapter(LoraConfig())
    with pytest.raises(ValueError, match="has an adapter already: merge_adapter first"):
        model.add_adapter(LoraConfig())
    with pytest.raises(ValueError, match="there is a parameter wte.weight already"):
        model.store.add([model.store["wte.weight"]])


@pytest.mark.parametrize("precision, limit", [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_16_bits_are_near_32(name, precision, limit):
    model = model_of(name, np.float32)
    plain, exact = model.forward(pack(TEXTS)).copy(), gradients(model, stream=Stream(5, 2))
    model.to("cpu", precision)
    rounded = gradients(model, stream=Stream(5, 2))
    cosine = rounded @ exact / np.sqrt((rounded @ rounded) * (exact @ exact))
    assert 0.99 < cosine < 1 and not np.array_equal(rounded, exact)
    np.testing.assert_allclose(model.forward(pack(TEXTS)), plain, rtol=0,
                               atol=limit * np.abs(plain).max())


@pytest.mark.parametrize("name", KINDS)
def test_biases_alone(name, monkeypatch):
    """BitFit: no product for the gradient of any matrix but the head's."""
    model = KINDS[name](dtype=np.float64)
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(model.store.values.size)
    model.train_layers("all")
    expected = dict(zip((p.name for p in model.store.trainable), np.split(
        gradients(model), np.cumsum([p.size for p in model.store.trainable])[:-1]), strict=True))
    model.train_layers("bias")
    trained = [p.name for p in model.store.trainable]
    assert set(trained) == {n for n in expected if n.endswith(".bias")} | set(HEADS[name])
    asked = []
    backward = layers.linear.backward
    monkeypatch.setattr(layers.linear, "backward",
                        lambda *args: asked.append(args) or backward(*args))
    found = gradients(model)
    assert len(asked) == sum(n.endswith(".weight") for n in HEADS[name])
    np.testing.assert_allclose(found, np.concatenate([expected[n] for n in trained]), rtol=0,
                               atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("which", ["all", "last:1", "last:2"])
def test_the_gradient_of_the_lowest_input_is_left_out(name, which, monkeypatch):
    """Frozen matrices below whose input nothing is trained: the same gradients without it."""
    model = KINDS[name](dtype=np.float64)
    model.train_layers(which)
    model.add_adapter(from_layer_on(LoraConfig(r=2), model.trunk.first_trainable_layer,
                                    model.trunk.config))
    for layer in adapted(model).values():
        layer.lora_B.value[...] = 0.1
    lowest = model.trunk.blocks[model.trunk._n_frozen()]
    backward, asked = type(lowest).backward, []

    def noted(self, dy, needs_dx=True):
        asked.append((self is lowest, needs_dx, backward(self, dy, needs_dx)))
        return asked[-1][2]

    monkeypatch.setattr(type(lowest), "backward", noted)
    found = gradients(model)
    assert all(needs_dx != is_lowest == (dx is None) for is_lowest, needs_dx, dx in asked)
    monkeypatch.setattr(type(lowest), "backward",
                        lambda self, dy, needs_dx=True: backward(self, dy, True))
    np.testing.assert_array_equal(gradients(model), found)
