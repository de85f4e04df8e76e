"""A tiny GPT-2 written by `transformers`: the same logits, loss and gradients, without torch.

`golden/make_gpt2_tiny.py` made the folder; PyTorch's numbers are in float64.
"""

from pathlib import Path

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.io.checkpoint import load
from minisft.ops.cross_entropy import IGNORE

FOLDER = Path(__file__).parent / "golden" / "gpt2_tiny"
# (dtype, logits and loss, gradients): the expected values are kept as float32
LIMITS = [(np.float64, 2e-6, 1e-6), (np.float32, 1e-4, 1e-4)]
NAMES = "business", "sports", "world"


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as arrays:
        return dict(arrays)


def texts(expected):
    return np.split(expected["ids"], np.cumsum(expected["lengths"])[:-1])


def language_model(dtype, expected):
    model = load(FOLDER, dtype)
    labels = [np.append(ids[1:], IGNORE) for ids in texts(expected)]
    return model, pack(texts(expected), labels)


def classifier(dtype, expected):
    model = load(FOLDER, dtype, task="classify", label_names=NAMES)
    assert model.newly_initialized == ("score.weight",)
    model.store["score.weight"].value[...] = expected["score"].T
    return model, pack(texts(expected), expected["labels"])


def gradient_errors(store, expected, prefix):
    """-> the error of each gradient against the expected one: differences over the largest value,
    or over a thousandth of the largest gradient of all."""
    wanted = {key.removeprefix(prefix): dw for key, dw in expected.items()
              if key.startswith(prefix)}
    least = 1e-3 * max(np.abs(dw).max() for dw in wanted.values())
    for name, dw in wanted.items():
        ours = store[name].grad
        if name == "score.weight":
            ours = ours.T
        yield name, np.abs(ours - dw).max() / max(np.abs(dw).max(), least)


@pytest.mark.parametrize("dtype, logit_limit, gradient_limit", LIMITS)
@pytest.mark.parametrize("prefix, build", [("lm", language_model), ("cls", classifier)])
def test_same_logits_loss_and_gradients(expected, prefix, build, dtype, logit_limit,
                                        gradient_limit):
    model, batch = build(dtype, expected)
    logits = model.forward(batch)
    wanted = expected[f"{prefix}_logits"]
    assert logits.dtype == dtype
    assert np.abs(wanted).max() > 1      # a flat row would be met by any model
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=logit_limit)
    np.testing.assert_array_equal(logits.argmax(-1), wanted.argmax(-1))

    loss, denominator, _ = model.loss(batch)
    assert loss / denominator == pytest.approx(float(expected[f"{prefix}_loss"]), rel=1e-5)
    model.loss_backward()
    model.store.grads /= denominator
    errors = dict(gradient_errors(model.store, expected, f"{prefix}_d "))
    assert len(errors) >= 9
    assert max(errors.values()) < gradient_limit, errors
