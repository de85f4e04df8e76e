"""A checker is worth what it refuses: backwards with one mistake each must fail."""

import re
from math import sqrt

import numpy as np
import pytest

from minisft.backend.random import Stream, draw_words
from minisft.dispatch import dispatched
from minisft.ops import attention, embedding, gelu, layer_norm, linear, softmax
from minisft.verify import gradcheck
from minisft.verify.gradcheck import (
    GradientError,
    check,
    compare,
    compare_directions,
    drawing_once,
    require,
)

MASK = np.array([[[0, 2, 2, 0], [2, 0, 2, 2], [2, 2, 0, 0], [0, 2, 2, 2]],
                 [[2, 2, 0, 2], [0, 2, 0, 2], [2, 0, 2, 2], [2, 2, 2, 0]]], dtype=float)
WORDS = np.where(MASK > 0, 2**32 - 1, 0).astype(np.uint32)
ALL = np.array([0, 4]), np.array([0]), np.array([4])     # one sequence of four


def no_third_term(dy, cache):
    x, w, mean, rstd = cache
    n, g = (x - mean) * rstd, dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True))
    return dx, (dy * n).sum(axis=0), dy.sum(axis=0)


def assigning(dy, cache):
    ids, shape = cache
    dw = np.zeros(shape)
    dw[ids] = dy
    return dw


def attention_with(mistake):
    """The backward of one full sequence under MASK, with one mistake, or with None."""
    def backward(dy, cache):
        q, k, v = cache[:3]
        ((p, _),) = cache[-1]
        scale = 1 if mistake == "scale" else 1 / sqrt(q.shape[-1])
        q, k, v, dy = (a.transpose(1, 0, 2) for a in (q, k, v, dy))
        dv = (p if mistake == "mask in dv" else p * MASK).swapaxes(1, 2) @ dy
        dp = dy @ v.swapaxes(1, 2)
        if mistake != "mask in dp":
            dp = dp * MASK
        inner = p * MASK if mistake == "mask on p" else p
        ds = p * (dp - (dp * inner).sum(axis=-1, keepdims=True))
        dk = (ds if mistake == "transposed" else ds.swapaxes(1, 2)) @ q * scale
        return tuple(a.transpose(1, 0, 2) for a in (ds @ k * scale, dk, dv))
    return backward


def attend(q, k, v):
    return attention.forward(q, k, v, *ALL, True, (0.5, lambda b, tk: WORDS))


def inputs(rng, *shapes):
    return [rng.standard_normal(shape) for shape in shapes]


def broken(rng):
    """-> name: forward, backward with a mistake, inputs."""
    heads = inputs(rng, (4, 2, 3), (4, 2, 3), (4, 2, 3))
    x, w, b = inputs(rng, (5, 6), (6,), (6,))
    ids, table = np.array([2, 0, 2]), rng.standard_normal((4, 3))
    s = rng.standard_normal((3, 5))
    square = inputs(rng, (5, 4), (4, 4), (4,))

    def changed(change):
        def backward(dy, cache):
            gradients = [g.copy() for g in linear.backward(dy, cache)]
            change(gradients)
            return tuple(gradients)
        return linear.forward, backward, square

    def element(rank):
        def change(gradients):
            dw = gradients[1].ravel()
            dw[np.argsort(np.abs(dw))[rank]] *= 1 + 1e-4
        return change

    return {
        "softmax: zeros": (softmax.forward, lambda dp, cache: np.zeros_like(dp), [s]),
        "softmax: no row sum": (softmax.forward, lambda dp, cache: cache[0] * dp, [s]),
        "layer norm: no third term": (layer_norm.forward, no_third_term, [x, w, b]),
        "layer norm: no third term, w = 1": (layer_norm.forward, no_third_term,
                                             [x, np.ones(6), b]),
        "attention: scale": (attend, attention_with("scale"), heads),
        "attention: mask on p": (attend, attention_with("mask on p"), heads),
        "attention: mask in dp": (attend, attention_with("mask in dp"), heads),
        "attention: mask in dv": (attend, attention_with("mask in dv"), heads),
        "attention: transposed dk": (attend, attention_with("transposed"), heads),
        "linear: transposed dw": changed(lambda g: g.__setitem__(1, g[1].T)),
        "linear: wrong sign": changed(lambda g: np.negative(g[2], out=g[2])),
        "linear: not a number": changed(lambda g: g[0].__setitem__((1, 2), np.nan)),
        "linear: infinite": changed(lambda g: g[0].__setitem__((1, 2), np.inf)),
        "linear: all not numbers": changed(lambda g: g[1].fill(np.nan)),
        "linear: largest element off by 1e-4": changed(element(-1)),
        "linear: middling element off by 1e-4": changed(element(8)),
        "embedding: assigns": (embedding.forward, assigning, [ids, table]),
        "gelu: forms mixed up": (lambda a: gelu.forward(a, "tanh"),
                                 lambda dy, cache: gelu.backward(dy, gelu.forward(s, "erf")[1]),
                                 [s]),
    }


