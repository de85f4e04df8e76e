"""Figures of tagged words: accuracy by sentences, entities, and the tag that a word has most often.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minisft.evaluation import metrics

Z = 1.959963984540054     # 95%, two-sided


def clustered_interval(successes: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """Successes and trials of M groups (M,) -> 95% interval of successes / trials.

    Words of a sentence are right or wrong together, so the sentences are what is counted
    (Cochran 1977, "Sampling techniques", 6.3, a ratio of two sums):
    (1) p = sum s / sum n
    (2) var p = M / (M - 1) * sum (s - p n)^2 / (sum n)^2

    For differences s may be negative; of a single group the interval is (-1 or 0, 1).
    """
    s, n = np.asarray(successes, np.float64), np.asarray(sizes, np.float64)
    if s.shape != n.shape or s.ndim != 1 or not len(s) or n.sum() <= 0:
        raise ValueError(f"clustered_interval: successes {s.shape}, sizes {n.shape}")
    lowest = -1.0 if (s < 0).any() else 0.0
    if len(s) == 1:
        return lowest, 1.0
    p = s.sum() / n.sum()                                                           # (1)
    half = Z * np.sqrt(len(s) / (len(s) - 1) * np.square(s - p * n).sum()) / n.sum()     # (2)
    return float(max(p - half, lowest)), float(min(p + half, 1))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Tags of a sentence, O, B-TYPE or I-TYPE -> {(type, first word, behind its last)}.

    As CoNLL 2003's conlleval: an entity begins at B, and at I where the word before is not of the
    same type.
    """
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        before = tags[i - 1] if i else "O"
        inside = tag[:2] == "I-" and before != "O" and before[2:] == tag[2:]
        if start is not None and not inside:
            found.add((before[2:], start, i))
            start = None
        if tag != "O" and not inside:
            start = i
    return found


def entity_scores(truth: Iterable[Sequence[str]],
                  predictions: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Tags of M sentences, right and predicted -> precision, recall and F1 of whole entities, of
    all and of each type; an entity counts where type, beginning and end are right."""
    right, expected, found = Counter(), Counter(), Counter()
    for tags, predicted in zip(truth, predictions, strict=True):
        a, b = entities(tags), entities(predicted)
        for counter, these in ((expected, a), (found, b), (right, a & b)):
            counter.update(kind for kind, _, _ in these)
    types = sorted(expected | found)
    rows = [{"name": kind, **_f1(right[kind], expected[kind], found[kind])} for kind in types]
    return {**_f1(right.total(), expected.total(), found.total()), "per_type": rows}


def _f1(right, expected, found):
    precision, recall = right / max(found, 1), right / max(expected, 1)
    return {"precision": precision, "recall": recall,
            "f1": 2 * right / max(found + expected, 1), "entities": expected}


class MostFrequentTag:
    """The baseline: the tag that a word had most often in training, else the most frequent of all.

    An unseen word is tried in lower case too. Ties go to the first label.
    """

    def __init__(self, words: Iterable[Sequence[str]], tags: Iterable[Sequence[int]],
                 n_labels: int):
        counts: dict[str, np.ndarray] = {}
        every = np.zeros(n_labels, np.int64)
        for row, labels in zip(words, tags, strict=True):
            for word, label in zip(row, labels, strict=True):
                for key in {word, word.lower()}:
                    counts.setdefault(key, np.zeros(n_labels, np.int64))[label] += 1
                every[label] += 1
        self.of_word = {word: int(row.argmax()) for word, row in counts.items()}
        self.of_all = int(every.argmax())

    def predict(self, words: Iterable[Sequence[str]]) -> list[list[int]]:
        """Words of M sentences -> a label for each."""
        return [[self.of_word.get(word, self.of_word.get(word.lower(), self.of_all))
                 for word in row] for row in words]


def tagging(tags: Sequence[Sequence[int]], logp: Sequence[np.ndarray],
            names: Sequence[str], bio: bool) -> dict[str, Any]:
    """Right tags of M sentences, log-probabilities of their words (W,K) -> figures of a report.

    Those of `metrics.classification` with words for texts, `sentences` all of whose words are
    right, the interval of the accuracy by sentences, and with `bio` the `entities`.
    """
    flat = np.concatenate([np.asarray(row, np.int64) for row in tags])
    results = metrics.classification(flat, np.concatenate(logp), names)
    answers = [rows.argmax(axis=1) for rows in logp]
    right = [int((answer == np.asarray(row)).sum()) for answer, row in
             zip(answers, tags, strict=True)]
    sizes = [len(row) for row in tags]
    low, high = clustered_interval(right, sizes)
    results |= {"accuracy_low": low, "accuracy_high": high, "n_sentences": len(tags),
                "whole_sentences": float(np.mean([a == b for a, b in
                                                  zip(right, sizes, strict=True)]))}
    if bio:
        results["entities"] = entity_scores(
            [[names[i] for i in row] for row in tags],
            [[names[i] for i in row] for row in answers])
    return results
