"""Batches filled up to few sizes: texts of their own, whose labels do not count."""

import numpy as np
import pytest

from minisft.backend.constants import IGNORE
from minisft.backend.random import Stream
from minisft.data.batch import order, pack
from minisft.data.buckets import PADDING, Bucket, bucket_of, filled
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel

CONFIG = GPT2Config(97, 64, 32, 2, 2).with_dropout(0.2)


def texts(rng, lengths):
    return [rng.integers(0, 97, n) for n in lengths]


def next_tokens(ids):
    return [np.append(row[1:], IGNORE) for row in ids]


@pytest.mark.parametrize("lengths, most, bucket", [
    ([5, 9, 3, 12], 64, (128, 8, 64)),
    ([16] * 8, 64, (128, 8, 64)),             # as it is
    ([15] * 8, 64, (128, 16, 64)),            # 8 tokens, and so texts for them
    ([32] * 4, 64, (256, 8, 64)),             # 4 texts, and so tokens for them
    ([100] * 8, 1024, (896, 16, 128)),
    ([1024] * 8, 1024, (8192, 8, 1024)),
    ([129, 1], 200, (256, 8, 200)),           # no more than the model takes
    ([1], 4, (128, 40, 4)),                   # short texts must be many
])
def test_a_bucket_is_the_least_that_fits(rng, lengths, most, bucket):
    batch = pack(texts(rng, lengths), np.zeros(len(lengths), int))
    found = bucket_of(batch, most)
    assert found == Bucket(*bucket)
    whole = filled(batch, found)
    n, b = len(batch.ids), len(lengths)
    assert (len(whole.ids), len(whole.lengths)) == bucket[:2] and whole.cu_seqlens[-1] == bucket[0]
    assert 1 <= whole.lengths.min() and whole.lengths.max() <= found.longest <= max(most, 64)
    for name, count in (("ids", n), ("positions", n), ("lengths", b), ("labels", b),
                        ("example_ids", b), ("cu_seqlens", b + 1)):
        np.testing.assert_array_equal(getattr(whole, name)[:count], getattr(batch, name))
    assert (whole.labels[b:] == IGNORE).all() and (whole.example_ids[b:] == PADDING).all()
    # what is behind is a packed batch, too
    again = pack(np.split(whole.ids, whole.cu_seqlens[1:-1]))
    np.testing.assert_array_equal(again.positions, whole.positions)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_labelled_tokens_are_rounded_up(rng, share):
    ids = texts(rng, [60, 40, 300])
    labels = [np.where(rng.random(len(row)) < share, row, IGNORE) for row in ids]
    batch = pack(ids, labels)
    bucket = bucket_of(batch, 512, counts_labels=True)
    whole = filled(batch, bucket)
    assert bucket.tokens == 512 and bucket.labelled == -(-len(batch.labelled) // 128) * 128
    count = len(batch.labelled)
    assert len(set(whole.labelled.tolist())) == len(whole.labelled) == bucket.labelled
    if share == 1:     # then nothing is picked out: all, as they stand
        assert whole.labelled.tolist() == list(range(512))
    else:
        np.testing.assert_array_equal(whole.labelled[:count], batch.labelled)
        assert (whole.labels[whole.labelled[count:]] == IGNORE).all()


@pytest.mark.parametrize("kind", [Classifier, LanguageModel])
def test_what_is_filled_up_changes_neither_loss_nor_gradients(rng, kind):
    ids = texts(rng, [5, 9, 3, 12])
    model = (Classifier(CONFIG, "abc", dtype=np.float64, seed=3) if kind is Classifier else
             LanguageModel(CONFIG, dtype=np.float64, seed=3))
    batch = pack(ids, [0, 2, IGNORE, 1] if kind is Classifier else next_tokens(ids), [7, 1, 4, 2])
    found = []
    for one in (batch, filled(batch, bucket_of(batch, 64, kind is LanguageModel))):
        model.store.zero_grad()
        loss, denominator = model.loss_and_gradients(one, Stream(3, 7))
        found.append((float(loss), float(denominator), model.store.grads.copy()))
    (loss, denominator, grads), (theirs, counted, ours) = found
    assert theirs == pytest.approx(loss, rel=1e-12) and counted == denominator
    np.testing.assert_allclose(ours, grads, rtol=0, atol=1e-12 * np.abs(grads).max())


def test_the_order_of_large_numbers_is_that_of_small_ones(rng):
    numbers = rng.integers(0, 9, 50)
    for more in (0, 1 << 16):
        np.testing.assert_array_equal(order(numbers + more), np.argsort(numbers, kind="stable"))
    assert len(order(numbers[:0])) == 0
