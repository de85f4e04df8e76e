"""Figures of answers to questions, as SQuAD's official evaluation means them.

Rajpurkar et al. 2016, section 6.1, and 2018, section 5: both texts are lowered, and lose
punctuation, the articles a, an, the, and superfluous spaces. Exact match is equality, F1 counts
the words they share; of several right answers the best counts. A question without an answer is
right when the answer is empty.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from minisft.data.answer_windows import Answer
from minisft.data.questions import Questions
from minisft.evaluation.tagging import clustered_interval

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """-> the text without capitals, punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(reference: str, answer: str) -> float:
    """Two texts -> F1 of their words; of two empty ones 1, of one empty one 0."""
    a, b = normalized(reference).split(), normalized(answer).split()
    if not a or not b:
        return float(a == b)
    shared = (Counter(a) & Counter(b)).total()
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """M answers, the right texts of each question, none where there is no answer -> (M,2): exact
    match and F1."""
    rows = []
    for answer, right in zip(answers, references, strict=True):
        # as the official script: answers of which nothing is left are none
        right = [text for text in right if normalized(text)] or [""]
        rows.append([max(float(normalized(text) == normalized(answer)) for text in right),
                     max(token_f1(text, answer) for text in right)])
    return np.array(rows).reshape(-1, 2)


def best_threshold(margins: Sequence[float], f1: Sequence[float],
                   answerable: Sequence[bool]) -> float:
    """Of M questions the margin of the best span, its F1, whether there is an answer -> the margin
    below which "no answer" is given, for the highest mean F1.

    -inf where every question has an answer: then none stays without.
    """
    if all(answerable):
        return -np.inf
    margins, f1 = np.asarray(margins, np.float64), np.asarray(f1, np.float64)
    order = np.argsort(margins, kind="stable")
    # those before a cut are left without an answer, which is right where there is none
    empty = np.concatenate([[0], np.cumsum(~np.asarray(answerable)[order])])
    given = np.concatenate([np.cumsum(f1[order][::-1])[::-1], [0]])
    edges = np.concatenate([[-np.inf], margins[order], [np.inf]])
    # equal margins stay on one side
    cut = int(np.where(edges[:-1] < edges[1:], empty + given, -1).argmax())
    between = edges[cut:cut + 2]
    return float(between.mean() if np.isfinite(between).all() else between[int(cut > 0)])


def answering(questions: Questions, answers: Sequence[Answer],
              threshold: float = -np.inf) -> dict[str, Any]:
    """Questions, an Answer for each, the margin below which none is given -> figures of a report.

    `f1` and `exact_match` of all, `has_answer` and `no_answer` of each kind, with the interval of
    F1 by articles, and what the empty answer alone would reach.
    """
    texts = [answer.text if answer.margin > threshold else "" for answer in answers]
    rows = scores(texts, [[text for text, _ in right] for right in questions.answers])
    answerable = np.array(questions.answerable)
    results = {"n": len(texts), "articles": len(set(questions.titles)),
               "exact_match": float(rows[:, 0].mean()), "f1": float(rows[:, 1].mean()),
               "always_empty": float(1 - answerable.mean()), "threshold": threshold,
               **dict(zip(("f1_low", "f1_high"), _by_article(questions.titles, rows[:, 1]),
                          strict=True))}
    for name, kind in (("has_answer", answerable), ("no_answer", ~answerable)):
        if kind.any():
            titles = [title for title, here in zip(questions.titles, kind, strict=True) if here]
            low, high = _by_article(titles, rows[kind, 1])
            results[name] = {"n": int(kind.sum()), "exact_match": float(rows[kind, 0].mean()),
                             "f1": float(rows[kind, 1].mean()), "f1_low": low, "f1_high": high}
    return results


def _by_article(titles, values):
    """-> 95% interval of the mean, whose questions hang together by article."""
    names = {title: i for i, title in enumerate(dict.fromkeys(titles))}
    numbers = [names[title] for title in titles]
    return clustered_interval(np.bincount(numbers, values), np.bincount(numbers))


def sliding_window(question: str, context: str, max_words: int = 5) -> str:
    """The baseline: the run of words that has most of the question's words near it.

    After Richardson et al. 2013, "MCTest", 4.2, with every run of up to `max_words` words of the
    context as a candidate: each word of the question counts by log(1 + 1 / how often the context
    has it), divided by its distance; a word of the question is in no answer.
    """
    words = context.split()
    plain = [normalized(word) for word in words]
    counts, asked = Counter(plain), set(normalized(question).split())
    at = np.array([i for i, word in enumerate(plain) if word in asked], np.int64)
    weights = np.array([np.log1p(1 / counts[plain[i]]) for i in at])
    best, span = -1.0, (0, min(1, len(words)))
    for start in range(len(words)):
        for stop in range(start + 1, min(start + max_words, len(words)) + 1):
            if plain[stop - 1] in asked or not plain[stop - 1]:
                break
            distance = np.maximum(np.maximum(start - at, at - stop + 1), 1)
            if (score := float((weights / distance).sum())) > best:
                best, span = score, (start, stop)
    return " ".join(words[slice(*span)])
