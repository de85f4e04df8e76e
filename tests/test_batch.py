import numpy as np
import pytest

from minisft.data.batch import pack, pack_pairs, token_budget_batches


def test_pack():
    batch = pack([np.array([5, 6, 7]), np.array([8]), np.array([9, 10])])
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.lengths.tolist() == [3, 1, 2]
    assert batch.last.tolist() == [2, 3, 5]
    assert batch.example_ids.tolist() == [0, 1, 2] and batch.labels is None
    assert batch.token_example_ids.tolist() == [0, 0, 0, 1, 2, 2]
    for a in (batch.ids, batch.positions, batch.cu_seqlens, batch.example_ids):
        assert a.dtype == np.int64


def test_pack_takes_lists_and_keeps_the_example_ids():
    batch = pack([[1, 2], [3]], labels=[4, 0], example_ids=[70, 12])
    assert batch.example_ids.tolist() == [70, 12]
    assert batch.token_example_ids.tolist() == [70, 70, 12]
    assert batch.labels.tolist() == [4, 0] and batch.labels.dtype == np.int64
    assert pack([np.array([1, 2], dtype=np.uint16)]).ids.dtype == np.int64


def test_types_of_pairs():
    batch = pack([[1, 2], [3]], types=[[0, 1], [0]])
    assert batch.types.tolist() == [0, 1, 0] and batch.types.dtype == np.int64
    assert batch.first.tolist() == [0, 2] and pack([[1]]).types is None
    for types in [[0], [0]], [[0, 1]], [[0, 1, 1]]:
        with pytest.raises(ValueError, match="types for each token"):
            pack([[1, 2], [3]], types=types)


def test_pack_of_one():
    batch = pack([[3]])
    assert batch.ids.tolist() == [3] and batch.positions.tolist() == [0]
    assert batch.cu_seqlens.tolist() == [0, 1] and batch.last.tolist() == [0]


def test_labels_for_each_token():
    batch = pack([[1, 2, 3], [4]], labels=[[2, 3, -100], [-100]])
    assert batch.labels.tolist() == [2, 3, -100, -100]
    batch = pack([[1, 2]], labels=[np.array([7, 8])])
    assert batch.labels.tolist() == [7, 8]


def test_the_batch_is_a_copy(rng):
    ids = rng.integers(0, 9, 4)
    ids.flags.writeable = False
    batch = pack([ids])
    batch.ids[0] = 99
    assert 99 not in ids


@pytest.mark.parametrize("sequences, labels, message", [
    ([], None, "one token or more"),
    ([[1], []], None, "one token or more"),
    ([[1], [2]], [0], "2 sequences but 1 labels"),
    ([[1, 2], [3]], [[0], [0, 1]], "differ in length"),
    ([[1, 2]], [[0, 1, 2]], "differ in length"),
    ([[1, 2], [3, -4]], None, "ids of sequence 1: -4, expected 0 or more"),
    ([[-1], [2]], None, "ids of sequence 0: -1"),
    ([[1], [2.0]], None, "ids of sequence 1: float64"),
    ([[1], [[2], [3]]], None, r"ids of sequence 1: int64 \(2, 1\), expected whole numbers"),
    ([[1], 2], None, r"ids of sequence 1: int64 \(\), expected whole numbers"),
    ([["a"]], None, "ids of sequence 0"),
    ([[1], [2]], [0, 1.5], "label of sequence 1: 1.5, expected a whole number"),
    ([[1], [2]], [0, None], "label of sequence 1: None"),
    ([[1], [2]], ["a", "b"], "label of sequence 0: 'a'"),
    ([[1], [2]], [0, [1]], r"label of sequence 1: \[1\]"),
    ([[1], [2]], [[0], 1], "labels of sequence 1"),
    ([[1, 2]], [[0, 1.5]], "labels of sequence 0: float64"),
])
def test_errors(sequences, labels, message):
    with pytest.raises(ValueError, match=message):
        pack(sequences, labels)


def test_by_tokens():
    lengths = np.array([3, 4, 2, 9, 1, 5])
    assert token_budget_batches(lengths, [0, 1, 2, 3, 4, 5], 7) == [[0, 1], [2], [3], [4, 5]]
    assert token_budget_batches(lengths, [3, 3], 7) == [[3], [3]]
    assert token_budget_batches(lengths, [], 7) == []
    assert token_budget_batches(lengths, [5], 1) == [[5]]


@pytest.mark.parametrize("budget", [1, 7, 50, 10_000])
def test_each_text_once_and_within_the_budget(rng, budget):
    lengths, order = rng.integers(1, 40, 200), rng.permutation(200)
    batches = token_budget_batches(lengths, order, budget)
    assert [n for batch in batches for n in batch] == order.tolist()
    assert all(type(n) is int for batch in batches for n in batch)
    for batch in batches:
        assert batch and (lengths[batch].sum() <= budget or len(batch) == 1)
    # no batch could have taken the first text of the next
    for batch, following in zip(batches, batches[1:], strict=False):
        assert lengths[batch].sum() + lengths[following[0]] > budget


def test_example_ids_must_fit():
    with pytest.raises(ValueError, match="2 sequences but 1 example_ids"):
        pack([[1], [2]], example_ids=[1])


def test_pairs():
    batch = pack_pairs([[5, 6, 2], [7]], [[8], []], 1, 2, [70, 12])
    assert batch.ids.tolist() == [1, 8, 1] and batch.labels.tolist() == [8, 2, 2]
    assert batch.cu_seqlens.tolist() == [0, 2, 3]
    assert batch.source.ids.tolist() == [5, 6, 2, 7] and batch.source.labels is None
    assert batch.example_ids.tolist() == batch.source.example_ids.tolist() == [70, 12]


@pytest.mark.parametrize("sources, targets, message", [
    ([[1], [2]], [[1]], "2 sources but 1 targets"),
    ([[]], [[1]], "one token or more"),
    ([[1]], [[1.5]], "targets of sequence 0: float64"),
    ([[1]], [[-3]], "ids of sequence 0: -3"),
])
def test_pairs_that_cannot_be(sources, targets, message):
    with pytest.raises(ValueError, match=message):
        pack_pairs(sources, targets, 1, 2)
