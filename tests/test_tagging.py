"""Figures of tagged words, against slow twins that spell out what they mean."""

import numpy as np
import pytest

from minisft.evaluation.tagging import (
    MostFrequentTag,
    clustered_interval,
    entities,
    entity_scores,
    tagging,
)


def by_characters(tags):
    """The twin of `entities`: a mark at each word says whether an entity begins or goes on."""
    marks = []
    for i, tag in enumerate(tags):
        kind = tag[2:]
        goes_on = tag.startswith("I-") and i and tags[i - 1] != "O" and tags[i - 1][2:] == kind
        marks.append(("-", kind) if goes_on else (" " if tag == "O" else "B", kind))
    found = set()
    for i, (mark, kind) in enumerate(marks):
        if mark == "B":
            end = i + 1
            while end < len(marks) and marks[end][0] == "-":
                end += 1
            found.add((kind, i, end))
    return found


@pytest.mark.parametrize("tags, expected", [
    ("O B-X I-X O", {("X", 1, 3)}), ("B-X B-X", {("X", 0, 1), ("X", 1, 2)}),
    ("I-X I-X O I-Y", {("X", 0, 2), ("Y", 3, 4)}),      # IOB1: an entity may begin with I
    ("B-X I-Y", {("X", 0, 1), ("Y", 1, 2)}), ("O", set()), ("", set()), ("B-X", {("X", 0, 1)})])
def test_entities_by_hand(tags, expected):
    assert entities(tags.split()) == expected


def test_entities_of_random_tags(rng):
    names = ["O", "B-X", "I-X", "B-Y", "I-Y", "B-B-", "I-B-"]
    for _ in range(1000):
        tags = [names[i] for i in rng.integers(0, len(names), rng.integers(0, 12))]
        assert entities(tags) == by_characters(tags)


def test_scores_of_entities_by_hand():
    truth = [["B-X", "I-X", "O", "B-Y"], ["B-X", "O"]]
    found = [["B-X", "I-X", "O", "B-X"], ["B-X", "I-X"]]
    scores = entity_scores(truth, found)
    assert scores["precision"] == 1 / 3 and scores["recall"] == 1 / 3
    assert scores["f1"] == pytest.approx(1 / 3) and scores["entities"] == 3
    assert [(row["name"], row["f1"], row["entities"]) for row in scores["per_type"]] == [
        ("X", 2 * 1 / 5, 2), ("Y", 0, 1)]
    nothing = entity_scores([["O"]], [["O"]])
    assert (nothing["f1"], nothing["precision"], nothing["per_type"]) == (0, 0, [])


def test_the_interval_counts_sentences(rng):
    """Where the words of a sentence are all right or all wrong, only sentences are evidence."""
    covered = {"words": 0, "sentences": 0}
    for _ in range(400):
        right = rng.random(60) < 0.8
        sizes = rng.integers(5, 16, 60)
        low, high = clustered_interval(right * sizes, sizes)
        covered["sentences"] += low <= 0.8 <= high
        p, n = (right * sizes).sum() / sizes.sum(), sizes.sum()
        covered["words"] += abs(p - 0.8) <= 1.96 * np.sqrt(p * (1 - p) / n)
    assert covered["sentences"] >= 0.9 * 400 and covered["words"] <= 0.6 * 400
    # sentences of one word: the usual interval of a proportion, but for M - 1
    right = np.arange(50) < 40
    low, high = clustered_interval(right, np.ones(50))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 49), rel=1e-4)
    assert clustered_interval([3], [4]) == (0, 1) and clustered_interval([4, 4], [4, 4]) == (1, 1)
    for bad in (([], []), ([1, 2], [3]), ([0], [0])):
        with pytest.raises(ValueError, match="clustered_interval"):
            clustered_interval(*bad)


def test_the_most_frequent_tag_of_a_word():
    words = [["The", "run", "the"], ["run", "run", "Fast"], ["x", "x"]]
    tags = [[0, 1, 0], [2, 2, 1], [2, 1]]
    baseline = MostFrequentTag(words, tags, 3)
    assert baseline.predict([["the", "run", "THE", "fast", "new", "x"]]) == [[0, 2, 0, 1, 1, 1]]


def test_all_figures(rng):
    names = ("O", "B-X", "I-X")
    tags = [[0, 1, 2], [1], [0, 0]]
    logp = [np.log(np.full((len(row), 3), 0.1) + 0.7 * np.eye(3)[row]) for row in tags]
    results = tagging(tags, logp, names, bio=True)
    assert results["accuracy"] == results["whole_sentences"] == results["entities"]["f1"] == 1
    assert results["n"] == 6 and results["n_sentences"] == 3
    wrong = [logp[0][::-1], *logp[1:]]
    results = tagging(tags, wrong, names, bio=True)
    assert results["accuracy"] == pytest.approx(4 / 6) and results["whole_sentences"] == 2 / 3
    assert results["accuracy_low"] < 4 / 6 < results["accuracy_high"]
    assert "entities" not in tagging(tags, wrong, ("a", "b", "c"), bio=False)
