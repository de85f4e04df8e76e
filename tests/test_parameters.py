import copy
import pickle

import numpy as np
import pytest

from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.nn.layers import Linear
from minisft.nn.parameters import Parameter, Parameters, ParamGroup

# name, shape, layer, decays: given out of the order in which the buffer holds them
GIVEN = [("top.bias", (2,), 2, False), ("top.weight", (3, 2), 2, True),
         ("table", (4, 3), 0, True), ("mid.norm", (3,), 1, False), ("mid.weight", (3, 3), 1, True),
         ("mid.bias", (3,), 1, False)]


def store_of(given=GIVEN, dtype=np.float64):
    store = Parameters([Parameter(*p) for p in given], dtype)
    for i, p in enumerate(store):
        p.value[...] = i + np.arange(p.size).reshape(p.shape) / 100
    return store


def tiny(kind, **options):
    config = GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=2, n_head=2)
    names = ["a", "b", "c"]
    return Classifier(config, names, **options) if kind is Classifier else kind(config, **options)


def test_buffer_order():
    store = store_of()
    assert [p.name for p in store] == [name for name, *_ in GIVEN]
    # by layer, and within it what decays first; otherwise as given
    order = ["table", "mid.weight", "mid.norm", "mid.bias", "top.weight", "top.bias"]
    assert [p.name for p in store.trainable] == order
    assert np.array_equal(store.values, np.concatenate([store[n].value.ravel() for n in order]))
    assert store.size == store.values.size == 12 + 9 + 3 + 3 + 6 + 2


def test_views_share_memory():
    store = store_of()
    for p in store:
        assert p.value.shape == p.grad.shape == p.shape
        assert np.shares_memory(p.value, store.values) and np.shares_memory(p.grad, store.grads)
    store.values[...] = 5
    store.grads[...] = -1
    assert all((p.value == 5).all() and (p.grad == -1).all() for p in store)
    store["mid.norm"].value[1] = 9
    assert np.flatnonzero(store.values == 9).tolist() == [12 + 9 + 1]
    # no two parameters own the same place
    store.values[...] = 0
    for p in store:
        p.value += 1
    assert (store.values == 1).all()


def test_param_groups():
    store = store_of()
    assert store.param_groups == [
        ParamGroup(0, 12, 0, True), ParamGroup(12, 21, 1, True), ParamGroup(21, 27, 1, False),
        ParamGroup(27, 33, 2, True), ParamGroup(33, 35, 2, False)]
    store.train(lambda p: p.layer != 1)
    assert store.param_groups == [
        ParamGroup(0, 12, 0, True), ParamGroup(12, 18, 2, True), ParamGroup(18, 20, 2, False)]
    store.train(lambda p: False)
    assert store.param_groups == [] and store.values.size == store.grads.size == 0


@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_runs_of_a_model_tile_the_buffer(kind):
    store = tiny(kind).store
    edges = [(run.start, run.stop) for run in store.param_groups]
    assert edges[0][0] == 0 and edges[-1][1] == store.values.size
    assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    # biases and norms do not decay, matrices and tables do
    for p in store:
        assert p.decays == (len(p.shape) == 2)


def test_train_freezes_anew_and_keeps_the_values():
    store = store_of()
    before = {p.name: p.value.copy() for p in store}
    for wanted in (lambda p: p.layer > 0, lambda p: p.layer == 0, lambda p: p.decays,
                   lambda p: False, lambda p: True):
        store.grads[...] = 3
        store.train(wanted)
        for p in store:
            assert np.array_equal(p.value, before[p.name]), p.name
            assert (p.grad is not None) == wanted(p)
            home = store.values if wanted(p) else store.frozen_values
            assert np.shares_memory(p.value, home)
        assert store.trainable == [p for p in store._ordered if wanted(p)]
        assert store.values.size + store.frozen_values.size == store.size == 35
        # gradients of what was trained before are gone
        assert store.grads.size == store.values.size and not store.grads.any()


def test_a_frozen_parameter_lets_gradients_go_by():
    store = store_of()
    store.train(lambda p: p.layer == 2)
    before = store.frozen_values.copy()
    store["table"].add_grad(np.ones((4, 3)))
    store["top.bias"].add_grad(np.ones(2))
    assert np.array_equal(store.frozen_values, before)
    assert store.grads.tolist() == [0] * 6 + [1, 1]


