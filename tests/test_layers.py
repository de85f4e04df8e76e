import numpy as np
import pytest

from minisft.backend.cpu import jit, row_blocks
from minisft.backend.random import MLP_OUT, Stream
from minisft.data.batch import Batch, pack
from minisft.dispatch import only
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.nn.blocks import MLP, Block, SelfAttention
from minisft.nn.layers import Dropout, Embedding, Layer, LayerNorm, Linear, no_grad
from minisft.nn.parameters import Parameters
from minisft.verify import gradcheck

WIDTH = 6
STREAM = gradcheck.drawing_once(Stream(seed=7, step=3))
LENGTHS = (3, 1, 4)
# last rows of the three sequences
LAST = np.array([2, 3, 7])


def config(**options):
    return GPT2Config(**{"vocab_size": 11, "n_positions": 8, "n_embd": WIDTH, "n_layer": 2,
                         "n_head": 2, "embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.25,
                         **options})


def batch_of(rng, lengths=LENGTHS, classes=3):
    return pack([rng.integers(0, 11, n) for n in lengths], rng.integers(0, classes, len(lengths)),
                example_ids=[40 + 3 * i for i in range(len(lengths))])


def without_dropout_below(model, lowest):
    """Frozen layers have none: this is the whole model to compare one with."""
    if lowest > 0:
        model.trunk.drop.rate = 0.0
    for block in model.trunk.h[:max(lowest - 1, 0)]:
        block.attn.rate = block.drop_1.rate = block.drop_2.rate = 0.0


def store_of(rng, layer):
    """Values large enough that no gradient hides: an initial scale of 0.02 would."""
    store = Parameters(layer.parameters(), np.float64)
    store.values[...] = 0.5 * rng.standard_normal(store.size)
    for p in store:
        if p.name.endswith(("ln_1.weight", "ln_2.weight", "ln.weight")):
            p.value += 1
    return store


def require_right(rng, forward, backward, store, x):
    """All gradients of a layer against finite differences; x None: it takes ids. -> gradients."""
    y = forward(x)
    dy = rng.standard_normal(y.shape)
    store.zero_grad()
    dx = backward(dy)
    values = {p.name: p.value for p in store}
    gradients = {p.name: p.grad.copy() for p in store}
    if x is not None:
        values["x"], gradients["x"] = x, dx
    rows = gradcheck.compare(lambda: float((dy * forward(x)).sum()), values, gradients)
    gradcheck.require(rows, gradcheck.LIMIT)
    return gradients


def test_embedding(rng):
    layer = Embedding("table", 5, 3, layer=0)
    ids = np.array([4, 0, 4, 4])
    require_right(rng, lambda x: layer.forward(ids), layer.backward, store_of(rng, layer), None)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(rng, bias):
    layer = Linear("linear", 4, 3, layer=0, bias=bias)
    gradients = require_right(rng, layer.forward, layer.backward, store_of(rng, layer),
                              rng.standard_normal((5, 4)))
    assert ("linear.bias" in gradients) == bias


def test_layer_norm(rng):
    layer = LayerNorm("ln", WIDTH, 0, 1e-5)
    require_right(rng, layer.forward, layer.backward, store_of(rng, layer),
                  rng.standard_normal((5, WIDTH)))


@pytest.mark.parametrize("stream", [None, STREAM])
def test_dropout(rng, stream):
    layer, batch = Dropout(0.4, 2, MLP_OUT), batch_of(rng)
    x = rng.standard_normal((8, WIDTH))

    def forward(x):
        return layer.forward(x, stream, batch.token_example_ids, batch.positions)

    require_right(rng, forward, layer.backward, store_of(rng, layer), x)
    assert ((forward(x) == 0).any()) == (stream is not None)


@pytest.mark.parametrize("form", ["gelu_new", "gelu"])
def test_mlp(rng, form):
    layer = MLP("mlp", config(activation_function=form, n_inner=5), layer=1)
    require_right(rng, layer.forward, layer.backward, store_of(rng, layer),
                  rng.standard_normal((5, WIDTH)))


