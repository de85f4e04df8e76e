"""Evaluation: independent of how texts are batched, and equal to slow sums."""

import numpy as np
import pytest

from minisft.backend.cpu import allocator
from minisft.data.batch import pack
from minisft.data.dataset import TokenizedDataset
from minisft.data.text import train_tokenizer
from minisft.data.tokenizer import unused_token_ids
from minisft.evaluation.evaluate import (
    completion_loss,
    generate_completions,
    log_probabilities,
    token_logits,
)
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.token_heads import TokenClassifier
from minisft.nn.layers import backward_comes
from minisft.ops.cross_entropy import IGNORE, log_softmax

CONFIG = GPT2Config(vocab_size=300, n_positions=20, n_embd=8, n_layer=2, n_head=2)


@pytest.fixture
def ids(rng):
    return [rng.integers(0, 300, n) for n in (7, 1, 12, 3, 20, 2)]


def test_batches_change_no_probability(ids):
    model = Classifier(CONFIG, "abc", dtype=np.float64)
    alone = [log_softmax(model.forward(pack([x])))[0] for x in ids]
    for batch_tokens in (1, 15, 1000):
        np.testing.assert_allclose(log_probabilities(model, ids, batch_tokens), alone, atol=1e-12)


@pytest.mark.parametrize("head", ["classes", "tokens", "next token"])
def test_memory_is_kept_from_batch_to_batch(ids, monkeypatch, head):
    if head == "next token":
        model, run = LanguageModel(CONFIG), completion_loss
    else:
        model = (Classifier if head == "classes" else TokenClassifier)(CONFIG, "abc")
        run = (lambda model, data, n: log_probabilities(model, data.ids, n)
               ) if head == "classes" else token_logits
    forward, kept = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *a, **k: (
        kept.append(allocator._users and not backward_comes()), forward(*a, **k))[1])
    run(model, TokenizedDataset(ids, [np.append(x[1:], IGNORE) for x in ids]), 15)
    assert len(kept) > 2 and all(kept) and not allocator._users and backward_comes()


def test_completion_loss_is_the_mean_over_tokens_that_count(ids):
    model = LanguageModel(CONFIG, dtype=np.float64)
    labels = [np.where(np.arange(len(x)) % 2, IGNORE, x[::-1]) for x in ids]
    total, counted = 0.0, 0
    for x, y in zip(ids, labels, strict=True):
        logp = log_softmax(model.forward(pack([x])))
        for row, label in zip(logp, y, strict=True):
            if label != IGNORE:
                total, counted = total - row[label], counted + 1
    for batch_tokens in (1, 25, 1000):
        found = completion_loss(model, TokenizedDataset(ids, labels), batch_tokens)
        assert found["tokens"] == counted
        assert found["loss"] == pytest.approx(total / counted, rel=1e-12)
        assert found["perplexity"] == pytest.approx(np.exp(total / counted))


def test_completions_come_back_in_order(ids):
    tokenizer = train_tokenizer(["some words of text"] * 3, 300)
    model = LanguageModel(CONFIG, dtype=np.float64)
    prompts = [x % tokenizer.get_vocab_size() for x in ids]
    unused = unused_token_ids(tokenizer, CONFIG.vocab_size)
    found = generate_completions(model, tokenizer, prompts, 3, None)
    for prompt, answer in zip(prompts, found, strict=True):
        (alone,) = generate(model, [prompt], 3, Sampler(temperature=0), unused_ids=unused)
        assert answer == tokenizer.decode(alone.ids)
