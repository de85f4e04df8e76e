"""A tiny BERT written by `transformers`: the same logits, loss and gradients, without torch.

`golden/make_bert_tiny.py` made the folder; PyTorch's numbers are in float64.
"""

from pathlib import Path

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.io.architectures import BERT
from minisft.io.checkpoint import load

FOLDER = Path(__file__).parent / "golden" / "bert_tiny"
# (dtype, logits and loss, gradients): the expected values are kept as float32
LIMITS = [(np.float64, 2e-6, 1e-6), (np.float32, 1e-4, 1e-4)]


@pytest.mark.parametrize("dtype, logit_limit, gradient_limit", LIMITS)
def test_same_logits_loss_and_gradients(dtype, logit_limit, gradient_limit):
    with np.load(FOLDER / "expected.npz") as arrays:
        expected = dict(arrays)
    model = load(FOLDER, dtype)
    parts = np.cumsum(expected["lengths"])[:-1]
    batch = pack(np.split(expected["ids"], parts), expected["labels"],
                 types=np.split(expected["types"], parts))
    logits, wanted = model.forward(batch), expected["logits"]
    assert np.abs(wanted).max() > 1      # a flat row would be met by any model
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=logit_limit)
    np.testing.assert_array_equal(logits.argmax(-1), wanted.argmax(-1))

    loss, denominator, _ = model.loss(batch)
    assert loss / denominator == pytest.approx(float(expected["loss"]), rel=1e-5)
    model.loss_backward()
    gradients = {key.removeprefix("d "): dw for key, dw in expected.items() if key[:2] == "d "}
    assert len(gradients) == 13
    least = 1e-3 * max(np.abs(dw).max() for dw in gradients.values())
    for name, dw in gradients.items():
        ours = BERT.convert_layout(name, model.store[name].grad / denominator)
        error = np.abs(ours - dw).max() / max(np.abs(dw).max(), least)
        assert error < gradient_limit, name
