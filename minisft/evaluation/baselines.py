"""Baselines to compare with: the most frequent class, naive Bayes, TF-IDF with logistic regression.

Multinomial naive Bayes (McCallum and Nigam 1998, eq. 6):

    (1) p(k) = texts of class k / texts
    (2) p(v|k) = (a + times word v stands in class k) / (a * V + words of class k)
    (3) log p(k|text) = log p(k) + sum over the text's words of log p(v|k), normalised over k

A word that no training text holds says nothing and is passed by. TF-IDF (Salton and Buckley 1988)
and its logistic regression are scikit-learn's, where that is installed.
"""

import re
import warnings
from importlib.util import find_spec

import numpy as np

from minisft.ops.cross_entropy import log_softmax

WORD = re.compile(r"\w+")


STRENGTHS = (1.0, 10.0, 100.0)     # the C that logistic regression may have


def fit_all(texts, labels, valid_texts, valid_labels, n_labels):
    """Training and validation texts with labels -> {key: baseline}, without the test set.

    All learn from the training texts; the validation texts choose what is left to choose.
    """
    found = {"majority_class": Majority(labels, n_labels),
             "naive_bayes": NaiveBayes(texts, labels, n_labels)}
    if missing_for_tfidf(texts, labels) is None:
        found["tfidf"] = TfIdf(texts, labels, valid_texts, valid_labels, n_labels)
    return found


def missing_for_tfidf(texts, labels):
    """-> why TF-IDF with logistic regression cannot be had, or None."""
    if find_spec("sklearn") is None:
        return "scikit-learn is not installed"
    if len(set(labels)) < 2:
        return "the training texts are of one class"
    return None if any(map(WORD.search, texts)) else "the training texts hold no words"


class Majority:
    """Answers the shares of the classes in training, whatever the text."""

    def __init__(self, labels, n_labels):
        with np.errstate(divide="ignore"):
            self.log_prior = np.log(np.bincount(labels, minlength=n_labels) / len(labels))

    def log_probabilities(self, texts):
        """M texts -> log-probabilities (M,K)."""
        return np.tile(self.log_prior, (len(texts), 1))


class TfIdf:
    """Words and pairs of words, sublinear counts; C is the one of STRENGTHS best in validation."""

    def __init__(self, texts, labels, valid_texts, valid_labels, n_labels):
        # imported here: slow to load, and an extra that need not be there
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        self.n_labels = n_labels
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True,
                                     token_pattern=WORD.pattern)
        x, valid = self.words.fit_transform(texts), self.words.transform(valid_texts)
        with warnings.catch_warnings():     # nearly converged is good enough to compare with
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = [LogisticRegression(C=c, max_iter=1000).fit(x, labels) for c in STRENGTHS]
        self.model = max(fitted, key=lambda model: model.score(valid, valid_labels))

    def log_probabilities(self, texts):
        """M texts -> log-probabilities (M,K)."""
        found = np.full((len(texts), self.n_labels), -np.inf)     # classes without a text
        found[:, self.model.classes_] = self.model.predict_log_proba(self.words.transform(texts))
        return found


class NaiveBayes:
    """Fitted on texts and labels when it is made; `a` smooths the counts (Laplace: 1)."""

    def __init__(self, texts, labels, n_labels, a=1.0):
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

    def log_probabilities(self, texts):
        """M texts -> log-probabilities (M,K)."""
        found = np.tile(self.log_prior, (len(texts), 1))
        for row, text in zip(found, texts, strict=True):
            known = [self.index[word] for word in _words(text) if word in self.index]
            row += self.log_word[:, known].sum(axis=1)                         # (3)
        return log_softmax(found)


def _words(text):
    return WORD.findall(text.lower())
