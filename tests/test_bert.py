"""BERT's config, layers and classifier: sizes, every gradient, the pruned last block, freezing."""

import numpy as np
import pytest

from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.errors import UserError
from minisft.models import bert
from minisft.models.bert import BertConfig, count
from minisft.models.heads import BertClassifier
from minisft.nn.parameters import Parameters
from minisft.verify import gradcheck

WIDTH = 6
STREAM = gradcheck.drawing_once(Stream(seed=7, step=3))
LENGTHS = (3, 1, 4)
FIRST = np.array([0, 3, 4])
POOLINGS = BertClassifier.POOLINGS


def config(**options):
    return BertConfig(**{"vocab_size": 11, "hidden_size": WIDTH, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "intermediate_size": 7,
                         "max_position_embeddings": 8, "hidden_dropout_prob": 0.25,
                         "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.2,
                         **options})


def batch_of(rng, lengths=LENGTHS, classes=3):
    """Texts of which the last is a pair."""
    types = [np.zeros(n, int) for n in lengths]
    types[-1][1:] = 1
    return pack([rng.integers(0, 11, n) for n in lengths], rng.integers(0, classes, len(lengths)),
                example_ids=[40 + 3 * i for i in range(len(lengths))], types=types)


def model_of(rng, pooling="first", **options):
    model = BertClassifier(config(**options), ["a", "b", "c"], np.float64, pooling=pooling)
    model.store.values += 0.4 * rng.standard_normal(model.store.size)
    return model


def require_right(rng, layer, forward, x=None):
    """All gradients of a layer against finite differences; x None: it takes ids. -> gradients."""
    store = Parameters(layer.parameters(), np.float64)
    for p in store:
        p.value[...] = p.fill + 0.5 * rng.standard_normal(p.shape)
    dy = rng.standard_normal(forward().shape)
    dx = layer.backward(dy)
    values = {p.name: p.value for p in store}
    gradients = {p.name: p.grad.copy() for p in store}
    if x is not None:
        values["x"], gradients["x"] = x, dx
    rows = gradcheck.compare(lambda: float((dy * forward()).sum()), values, gradients)
    gradcheck.require(rows, gradcheck.LIMIT)
    return gradients


def test_published_size():
    # Devlin et al. 2019, section 3, say 110M
    assert count(BertConfig()) == 109_482_240
    model = BertClassifier(BertConfig(), "ab", dtype=None)
    assert sum(p.size for p in model.parameters()) == 109_482_240 + 2 * 768 + 2


@pytest.mark.parametrize("pooling, pooler", [("first", WIDTH * WIDTH + WIDTH), ("mean", 0)])
def test_count_is_what_a_model_holds(pooling, pooler):
    shape = config()
    size = BertClassifier(shape, "abc", pooling=pooling).store.size
    assert size == count(shape) - (WIDTH * WIDTH + WIDTH) + pooler + 3 * WIDTH + 3


def test_initial_values_are_berts():
    shape = config(vocab_size=500, hidden_size=64, intermediate_size=100)
    store = BertClassifier(shape, "ab", seed=3).store
    for name in ("embeddings.word_embeddings.weight", "pooler.dense.weight",
                 "encoder.layer.1.output.dense.weight",
                 "encoder.layer.0.attention.output.dense.weight"):
        assert store[name].value.std() == pytest.approx(0.02, rel=0.05)     # no smaller residuals
    assert (store["encoder.layer.0.output.LayerNorm.weight"].value == 1).all()
    assert (store["classifier.bias"].value == 0).all()


@pytest.mark.parametrize("key, value", [
    ("position_embedding_type", "relative_key"), ("is_decoder", True), ("hidden_act", "relu"),
    ("hidden_act", []), ("add_cross_attention", True), ("num_attention_heads", 5),
    ("num_hidden_layers", 0), ("hidden_size", "64"), ("vocab_size", True), ("type_vocab_size", 0),
    ("hidden_dropout_prob", 1), ("classifier_dropout", -0.1), ("layer_norm_eps", 0),
    ("intermediate_size", None), ("attention_probs_dropout_prob", None)])
def test_what_we_do_not_have_is_refused_by_name(key, value):
    settings = {"vocab_size": 11, "hidden_size": 64, "num_attention_heads": 4}
    assert BertConfig.from_dict(settings, "x").layer_norm_eps == 1e-12
    with pytest.raises(UserError, match=f"here/config.json: {key}|num_attention_heads"):
        BertConfig.from_dict(settings | {key: value}, "here/config.json")


def test_one_rate_for_all():
    shape = config().with_dropout(0.4)
    assert (shape.hidden_dropout_prob, shape.attention_probs_dropout_prob, shape.pooled_rate,
            shape.drops) == (0.4, 0.4, 0.4, True)
    assert not shape.with_dropout(0).drops
    assert config(classifier_dropout=None).pooled_rate == 0.25


# Layers

def test_embeddings(rng):
    layer, batch = bert.Embeddings("e", config(vocab_size=5)), batch_of(rng)
    batch = pack([batch.ids % 5], types=[batch.types])
    gradients = require_right(rng, layer, lambda: layer.forward(batch, STREAM))
    assert gradients["e.token_type_embeddings.weight"].all()


@pytest.mark.parametrize("rows", [None, FIRST])
@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("kind", [bert.SelfAttention, bert.Block])
def test_attention_and_block(rng, kind, stream, rows):
    layer, batch = kind("layer", config(), 1), batch_of(rng)
    x = rng.standard_normal((8, WIDTH))
    gradients = require_right(rng, layer, lambda: layer.forward(x, batch, stream, rows), x)
    moved = {name: np.abs(g).max() for name, g in gradients.items()}
    # a softmax does not see what moves all scores of a query
    still = [name for name, g in moved.items() if g < 1e-12]
    assert still == [name for name in moved if name.endswith("self.key.bias")]
    assert all(g > 0.01 for name, g in moved.items() if name not in still)


