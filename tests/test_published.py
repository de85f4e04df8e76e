"""The published GPT-2, where it is cached: `python -m pytest -m slow tests/test_published.py`."""

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.data.text import encode_all
from minisft.errors import UserError
from minisft.io.model_folder import read_folder
from minisft.models.generate import Sampler, generate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpt2():
    try:
        return read_folder("gpt2", task="complete")[:2]
    except UserError as error:
        pytest.skip(f"no published weights here: {error}")


def test_size(gpt2):
    assert gpt2[0].store.size == 124_439_808


def test_perplexity_of_wikitext_2(gpt2, shared_data):
    """Radford et al. 2019, table 3: 29.41, over words and after their own detokenizers; windows of
    1,024 tokens of the raw test text give about 30."""
    model, tokenizer = gpt2
    text = (shared_data / "corpora" / "wikitext2_test_raw.txt").read_text(encoding="utf-8")
    ids = encode_all(tokenizer, [text])[0][0]
    total = counted = 0.0
    for start in range(0, len(ids) - 1, 1024):
        window = ids[start:start + 1025]
        loss, denominator, _ = model.loss(pack([window[:-1]], labels=[window[1:]]))
        total, counted = total + float(loss), counted + float(denominator)
    assert 28 < np.exp(total / counted) < 32


def test_knows_the_capital_of_france(gpt2):
    model, tokenizer = gpt2
    prompt = encode_all(tokenizer, ["Paris is the capital of"])[0]
    (found,) = generate(model, prompt, 1, Sampler(temperature=0))
    assert tokenizer.decode(found.ids) == " France"
