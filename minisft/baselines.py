"""A bag of words to compare with: multinomial naive Bayes (McCallum and Nigam 1998, eq. 6).

    (1) p(k) = texts of class k / texts
    (2) p(v|k) = (a + times word v stands in class k) / (a * V + words of class k)
    (3) log p(k|text) = log p(k) + sum over the text's words of log p(v|k), normalised over k

A word that no training text holds says nothing and is passed by.
"""

import re

import numpy as np

from minisft.ops.cross_entropy import log_softmax

WORD = re.compile(r"\w+")


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
