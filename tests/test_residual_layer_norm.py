"""Residual sums that a norm's kernel adds: the same step as the plain sums', in fewer launches."""

import weakref

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.gpu import emulator
from minisft.backend.gpu.launch import gelu, residual_layer_norm
from minisft.backend.random import Stream, Tokens
from minisft.data.batch import pack
from minisft.dispatch import FORMATS, gelu_adds_bias, only, rounded
from minisft.dispatch.matmul import widened
from minisft.models.adapters import LoraConfig
from minisft.models.config import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.nn import blocks
from minisft.nn.layers import LayerNorm, Linear, Sum
from minisft.nn.parameters import Parameters
from minisft.ops.cross_entropy import IGNORE
from tests import standin_cupy

pytestmark = pytest.mark.skipif(emulator.compiler() is None,
                                reason="no C++ compiler to emulate CUDA kernels")
CONFIG = GPT2Config(vocab_size=97, n_positions=20, n_embd=48, n_layer=2, n_head=3,
                    embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)


BERT = BertConfig(vocab_size=97, max_position_embeddings=20, hidden_size=48, num_hidden_layers=2,
                  num_attention_heads=3, intermediate_size=96)


def model_and_batch(rng, kind):
    texts = [rng.integers(0, 97, n) for n in (1, 20, 9)]
    if kind != "language model":
        names, labels = ["a", "b", "c"], [0, 2, 1]
        model = BertClassifier(BERT, names) if kind == "BERT" else Classifier(CONFIG, names)
    else:
        model, labels = LanguageModel(CONFIG), [[*text[1:], IGNORE] for text in texts]
    model.store.values[...] = 0.15 * rng.standard_normal(model.store.values.shape)
    return model, pack(texts, labels=labels)


def gradients(model, batch):
    """Of two micro-batches: the second adds."""
    model.store.zero_grad()
    for _ in range(2):
        loss, _, _ = model.loss(batch, Stream(0, 1))
        model.loss_backward()
    return float(loss), {p.name: array.to_cpu(p.grad).copy() for p in model.store.trainable}


def errors(ours, expected):
    """-> the relative error of the loss and of each gradient."""
    (loss, found), (expected_loss, gradients) = ours, expected
    assert found.keys() == gradients.keys()
    largest = max(np.abs(g).max() for g in gradients.values())
    return {"loss": abs(loss - expected_loss) / expected_loss} | {
        name: float(np.abs(found[name] - g).max() / max(np.abs(g).max(), 1e-3 * largest))
        for name, g in gradients.items()}


def compared(ours, expected, limit):
    for name, error in errors(ours, expected).items():
        assert error <= limit, (name, error)


def adapted(model, dropout):
    model.add_adapter(LoraConfig(r=2, lora_dropout=dropout))
    for p in model.store.trainable:
        if "lora_" in p.name:
            p.value[...] = np.random.default_rng(2).standard_normal(p.shape) / 10


OPTIONS = {
    "adapter": lambda model: adapted(model, 0.0),
    "adapter with dropout": lambda model: adapted(model, 0.2),
    "": lambda model: None,
    "frozen layers": lambda model: model.store.train(lambda p: p.layer >= 2),
    "biases alone": lambda model: model.store.train(
        lambda p: p.name.endswith("bias") or p.layer > CONFIG.final_layer),
    "frozen biases": lambda model: model.store.train(lambda p: not p.name.endswith("c_proj.bias")),
    "checkpointing": lambda model: [setattr(block, "gradient_checkpointing", True)
                                    for block in model.trunk.blocks],
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["classifier", "language model", "BERT"])
def test_a_step_in_float32_is_that_of_the_plain_sums(rng, monkeypatch, kind, option):
    model, batch = model_and_batch(rng, kind)
    OPTIONS[option](model)
    monkeypatch.setenv("MINISFT_CUDA", "")
    plain = gradients(model, batch)
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    # BERT's norms stand in the residual's way: what they divide by divides the rounding, too
    compared(gradients(model, batch), plain, 1e-4 if kind == "BERT" else 1e-5)