@pytest.mark.parametrize("rows", [None, LAST])
@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("kind", [SelfAttention, Block])
def test_attention_and_block(rng, kind, stream, rows):
    layer, batch = kind("h.0", config(n_inner=7), layer=1), batch_of(rng)
    gradients = require_right(
        rng, lambda x: layer.forward(x, batch, stream, rows), layer.backward,
        store_of(rng, layer), rng.standard_normal((8, WIDTH)))
    assert all(np.abs(g).max() > 0.01 for g in gradients.values())


@pytest.mark.parametrize("rows", [None, LAST])
@pytest.mark.parametrize("stream", [None, STREAM])
def test_gradient_of_the_keys_bias_is_zero(rng, stream, rows):
    # It moves all scores of a query by the same amount, which a softmax does not see. A pruned
    # last block and dropout of the probabilities change nothing about that.
    layer, batch = SelfAttention("attn", config(), layer=1), batch_of(rng)
    store = store_of(rng, layer)
    y = layer.forward(rng.standard_normal((8, WIDTH)), batch, stream, rows)
    layer.backward(rng.standard_normal(y.shape))
    queries, keys, values = np.abs(store["attn.c_attn.bias"].grad.reshape(3, WIDTH)).max(axis=1)
    largest = np.abs(store.grads).max()
    assert keys < 1e-12 * largest
    assert queries > 1e-2 * largest and values > 1e-2 * largest


def test_gradients_add_up_over_two_backwards(rng):
    layer, batch = Block("h.0", config(), layer=1), batch_of(rng)
    store = store_of(rng, layer)
    x, dy = rng.standard_normal((8, WIDTH)), rng.standard_normal((8, WIDTH))
    for times in (1, 2):
        layer.forward(x, batch, STREAM)
        layer.backward(dy)
        if times == 1:
            once = store.grads.copy()
    np.testing.assert_allclose(store.grads, 2 * once, rtol=1e-13, atol=1e-13)


def test_a_second_backward_needs_a_forward(rng):
    batch, x = batch_of(rng), rng.standard_normal((8, WIDTH))
    texts, positions = batch.token_example_ids, batch.positions
    layers = [(Embedding("e", 11, WIDTH, 0), lambda layer: layer.forward(batch.ids)),
              (Linear("l", WIDTH, 4, 0), lambda layer: layer.forward(x)),
              (LayerNorm("n", WIDTH, 0, 1e-5), lambda layer: layer.forward(x)),
              (Dropout(0.1, 0, MLP_OUT), lambda layer: layer.forward(x, STREAM, texts, positions)),
              (Dropout(0.1, 0, MLP_OUT), lambda layer: layer.forward(x, None, texts, positions)),
              (MLP("m", config(), 1), lambda layer: layer.forward(x)),
              (SelfAttention("a", config(), 1), lambda layer: layer.forward(x, batch)),
              (Block("b", config(), 1), lambda layer: layer.forward(x, batch, STREAM)),
              (Block("c", config(), 1), lambda layer: layer.forward(x, batch, STREAM, LAST))]
    for layer, forward in layers:
        store_of(rng, layer)
        with pytest.raises(RuntimeError, match="needs a forward of its own"):
            layer.backward(x)
        y = forward(layer)
        layer.backward(np.ones_like(y))
        with pytest.raises(RuntimeError, match="needs a forward of its own"):
            layer.backward(np.ones_like(y))
        forward(layer)
        layer.backward(np.ones_like(y))


def model_of(rng, kind, **options):
    if kind is Classifier:
        model = Classifier(config(**options), ["a", "b", "c"], np.float64)
    else:
        model = LanguageModel(config(**options), dtype=np.float64)
    model.store.values += 0.3 * rng.standard_normal(model.store.size)
    return model


