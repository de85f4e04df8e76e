"""A language model's loss and its gradient in one launch, the gradient in the logits' place."""

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.gpu import emulator
from minisft.backend.gpu.launch import cross_entropy
from minisft.data.batch import pack
from minisft.dispatch import FORMATS, rounded
from minisft.dispatch.matmul import widened
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.ops import cross_entropy as plain_cross_entropy
from minisft.ops.cross_entropy import IGNORE
from tests import standin_cupy

pytestmark = pytest.mark.skipif(emulator.compiler() is None,
                                reason="no C++ compiler to emulate CUDA kernels")
CONFIG = GPT2Config(vocab_size=97, n_positions=20, n_embd=16, n_layer=1, n_head=1)


def model_and_batch(rng, tied=True):
    model = LanguageModel(CONFIG, tied=tied)
    model.store.values[...] = 0.2 * rng.standard_normal(model.store.values.shape)
    ids = [rng.integers(0, 97, n) for n in (3, 20, 9)]
    return model, pack(ids, [[*row[1:], IGNORE] for row in ids])


def step(model, batch, at_once):
    model.store.zero_grad()
    if at_once:
        loss, denominator = model.loss_and_gradients(batch, scale=8.0)
    else:
        loss, denominator, _ = model.loss(batch)
        model.loss_backward(8.0)
    return float(loss), float(denominator), array.to_cpu(model.store.grads).copy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("place", ["emulator", "stand-in"])
def test_the_step_is_that_of_two_calls(rng, monkeypatch, place, precision, tied):
    """In 16 bits the logits and their gradient are rounded: by half a unit in the last place, of
    which a logit's change multiplies its probability and is the loss's."""
    model, batch = model_and_batch(rng, tied)
    model.store.set_compute_dtype(FORMATS[precision])
    monkeypatch.setenv("MINISFT_CUDA", "emulate" if place == "emulator" else "")
    if place == "stand-in":
        monkeypatch.setattr(array, "cupy", standin_cupy)
        model.store.to_gpu()
    loss, denominator, gradient = step(model, batch, at_once=False)
    found, counted, ours = step(model, batch, at_once=True)
    largest = np.abs(array.to_cpu(model.forward(batch))).max()
    model.clear_cache()
    half = {"float32": 2.0**-23, "bfloat16": 2.0**-9, "float16": 2.0**-12}[precision]
    assert counted == denominator == 29
    assert abs(found - loss) <= 2 * largest * half * denominator
    assert np.abs(ours - gradient).max() <= 2 * (largest + 1) * half * np.abs(gradient).max()
    assert precision == "float32" or found != loss


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
def test_16_bits_are_the_rounded_float32(rng, dtype):
    z = rounded(4 * rng.standard_normal((9, 70), dtype=np.float32), np.dtype(dtype))
    wide, labels = widened(z), rng.integers(0, 70, 9)
    labels[4] = IGNORE
    assert cross_entropy.train(z, labels, 0.5) == cross_entropy.train(wide, labels, 0.5)
    # the sums of a row have another order where a thread takes twice as many
    error = np.abs(widened(z) - widened(rounded(wide, z.dtype))).max()
    assert error <= 2.0**-8 * np.abs(wide).max()
    assert not wide[4].any() and not widened(z)[4].any()


def test_a_label_that_is_no_class_gives_no_number(rng):
    z = rng.standard_normal((3, 4), dtype=np.float32)
    loss, _ = cross_entropy.train(z, np.array([0, 4, 2]))
    assert np.isnan(loss) and np.isnan(z[1]).all() and np.isfinite(z[[0, 2]]).all()


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_what_a_thread_cannot_keep_is_read_again(rng, monkeypatch, dtype, order):
    monkeypatch.setattr(cross_entropy, "MOST_OF_TRAIN", 32)     # they keep 1,664 or 3,328 logits
    z = 4 * rng.standard_normal((4, 3600), dtype=np.float32)
    z[0, 100], z[1, 2000], z[2, :3500] = 1e4, 1e4, -np.inf
    z = widened(rounded(z, np.dtype(dtype))) if dtype != np.float32 else z
    labels = np.array([3599, 1, 3550, IGNORE])
    (loss, mass), cache = plain_cross_entropy.forward(z.astype(np.float64), labels)
    expected = plain_cross_entropy.backward(0.5, cache)
    ours = rounded(z, np.dtype(dtype)) if dtype != np.float32 else z.copy()
    with emulator.thread_order(order, seed=1):
        found = cross_entropy.train(ours, labels, 0.5)
    assert found[1] == mass == 3 and found[0] == pytest.approx(loss, rel=1e-6)
    ours = widened(ours) if dtype != np.float32 else ours
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 if dtype == np.float32 else
                               2.0**-9)


def test_a_logit_that_is_no_number_shows(rng):
    z = rng.standard_normal((3, 70), dtype=np.float32)
    z[0, 5], z[1, 6] = np.nan, np.inf
    loss, _ = cross_entropy.train(z, np.array([0, 1, 2]))
    assert np.isnan(loss) and np.isnan(z[0]).all() and np.isnan(z[1]).any()
    assert np.isfinite(z[2]).all()