@pytest.mark.parametrize("precision, ulp", [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
@pytest.mark.parametrize("option", ["", "adapter", "adapter with dropout"])
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_step_in_16_bits_errs_as_rounded_products_do(rng, monkeypatch, kind, option, precision,
                                                       ulp):
    """The only roundings more are those before and behind GELU: against float32 at most twice the
    error of a step that has none but those of the products."""
    model, batch = model_and_batch(rng, kind)
    OPTIONS[option](model)
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    exact = gradients(model, batch)
    model.store.set_compute_dtype(FORMATS[precision])
    fused = errors(gradients(model, batch), exact)
    with only("formula", operations=("layer_norm", "gelu")):
        plain = errors(gradients(model, batch), exact)
    for name, error in fused.items():
        assert error <= 2 * plain[name] + ulp, (name, error, plain[name])
    assert max(fused.values()) > ulp     # something was rounded


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["language model", "BERT"])
def test_a_card_does_as_the_emulator(rng, monkeypatch, kind, precision):
    """Through the stand-in for CuPy: nothing crosses, products store 16 bits."""
    model, batch = model_and_batch(rng, kind)
    model.store.set_compute_dtype(FORMATS[precision])
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    emulated = gradients(model, batch)
    monkeypatch.setenv("MINISFT_CUDA", "")
    monkeypatch.setattr(array, "cupy", standin_cupy)
    model.store.to_gpu()
    # products add in another order, which turns some roundings
    compared(gradients(model, batch), emulated, {"bfloat16": 1e-2, "float16": 2e-3}[precision])


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
def test_what_has_16_bits_is_the_rounded_float32(rng, dtype):
    x, more, dy = rng.standard_normal((3, 9, 36), dtype=np.float32)
    w, b, bias = rng.standard_normal((3, 36), dtype=np.float32)
    drop = 0.3, Tokens(Stream(1, 2), 1, 1, np.arange(9), np.arange(9))
    found = []
    for kind in (None, np.dtype(dtype)):
        u, y, cache = residual_layer_norm.forward(x, w, b, more=more, bias=bias, drop=drop,
                                                  dtype=kind)
        outs = [np.zeros(36, np.float32) for _ in range(3)]
        dx, dmore = residual_layer_norm.backward(dy, cache, x, kind, outs, more=True)
        found.append((u, y, dx, dmore, *outs))
    for name, wide, low in zip(("u", "y", "dx", "dmore", "dw", "db", "dbias"), *found,
                               strict=True):
        expected = rounded(wide, np.dtype(dtype)) if name in ("y", "dmore") else wide
        assert np.array_equal(low, expected), name


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
@pytest.mark.parametrize("width", [8, 13])
def test_gelu_in_16_bits_is_the_rounded_float32(rng, dtype, width):
    kind = np.dtype(dtype)
    x, dy = (rounded(a, kind) for a in rng.standard_normal((2, 70, width), dtype=np.float32))
    bias = rng.standard_normal(width, dtype=np.float32)
    y, cache = gelu.forward(x, "tanh", bias)
    wide_y, wide_cache = gelu.forward(widened(x), "tanh", bias)
    assert np.array_equal(y, rounded(wide_y, kind))
    (dx, db), (wide_dx, wide_db) = gelu.backward(dy, cache), gelu.backward(widened(dy), wide_cache)
    assert np.array_equal(dx, rounded(wide_dx, kind)) and np.array_equal(db, wide_db)


def test_a_sum_that_nobody_normalises(rng, monkeypatch):
    """Frozen layers end in a sum: what is kept of them is its total."""
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    model, batch = model_and_batch(rng, "classifier")
    model.store.train(lambda p: p.layer >= 2)
    assert gelu_adds_bias(model.store["h.0.mlp.c_fc.bias"].value, None)
    hidden = model.trunk.frozen_forward(batch)
    assert isinstance(model.trunk.blocks[0].forward(model.trunk.embed(batch, None), batch), Sum)
    model.clear_cache()
    monkeypatch.setenv("MINISFT_CUDA", "")
    np.testing.assert_allclose(hidden, model.trunk.frozen_forward(batch), atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_attention_in_16_bits_has_the_bits_of_roundings_around_it(rng, monkeypatch, kind,
                                                                 precision):
    """The bias of q, k and v is rounded before it is added, its gradient sums rounded ones."""
    model, batch = model_and_batch(rng, kind)
    for block in model.trunk.blocks:
        bias = block.attn.c_attn.b.value
        bias[...] = widened(rounded(bias, FORMATS[precision]))
    model.store.set_compute_dtype(FORMATS[precision])
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    bias, width = model.store["h.0.attn.c_attn.bias"].value, CONFIG.n_embd // CONFIG.n_head
    assert blocks.attention_in_16_bits(bias, width, FORMATS[precision])
    assert not blocks.attention_in_16_bits(bias, width - 1, FORMATS[precision])
    with only("formula", operations=("attention",)):
        assert not blocks.attention_in_16_bits(bias, width, FORMATS[precision])
    loss, direct = gradients(model, batch)
    monkeypatch.setattr(blocks, "attention_in_16_bits", lambda *_: False)
    backward = Linear.backward_columns

    def rounds(linear, dy, *rest, **options):
        if linear.w.name.endswith("c_attn.weight"):
            dy = widened(rounded(dy, FORMATS[precision]))
        return backward(linear, dy, *rest, **options)

    monkeypatch.setattr(Linear, "backward_columns", rounds)
    around_loss, around = gradients(model, batch)
    assert loss == around_loss
    for name, gradient in direct.items():
        assert np.array_equal(gradient, around[name]), name


def test_arrays_may_begin_anywhere_in_memory(rng):
    """On a CPU parameters lie one behind the other; loads of 16 bytes are for aligned ones."""
    def odd(*shape):
        whole = rng.standard_normal(np.prod(shape) + 1, dtype=np.float32)
        return whole[1:].reshape(shape)

    x, more, dy, w, b, bias = odd(5, 8), odd(5, 8), odd(5, 8), odd(8), odd(8), odd(8)
    assert all(a.ctypes.data % 16 for a in (x, more, dy, w, b, bias))
    found = []
    for convert in (lambda a: a, np.array):
        u, y, cache = residual_layer_norm.forward(*map(convert, (x, w, b)), more=convert(more),
                                                  bias=convert(bias))
        dx, _ = residual_layer_norm.backward(convert(dy), cache, convert(x))
        h, cache = gelu.forward(convert(more), "tanh", convert(bias))
        found.append((u, y, dx, h, *gelu.backward(convert(dy), cache)))
    assert all(map(np.array_equal, *found))


def test_what_is_added_is_not_kept(rng, monkeypatch):
    """A backward needs the sums; what went into them would be a tenth of a step's memory."""
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    norm = LayerNorm("norm", 8, 0, 1e-5)
    Parameters(norm.parameters())
    x, more, dy = (a.copy() for a in rng.standard_normal((3, 5, 8), dtype=np.float32))
    gone = weakref.ref(more)
    norm.of_sum(Sum(x, more, None))
    del more
    assert gone() is None
    gradient = norm.backward(dy)
    assert np.array_equal(gradient.x, gradient.more)
