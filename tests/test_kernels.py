"""Every kernel against its formula in float64, on the emulator and, with a card, on the GPU."""

import numpy as np
import pytest

from minisft import ops
from minisft.backend import array
from minisft.backend.gpu import cuda, emulator, launch
from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.dispatch import cross_entropy, embedding, gelu, layer_norm, softmax
from minisft.errors import UserError
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.nn.blocks import MLP
from minisft.nn.layers import LayerNorm, Linear
from minisft.nn.parameters import Parameters
from minisft.ops.cross_entropy import IGNORE
from minisft.training.optim import AdamW, clip_scale, gradient_norm
from minisft.verify.kernel_checks import KERNEL_CHECKS
from tests import standin_cupy

needs_compiler = pytest.mark.skipif(emulator.compiler() is None,
                                    reason="no C++ compiler to emulate CUDA kernels")
# around one warp; the rest of sizes and orders with the slow tests
AT_ONCE = {(1, "forward"), (31, "reverse"), (32, "ahead"), (33, "forward"), (77, "ahead")}
CASES = [pytest.param(size, order, marks=() if (size, order) in AT_ONCE else pytest.mark.slow)
         for size in (1, 31, 32, 33, 77, 127) for order in emulator.ORDERS]


@pytest.fixture
def emulate(monkeypatch):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")


@needs_compiler
@pytest.mark.parametrize("size, order", CASES)
@pytest.mark.parametrize("name", KERNEL_CHECKS)
def test_kernel_matches_formula(name, size, order):
    with emulator.thread_order(order, seed=1):
        for row in KERNEL_CHECKS[name].results(size):
            assert row.error <= row.limit, row


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 31, 32, 33, 77, 127])
@pytest.mark.parametrize("name", KERNEL_CHECKS)
def test_gpu_matches_formula(name, size):
    if not array.gpu_available():
        pytest.skip("no CUDA card")
    for row in KERNEL_CHECKS[name].results(size, put=array.to_gpu):
        assert row.error <= row.limit, row


@needs_compiler
def test_a_shape_or_a_number_that_is_wrong_is_found():
    check = KERNEL_CHECKS["softmax (fused)"]

    def planted(change):
        def run(size, put):
            return {name: (change(ours), plain, exact)
                    for name, (ours, plain, exact) in check.run(size, put).items()}
        return type(check)("planted", run).results(33)

    def one_off(a):
        a = np.array(a)
        a.flat[-1] += 1e-5
        return a

    assert all(row.error <= row.limit for row in planted(lambda a: a))
    for change in (one_off, lambda a: a[:1], lambda a: a * np.nan):
        assert all(row.error > row.limit for row in planted(change))


@needs_compiler
def test_equal_inputs_give_equal_bits(rng):
    dy = rng.standard_normal((200, 5), dtype=np.float32)
    ids = rng.integers(0, 3, 200)
    from minisft.backend.gpu.launch import embedding as launcher
    found = []
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            found.append(launcher.backward(dy, (ids, (4, 5))))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@needs_compiler
def test_an_operation_runs_as_its_kernel_when_asked(rng, emulate):
    x = rng.standard_normal((3, 40), dtype=np.float32)
    _, cache = layer_norm.forward(x, x[0], x[1])
    assert cache.implementation.load() is launch.layer_norm
    for version in ("fused", "naive"):
        with cuda.kernels(version):
            _, cache = softmax.forward(x)
            assert cache.implementation.name == f"{version} kernel"
    # what a kernel began, its backward ends
    assert softmax.backward(x, cache).dtype == np.float32
    with cuda.kernels("off"):
        _, cache = softmax.forward(x)
        assert cache.implementation.name not in ("naive kernel", "fused kernel")
    _, cache = softmax.forward(x.astype(np.float64))     # gradients are checked in float64
    assert cache.implementation.name not in ("naive kernel", "fused kernel")
    with cuda.kernels("naive"):                          # no naive version: the fused one
        _, cache = gelu.forward(x)
        assert cache.implementation.load() is launch.gelu


def test_without_being_asked_no_kernel_runs(rng, monkeypatch):
    monkeypatch.delenv("MINISFT_CUDA", raising=False)
    _, cache = softmax.forward(rng.standard_normal((3, 4), dtype=np.float32))
    assert cache.implementation.name not in ("naive kernel", "fused kernel")
    monkeypatch.setenv("MINISFT_CUDA", "yes")
    with pytest.raises(UserError, match="MINISFT_CUDA is 'yes', expected emulate or nothing"):
        softmax.forward(rng.standard_normal((3, 4), dtype=np.float32))
    with pytest.raises(UserError, match="kernels are 'best', expected one of fused, naive, off"):
        with cuda.kernels("best"):
            pass


@needs_compiler
def test_embedding_backward_takes_the_plain_cache(rng, emulate):
    w = rng.standard_normal((5, 3), dtype=np.float32)
    dy = rng.standard_normal((6, 3), dtype=np.float32)
    _, cache = embedding.forward(np.array([4, 0, 4, 4, 1, 0]), w)
    plain = ops.embedding.backward(dy, cache)
    np.testing.assert_allclose(embedding.backward(dy, cache), plain, rtol=1e-6)
    np.testing.assert_allclose(embedding.backward(dy, cache, out=w.copy()), w + plain, atol=1e-6)


