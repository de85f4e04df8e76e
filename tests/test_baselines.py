"""Naive Bayes against a case counted by hand and against scikit-learn."""

import numpy as np
import pytest

from minisft.baselines import NaiveBayes

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
