"""A text's numbers are its own: what it is batched with, in which order, changes nothing.

Float64, limit 1e-9, dropout off and on. It is the field's most reported mistake (padding, and
masks drawn by the row in the batch), so it is tested on whole models.
"""

import numpy as np
import pytest

from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.ops.cross_entropy import IGNORE

LIMIT = 1e-9
STREAM = Stream(seed=5, step=12)
LENGTHS = (4, 1, 7, 3, 2)
# the texts' numbers in the data set: not in order, not from zero
NUMBERS = (31, 8, 100, 2, 77)
COMPANIES = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0), (1, 2), (3, 0, 1)]
KINDS = ["classifier", "tied", "untied", "bert first", "bert mean"]
CONFIG = GPT2Config(vocab_size=13, n_positions=8, n_embd=6, n_layer=2, n_head=2,
                    embd_pdrop=0.2, attn_pdrop=0.3, resid_pdrop=0.25)
BERT = BertConfig(vocab_size=13, max_position_embeddings=8, hidden_size=6, num_hidden_layers=2,
                  num_attention_heads=2, intermediate_size=10, hidden_dropout_prob=0.2,
                  attention_probs_dropout_prob=0.3, classifier_dropout=0.25)


def is_bert(kind):
    return kind.startswith("bert")


def classifies(kind):
    return kind == "classifier" or is_bert(kind)


def model_of(rng, kind):
    if kind == "classifier":
        model = Classifier(CONFIG, ["a", "b", "c"], np.float64)
    elif is_bert(kind):
        model = BertClassifier(BERT, ["a", "b", "c"], np.float64, pooling=kind.split()[1])
    else:
        model = LanguageModel(CONFIG, kind == "tied", np.float64)
    # far from the small initial values, so that attention really chooses
    model.store.values += 0.4 * rng.standard_normal(model.store.size)
    return model


def texts_of(rng, kind):
    """-> ids and labels of each text; the language model's labels are the next tokens."""
    ids = [rng.integers(0, CONFIG.vocab_size, n) for n in LENGTHS]
    if classifies(kind):
        return ids, list(rng.integers(0, 3, len(ids)))
    labels = [np.append(row[1:], IGNORE) for row in ids]
    labels[1] = np.array([4])     # a text of one token would have nothing to predict
    labels[2][3] = IGNORE
    return ids, labels


def batch_of(texts, chosen):
    ids, labels = texts
    # the second half of each text is a second text; GPT-2 passes that by
    types = [(np.arange(len(row)) > len(row) // 2).astype(int) for row in ids]
    return pack([ids[i] for i in chosen], [labels[i] for i in chosen],
                example_ids=[NUMBERS[i] for i in chosen], types=[types[i] for i in chosen])


def run(model, batch, stream, **options):
    """-> loss, denominator, logits, gradient of the embedded rows, gradients of parameters."""
    model.store.zero_grad()
    loss, denominator, logits = model.loss(batch, stream, **options)
    drows = model.loss_backward()
    return loss, denominator, logits, drows, model.store.grads.copy()


def close(ours, theirs):
    assert np.abs(ours - theirs).max() <= LIMIT * np.abs(theirs).max()


def close_by_parameter(store, ours, theirs):
    """The project's norm: relative to the parameter's own gradient, or 1e-3 of the largest."""
    largest, start = np.abs(theirs).max(), 0
    for p in store.trainable:
        part = slice(start, start + p.size)
        scale = max(np.abs(theirs[part]).max(), 1e-3 * largest)
        assert np.abs(ours[part] - theirs[part]).max() <= LIMIT * scale, p.name
        start += p.size


def rows_of_logits(kind, batch, text):
    """-> which rows of `loss`'s logits belong to a text of the batch."""
    if classifies(kind):
        return np.array([text])
    counted = np.flatnonzero(batch.labels != IGNORE)
    first, stop = batch.cu_seqlens[text:text + 2]
    return np.flatnonzero((counted >= first) & (counted < stop))


@pytest.mark.parametrize("stream", [None, STREAM], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_equals_it_in_company(rng, kind, stream):
    model, texts = model_of(rng, kind), texts_of(rng, kind)
    alone = {i: run(model, batch_of(texts, [i]), stream) for i in range(len(LENGTHS))}
    for company in COMPANIES:
        batch = batch_of(texts, company)
        loss, denominator, logits, drows, grads = run(model, batch, stream)
        for place, i in enumerate(company):
            _, _, its_logits, its_drows, _ = alone[i]
            close(logits[rows_of_logits(kind, batch, place)], its_logits)
            close(drows[batch.cu_seqlens[place]:batch.cu_seqlens[place + 1]], its_drows)
        assert loss == pytest.approx(sum(alone[i][0] for i in company), rel=LIMIT)
        assert denominator == sum(alone[i][1] for i in company)
        # gradients of the summed loss are sums over the texts
        close_by_parameter(model.store, grads, sum(alone[i][4] for i in company))


@pytest.mark.parametrize("kind", KINDS)
def test_all_logits_are_a_texts_own(rng, kind):
    # prediction, without labels: every row, not only those with a label
    model, texts = model_of(rng, kind), texts_of(rng, kind)
    alone = [model.forward(pack([ids])) for ids in texts[0]]
    for company in COMPANIES:
        logits = model.forward(pack([texts[0][i] for i in company]))
        close(logits, np.concatenate([alone[i] for i in company]))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_does_belong_to_text_and_step(rng, kind):
    # The tests above would pass if dropout were never drawn, or drawn alike for every text.
    model, (ids, labels) = model_of(rng, kind), texts_of(rng, kind)

    def drows(number, stream):
        return run(model, pack([ids[0]], [labels[0]], example_ids=[number]), stream)[3]

    drawn = [drows(31, None), drows(31, STREAM), drows(32, STREAM), drows(31, Stream(5, 13)),
             drows(31, Stream(6, 12))]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert np.abs(one - other).max() > 1e-3 * np.abs(drawn[0]).max()


@pytest.mark.parametrize("stream", [None, STREAM], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_the_large_batch(rng, kind, stream):
    # Two micro-batches whose denominators differ, so that a mean of means would be wrong.
    model, texts = model_of(rng, kind), texts_of(rng, kind)
    options = {}
    if classifies(kind):
        options = {"weights": np.array([0.3, 1.0, 4.0]), "smoothing": 0.1}
        texts = texts[0], [0, 2, 1, 2, 0]
    large = run(model, batch_of(texts, range(5)), stream, **options)
    model.store.zero_grad()
    losses, denominators = [], []
    for chosen in [(4, 0), (2, 3, 1)]:
        loss, denominator, _ = model.loss(batch_of(texts, chosen), stream, **options)
        model.loss_backward()
        losses.append(loss)
        denominators.append(denominator)
    assert denominators[0] != denominators[1]
    assert sum(denominators) == pytest.approx(large[1], rel=1e-14)
    assert sum(losses) / sum(denominators) == pytest.approx(large[0] / large[1], rel=LIMIT)
    close_by_parameter(model.store, model.store.grads / sum(denominators), large[4] / large[1])
    means = [loss / d for loss, d in zip(losses, denominators, strict=True)]
    assert abs(np.mean(means) - large[0] / large[1]) > 1e-3