@needs_compiler
def test_a_batch_on_a_card_brings_the_order_of_its_ids(rng, monkeypatch):
    monkeypatch.setattr(array, "cupy", standin_cupy)
    batch = pack([rng.integers(0, 9, n) for n in (1, 20, 7)])
    assert batch.id_order is None and batch.position_order is None
    moved = batch.to(standin_cupy)
    for order, ids in ((moved.id_order, batch.ids), (moved.position_order, batch.positions)):
        assert np.array_equal(array.to_cpu(order), np.argsort(ids, kind="stable"))
    model = LanguageModel(GPT2Config(vocab_size=9, n_positions=20, n_embd=8, n_layer=1, n_head=2))
    model.store.to_gpu()
    found = []
    for orders in (moved.id_order, moved.position_order), (None, None):
        vars(moved).update(id_order=orders[0], position_order=orders[1])
        model.store.zero_grad()
        model.trunk.embed(moved, None)
        model.trunk.drop.pop_saved()
        dy = array.to_gpu(np.ones((28, 8), np.float32))
        with standin_cupy.counted() as counts:
            model.trunk.wpe.backward(dy)
            model.trunk.wte.backward(dy)
        assert counts["argsort"] == (0 if orders[0] is not None else 2)
        found.append(array.to_cpu(model.store.grads).copy())
    assert np.array_equal(*found) and found[0].any()


@needs_compiler
def test_gelu_takes_the_bias_of_the_map_before_it(rng, emulate, monkeypatch):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2)
    used, whole = [], cuda.launch_source
    monkeypatch.setattr(cuda, "launch_source", lambda text, kernel, *sizes, **given: (
        used.append((kernel, given.get("b") is not None)),
        whole(text, kernel, *sizes, **given)))
    x, dy = rng.standard_normal((2, 5, 8), dtype=np.float32)
    found = []
    for version in ("fused", "off"):
        mlp = MLP("mlp", config, 1)
        store = Parameters(mlp.parameters())
        store.values[...] = np.random.default_rng(1).standard_normal(store.values.shape)
        with cuda.kernels(version):
            found.append((mlp.forward(x), mlp.backward(dy), store.grads))
    assert ("gelu_forward", True) in used and ("gelu_backward", True) in used
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6 * np.abs(plain).max())


@needs_compiler
def test_a_label_that_is_no_class_gives_no_number(rng, emulate):
    z = rng.standard_normal((3, 4), dtype=np.float32)
    (loss, _), cache = cross_entropy.forward(z, np.array([0, 4, 2]))
    dz = cross_entropy.backward(1.0, cache)
    assert np.isnan(loss) and np.isnan(dz[1]).all() and np.isfinite(dz[[0, 2]]).all()


@needs_compiler
@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
def test_sums_go_into_the_gradients_and_add_up(rng, monkeypatch, frozen):
    x, dy = rng.standard_normal((2, 40, 16), dtype=np.float32)
    found = []
    for wish in ("", "emulate"):
        monkeypatch.setenv("MINISFT_CUDA", wish)
        layers = Linear("linear", 16, 16, 0), LayerNorm("norm", 16, 1, 1e-5)
        store = Parameters([p for layer in layers for p in layer.parameters()])
        store.values[...] = np.random.default_rng(1).standard_normal(store.values.shape)
        store.train(lambda p: not frozen or not p.name.endswith(frozen))
        store.grads[...] = 7
        store.zero_grad()
        for _ in range(2):
            for layer in layers:
                layer.forward(x)
                layer.backward(dy)
        part = layers[0].forward_columns(x, slice(4, 12))
        layers[0].backward_columns(dy[:, 4:12], part[1], slice(4, 12))
        found.append({p.name: p.grad.copy() for p in store.trainable})
    for name, gradient in found[0].items():
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-5, err_msg=name)
        assert np.abs(gradient).max() > 1


def step(model, batch, optimizer=None):
    """One training step -> loss and gradients by name."""
    loss, denominator, _ = model.loss(batch, Stream(0, 1))
    model.store.zero_grad()
    model.loss_backward()
    gradients = {p.name: p.grad.copy() for p in model.store.trainable}
    if optimizer:
        norm = gradient_norm(model.store) / denominator
        optimizer.step(1e-3, clip_scale(norm, 0.5) / denominator)
    return float(loss) / float(denominator), gradients


@needs_compiler
@pytest.mark.parametrize("version", ["fused", "naive"])
@pytest.mark.parametrize("kind", ["language model", "classifier"])
def test_a_whole_step_matches_numpy(rng, monkeypatch, kind, version):
    config = GPT2Config(vocab_size=97, n_positions=40, n_embd=48, n_layer=2, n_head=3,
                        embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    texts = [rng.integers(0, 97, n) for n in (1, 40, 17, 33)]
    if kind == "classifier":
        model, labels = Classifier(config, ["a", "b", "c"]), [0, 2, 1, 1]
    else:
        model = LanguageModel(config)
        labels = [[*text[1:], IGNORE] for text in texts]
    batch = pack(texts, labels=labels)
    # wide, so that attention is far from uniform
    values = 0.15 * rng.standard_normal(model.store.values.shape, dtype=np.float32)
    found = []
    for wish in ("", "emulate"):
        monkeypatch.setenv("MINISFT_CUDA", wish)
        model.store.values[...] = values
        with cuda.kernels(version):
            loss, gradients = step(model, batch, AdamW(model.store))
        found.append((loss, gradients, model.store.values.copy()))
    (loss, gradients, after), (emulated_loss, emulated, emulated_after) = found
    assert emulated_loss == pytest.approx(loss, rel=1e-5)
    largest = max(np.abs(g).max() for g in gradients.values())
    for name, g in gradients.items():
        error = np.abs(emulated[name] - g).max() / max(np.abs(g).max(), 1e-3 * largest)
        assert error <= 1e-5, name
    # Adam's first step is lr * sign(g): where g is noise around zero it may turn
    turned = np.abs(emulated_after - after) > 1e-5
    assert turned.mean() < 1e-3
