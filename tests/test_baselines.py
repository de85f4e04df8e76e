"""Baselines against cases counted by hand, and naive Bayes against scikit-learn."""

import numpy as np
import pytest

from minisft.evaluation import baselines
from minisft.evaluation.baselines import Majority, NaiveBayes, TfIdf

TEXTS = ["red red blue", "blue", "green green red"]
LABELS = [0, 0, 1]


def test_counts_by_hand():
    model = NaiveBayes(TEXTS, LABELS, 2)
    # class 0: red 2, blue 2 of 4 words; class 1: green 2, red 1 of 3; three words in all
    first, second = 2 / 3 * (3 / 7) * (1 / 7), 1 / 3 * (2 / 6) * (3 / 6)
    p = np.exp(model.log_probabilities(["Red, GREEN!"]))
    np.testing.assert_allclose(p, [[first / (first + second), second / (first + second)]])


def test_a_text_of_unknown_words_gets_the_prior():
    p = np.exp(NaiveBayes(TEXTS, LABELS, 2).log_probabilities(["yellow", ""]))
    np.testing.assert_allclose(p, [[2 / 3, 1 / 3]] * 2)


def test_a_class_without_texts_is_never_the_answer():
    p = np.exp(NaiveBayes(TEXTS, LABELS, 3).log_probabilities(TEXTS))
    assert (p[:, 2] == 0).all() and (p.argmax(axis=1) == LABELS).all()


def test_majority_knows_the_shares_alone():
    p = np.exp(Majority([1, 1, 0], 3).log_probabilities(["red", "x"]))
    np.testing.assert_allclose(p, [[1 / 3, 2 / 3, 0]] * 2)


def test_tfidf_learns_and_leaves_out_a_class_without_texts():
    pytest.importorskip("sklearn")
    train = [f"{colour} thing number {n}" for n in range(10) for colour in ("red", "blue")]
    model = TfIdf(train, [0, 2] * 10, ["a red one", "a blue one"], [0, 2], 3)
    p = np.exp(model.log_probabilities(["blue again", "so red", "nothing known"]))
    assert p.shape == (3, 3) and p[:2].argmax(axis=1).tolist() == [2, 0]
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(p[2], [0.5, 0, 0.5], atol=1e-3)


def test_the_validation_texts_choose_the_strength(monkeypatch):
    """With the labels of the validation part turned round, the weakest fit is the best."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(baselines, "C_VALUES", (1e-6, 100.0))
    train, labels = ["red one", "red two", "red three", "blue four", "blue five"], [0, 0, 0, 1, 1]
    right = TfIdf(train, labels, ["red six", "blue six", "blue"], [0, 1, 1], 2)
    wrong = TfIdf(train, labels, ["blue six", "blue seven"], [0, 0], 2)
    assert right.model.C == 100 and wrong.model.C == 1e-6


def test_all_are_fitted_or_one_is_missing(monkeypatch):
    pytest.importorskip("sklearn")
    arguments = TEXTS, LABELS, ["red", "green"], [0, 1], 2
    assert list(baselines.fit_all(*arguments)) == ["majority_class", "naive_bayes", "tfidf"]
    for texts, labels, why in ((TEXTS, [0, 0, 0], "one class"), (["!", "?"], [0, 1], "no words")):
        assert why in baselines.missing_for_tfidf(texts, labels)
        assert len(baselines.fit_all(texts, labels, ["red"], [0], 2)) == 2
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    assert list(baselines.fit_all(*arguments)) == ["majority_class", "naive_bayes"]


@pytest.mark.parity
def test_equals_scikit_learn(rng):
    sklearn = pytest.importorskip("sklearn.feature_extraction.text")
    bayes = pytest.importorskip("sklearn.naive_bayes")
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(60)]
    labels = rng.integers(0, 3, 60)
    vectorizer = sklearn.CountVectorizer(token_pattern=r"\w+")
    peer = bayes.MultinomialNB().fit(vectorizer.fit_transform(texts[:40]), labels[:40])
    ours = NaiveBayes(texts[:40], labels[:40], 3).log_probabilities(texts[40:])
    np.testing.assert_allclose(ours, peer.predict_log_proba(vectorizer.transform(texts[40:])),
                               atol=1e-10)
