"""The table of what is rounded to 16 bits, held against what every implementation does.

A number is changed by less than rounding to 16 bits can see. Where the table says that it is
rounded no bit of the results may change; where it says float32 some bit must.
"""

from pathlib import Path

import numpy as np
import pytest

from minisft.backend.constants import WORD
from minisft.backend.cpu import jit, processor
from minisft.backend.gpu import emulator
from minisft.data.batch import pack
from minisft.dispatch import (
    FORMATS,
    attention,
    dropout,
    embedding,
    layer_norm,
    linear,
    lora,
    rounded,
    softmax,
    span_cross_entropy,
    watched,
)
from minisft.dispatch.matmul import widened
from minisft.dispatch.rounding_points import ROUNDING_POINTS, as_table
from minisft.models.config import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.nn.blocks import MLP
from minisft.nn.parameters import Parameters

PAGE = Path(__file__).resolve().parents[1] / "docs/precision.md"


def _linear(dtype, x, w, b, dy):
    y, cache = linear.forward(x, rounded(w, dtype), b)
    return y, *linear.backward(dy, cache)


def _lora(dtype, x, a, b, dy):
    y, cache = lora.forward(x, rounded(a, dtype), rounded(b, dtype), 0.5)
    return y, *lora.backward(dy, cache)


def _attention(dtype, q, k, v, dy):
    edges = np.array([0, 5, 16])
    y, cache = attention.forward(q, k, v, edges, edges[:-1], np.diff(edges), compute_dtype=dtype)
    return y, *attention.backward(dy, cache)


ADDS = np.concatenate([np.eye(16), np.eye(16) / 1024])     # what `_split` has split


def _split(a, dtype):
    """a (N,16) -> (N,32): each number as two of 16 bits, of which the lower counts a thousandth."""
    high = widened(rounded(a, dtype))
    return np.concatenate([high, 1024 * (a - high)], axis=1)


def _cross_entropy(dtype, z):
    """In a step of a language model, whose product gives z as it is."""
    model = LanguageModel(GPT2Config(vocab_size=16, n_positions=9, n_embd=32, n_layer=1, n_head=2))
    model.trunk.wte.w.value[...] = ADDS.T
    model.store.set_compute_dtype(dtype)
    model.trunk.forward = lambda *_: _split(z, dtype)
    seen = []
    model.trunk.backward = seen.append
    loss, _ = model.loss_and_gradients(pack([np.arange(9)], [np.arange(9)]))
    return loss, *seen


def _gelu(dtype, x, dy):
    """Between the two products of an MLP, which give it x and dy as they are."""
    mlp = MLP("mlp", GPT2Config(n_embd=32, n_inner=16, n_head=2, n_layer=1), 1)
    store = Parameters(mlp.parameters())
    mlp.c_fc.w.value[...], mlp.c_proj.w.value[...] = ADDS, ADDS.T
    store.set_compute_dtype(dtype)
    seen = []
    with watched(lambda operation, direction, given: seen.append(given)
                 if operation == "gelu" else None):
        mlp.forward(_split(x, dtype))
        mlp.backward(_split(dy, dtype))
    y, *_, dx = seen     # between them y once more where GELU runs again
    return (y, *dx) if isinstance(dx, tuple) else (y, dx)


RUNS = {
    "linear": (_linear, {"x": (9, 16), "w": (16, 12), "b": (12,), "dy": (9, 12)}),
    "lora": (_lora, {"x": (9, 16), "a": (3, 16), "b": (12, 3), "dy": (9, 12)}),
    "attention": (_attention, dict.fromkeys(("q", "k", "v", "dy"), (16, 2, 32))),
    "layer_norm": (lambda dtype, x: layer_norm.forward(x, np.ones(16, np.float32),
                                                       np.zeros(16, np.float32))[:1],
                   {"x": (9, 16)}),
    "gelu": (_gelu, {"x": (9, 16), "dy": (9, 16)}),
    "softmax": (lambda dtype, s: softmax.forward(s)[:1], {"s": (9, 16)}),
    "cross_entropy": (_cross_entropy, {"z": (9, 16)}),
    "span_cross_entropy": (lambda dtype, z: span_cross_entropy.forward(
        z, np.array([0, 4, 9]), np.array([[0, 1], [4, 2]]))[0][:1], {"z": (9, 2)}),
    "embedding": (lambda dtype, w: embedding.forward(np.arange(5), w)[:1], {"w": (5, 16)}),
    "dropout": (lambda dtype, x: dropout.forward(x, np.full(x.shape, WORD, np.uint32), 0.5)[:1],
                {"x": (9, 16)}),
}
PLACES = ["formula",
          pytest.param("compiled", marks=pytest.mark.skipif(
              jit.numba() is None, reason="compiled loops need the extra fast")),
          pytest.param("emulator", marks=pytest.mark.skipif(
              emulator.compiler() is None, reason="no C++ compiler to emulate CUDA kernels"))]


@pytest.mark.parametrize("point", ROUNDING_POINTS, ids=lambda p: f"{p.operation} {p.array}")
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
@pytest.mark.parametrize("place", PLACES)
def test_what_the_table_says(rng, monkeypatch, point, precision, place):
    monkeypatch.setenv("MINISFT_CUDA", "emulate" if place == "emulator" else "")
    run, shapes = RUNS[point.operation]
    dtype = FORMATS[precision]
    arrays = {name: widened(rounded(rng.standard_normal(shape, dtype=np.float32), dtype))
              for name, shape in shapes.items()}
    moved = arrays | {point.array: arrays[point.array] * np.float32(1 + 2.0**-14)}
    assert np.array_equal(rounded(moved[point.array], dtype), rounded(arrays[point.array], dtype))
    with jit.compiled(place == "compiled"):
        before, after = run(dtype, **arrays), run(dtype, **moved)
    if (point.operation, point.array) == ("gelu", "dy"):
        assert np.array_equal(before[0], after[0])     # the forward has not seen it
        before, after = before[1:], after[1:]
    if (point.operation, point.array) == ("linear", "dy"):
        assert not np.array_equal(before[-1], after[-1])     # db sums dy as it is
        before, after = before[:-1], after[:-1]
    amx = place == "compiled" and precision == "bfloat16" and not processor.why_not_amx()
    is_rounded = point.gpu if place == "emulator" else point.cpu or amx and point.amx
    if precision == "tf32":
        is_rounded = point.tf32
    assert all(map(np.array_equal, before, after)) == is_rounded


def test_every_operation_is_in_the_table():
    from minisft.dispatch import OPERATIONS
    # no layer's formula, or of merged maps, which are float32
    others = {"matmul", "column_sums", "factor_gradients", "to_bfloat16", "adamw", "squared_norm"}
    assert {point.operation for point in ROUNDING_POINTS} == set(OPERATIONS) - others


def test_the_page_shows_the_table():
    assert as_table() in PAGE.read_text(encoding="utf-8")
