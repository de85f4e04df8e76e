"""Baselines to compare with: the most frequent class, naive Bayes, TF-IDF with logistic regression.

Multinomial naive Bayes (McCallum and Nigam 1998, eq. 6):

    (1) p(k) = texts of class k / texts
    (2) p(v|k) = (a + times word v stands in class k) / (a * V + words of class k)
    (3) log p(k|text) = log p(k) + sum over the text's words of log p(v|k), normalised over k

A word that no training text holds is ignored. TF-IDF (Salton and Buckley 1988)
and its logistic regression are scikit-learn's, where that is installed.
"""

import re
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from minisft.ops.cross_entropy import log_softmax

WORD = re.compile(r"\w+")
C_VALUES = (1.0, 10.0, 100.0)     # inverse regularisation strengths of logistic regression to try


class Baseline(Protocol):
    """A fitted baseline."""

    def log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """M texts -> log-probabilities (M,K)."""


def fit_all(texts: Sequence[str], labels: Sequence[int], valid_texts: Sequence[str],
            valid_labels: Sequence[int], n_labels: int) -> dict[str, Baseline]:
    """Training and validation texts with labels -> {key: baseline}, without the test set.

    All learn from the training texts; the validation texts select hyperparameters.
    """
    fitted: dict[str, Baseline] = {"majority_class": Majority(labels, n_labels),
                                   "naive_bayes": NaiveBayes(texts, labels, n_labels)}
    if missing_for_tfidf(texts, labels) is None:
        fitted["tfidf"] = TfIdf(texts, labels, valid_texts, valid_labels, n_labels)
    return fitted


def missing_for_tfidf(texts: Sequence[str], labels: Sequence[int]) -> str | None:
    """-> why TF-IDF with logistic regression cannot be fitted, or None."""
    if find_spec("sklearn") is None:
        return "scikit-learn is not installed"
    if len(set(labels)) < 2:
        return "the training texts are of one class"
    return None if any(map(WORD.search, texts)) else "the training texts hold no words"


class Majority:
    """Predicts the class frequencies of the training data, whatever the text."""

    def __init__(self, labels: Sequence[int], n_labels: int) -> None:
        with np.errstate(divide="ignore"):
            self.log_prior = np.log(np.bincount(labels, minlength=n_labels) / len(labels))

    def log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """M texts -> log-probabilities (M,K)."""
        return np.tile(self.log_prior, (len(texts), 1))


class TfIdf:
    """Words and pairs of words, sublinear counts; C is the best of C_VALUES in validation."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], valid_texts: Sequence[str],
                 valid_labels: Sequence[int], n_labels: int) -> None:
        # imported here: slow to load, and not a required dependency
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        self.n_labels = n_labels
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True,
                                          token_pattern=WORD.pattern)
        x, valid = self.vectorizer.fit_transform(texts), self.vectorizer.transform(valid_texts)
        with warnings.catch_warnings():     # nearly converged is good enough to compare with
            warnings.simplefilter("ignore", ConvergenceWarning)
            models = [LogisticRegression(C=c, max_iter=1000).fit(x, labels) for c in C_VALUES]
        self.model = max(models, key=lambda model: model.score(valid, valid_labels))

    def log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """M texts -> log-probabilities (M,K)."""
        logp = np.full((len(texts), self.n_labels), -np.inf)     # classes without a text
        logp[:, self.model.classes_] = self.model.predict_log_proba(
            self.vectorizer.transform(texts))
        return logp


class NaiveBayes:
    """Fitted on texts and labels on construction; `a` smooths the counts (Laplace: 1)."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], n_labels: int,
                 a: float = 1.0) -> None:
        words = [_words(text) for text in texts]
        self.index = {word: i for i, word in enumerate(sorted(set().union(*words)))}
        counts = np.full((n_labels, len(self.index)), a)                       # (K,V)
        for text, label in zip(words, labels, strict=True):
            for word in text:
                counts[label, self.index[word]] += 1
        texts_of = np.bincount(labels, minlength=n_labels)
        with np.errstate(divide="ignore"):       # a class without a text is never the answer
            self.log_prior = np.log(texts_of / len(labels))                    # (1)
        self.log_word = np.log(counts / counts.sum(axis=1, keepdims=True))     # (2)

    def log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """M texts -> log-probabilities (M,K)."""
        logp = np.tile(self.log_prior, (len(texts), 1))
        for row, text in zip(logp, texts, strict=True):
            known = [self.index[word] for word in _words(text) if word in self.index]
            row += self.log_word[:, known].sum(axis=1)                         # (3)
        return log_softmax(logp)


def _words(text):
    return WORD.findall(text.lower())
