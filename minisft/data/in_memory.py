"""From lists, arrays and Series to texts with labels, or prompts with completions.

What `read.py` does for files; every error names the item.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minisft.data.pairs import TextPairs
from minisft.data.read import Examples, Prompts, stratified_subset, train_valid_split
from minisft.data.table import BadRow
from minisft.data.text import clean_all
from minisft.errors import UserError

Texts = Iterable[str] | Iterable[tuple[str, str]]
Rows = TypeVar("Rows", Examples, Prompts, TextPairs)


def as_list(values: Any, name: str) -> list[Any]:
    """A list, tuple, array or Series -> list; raises UserError for what is none, and a table."""
    if hasattr(values, "__array__") and not hasattr(values, "columns"):
        values = np.asarray(values)
    if isinstance(values, str | bytes) or hasattr(values, "columns") or \
            not isinstance(values, Iterable):
        raise UserError(f"{name} is a {type(values).__name__}, expected a list, an array or a "
                        "Series")
    return list(values)


def as_labels(values: Any, name: str = "labels") -> np.ndarray:
    """Labels -> an array of str, int, bool or whole floats; raises UserError."""
    labels = as_list(values, name)
    if not labels:
        raise UserError(f"no {name}, expected one for each text")
    for i, label in enumerate(labels):
        if not isinstance(label, str | int | float | np.bool_ | np.integer | np.floating):
            raise UserError(f"{name}[{i}] is {label!r:.80}, expected a str, an int, a bool or a "
                            "whole float")
        if isinstance(label, str) != isinstance(labels[0], str):
            raise UserError(f"{name}[{i}] is {label!r}, but {name}[0] is {labels[0]!r}: expected "
                            "labels of one type")
        if isinstance(label, str) and not label.strip():
            raise UserError(f"{name}[{i}] is empty, expected a name")
        if isinstance(label, float | np.floating) and not float(label).is_integer():
            raise UserError(f"Unknown label type: {name}[{i}] is {label!r}, expected a class")
    array = np.array(labels)
    if array.dtype.kind == "O":
        raise UserError(f"{name} hold an int beyond 64 bits")
    return array


def clean_texts(values: Any, steps: Sequence[str], name: str = "texts", paired: bool = True
                ) -> tuple[list[str], list[str] | None, Counter[str]]:
    """Texts or pairs of them, cleaning steps -> texts, second texts or None, counts of the steps.

    Raises UserError for none, for what is no text, and for a blank one.
    """
    rows = [tuple(value) if paired and isinstance(value, tuple | list | np.ndarray) else (value,)
            for value in as_list(values, name)]
    if not rows:
        raise UserError(f"no {name}, expected at least one")
    for i, row in enumerate(rows):
        if not all(isinstance(text, str) for text in row) or \
                len(row) != len(rows[0]) or not 1 <= len(row) <= 2:
            raise UserError(f"{name}[{i}] is {row[0] if len(row) == 1 else row!r:.80}, expected a "
                            "str" + (" each, or a pair of them each" if paired else ""))
    columns, counts = [], Counter[str]()
    for column in zip(*rows, strict=True):
        texts, changed = clean_all(column, steps)
        for i, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"{name}[{i}] is empty after cleaning, expected some letters")
        columns.append(texts)
        counts += changed
    return columns[0], columns[1] if len(columns) == 2 else None, counts


def examples(texts: Texts, labels: np.ndarray, label_names: tuple[str, ...],
             steps: Sequence[str], part: str = "") -> Examples:
    """Texts, their labels as `as_labels` gives them, the names of all -> Examples; UserError.

    `part` stands before "texts" and "labels" in messages.
    """
    firsts, seconds, cleaned = clean_texts(texts, steps, f"{part}texts")
    if len(firsts) != len(labels):
        raise UserError(f"{len(firsts)} {part}texts but {len(labels)} labels")
    label2id = {name: i for i, name in enumerate(label_names)}
    names = [str(label) for label in labels.tolist()]
    for i, name in enumerate(names):
        if name not in label2id:
            raise UserError(f"{part}labels[{i}] is {name!r}, expected one of "
                            f"{', '.join(label_names)}")
    return Examples(firsts, [label2id[name] for name in names], label_names, seconds,
                    path=Path(f"{part}texts"), lines=list(range(1, len(firsts) + 1)),
                    cleaned=cleaned)


def prompts(texts: Iterable[str], completions: Iterable[str], steps: Sequence[str],
            part: str = "") -> Prompts:
    """Prompts, their completions -> Prompts; UserError. `part` as in `examples`."""
    firsts, _, cleaned = clean_texts(texts, steps, f"{part}prompts", paired=False)
    answers, _, counts = clean_texts(completions, steps, f"{part}completions", paired=False)
    if len(firsts) != len(answers):
        raise UserError(f"{len(firsts)} {part}prompts but {len(answers)} completions")
    return Prompts(firsts, answers, path=Path(f"{part}prompts"),
                   lines=list(range(1, len(firsts) + 1)), cleaned=cleaned + counts)


def subset(rows: Rows, indices: np.ndarray) -> Rows:
    """Examples, Prompts or TextPairs, indices -> the same with these rows alone."""
    columns: dict[str, Any] = {name: [value[i] for i in indices] for name, value in
                               vars(rows).items() if isinstance(value, list)}
    return replace(rows, **columns)


def training_parts(train: Rows, valid: Rows | None, texts: str, count: int | None,
                   fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows, the attribute with their texts -> so many of them to train on (None: all), and those to
    validate with: `valid`, or a fraction of the former; UserError where they are too few."""
    if count is not None:
        train = subset(train, stratified_subset(
            train.path, getattr(train, "labels", None), len(getattr(train, texts)), count, seed))
    if valid is None:
        kept, held_out = train_valid_split(getattr(train, "labels", None), getattr(train, texts),
                                           fraction, seed)
        train, valid = subset(train, kept), subset(train, held_out)
    return train, valid


def without_unreadable(rows: Rows, reasons: Mapping[int, str]) -> Rows:
    """Rows of a file, why a model cannot read some of them by index -> the others.

    Those join the bad rows, which hold what was read of them as JSON. Raises UserError where none
    is left.
    """
    if not reasons:
        return rows
    first, n = min(reasons), len(rows.lines)
    said = f"the first, line {rows.lines[first]}: {reasons[first]}"
    if len(reasons) == n:
        raise UserError(f"{rows.path}: the model can read no row of it; {said}")
    skipped: list[BadRow] = [
        BadRow(rows.path, rows.lines[i], reasons[i],
               json.dumps(_as_read(rows, i), ensure_ascii=False)) for i in sorted(reasons)]
    note = (f"{rows.path}: skipped {len(skipped):,} more row{'s' * (len(skipped) > 1)}, which this "
            f"model cannot read; {said}")
    kept = subset(rows, np.array([i for i in range(n) if i not in reasons]))
    return replace(kept, notes=(*rows.notes, note), bad_rows=tuple(sorted(
        (*rows.bad_rows, *skipped), key=lambda row: row.line)))


def _as_read(rows: Examples | Prompts | TextPairs, i: int) -> dict[str, Any]:
    columns: dict[str, Any]
    if isinstance(rows, Prompts):
        columns = {"prompt": rows.prompts, "completion": rows.completions}
    elif isinstance(rows, TextPairs):
        columns = {"source": rows.sources, "target": rows.targets}
    else:
        names = rows.label_names or ()
        columns = {"text": rows.texts, "pair": rows.pairs,
                   "label": None if rows.labels is None else [names[k] for k in rows.labels]}
    return {name: values[i] for name, values in columns.items() if values is not None}
