"""Optimizers against a scalar twin and PyTorch, schedules, clipping."""

from math import sqrt

import numpy as np
import pytest

from minisft.nn.parameters import Parameter, Parameters
from minisft.training import optim

KINDS = {"sgd": dict(momentum=0.9, weight_decay=0.1), "adam": dict(weight_decay=0.1),
         "adamw": dict(weight_decay=0.1)}


def store_of(dtype=np.float64):
    parameters = [Parameter("a.weight", (3, 5), 0, True), Parameter("a.bias", (5,), 0, False),
                  Parameter("b.weight", (7, 2), 1, True)]
    return Parameters(parameters, dtype)


def one_step(kind, w, g, memory, t, lr, decay):
    """A single value, straight from the equations."""
    m, v = memory
    if kind != "adamw":
        g = g + decay * w
    if kind == "sgd":
        m = 0.9 * m + g
        return w - lr * m, (m, v)
    if kind == "adamw":
        w = w - lr * decay * w
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return w - lr * (m / (1 - 0.9**t)) / (sqrt(v / (1 - 0.999**t)) + 1e-8), (m, v)


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_follows_the_equations(kind, rng, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", 4)     # several blocks in each run
    store = store_of()
    store.values[...] = rng.standard_normal(store.values.shape)
    optimizer = optim.OPTIMIZERS[kind](store, **KINDS[kind])
    decays = np.concatenate([np.full(p.size, 0.1 if p.decays else 0) for p in store.trainable])
    values, memory = store.values.tolist(), [(0.0, 0.0)] * len(store.values)
    for t in range(1, 5):
        store.grads[...] = rng.standard_normal(store.grads.shape)
        for i, (w, g) in enumerate(zip(values, store.grads, strict=True)):
            values[i], memory[i] = one_step(kind, w, 0.5 * g, memory[i], t, 0.01, decays[i])
        optimizer.step(0.01, scale=0.5)
    np.testing.assert_allclose(store.values, values, rtol=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_steps_match_pytorch(kind, rng):
    torch = pytest.importorskip("torch")
    store = store_of()
    store.values[...] = rng.standard_normal(store.values.shape)
    theirs = [torch.nn.Parameter(torch.tensor(p.value.copy())) for p in store.trainable]
    groups = [{"params": [q], "weight_decay": 0.1 if p.decays else 0.0}
              for p, q in zip(store.trainable, theirs, strict=True)]
    peer = {"sgd": lambda: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
            "adam": lambda: torch.optim.Adam(groups, lr=0.01),
            "adamw": lambda: torch.optim.AdamW(groups, lr=0.01)}[kind]()
    ours = optim.OPTIMIZERS[kind](store, **KINDS[kind])
    for _ in range(20):
        store.grads[...] = rng.standard_normal(store.grads.shape)
        for p, q in zip(store.trainable, theirs, strict=True):
            q.grad = torch.tensor(p.grad.copy())
        peer.step()
        ours.step(0.01)
    for p, q in zip(store.trainable, theirs, strict=True):
        np.testing.assert_allclose(p.value, q.detach().numpy(), rtol=1e-10)


def test_gradients_are_left_alone(rng):
    store = store_of()
    store.grads[...] = before = rng.standard_normal(store.grads.shape)
    optim.AdamW(store).step(0.1, scale=2.0)
    np.testing.assert_array_equal(store.grads, before)


def test_each_run_has_its_own_rate(rng):
    store = store_of()
    store.grads[...] = 1
    optim.SGD(store, rates=[1.0, 0.5, 0.0]).step(0.1)
    for p, expected in zip(store.trainable, (-0.1, -0.05, 0.0), strict=True):
        np.testing.assert_allclose(p.value, expected)
    with pytest.raises(ValueError, match="2 rates for 3 parameter groups"):
        optim.SGD(store, rates=[1.0, 2.0])


def test_state_resumes_bit_for_bit(rng):
    gradients = rng.standard_normal((6, 34)).astype(np.float32)

    def steps(store, optimizer, rows):
        for g in rows:
            store.grads[...] = g
            optimizer.step(0.01)

    whole = store_of(np.float32)
    steps(whole, optim.AdamW(whole), gradients)
    first = store_of(np.float32)
    optimizer = optim.AdamW(first)
    steps(first, optimizer, gradients[:3])
    second = store_of(np.float32)
    second.values[...] = first.values
    resumed = optim.AdamW(second)
    resumed.restore(*optimizer.state())
    steps(second, resumed, gradients[3:])
    np.testing.assert_array_equal(second.values, whole.values)
    with pytest.raises(ValueError, match="expected"):
        resumed.restore({"m": np.zeros(3), "v": np.zeros(3)}, 1)


def test_norm_and_clipping(rng, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", 4)
    store = store_of()
    store.grads[...] = rng.standard_normal(store.grads.shape)
    norm = optim.gradient_norm(store)
    assert norm == pytest.approx(np.linalg.norm(store.grads))
    assert optim.clip_scale(norm, norm / 4) == pytest.approx(0.25)
    assert optim.clip_scale(norm, 2 * norm) == optim.clip_scale(norm, None) == 1
    assert optim.clip_scale(0.0, 1.0) == 1


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedule_rises_and_falls(name):
    factors = [optim.schedule(name, step, 100, 10) for step in range(100)]
    assert factors[:11] == pytest.approx([i / 11 for i in range(1, 12)])
    assert all(a > b > 0 for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] < 0.02


@pytest.mark.parity
@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
def test_schedules_of_transformers(name):
    """Equal behind the warm-up, whose first step is 0 there."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    steps, warmup = 50, 7
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule, theirs = transformers.get_scheduler(name, optimizer, warmup, steps), []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = [optim.schedule(name.split("_")[0], i, steps, warmup) for i in range(steps)]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-12)
    assert theirs[:warmup] == pytest.approx([i / warmup for i in range(warmup)])
    assert ours[:warmup] == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup)])


@pytest.mark.parity
def test_clipping_of_pytorch(rng):
    """Theirs divides by the norm and a millionth."""
    torch = pytest.importorskip("torch")
    for g in rng.standard_normal(20), np.full(2, 1e-6):
        p = torch.nn.Parameter(torch.zeros(len(g), dtype=torch.float64))
        p.grad, limit = torch.tensor(g), 1e-7
        norm = float(torch.nn.utils.clip_grad_norm_([p], limit))
        assert optim.clip_scale(norm, limit) == limit / norm
        np.testing.assert_allclose(p.grad.numpy() * (norm + 1e-6) / norm,
                                   g * optim.clip_scale(norm, limit), rtol=1e-12)


def test_inverse_square_root_is_the_papers():
    """Vaswani et al. 2017, eq. 3, whose highest value is at the end of the warm-up."""
    width, warmup = 512, 40     # one of theirs is our warm-up and the step after it
    def paper(n):
        return width**-0.5 * min(n**-0.5, n * warmup**-1.5)
    ours = [optim.schedule("inverse_sqrt", step, 1000, warmup - 1) for step in range(1000)]
    assert max(ours) == ours[warmup - 1] == 1
    np.testing.assert_allclose(ours, [paper(n) / paper(warmup) for n in range(1, 1001)],
                               rtol=1e-12)
    assert optim.schedule("inverse_sqrt", 3, 10, 0) == 0.5


def test_schedule_constant_and_unknown():
    assert optim.schedule("constant", 50, 100, 10) == 1
    assert optim.schedule("linear", 0, 1, 0) == 1
    with pytest.raises(ValueError, match="linear, cosine, constant"):
        optim.schedule("step", 50, 100, 10)


def test_layer_rates_fall_towards_the_embeddings():
    assert optim.layer_wise_lr_factors(store_of(), 0.5) == [0.5, 0.5, 1.0]