def test_gradients_add_up_until_zero_grad(rng):
    layer = Linear("linear", 3, 2, layer=0)
    store = Parameters(layer.parameters(), np.float64)
    store.values[...] = rng.standard_normal(store.size)
    x, dy = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    layer.forward(x)
    layer.backward(dy)
    once = store.grads.copy()
    assert once.any()
    layer.forward(x)
    layer.backward(dy)
    assert np.array_equal(store.grads, 2 * once)
    store.zero_grad()
    assert not store.grads.any() and not layer.w.grad.any()


def test_names_are_unique():
    with pytest.raises(ValueError, match="same name"):
        store_of([("w", (1,), 0, True), ("w", (2,), 1, True)])


def test_names_and_size_of_a_model():
    model = tiny(Classifier)
    names = [p.name for p in model.store]
    assert len(names) == len(set(names)) == 2 + 2 * 12 + 2 + 1
    assert {"wte.weight", "wpe.weight", "h.1.attn.c_attn.bias", "ln_f.weight",
            "score.weight"} <= set(names)
    # the tied matrix is one parameter
    assert tiny(LanguageModel, tied=False).store.size - tiny(LanguageModel).store.size == 7 * 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_dtype(dtype):
    store = tiny(Classifier, dtype=dtype).store
    store.train(lambda p: p.layer > 1)
    for a in (store.values, store.grads, store.frozen_values):
        assert a.dtype == dtype and a.flags.c_contiguous and a.ndim == 1


def test_a_gradient_of_another_shape_is_refused():
    store = Parameters([Parameter("w.weight", (3, 2), 0, True)])
    with pytest.raises(ValueError, match=r"w.weight has shape \(3, 2\), its gradient \(1, 2\)"):
        store["w.weight"].add_grad(np.ones((1, 2)))


def test_zeroed_gradients_are_zeros_to_whoever_asks(rng):
    a, b = Parameter("a", (2, 3), 0, decays=True), Parameter("b", (3,), 1, decays=False)
    store = Parameters([a, b])
    for ask in (lambda: store.grads, lambda: np.concatenate([a.grad.ravel(), b.grad])):
        store.grads[...] = 7
        store.zero_grad()
        np.testing.assert_array_equal(ask(), np.zeros(9))
    store.grads[...] = 7
    store.zero_grad()
    a.add_grad(np.ones((2, 3)))        # takes the place of the zeros
    a.add_grad(np.ones((2, 3)))        # adds up
    np.testing.assert_array_equal(store.grads, [2] * 6 + [0] * 3)
    store.zero_grad()
    out = a.first_grad()
    out[...] = 5
    assert a.first_grad() is None and np.shares_memory(out, store.grads)
    store.grads /= 2
    b.grad += 1
    np.testing.assert_array_equal(store.grads, [2.5] * 6 + [1] * 3)


def test_a_frozen_parameter_has_no_first_gradient():
    a = Parameter("a", (2,), 0, decays=True)
    store = Parameters([a])
    store.zero_grad()
    store.train(lambda p: False)
    assert not a.trainable and a.first_grad() is None and a.grad is None
    a.add_grad(np.ones(2))


def test_repr_says_what_it_is():
    model = tiny(Classifier)
    assert repr(model) == "Classifier(GPT-2, 2 blocks, width 4, 3 classes, " \
        f"{model.store.size:,} parameters)"
    assert repr(tiny(LanguageModel)).startswith("LanguageModel(GPT-2, 2 blocks, width 4, 7 tokens")
    model.train_layers("head")
    assert repr(model.store["wte.weight"]) == "Parameter(wte.weight, (7, 4), float32, frozen)"
    assert repr(model.store["score.weight"]) == "Parameter(score.weight, (4, 3), float32, " \
        "trainable)"
    assert "no values yet" in repr(Parameter("w", (2,), 0, decays=True))


@pytest.mark.parametrize("kind, options", [(Classifier, {}), (LanguageModel, {}),
                                           (LanguageModel, {"tied": False})])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_whole_and_independent(kind, options, duplicate):
    model = tiny(kind, **options)
    model.train_layers("last:1")
    again = duplicate(model)
    assert repr(again) == repr(model)
    for p in model.store:
        other = again.store[p.name]
        np.testing.assert_array_equal(other.value, p.value)
        assert other.trainable == p.trainable and not np.shares_memory(other.value, p.value)
    again.store.values += 1     # the buffer and its views are one
    assert again.store["ln_f.bias"].value[0] == model.store["ln_f.bias"].value[0] + 1