@pytest.mark.parametrize("form", ["gelu", "gelu_new"])
def test_mlp(rng, form):
    layer, x = bert.MLP("m", config(hidden_act=form), 1), rng.standard_normal((5, WIDTH))
    require_right(rng, layer, lambda: layer.forward(x), x)


def test_poolers(rng):
    batch = batch_of(rng)
    for layer, n in (bert.Pooler("p", config()), 3), (bert.MeanPooler(), 8):
        x = rng.standard_normal((n, WIDTH))
        require_right(rng, layer, lambda layer=layer, x=x: layer.forward(x, batch), x)
        y = layer.forward(x, batch)
        assert y.shape == (3, WIDTH)
    for row, part in zip(y, np.split(x, [3, 4]), strict=True):
        np.testing.assert_allclose(row, part.mean(axis=0), rtol=1e-14)


def test_every_token_sees_every_other(rng):
    layer, batch = bert.SelfAttention("a", config(), 1), batch_of(rng)
    store = Parameters(layer.parameters(), np.float64)
    store.values[...] = rng.standard_normal(store.size)
    x = rng.standard_normal((8, WIDTH))
    before = layer.forward(x, batch)
    x[7] += 1      # the last token of the last text
    changed = np.abs(layer.forward(x, batch) - before).max(axis=1) > 1e-3
    assert changed.tolist() == [False] * 4 + [True] * 4


def test_a_second_backward_needs_a_forward(rng):
    batch, x = batch_of(rng), rng.standard_normal((8, WIDTH))
    layers = [(bert.SelfAttention("a", config(), 1), lambda layer: layer.forward(x, batch)),
              (bert.Block("b", config(), 1), lambda layer: layer.forward(x, batch, STREAM)),
              (bert.MeanPooler(), lambda layer: layer.forward(x, batch)),
              (bert.Pooler("p", config()), lambda layer: layer.forward(x[:3], batch))]
    for layer, forward in layers:
        Parameters(layer.parameters(), np.float64)
        y = forward(layer)
        layer.backward(np.ones_like(y))
        with pytest.raises(RuntimeError, match="needs a forward of its own"):
            layer.backward(np.ones_like(y))


# The classifier

@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_gradient_of_a_model(rng, pooling, stream):
    model = model_of(rng, pooling, vocab_size=5, hidden_size=4, max_position_embeddings=4)
    batch = pack([[0, 3, 0], [2]], [2, 0], example_ids=[6, 1], types=[[0, 0, 1], [0]])
    model.loss(batch, stream)
    model.loss_backward()
    values = {p.name: p.value for p in model.store}
    gradients = {p.name: p.grad.copy() for p in model.store}
    rows = gradcheck.compare(lambda: float(model.loss(batch, stream)[0]), values, gradients)
    gradcheck.require(rows, gradcheck.MODEL_LIMIT)


@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_pruned_last_block_equals_the_full_one(rng, stream, n_layer):
    model, batch = model_of(rng, num_hidden_layers=n_layer), batch_of(rng)
    dhidden = rng.standard_normal((3, WIDTH))
    pruned = model.trunk.forward(batch, stream, first_only=True)
    dx = model.trunk.backward(dhidden)
    gradients = {p.name: p.grad.copy() for p in model.store}
    model.store.zero_grad()
    full = model.trunk.forward(batch, stream)
    scattered = np.zeros_like(full)
    scattered[FIRST] = dhidden
    full_dx = model.trunk.backward(scattered)
    largest = max(np.abs(g).max() for g in gradients.values())
    assert np.abs(pruned - full[FIRST]).max() < 1e-9 * np.abs(full).max()
    assert np.abs(dx - full_dx).max() < 1e-9 * np.abs(full_dx).max()
    for p in model.store:
        scale = max(np.abs(p.grad).max(), 1e-3 * largest)
        assert np.abs(gradients[p.name] - p.grad).max() < 1e-9 * scale, p.name


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("which, lowest", [("last:2", 1), ("last:1", 2), ("head", 3)])
def test_frozen_layers_get_no_gradient(rng, pooling, which, lowest):
    model, batch = model_of(rng, pooling), batch_of(rng)
    model.trunk.embeddings.drop.rate = 0.0     # frozen layers have no dropout
    for block in model.trunk.blocks[:lowest - 1]:
        block.attention.rate = block.drop_1.rate = block.drop_2.rate = 0.0
    model.loss(batch, STREAM)
    model.loss_backward()
    full = {p.name: p.grad.copy() for p in model.store}
    model.train_layers(which)
    model.loss(batch, STREAM)
    assert model.loss_backward() is None
    for p in model.store:
        assert (p.grad is None) == (p.layer < lowest)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad, full[p.name], rtol=0, atol=1e-12)
    assert model.store.grads.any()


def test_types_count(rng):
    model, ids = model_of(rng), rng.integers(0, 11, 4)
    one, same, pair = (model.forward(pack([ids], types=types)) for types in (
        None, [np.zeros(4, int)], [np.array([0, 0, 1, 1])]))
    assert np.array_equal(one, same) and np.abs(one - pair).max() > 1e-3


def test_a_pooling_that_is_not_there():
    with pytest.raises(ValueError, match="pooling is 'last'"):
        BertClassifier(config(), "ab", pooling="last")