BROKEN = list(broken(np.random.default_rng(0)))


@pytest.mark.parametrize("mistake", BROKEN)
@pytest.mark.parametrize("seed", [0, 1])
def test_broken_backwards_fail(rng, mistake, seed):
    forward, backward, given = broken(rng)[mistake]
    with pytest.raises(GradientError):
        check(forward, backward, *given, seed=seed)


@pytest.mark.parametrize("mistake", BROKEN)
def test_right_backwards_pass(rng, mistake):
    # the same forwards and inputs as above: the failures there are the mistakes' own
    forward, _, given = broken(rng)[mistake]
    right = {"softmax": softmax.backward, "layer norm": layer_norm.backward,
             "attention": attention_with(None), "linear": linear.backward,
             "embedding": embedding.backward, "gelu": gelu.backward}[mistake.split(":")[0]]
    rows = check(forward, right, *given)
    assert all(row.error < 1e-8 for row in rows)


def test_a_sum_as_objective_would_pass_zeros(rng):
    # why the upstream gradient is random: this is the check that others get wrong
    s = rng.standard_normal((3, 5))
    (row,) = compare(lambda: float(softmax.forward(s)[0].sum()), {"s": s}, {"s": np.zeros((3, 5))})
    assert row.by_hand == 0 and abs(row.numeric) < 1e-9


def test_wrong_shape_fails(rng):
    x, w, b = inputs(rng, (5, 4), (4, 4), (4,))

    def kept_dims(dy, cache):
        dx, dw, db = linear.backward(dy, cache)
        return dx, dw, db[None]     # (1,4) would broadcast against (4,)

    with pytest.raises(GradientError, match=r"gradient of b has shape \(1, 4\), the array \(4,\)"):
        check(linear.forward, kept_dims, x, w, b, names=["x", "w", "b"])


def test_a_gradient_too_few_or_too_many_is_refused(rng):
    x, w = inputs(rng, (3, 2), (2, 2))
    with pytest.raises(ValueError, match="2 float64 inputs, 3 gradients"):
        check(linear.forward, linear.backward, x, w)
    with pytest.raises(ValueError, match="2 float64 inputs, 1 gradients"):
        check(linear.forward, lambda dy, cache: linear.backward(dy, cache)[0], x, w)


