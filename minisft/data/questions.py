"""Questions with contexts that hold their answers: JSON of SQuAD 1.1 and 2.0, and XQuAD.

    {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "is_impossible",
      "answers": [{"text", "answer_start"}]}]}]}]}

Rajpurkar et al. 2016 and 2018. `answer_start` counts characters of the context from 0.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minisft.data.encoding import MAX_COMPRESSION_RATIO, read_text
from minisft.errors import UserError, short_repr


@dataclass(frozen=True)
class Questions:
    """M questions; answers are (text, first character) each, none where the context has none."""

    path: Path
    ids: list[str]
    questions: list[str]
    contexts: list[str]                # of each question
    titles: list[str]                  # of the article that it is of
    answers: list[list[tuple[str, int]]]
    notes: tuple[str, ...] = ()        # what a reader of the file should be told
    bad_rows: tuple[()] = ()           # none is skipped

    def place(self, n: int) -> str:
        """-> where the question of index n stands."""
        return f"{self.path}, question {self.ids[n]}"

    @property
    def answerable(self) -> list[bool]:
        """-> whether the context holds an answer, for each question."""
        return [bool(answers) for answers in self.answers]

    def subset(self, indices: Iterable[int]) -> "Questions":
        """-> the questions of these indices alone."""
        kept = [int(n) for n in indices]
        return replace(self, **{name: [value[n] for n in kept]
                                for name, value in vars(self).items() if isinstance(value, list)})


def read_questions(path: str | Path, encoding: str = "utf-8",
                   max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> Questions:
    """A file, plain or .gz -> Questions; raises UserError that names the question.

    An answer that does not stand where `answer_start` says is looked for nearby: how many were
    moved is a note, and one that stands nowhere is refused.
    """
    path = Path(path)
    text = read_text(path, encoding, max_compression_ratio=max_compression_ratio)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); expected a file as SQuAD's") from None
    rows, moved, seen = [], 0, set()
    for where, title, context, row in _each_question(path, content):
        key = _text(path, where, row, "id")
        where = f"question {key}"
        if key in seen:
            raise UserError(f"{path}: {where} is there twice")
        seen.add(key)
        question = _text(path, where, row, "question")
        answers = []
        given = [] if row.get("is_impossible") is True else _list(path, where, row, "answers")
        for answer in given:
            found = _text(path, where, answer, "text")
            start = answer.get("answer_start")
            if type(start) is not int:
                raise UserError(f"{path}: {where}: answer_start is {short_repr(start)}, expected "
                                "a whole number")
            at = _nearest(context, found, start)
            if at is None:
                raise UserError(f"{path}: {where}: the answer {short_repr(found)} does not stand "
                                "in its context")
            moved += at != start
            answers.append((found, at))
        rows.append((key, question, context, title, answers))
    if not rows:
        raise UserError(f"{path}: holds no question")
    notes = (f"{path}: {moved:,} answers do not stand where answer_start says, and were found "
             "elsewhere in their context",) if moved else ()
    ids, questions, contexts, titles, all_answers = (list(column) for column in
                                                     zip(*rows, strict=True))
    return Questions(path, ids, questions, contexts, titles, all_answers, notes)


def _each_question(path, content) -> Iterator[tuple[str, str, str, Any]]:
    """-> (where it stands, title, context, the question's object)."""
    for a, article in enumerate(_list(path, "the file", content, "data")):
        where = f"data[{a}]"
        paragraphs = _list(path, where, article, "paragraphs")
        title = article.get("title")
        title = title if isinstance(title, str) else str(a)
        for p, paragraph in enumerate(paragraphs):
            inner = f"{where}.paragraphs[{p}]"
            questions = _list(path, inner, paragraph, "qas")
            context = _text(path, inner, paragraph, "context")
            for q, row in enumerate(questions):
                if not isinstance(row, dict):
                    raise UserError(f"{path}: {inner}.qas[{q}] is {short_repr(row)}, expected an "
                                    "object")
                yield f"{inner}.qas[{q}]", title, context, row


def _list(path, where, row, key):
    values = row.get(key) if isinstance(row, dict) else None
    if not isinstance(values, list):
        raise UserError(f"{path}: {where}: {key} is {short_repr(values)}, expected a list, as "
                        "SQuAD's files have it")
    return values


def _text(path, where, row, key):
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: {where}: {key} is {short_repr(value)}, expected a text")
    return value


def _nearest(context, answer, start):
    """-> the place of the answer that lies nearest to `start`; None where it is nowhere."""
    if start >= 0 and context.startswith(answer, start):
        return start
    places, at = [], context.find(answer)
    while at >= 0:
        places.append(at)
        at = context.find(answer, at + 1)
    return min(places, key=lambda place: abs(place - start), default=None)
