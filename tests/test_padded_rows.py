"""Rows of zeros behind the token table, which a card gets, change nothing that anybody sees."""

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.io import checkpoint, safetensors
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.nn.parameters import ALIGN, ROWS
from minisft.ops.cross_entropy import IGNORE
from minisft.training.optim import SGD, AdamW
from minisft.training.state import State
from tests import standin_cupy
from tests.test_emulator import needs_compiler

V, WIDTH = 97, 32
CONFIG = GPT2Config(V, 16, WIDTH, 2, 2)


@pytest.fixture(params=["formulas", pytest.param("emulator", marks=needs_compiler),
                        pytest.param("stand-in", marks=needs_compiler)])
def place(request, monkeypatch):
    """Where a padded model computes."""
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    monkeypatch.setenv("MINISFT_CUDA", "emulate" if request.param == "emulator" else "")
    if request.param == "stand-in":
        monkeypatch.setattr(array, "cupy", standin_cupy)
    return request.param


def padded(place, precision="float32", config=CONFIG):
    """A language model with rows of zeros, and one without."""
    plain, model = (LanguageModel(config, seed=3).to("cpu", precision) for _ in range(2))
    if place == "stand-in":
        model.to("cuda", precision)
    else:
        model.store.align = ALIGN
        model.store.train(lambda p: True)
    return plain, model


def batch_of(rng):
    ids = [rng.integers(0, V, n) for n in (5, 1, 9)]
    ids[0][:2] = V - 1     # the last row that is no padding
    return pack(ids, [np.append(row[1:], IGNORE) for row in ids])


def gaps(store):
    """-> which numbers of the buffer belong to no parameter."""
    belong = array.to_cpu(store.with_gaps(np.ones(sum(p.size for p in store.trainable))))
    return belong == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_padded_model_learns_as_one_without(place, rng, precision):
    plain, model = padded(place, precision)
    batch = batch_of(rng)
    assert model.trunk.wte.w.padded_value.shape == (ROWS, WIDTH)
    assert gaps(model.store).sum() >= (ROWS - V) * WIDTH and not gaps(plain.store).any()
    rounding = 1e-5 if precision == "float32" else 5e-2     # attention's inputs, on a card alone
    for t in range(3):
        found = []
        for one in (plain, model):
            one.store.zero_grad()
            loss, _, logits = one.loss(batch, Stream(0, t))
            assert logits.shape == (len(batch.ids) - 3, V)
            one.loss_backward()
            found.append((float(loss), one.store.without_gaps(one.store.grads)))
        (loss, expected), (theirs, ours) = found
        assert abs(theirs / loss - 1) < rounding
        assert np.abs(ours - expected).max() < rounding * np.abs(expected).max()
        for one in (plain, model):
            one.optimizer = getattr(one, "optimizer", None) or AdamW(one.store, weight_decay=0.1)
            one.optimizer.step(1e-3)
    for buffer in (model.store.values, model.store.grads, model.optimizer.m, model.optimizer.v):
        assert not array.to_cpu(buffer)[gaps(model.store)].any()


@pytest.mark.parametrize("foreign", ["an array", "columns of another"])
def test_a_gradient_from_elsewhere_has_no_rows_behind_it(place, rng, foreign):
    plain, model = padded(place)
    batch = batch_of(rng)
    dlogits = rng.standard_normal((len(batch.ids), ROWS), dtype=np.float32)     # beyond V, too
    found = []
    for one in (plain, model):
        one.forward(batch)
        d = one.store.xp.asarray(dlogits)[:, :V]
        one.backward(d + 0 if foreign == "an array" else d)
        found.append(one.store.without_gaps(one.store.grads))
    assert np.abs(found[1] - found[0]).max() < 1e-5 * np.abs(found[0]).max()
    assert not array.to_cpu(model.store.grads)[gaps(model.store)].any()


def test_two_pieces_add_up(place, rng):
    plain, model = padded(place)
    batch = batch_of(rng)
    for one in (plain, model):
        for _ in range(2):
            one.loss(batch)
            one.loss_backward()
    found, expected = (one.store.without_gaps(one.store.grads) for one in (model, plain))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_is_saved_has_no_gaps(place, rng, tmp_path):
    plain, model = padded(place)
    for one, name in ((plain, "plain"), (model, "padded")):
        checkpoint.save(one, tmp_path / name)
    files = [(tmp_path / name / "model.safetensors") for name in ("plain", "padded")]
    assert files[0].read_bytes() == files[1].read_bytes()
    tensors, _ = safetensors.read_header(files[1])
    assert [t.read().shape for n, t in tensors.items() if n.endswith("wte.weight")] == [(V, WIDTH)]


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_state_goes_from_one_to_the_other(place, rng, kind):
    plain, model = padded(place)
    model.train_layers("last:1")
    plain.train_layers("last:1")
    for one, other in ((plain, model), (model, plain)):
        optimizers = [kind(m.store) for m in (one, other)]
        one.store.grads[...] = 1
        optimizers[0].step(1e-2)
        best = dict.fromkeys(("epoch", "step", "train_loss", "valid_loss", "score"), 1)
        kept = State(step=3, seconds=1.0, best=best, best_values=one.store.values.copy())
        arrays, info = kept.to_save(one, optimizers[0])
        state = State()
        state.restore(other, optimizers[1], arrays, info)
        again, _ = state.to_save(other, optimizers[1])
        assert again.keys() == arrays.keys() and state.step == 3
        for name, a in arrays.items():
            assert a.any()
            np.testing.assert_array_equal(again[name], a)


@needs_compiler
def test_the_kernel_reads_rows_that_lie_apart(monkeypatch, rng):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    from minisft.backend.gpu.launch import cross_entropy
    wide, labels = rng.standard_normal((5, 20), dtype=np.float32), np.array([0, 6, IGNORE, 2, 1])
    z = wide[:, :7]
    loss, cache = cross_entropy.forward(z, labels)
    expected, plain = cross_entropy.forward(z.copy(), labels)
    assert cache[0] is z and [float(a) for a in loss] == [float(a) for a in expected]
    behind = wide[:, 7:].copy()
    dz = cross_entropy.backward(2.0, plain)
    np.testing.assert_array_equal(cross_entropy.backward(2.0, cache), dz)
    assert cross_entropy.backward(2.0, cache, out=z) is z
    np.testing.assert_array_equal(z, dz)
    np.testing.assert_array_equal(wide[:, 7:], behind)
