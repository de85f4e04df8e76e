"""TF32: what is rounded, what a card is asked for, and that a model learns with it as without."""

import numpy as np
import pytest

from minisft.backend import array, tf32
from minisft.backend.gpu import gemm
from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.dispatch import TF32, matmul, rounded
from minisft.errors import UserError
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.training.config import require_device
from minisft.training.optim import AdamW
from tests import standin_cupy


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    monkeypatch.setattr(array, "cupy", standin_cupy)


def nearest(x):
    """One number -> the nearest of the two TF32 around it, by trying both."""
    bits = int(np.float32(x).view(np.uint32)) >> 13
    around = [np.array([n << 13], np.uint32).view(np.float32)[0] for n in (bits, bits + 1)]
    distance = [abs(float(a) - float(x)) for a in around]
    return around[int(distance[1] <= distance[0])]     # ties away from zero


def test_it_is_the_nearest(rng):
    x = (rng.standard_normal(300) * 10.0 ** rng.integers(-30, 30, 300)).astype(np.float32)
    x[:3] = 1 + 2.0**-11, -1 - 2.0**-11, 0
    found = tf32.from_tf32(tf32.to_tf32(x))
    assert found.tolist() == [nearest(v) for v in x]
    assert np.array_equal(tf32.from_tf32(tf32.to_tf32(found)), found)
    assert found[:2].tolist() == [1 + 2.0**-10, -1 - 2.0**-10]
    odd = tf32.from_tf32(tf32.to_tf32(np.float32([np.nan, np.inf, -np.inf, 3.4028235e38])))
    assert np.isnan(odd[0]) and odd[1:].tolist() == [np.inf, -np.inf, np.inf]


def test_a_card_is_asked_to_round_the_numbers_as_they_are(card, rng):
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((5, 9), (9, 4)))
    on_card = array.to_gpu(x)
    low = rounded(on_card, TF32)
    assert low.data.ptr == on_card.data.ptr and low.dtype == TF32     # no copy
    right = array.to_gpu(w)
    with standin_cupy.counted() as asked:
        y = matmul(low, rounded(right, TF32))
    assert asked["gemmEx"] == asked.total() == 1
    expected = matmul(rounded(x, TF32), rounded(w, TF32))
    np.testing.assert_allclose(array.to_cpu(y), expected, rtol=0, atol=1e-5)
    assert not np.array_equal(expected, x @ w)
    assert gemm.compute_type(low) == 77 and gemm.compute_type(on_card.astype("f2")) == 68


@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_learns_as_in_float32(card, rng, kind, device):
    ids = [rng.integers(0, 97, n) for n in (5, 1, 9)]
    classifier = kind is Classifier
    batch = pack(ids, [0, 1, 2] if classifier else [np.append(row[1:], -100) for row in ids])
    found = {}
    for precision in ("float32", "tf32"):
        model = kind(GPT2Config(97, 16, 32, 2, 2), *(("abc",) if classifier else ()), seed=3)
        model.to(device, precision)
        optimizer = AdamW(model.store)
        for t in range(3):
            model.store.zero_grad()
            loss, _, _ = model.loss(batch, Stream(0, t))
            model.loss_backward()
            optimizer.step(1e-3)
        found[precision] = float(loss), model.store.without_gaps(model.store.grads)
    assert model.store.compute_values is None     # the values are their own copy
    (loss, grads), (theirs, exact) = found["tf32"], found["float32"]
    assert loss != theirs and abs(loss / theirs - 1) < 1e-3
    assert np.abs(grads - exact).max() < 5e-3 * np.abs(exact).max()


def test_where_it_is_refused(monkeypatch):
    with pytest.raises(UserError, match="precision='tf32' is for device='cuda', expected float32"):
        require_device("cpu", "tf32")
    monkeypatch.setattr(array, "cupy", standin_cupy)
    require_device("cuda", "tf32")
    monkeypatch.setattr(standin_cupy.cuda.Device, "compute_capability", "75")
    with pytest.raises(UserError, match="no tensor cores for it, expected one of compute capabil"):
        require_device("cuda", "tf32")
    require_device("cuda", "float16")