def next_tokens(rng, lengths=LENGTHS):
    ids = [rng.integers(0, 11, n) for n in lengths]
    return pack(ids, [np.append(row[1:], -100) for row in ids], example_ids=[9, 2, 5])


@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_a_second_loss_backward_needs_a_loss(rng, kind):
    batch = batch_of(rng) if kind is Classifier else next_tokens(rng)
    model = model_of(rng, kind)
    with pytest.raises(RuntimeError, match="needs a forward of its own"):
        model.loss_backward()
    model.loss(batch, STREAM)
    model.loss_backward()
    with pytest.raises(RuntimeError, match="needs a forward of its own"):
        model.loss_backward()


@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("kind", ["classifier", "tied", "untied"])
def test_every_gradient_of_a_model(rng, kind, stream):
    # sums over texts stay sums when a parameter gets nothing at all: only this notices
    tiny = config(vocab_size=5, n_positions=4, n_embd=4, n_layer=2, n_inner=5)
    if kind == "classifier":
        model, labels = Classifier(tiny, ["a", "b", "c"], np.float64), [2, 0]
    else:
        model, labels = LanguageModel(tiny, kind == "tied", np.float64), [[3, 0, -100], [3]]
    model.store.values += 0.4 * rng.standard_normal(model.store.size)
    batch = pack([[0, 3, 0], [2]], labels, example_ids=[6, 1])
    model.loss(batch, stream)
    model.loss_backward()
    values = {p.name: p.value for p in model.store}
    gradients = {p.name: p.grad.copy() for p in model.store}
    rows = gradcheck.compare(lambda: float(model.loss(batch, stream)[0]), values, gradients)
    gradcheck.require(rows, gradcheck.MODEL_LIMIT)


