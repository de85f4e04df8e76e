"""Figures of answers against what SQuAD's official script computes, written anew as its twin."""

import collections
import re
import string

import numpy as np
import pytest

from minisft.data.answer_windows import Answer
from minisft.evaluation.answering import (
    answering,
    best_threshold,
    normalized,
    scores,
    sliding_window,
    token_f1,
)
from tests.test_answer_windows import questions


def official_tokens(s):
    """normalize_answer and get_tokens of the official evaluation, step by step."""
    s = s.lower()
    s = "".join(ch for ch in s if ch not in set(string.punctuation))
    s = re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", s)
    return s.split()


def official_f1(gold, found):
    gold, found = official_tokens(gold), official_tokens(found)
    common = collections.Counter(gold) & collections.Counter(found)
    same = sum(common.values())
    if len(gold) == 0 or len(found) == 0:
        return int(gold == found)
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(found), 1.0 * same / len(gold)
    return (2 * precision * recall) / (precision + recall)


def random_text(rng):
    pieces = ["a", "An", "THE", "the", "cat", "Cat.", "cat's", "-", "", "9,5", "\u00e9t\u00e9",
              "\u4e2d\u6587", "the-cat", "\u2019s", " ", "theory"]
    return " ".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(0, 6)))


def test_figures_are_the_official_ones(rng):
    for _ in range(1000):
        gold, found = random_text(rng), random_text(rng)
        assert normalized(gold).split() == official_tokens(gold)
        assert token_f1(gold, found) == pytest.approx(official_f1(gold, found), abs=1e-15)


def test_the_best_of_several_answers_counts():
    rows = scores(["the cat sat", "", "dog", "x"],
                  [["a dog", "cat"], [], [], ["the", "an"]])     # of the last nothing is left
    assert rows.tolist() == [[0, pytest.approx(2 / 3)], [1, 1], [0, 0], [0, 0]]
    assert scores([""], [["the"]]).tolist() == [[1, 1]]


def test_the_threshold_is_the_best_of_all(rng):
    for _ in range(200):
        n = int(rng.integers(1, 9))
        margins, f1 = rng.integers(-3, 4, n).astype(float), rng.random(n)
        answerable = rng.random(n) < 0.5
        f1[~answerable] = 0     # an answer to a question that has none

        def mean(threshold, margins=margins, f1=f1, answerable=answerable):
            return np.where(margins > threshold, f1, ~answerable).mean()

        found = best_threshold(margins, f1, answerable)
        if answerable.all():
            assert found == -np.inf
            continue
        tried = [-np.inf, *(np.unique(margins)), np.inf]
        assert mean(found) == pytest.approx(max(map(mean, tried)))


def test_figures_by_kind():
    asked = questions(["ada", None, "bob", None])
    answers = [Answer("ada", 0, 2.0), Answer("ada", 0, -1.0), Answer("ten", 3, 1.0),
               Answer("bob", 0, 0.5)]
    results = answering(asked, answers, 0.0)
    assert results["n"] == 4 and results["f1"] == results["exact_match"] == 0.5
    assert results["has_answer"]["f1"] == 0.5 and results["no_answer"]["f1"] == 0.5
    assert results["always_empty"] == 0.5 and results["articles"] == 1
    assert answering(asked, answers, 1.5)["no_answer"]["f1"] == 1
    only = questions(["ada", "bob"])
    assert "no_answer" not in answering(only, answers[:2])


def test_the_sliding_window_looks_around_the_question():
    context = ("in spring the ship left port with forty men . in the cold winter captain Lee "
               "ate his boots .")
    assert sliding_window("which captain ate his boots", context, 1) == "Lee"
    assert sliding_window("who", "one") == "one" and sliding_window("a", "a b") in ("a", "b")