def test_message_names_operation_input_index_and_both_numbers(rng):
    x, w, b = inputs(rng, (5, 4), (4, 3), (3,))

    def off(dy, cache):
        dx, dw, db = linear.backward(dy, cache)
        dw[3, 1] += 7
        return dx, dw, db

    with pytest.raises(GradientError) as caught:
        check(linear.forward, off, x, w, b, names=["x", "w", "b"], operation="linear")
    found = re.fullmatch(r"linear: gradient of w at \[3, 1\]: by hand (\S+), finite differences "
                         r"(\S+), error (\S+) > 1e-06", str(caught.value))
    by_hand, numeric, error = map(float, found.groups())
    assert by_hand - numeric == pytest.approx(7, abs=1e-6) and error > 0.1
    # without names and operation the place of the input has to do
    with pytest.raises(GradientError, match=r"^gradient of input 1 at \[3, 1\]"):
        check(linear.forward, off, x, w, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_float32_is_refused(rng, dtype):
    x, w, b = inputs(rng, (5, 4), (4, 3), (3,))
    with pytest.raises(ValueError, match=f"input 1 is {np.dtype(dtype)}: .* float64"):
        check(linear.forward, linear.backward, x, w.astype(dtype), b)


def test_inputs_come_back_as_they_were(rng):
    x, w, b = inputs(rng, (5, 4), (4, 3), (3,))
    kept = [a.copy() for a in (x, w, b)]
    for a in (x, w, b):
        a.flags.writeable = False
    check(linear.forward, linear.backward, x, w, b)
    assert all(np.array_equal(a, before) for a, before in zip((x, w, b), kept, strict=True))


def with_key_bias(rng):
    """Attention whose keys carry a bias: softmax does not see it, so its gradient is zero."""
    q, k, v, bias = inputs(rng, (4, 2, 3), (4, 2, 3), (4, 2, 3), (2, 3))

    def forward(q, k, v, bias):
        return attention.forward(q, k + bias, v, *ALL)

    def backward(dy, cache):
        dq, dk, dv = attention.backward(dy, cache)
        return dq, dk, dv, dk.sum(axis=0)

    return forward, backward, [q, k, v, bias]


def test_zero_in_theory_is_not_noise_over_noise(rng):
    forward, backward, given = with_key_bias(rng)
    row = check(forward, backward, *given)[3]
    # two numbers made of rounding alone, with nothing in common
    assert abs(row.by_hand) < 1e-14 and 0 < abs(row.numeric) < 1e-9
    assert row.error < 1e-6

    def not_zero(dy, cache):
        dq, dk, dv, dbias = backward(dy, cache)
        return dq, dk, dv, dbias + 1e-5 * np.abs(dv).max()

    with pytest.raises(GradientError, match="input 3"):
        check(forward, not_zero, *given)


def directions(forward, backward, given, rng, seed=0):
    y, cache = forward(*given)
    dy = rng.standard_normal(y.shape)
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    live = [a for a in given if a.dtype == np.float64]
    names = [f"input {i}" for i in range(len(live))]
    return compare_directions(lambda: float((dy * forward(*given)[0]).sum()),
                              dict(zip(names, live, strict=True)),
                              dict(zip(names, gradients, strict=True)), seed)


# one element off by 1e-4 is too little for a direction over all of them to notice
@pytest.mark.parametrize("mistake", [m for m in BROKEN if "1e-4" not in m])
def test_directions_refuse_what_is_wrong(rng, mistake):
    forward, backward, given = broken(rng)[mistake]
    with pytest.raises(GradientError, match="along a random direction"):
        require(directions(forward, backward, given, rng), gradcheck.MODEL_LIMIT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_directions_pass_what_is_right(rng, seed):
    cases = [(attend, attention_with(None), inputs(rng, (4, 2, 3), (4, 2, 3), (4, 2, 3))),
             (layer_norm.forward, layer_norm.backward, inputs(rng, (5, 6), (6,), (6,))),
             (linear.forward, linear.backward, inputs(rng, (5, 4), (4, 3), (3,))),
             with_key_bias(rng)]
    for forward, backward, given in cases:
        kept = [a.copy() for a in given]
        rows = directions(forward, backward, given, rng, seed)
        assert [row.index for row in rows] == [None] * len(given)
        require(rows, gradcheck.LIMIT)
        assert all(np.array_equal(a, before) for a, before in zip(given, kept, strict=True))


def test_directions_refuse_a_factor_near_one(rng):
    given = inputs(rng, (5, 4), (4, 3), (3,))

    def off(dy, cache):
        dx, dw, db = linear.backward(dy, cache)
        return dx, dw * 1.001, db

    with pytest.raises(GradientError, match="gradient of input 1"):
        require(directions(linear.forward, off, given, rng), gradcheck.MODEL_LIMIT)


def test_equal_words_are_drawn_once():
    drawn = []

    def draw(*counter):
        drawn.append(counter)
        return draw_words(*counter)

    plain, once = Stream(3, 1), drawing_once(Stream(3, 1, draw))
    assert dispatched(once) is once     # as layers take it
    texts, positions = np.array([4, 4, 9]), np.array([0, 1, 0])
    asked = [
        lambda s: s.tokens(1, 2, texts, positions, 7),
        lambda s: s.tokens(2, 2, texts, positions, 7),
        lambda s: s.tokens(1, 2, texts, positions + 1, 7),
        lambda s: s.tokens(1, 2, texts + 1, positions, 7),
        lambda s: s.scores(1, 4, positions, 2, 3),
        lambda s: s.scores(1, 4, positions, 3, 3),
        lambda s: s.scores(1, 4, positions, 2, 9),
        lambda s: s.scores(1, 4, positions, 2, 9, 4),
    ]
    for _ in range(2):
        for words in asked:
            np.testing.assert_array_equal(words(once), words(plain))
    assert len(drawn) == len(asked)