@pytest.mark.parametrize("which, lowest", [("last:2", 1), ("last:1", 2), ("head", 4)])
def test_frozen_layers_get_no_gradient(rng, which, lowest):
    model, batch = model_of(rng, Classifier), batch_of(rng)
    without_dropout_below(model, lowest)
    loss, _, logits = model.loss(batch, STREAM)
    model.loss_backward()
    full = {p.name: p.grad.copy() for p in model.store}
    values = {p.name: p.value.copy() for p in model.store}
    model.train_layers(which)
    again, _, same = model.loss(batch, STREAM)
    # the values moved to another buffer, where a matrix product may round otherwise
    assert again == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(same, logits, rtol=0, atol=1e-12)
    assert model.loss_backward() is None
    for p in model.store:
        assert np.array_equal(p.value, values[p.name])
        assert (p.grad is None) == (p.layer < lowest)
        # what is trained gets what it got when everything was
        if p.grad is not None:
            np.testing.assert_allclose(p.grad, full[p.name], rtol=0, atol=1e-12)
    assert model.store.grads.any()
    # thawed, the whole model is back
    model.train_layers("all")
    model.loss(batch, STREAM)
    assert model.loss_backward().shape == (8, WIDTH)
    for p in model.store:
        np.testing.assert_allclose(p.grad, full[p.name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_language_model(rng, tied):
    model = LanguageModel(config(), tied, np.float64)
    model.store.values += 0.3 * rng.standard_normal(model.store.size)
    batch = next_tokens(rng)
    without_dropout_below(model, 2)
    model.loss(batch, STREAM)
    model.loss_backward()
    full = {p.name: p.grad.copy() for p in model.store}
    model.train_layers("last:1")
    model.loss(batch, STREAM)
    assert model.loss_backward() is None
    live = [p.name for p in model.store.trainable]
    # the tied matrix lies in layer 0, so it freezes with the table
    assert ("lm_head.weight" in live) == (not tied) and "wte.weight" not in live
    for name in live:
        np.testing.assert_allclose(model.store[name].grad, full[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", ["", "last:", "last:0", "last:3", "last:-1", "first:1", "All"])
def test_layers_that_are_not_there(rng, which):
    model = model_of(rng, Classifier)
    with pytest.raises(ValueError, match="expected all, head, bias or last:K with K from 1 to 2"):
        model.train_layers(which)


@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_pruned_last_block_equals_the_full_one(rng, stream, n_layer):
    model, batch = model_of(rng, Classifier, n_layer=n_layer), batch_of(rng)
    dlogits = rng.standard_normal((3, 3))
    pruned = model.forward(batch, stream)
    dx = model.backward(dlogits)
    gradients = {p.name: p.grad.copy() for p in model.store}
    model.store.zero_grad()
    hidden = model.trunk.forward(batch, stream)
    full = model.score.forward(hidden[batch.last])
    dhidden = np.zeros_like(hidden)
    dhidden[batch.last] = model.score.backward(dlogits)
    full_dx = model.trunk.backward(dhidden)
    largest = max(np.abs(g).max() for g in gradients.values())
    assert np.abs(pruned - full).max() < 1e-9 * np.abs(full).max()
    assert np.abs(dx - full_dx).max() < 1e-9 * np.abs(full_dx).max()
    for p in model.store:
        scale = max(np.abs(p.grad).max(), 1e-3 * largest)
        assert np.abs(gradients[p.name] - p.grad).max() < 1e-9 * scale, p.name


def test_dropout_differs_by_layer_site_and_step(rng):
    # equal layers at different places must not drop the same channels
    x, batch = np.ones((8, WIDTH)), batch_of(rng)

    def kept(layer, site, stream=STREAM):
        return Dropout(0.5, layer, site).forward(x, stream, batch.token_example_ids,
                                                 batch.positions).astype(bool)

    masks = [kept(1, MLP_OUT), kept(2, MLP_OUT), kept(1, 2), kept(1, MLP_OUT, Stream(7, 4)),
             kept(1, MLP_OUT, Stream(8, 3))]
    for i, mask in enumerate(masks):
        assert not any(np.array_equal(mask, other) for other in masks[:i])
    block = Block("h.0", config(), layer=1)
    assert block.drop_1.site != block.drop_2.site


@pytest.mark.parametrize("wanted", [lambda p: p.decays, lambda p: not p.decays],
                         ids=["matrices", "biases"])
def test_part_of_a_layer_can_be_frozen(rng, wanted):
    batch, model = batch_of(rng), model_of(rng, Classifier)
    without_dropout_below(model, 1)
    model.loss(batch, STREAM)
    model.loss_backward()
    whole = {p.name: p.grad.copy() for p in model.store}
    model.store.train(wanted)
    model.loss(batch, STREAM)
    model.loss_backward()
    assert model.store.trainable
    for p in model.store.trainable:
        np.testing.assert_allclose(p.grad, whole[p.name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_a_forward_between_ends_the_loss(rng, kind):
    batch = batch_of(rng) if kind is Classifier else next_tokens(rng)
    model = model_of(rng, kind)
    model.loss(batch, STREAM)
    model.forward(batch)
    with pytest.raises(RuntimeError, match="needs a forward of its own"):
        model.loss_backward()


def test_a_label_that_is_no_class_is_refused(rng):
    model = model_of(rng, Classifier)
    with pytest.raises(ValueError, match="labels from -1 to 0, but the classes are 0 to 2"):
        model.loss(pack([[1], [2]], labels=[0, -1]))


@pytest.mark.parametrize("which", ["all", "last:1"])
@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_recomputed_blocks_give_the_same_bits(rng, kind, which):
    batch = batch_of(rng) if kind is Classifier else next_tokens(rng)
    model = model_of(rng, kind)
    model.train_layers(which)
    found = []
    for gradient_checkpointing in (False, True):
        for block in model.trunk.h:
            block.gradient_checkpointing = gradient_checkpointing
        model.store.zero_grad()
        loss, _, _ = model.loss(batch, STREAM)
        kept = model.trunk.h[1].mlp.cache
        assert (kept is None) == gradient_checkpointing
        model.loss_backward()
        found.append((float(loss), model.store.grads.copy()))
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1])
    assert found[0][1].any()


def caches(layer):
    """-> how many layers in this one keep something."""
    return (layer.cache is not None or layer.attended is not None) + sum(
        map(caches, layer._parts(Layer)))


@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_where_no_backward_comes_blocks_keep_nothing(rng, kind):
    batch = batch_of(rng) if kind is Classifier else next_tokens(rng)
    model = model_of(rng, kind)
    logits = model.loss(batch)[2].copy()
    assert all(map(caches, model.trunk.h))
    with no_grad():
        assert np.array_equal(model.loss(batch)[2], logits)
        assert not any(map(caches, model.trunk.h))
        with pytest.raises(RuntimeError, match="backward needs a forward of its own"):
            model.loss_backward()
    model.loss(batch)
    model.loss_backward()
    assert all(p.grad.any() for p in model.store.trainable if not p.name.endswith("c_attn.bias"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["gelu_new", "gelu"])
def test_gelu_run_again_changes_no_bit(rng, monkeypatch, form, dtype):
    cheap = form == "gelu_new" or dtype == np.float32 and jit.enabled()
    x, dy = rng.standard_normal((2, 40, WIDTH)).astype(dtype)
    found = []
    for forgets in (True, False):
        if not forgets:
            monkeypatch.setattr(Linear, "forget_input", lambda self: None)
            monkeypatch.setattr(Linear, "recall_input", lambda self, x: None)
        mlp = MLP("mlp", config(activation_function=form), layer=1)
        store = Parameters(mlp.parameters(), dtype)
        store.values[...] = np.linspace(-1, 1, store.size)
        y = mlp.forward(x)
        assert (mlp.c_proj.cache[0][0] is None) == (cheap and forgets)
        found.append((y, mlp.backward(dy), store.grads.copy()))
    assert all(np.array_equal(a, b) and a.any() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("stream", [None, STREAM])
@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_implementations_change_rounding_alone(rng, monkeypatch, kind, stream):
    batch = batch_of(rng) if kind is Classifier else next_tokens(rng)
    model = model_of(rng, kind)
    found = []
    monkeypatch.setattr(row_blocks, "BLOCK", 64)
    for names in (["formula"], ["row blocks", "groups"]):
        model.store.zero_grad()
        with only(*names):
            loss, _, _ = model.loss(batch, stream)
        model.loss_backward()
        found.append((float(loss), model.store.grads.copy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-13)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids, message", [
    ([1, -2], "the batch holds the token id -2, but the vocabulary has 7 tokens"),
    ([1, 7], "the batch holds the token id 7, but the vocabulary has 7 tokens"),
    ([1] * 6, "a text of 6 tokens, but the model takes 5")])
@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_what_the_model_has_no_row_for_is_refused(kind, ids, message):
    tiny = GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=1)
    model = kind(tiny, "ab") if kind is Classifier else kind(tiny)
    labels = [1] if kind is Classifier else [[1] * len(ids)]
    batch = Batch(np.array(ids), np.arange(len(ids)), np.array([0, len(ids)]), np.zeros(1, int),
                  np.ravel(labels))
    for call in (model.forward, model.loss):
        with pytest.raises(ValueError, match=message):
            call(batch)


@pytest.mark.parametrize("kind, labels, message", [
    (Classifier, None, "the batch has no labels, expected a class for each text"),
    (LanguageModel, None, "the batch has no labels, expected the next token of each token"),
    (Classifier, [[1, 0]], r"labels of shape \(2,\), expected \(1,\), a class for each text"),
    (LanguageModel, [1], r"labels of shape \(1,\), expected \(2,\), the next token of each token"),
    (LanguageModel, [[1, 7]], "labels from 1 to 7, but the classes are 0 to 6")])
def test_labels_that_are_none_are_refused(kind, labels, message):
    tiny = GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=1)
    model = kind(tiny, "ab") if kind is Classifier else kind(tiny)
    with pytest.raises(ValueError, match=message):
        model.loss(pack([[1, 2]], labels))
