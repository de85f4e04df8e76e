from math import erf, pi, sqrt, tanh

import numpy as np
import pytest

from minisft.ops import gelu
from minisft.verify.gradcheck import check

FORMS = ["tanh", "erf"]


def one(x, form):
    if form == "tanh":
        return 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + erf(x / sqrt(2)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 16), (4,), (2, 3, 5)])
def test_forward_matches_loops(rng, shape, form):
    x = 3 * rng.standard_normal(shape)
    y, _ = gelu.forward(x, form)
    assert y.shape == x.shape
    for index in np.ndindex(shape):
        assert y[index] == pytest.approx(one(x[index], form), rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_backward_matches_finite_differences(rng, form, size):
    check(lambda x: gelu.forward(x, form), gelu.backward, size * rng.standard_normal((5, 7)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_hostile_inputs(form, dtype):
    x = np.array([-1000, -40, -0.0, 0, 40, 1000], dtype=dtype)
    y, cache = gelu.forward(x, form)
    dx = gelu.backward(np.ones_like(x), cache)
    assert y.tolist() == [0, 0, 0, 0, 40, 1000]
    assert dx.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert y.dtype == dx.dtype == dtype


@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_left_alone(rng, form):
    x, dy = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    x.flags.writeable = dy.flags.writeable = False
    y, cache = gelu.forward(x, form)
    kept = y.copy()
    other, _ = gelu.forward(x[::-1], form)
    first, second = gelu.backward(dy, cache), gelu.backward(dy, cache)
    assert np.array_equal(y, kept) and np.array_equal(first, second)
    assert not np.shares_memory(y, other) and not np.shares_memory(first, second)


@pytest.mark.parametrize("form", FORMS)
def test_float32_stays_float32(rng, form):
    x = rng.standard_normal((3, 4), dtype=np.float32)
    y, cache = gelu.forward(x, form)
    assert y.dtype == gelu.backward(y, cache).dtype == np.float32


@pytest.mark.parity
@pytest.mark.parametrize("form, approximate", [("tanh", "tanh"), ("erf", "none")])
def test_matches_pytorch(rng, form, approximate):
    torch = pytest.importorskip("torch")
    x, dy = 3 * rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.gelu(tx, approximate=approximate)
    ty.backward(torch.tensor(dy))
    y, cache = gelu.forward(x, form)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(gelu.backward(dy, cache), tx.grad.numpy(), rtol=0, atol=1e-13)
