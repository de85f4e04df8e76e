"""Numbers that the notebooks state in their text: each is computed again, and must stand there."""

import json
import sys
from itertools import pairwise
from math import erf, pi, sqrt
from pathlib import Path

import numpy as np
import pytest

from minisft.backend.constants import CUBIC
from minisft.data.batch import pack
from minisft.evaluation import metrics
from minisft.models.bert import Bert
from minisft.models.config import BertConfig, GPT2Config
from minisft.models.gpt2 import GPT2
from minisft.nn.parameters import Parameter, Parameters
from minisft.ops import softmax
from minisft.training.optim import SGD, Adam

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def text(name):
    """-> the prose of a notebook."""
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return "\n".join("".join(cell["source"]) for cell in book["cells"]
                     if cell["cell_type"] == "markdown")


def walk(kind, gradients, start, lr, **options):
    """An optimizer, functions of w (one for each step) -> the path (steps + 1, ...)."""
    p = Parameter("w", np.shape(start), layer=0, decays=True)
    store = Parameters([p], np.float64)
    p.value[...] = start
    optimizer, path = kind(store, **options), [p.value.copy()]
    for gradient in gradients:
        p.grad[...] = gradient(p.value)
        optimizer.step(lr)
        path.append(p.value.copy())
    return np.array(path)


@pytest.mark.parametrize("model, layers, sees_order",
                         [(GPT2, 1, False), (GPT2, 2, True), (Bert, 2, False)])
def test_order_without_positions(model, layers, sees_order):
    if model is GPT2:
        trunk = GPT2(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=layers, n_head=2))
    else:
        trunk = Bert(BertConfig(vocab_size=40, max_position_embeddings=16, hidden_size=16,
                                num_hidden_layers=layers, num_attention_heads=2,
                                intermediate_size=32))
    store, rng = Parameters(trunk.parameters(), np.float64), np.random.default_rng(1)
    for p in store:
        p.value[...] = rng.standard_normal(p.value.shape) / 2
        if "wpe" in p.name or "position" in p.name:
            p.value[...] = 0
    rows = [trunk.forward(pack([ids]))[-1].copy() for ids in ([5, 9, 1, 30, 2], [30, 1, 5, 9, 2])]
    change = np.abs(rows[0] - rows[1]).max() / np.abs(rows[0]).max()
    assert (change > 1e-3) if sees_order else (change < 1e-12)
    assert "the first layer still gives the last word the same average" in text("01_embedding")


def test_a_bowl_that_is_not_long():
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 2, 40)
    low, high = np.linalg.eigvalsh([[(x * x).mean(), x.mean()], [x.mean(), 1]])
    stated = text("02_linear")
    assert f"curvatures are ${high:.2f}$ and ${low:.2f}$" in stated
    assert f"(the *condition number*) of ${high / low:.1f}$" in stated


def test_the_cubic_constant_is_the_best_of_the_gate():
    x = np.linspace(-6, 6, 2001)
    gate = np.array([(1 + erf(v / sqrt(2))) / 2 for v in x])
    cs = np.arange(0.0440, 0.0452, 1e-5)
    errors = np.array([(1 + np.tanh(sqrt(2 / pi) * (x + c * x**3))) / 2 - gate for c in cs])
    assert abs(cs[np.abs(errors).max(axis=1).argmin()] - CUBIC) < 2e-5
    assert CUBIC - cs[np.abs(errors * x).max(axis=1).argmin()] > 2e-4
    assert "the answer for the gate; for $y$" in text("04_gelu")


def test_a_large_dp_is_pushed_down():
    p, dp = np.array([0.125, 0.25, 0.625]), np.array([8.0, 0.0, 0.0])
    ds = softmax.backward(dp, (p,))
    after, _ = softmax.forward(np.log(p) - 0.01 * ds)
    assert ds[0] > 0 and after[0] < p[0] and after @ dp < p @ dp
    assert "it pushes that score down" in text("05_softmax")
    assert "look *less* at the third word" in text("06_attention")


def test_how_far_residuals_let_a_gradient_grow():
    small, large = ((1 + scale**2)**(60 / 2) for scale in (0.3, 0.7))
    assert (f"factor of {small:.0f} for $s = 0.3$, and of {round(large, -3):,.0f} for $s = 0.7$"
            in text("09_block"))


def test_momentum_raises_the_limit():
    bowl = np.array([1.0, 10.0])
    limit = 2 * (1 + 0.9) / bowl.max()
    ends = [np.linalg.norm(walk(SGD, [lambda w: bowl * w] * 1000, [4.0, 1.0], lr, momentum=0.9)[-1])
            for lr in (limit - 0.01, limit + 0.01)]
    assert ends[0] < 1e-6 and ends[1] > 1e6
    assert f"here ${limit:.2f}$" in text("10_adam")


def test_the_largest_step_of_adam():
    rare = walk(Adam, [lambda w: 0 * w] * 20_000 + [lambda w: w + 1], [0.0], 1.0)
    assert f"= {-rare[-1, 0]:.2f}\\,\\eta" in text("10_adam")
    noise = np.random.default_rng(0).standard_normal(20_000)
    steps = np.diff(walk(Adam, [lambda w, g=g: w * 0 + g for g in noise], [0.0], 1.0), axis=0)
    assert f"about ${np.sqrt((steps[5000:]**2).mean()):.2f}\\,\\eta$" in text("10_adam")


def test_six_texts_can_prove_something():
    def p(here, there):
        labels = np.zeros(300, int)
        a, b = labels.copy(), labels.copy()
        a[:there], b[there:there + here] = 1, 1
        return metrics.mcnemar(labels, a, b)["p"]
    stated = text("solutions/13_finetune")
    assert f"{p(6, 0):.3f}" == "0.031" and "0.031" in stated
    assert f"With 16 : 10 it gives ${p(16, 10):.2f}$" in stated


def test_student_is_about_the_absolute_value():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((200_000, 5))
    t = drawn.mean(1) * sqrt(5) / drawn.std(1, ddof=1)
    limit = metrics.t_critical(5 - 1)
    assert abs((np.abs(t) > limit).mean() - 0.05) < 0.003
    assert "the absolute value of $(\\bar a - \\mu)" in text("15_headline")


def test_matrices_share_a_scale_when_told(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(FOLDER)
    import matplotlib.pyplot as plt
    import pictures
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    named = {"small": np.eye(2), "large": 9 * np.eye(2)}
    pictures.matrices(named)
    pictures.matrices(named, same_scale=True)
    pictures.matrices({str(i): np.eye(6) for i in range(5)})
    try:
        limits = [[ax.images[0].get_clim()[1] for ax in figure.axes if ax.images]
                  for figure in shown]
        assert limits[:2] == [[1, 9], [9, 9]]
        assert all(figure.get_size_inches()[0] <= pictures.WIDTH for figure in shown)
        tops = [ax.get_position().y1 for ax in shown[2].axes if ax.images]
        assert len(limits[2]) == 5 and any(a != b for a, b in pairwise(tops))
    finally:
        plt.close("all")
        sys.modules.pop("pictures", None)
