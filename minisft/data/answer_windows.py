"""Questions and contexts as the sequences of a model, and from its logits back to a piece of text.

A sequence is a question and a part of its context, between the special tokens: [CLS] question [SEP]
context [SEP]. A tokenizer that has none between two texts, as GPT-2's, gets a line break. A context
that is too long is read in windows that overlap by half, and an answer may begin at a token in the
window alone where that token has most text around it. "No answer" is the first token of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from minisft.data.questions import Questions
from minisft.data.sequences import pair_frame
from minisft.data.tokenizer import encode_batch
from minisft.errors import UserError

MAX_ANSWER_LENGTH = 30     # tokens, as the field has it


@dataclass(frozen=True)
class AnswerWindows:
    """Windows over the contexts of M questions."""

    ids: list[np.ndarray]              # of each window (T,)
    types: list[np.ndarray] | None
    questions: list[int]               # the question that each window is of
    offsets: list[np.ndarray]          # (T,2): first character and end in the context, or -1
    may_begin: list[np.ndarray]        # (T,) whether an answer may begin at that token here
    labels: np.ndarray                 # (windows, 2): first and last token of the answer, or 0, 0
    cut_questions: int                 # questions that were cut to make room for their context

    def best(self, logits: Sequence[np.ndarray], contexts: Sequence[str],
             max_length: int = MAX_ANSWER_LENGTH) -> list["Answer"]:
        """Logits (T,2) of each window, the context of each question -> Answer for each question.

        The best span of all windows, of at most so many tokens, and how much better its score is
        than the lowest of "no answer".
        """
        spans: list[list[tuple[float, int, int]]] = [[] for _ in contexts]
        empty = np.full(len(contexts), np.inf)
        for question, offsets, begins, z in zip(self.questions, self.offsets, self.may_begin,
                                                np.asarray(logits, object), strict=True):
            z = np.asarray(z, np.float64)
            empty[question] = min(empty[question], z[0].sum())
            if (found := _best_span(z, offsets, begins, max_length)) is not None:
                spans[question].append(found)
        answers = []
        for context, found, none in zip(contexts, spans, empty, strict=True):
            score, start, stop = max(found, default=(-np.inf, 0, 0))
            text = context[start:stop]     # a byte-level token may hold the space before a word
            start += len(text) - len(text.lstrip())
            answers.append(Answer(text.strip(), start, float(score - none)))
        return answers


@dataclass(frozen=True)
class Answer:
    """A piece of a context, where it begins, and its score less that of "no answer" (nats)."""

    text: str
    start: int
    margin: float


def answer_windows(tokenizer: Tokenizer, questions: Questions, max_length: int) -> AnswerWindows:
    """Questions -> AnswerWindows of at most `max_length` tokens, special tokens included.

    A question takes at most half of the room. Raises UserError for a length without room, and for
    a question or context without tokens.
    """
    before, between, behind, kinds = pair_frame(tokenizer)
    room = max_length - len(before) - len(between) - len(behind)
    if room < 4:
        raise UserError(f"a maximum sequence length of {max_length} tokens leaves no room for a "
                        "question and its context")
    asked = [row.ids for row in encode_batch(tokenizer, questions.questions)]
    distinct = list(dict.fromkeys(questions.contexts))
    read = dict(zip(distinct, encode_batch(tokenizer, distinct, offsets=True), strict=True))
    found = AnswerWindows([], [], [], [], [], np.empty((0, 2), np.int64), 0)
    labels, cut = [], 0
    for n, (question, context) in enumerate(zip(asked, questions.contexts, strict=True)):
        encoding = read[context]
        if not question or not encoding.ids:
            what = "context" if question else "question"
            raise UserError(f"{questions.place(n)}: nothing is left of the {what}, the tokenizer "
                            "has no token for any of its characters")
        cut += len(question) > room // 2
        question = question[:room // 2]
        tokens, places = np.array(encoding.ids, np.int64), np.array(encoding.offsets, np.int64)
        first = len(before) + len(question) + len(between)
        span = _tokens_of(places, questions.answers[n][0]) if questions.answers[n] else None
        for start, stop, owns in _windows(len(tokens), room - len(question)):
            frame = [before, question, between, tokens[start:stop], behind]
            sizes = list(map(len, frame))
            found.ids.append(np.concatenate(frame).astype(np.int64))
            found.types.append(np.repeat(kinds, sizes))
            found.questions.append(n)
            offsets = np.full((sum(sizes), 2), -1, np.int64)
            offsets[first:first + stop - start] = places[start:stop]
            begins = np.zeros(sum(sizes), bool)
            begins[first:first + stop - start] = owns
            found.offsets.append(offsets)
            found.may_begin.append(begins)
            inside = span is not None and start <= span[0] and span[1] < stop
            labels.append([first + t - start for t in span] if inside else [0, 0])
    return AnswerWindows(found.ids, found.types if any(kinds) else None, found.questions,
                         found.offsets, found.may_begin, np.array(labels, np.int64), cut)


def _tokens_of(places, answer):
    """Where tokens begin and end, (text, first character) -> its first and last token; None where
    no token reaches into it."""
    text, start = answer
    inside = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < start + len(text)))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _windows(n, room):
    """n tokens, room of a window -> (start, stop, where an answer may begin (stop - start,))."""
    if n <= room:
        return [(0, n, np.ones(n, bool))]
    step = max(room // 2, 1)
    starts = np.array([*range(0, n - room, step), n - room])
    tokens = np.arange(n)[:, None]
    left = np.where(starts == 0, np.inf, tokens - starts)
    right = np.where(starts + room == n, np.inf, starts + room - 1 - tokens)
    owner = np.minimum(left, right).argmax(axis=1)
    return [(int(s), int(s) + room, owner[s:s + room] == i) for i, s in enumerate(starts)]


def _best_span(z, offsets, begins, max_length):
    """Logits (T,2) -> (score, first character, end) of the best span; None where none may be."""
    rows = np.flatnonzero(offsets[:, 0] >= 0)
    if not begins.any():
        return None
    first, n = rows[0], len(rows)
    ends = np.full((n, min(max_length, n)), -np.inf)     # of a span that begins at i, ends at i + j
    for j in range(ends.shape[1]):
        ends[:n - j, j] = z[first + j:first + n, 1]
    scores = np.where(begins[rows], z[rows, 0], -np.inf)[:, None] + ends
    i, j = np.unravel_index(scores.argmax(), scores.shape)
    start, stop = offsets[first + i, 0], offsets[first + i + j, 1]
    return float(scores[i, j]), int(start), int(stop)
