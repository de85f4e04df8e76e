"""From a table to texts with labels, or prompts with completions; every error names its line."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minisft.data.encoding import MAX_COMPRESSION_RATIO
from minisft.data.table import BadRow, header_as_data, read_table
from minisft.data.table import Table as Table
from minisft.data.text import CLEANING_STEPS, clean, clean_all
from minisft.errors import UserError, setting, short_repr


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """What the rows of all files have in common."""

    path: Path
    lines: list[int]                   # the line in the file, from 1, where each row starts
    cleaned: Counter[str]              # cleaning step -> how many texts it changed
    notes: tuple[str, ...] = ()        # what a reader of the file should be told
    bad_rows: tuple[BadRow, ...] = ()  # those that were skipped

    def place(self, n: int) -> str:
        """-> where the row of index n stands."""
        return f"{self.path}, line {self.lines[n]}"


@dataclass(frozen=True)
class Examples(FileRows):
    """Texts to classify: labels are indices into label_names, None if no label was asked for."""

    texts: list[str]
    labels: list[int] | None
    label_names: tuple[str, ...] | None
    pairs: list[str] | None = None     # the second text of each, where there are two

    @property
    def full_texts(self) -> list[str]:
        """-> each text, joined with its second text where there are two."""
        if self.pairs is None:
            return self.texts
        return [f"{text}\n{pair}" for text, pair in zip(self.texts, self.pairs, strict=True)]


@dataclass(frozen=True)
class Prompts(FileRows):
    """Texts to continue, and how; completions are None where no column was asked for."""

    prompts: list[str]
    completions: list[str] | None


class MissingColumnError(UserError):
    """A column that a file lacks."""


class UnknownLabelError(UserError):
    """A label that is none of those of the model."""


class _Unreadable(Exception):
    """Why a row cannot be read; `each_row` knows the file and the line."""


def require_columns(table, names, header):
    """Raises MissingColumnError for the first column that is absent."""
    for name in names:
        if name not in table.columns:
            columns = ", ".join(short_repr(column).strip("'\"") for column in table.columns[:20])
            hint = table.hint if header else f"; {setting('no_header')} numbers the columns from 1"
            raise MissingColumnError(f"{table.path}: no column {short_repr(name)}; the columns "
                                     f"are: {columns}{hint}")


def text_of(row, name):
    """A row, a column's name -> its value as str; _Unreadable if it is none."""
    value = row.get(name)
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise _Unreadable(f"column {short_repr(name)} holds half a character (a lone "
                              "surrogate)")
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)       # true, 3, 0.5: as the file spells them
    type_name = {list: "a list", dict: "an object"}.get(type(value), "null")
    raise _Unreadable(f"column {short_repr(name)} is {type_name if name in row else 'missing'}; "
                     "expected a text")


def require_not_blank(text, name):
    if not text.strip():
        raise _Unreadable(f"the {name} is empty")
    return text


def each_row(table, read_row, skip_bad_rows):
    """Table, what reads a row -> the table of the rows that can be read, what was read of each.

    The other rows raise UserError, or join the table's bad rows.
    """
    kept, values, bad_rows = [], [], list(table.bad_rows)
    for index, (row, line) in enumerate(zip(table.rows, table.lines, strict=True)):
        try:
            values.append(read_row(row))
            kept.append(index)
        except _Unreadable as error:
            if not skip_bad_rows:
                raise UserError(f"{table.path}, line {line}: {error}") from None
            bad_rows.append(BadRow(table.path, line, str(error),
                                   json.dumps(row, ensure_ascii=False)))
    if not bad_rows:
        return table, values
    bad_rows.sort(key=lambda bad: bad.line)
    first = f"the first, line {bad_rows[0].line}: {bad_rows[0].reason}"
    if not kept:
        raise UserError(f"{table.path}: no row of it can be read; {first}")
    note = (f"{table.path}: skipped {len(bad_rows):,} of {len(kept) + len(bad_rows):,} rows, which "
            f"cannot be read; {first}")
    return replace(table, rows=[table.rows[n] for n in kept], lines=[table.lines[n] for n in kept],
                   notes=(*table.notes, note), bad_rows=tuple(bad_rows)), values


def read_examples(path: str | Path, text_columns: Sequence[str], label_column: str | None,
                  label_names: Iterable[str] | None = None, steps: Sequence[str] = CLEANING_STEPS,
                  encoding: str = "utf-8", header: bool = True, pair_column: str | None = None,
                  delimiter: str | None = None, skip_bad_rows: bool = False,
                  max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> Examples:
    """A file, its columns, perhaps the label names of the training data -> Examples.

    Several text columns are joined by a space, then cleaned. Without `label_names` they are those
    of the file, sorted, by number if all are integers. UserError on a blank text or label (unless
    bad rows are skipped), an unknown label, fewer than two label names in the file, or nearly as
    many as texts. The other arguments are those of `read_table`.
    """
    return read_texts(path, text_columns, steps, encoding, header, pair_column, delimiter,
                      skip_bad_rows, label_column, label_names, max_compression_ratio)[1]


def read_texts(path: str | Path, text_columns: Sequence[str],
               steps: Sequence[str] = CLEANING_STEPS, encoding: str = "utf-8",
               header: bool = True, pair_column: str | None = None, delimiter: str | None = None,
               skip_bad_rows: bool = False, label_column: str | None = None,
               label_names: Iterable[str] | None = None,
               max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> tuple[Table, Examples]:
    """As `read_examples` -> the Table of the rows that could be read, their Examples."""
    if label_column is not None and label_column in (*text_columns, pair_column):
        raise UserError(f"{path}: column {short_repr(label_column)} cannot be both text and label")
    table = read_table(path, encoding, header, delimiter, skip_bad_rows, max_compression_ratio)
    require_columns(table, [name for name in (*text_columns, pair_column, label_column)
                             if name is not None], header)
    cleaned: Counter[str] = Counter()

    def read_row(row):
        text, steps_of_text = clean(" ".join(text_of(row, name) for name in text_columns), steps)
        require_not_blank(text, "text (after cleaning)")
        pair, steps_of_pair, label = None, (), None
        if pair_column is not None:
            pair, steps_of_pair = clean(text_of(row, pair_column), steps)
            require_not_blank(pair, f"text of column {short_repr(pair_column)} (after cleaning)")
        if label_column is not None:
            label = require_not_blank(text_of(row, label_column).strip(), "label")
        cleaned.update((*steps_of_text, *steps_of_pair))
        return text, pair, label

    table, rows = each_row(table, read_row, skip_bad_rows)
    texts, pairs, labels = map(list, zip(*rows, strict=True))
    indices = None
    if label_column is not None:
        if not header and _first_is_header(texts, labels):
            raise header_as_data(table.path, table.lines[0], (labels[0], texts[0]))
        if label_names is None:
            _require_classes(table.path, labels, label_column)
            label_names = sorted_label_names(table.path, labels)
        label_names = tuple(label_names)
        indices = _label_indices(table, labels, label_names)
        table = replace(table, notes=(*table.notes, *_similar_labels(table.path, set(labels))))
    return table, Examples(
        texts, indices, None if label_names is None else tuple(label_names),
        None if pair_column is None else pairs, path=table.path, lines=table.lines,
        cleaned=cleaned, notes=table.notes, bad_rows=table.bad_rows)


def _label_indices(table, labels, label_names):
    label2id = {name: i for i, name in enumerate(label_names)}
    for label, line in zip(labels, table.lines, strict=True):
        if label not in label2id:
            raise UnknownLabelError(
                f"{table.path}, line {line}: unknown label {short_repr(label)}; known: "
                f"{', '.join(map(short_repr, label_names))}")
    return [label2id[label] for label in labels]


def _similar_labels(path, labels):
    """-> a note for labels that differ in case or inner spaces only."""
    spellings: dict[str, list[str]] = {}
    for label in sorted(labels):
        spellings.setdefault(" ".join(label.casefold().split()), []).append(label)
    return [f"{path}: the labels {' and '.join(map(short_repr, same))} are different classes, "
            "expected one spelling" for same in spellings.values() if len(same) > 1]


def _require_classes(path, labels, column):
    """Raises UserError where the labels are more likely texts."""
    different, n = len(set(labels)), len(labels)
    long = sorted(map(len, labels))[n // 2] > 40
    if n >= 10 and different > (0.5 if long else 0.8) * n:
        raise UserError(f"{path}: {different:,} different labels for {n:,} texts: is "
                        f"{short_repr(column)} the label column? Expected labels that several "
                        "texts share")


def _first_is_header(texts, labels):
    """Are the first label and text names of columns: single words, short, and never there again?"""
    first = texts[0], labels[0]
    return (len(texts) > 3 and all(re.fullmatch(r"[^\W\d]\w{0,20}", value) for value in first)
            and texts.count(texts[0]) == labels.count(labels[0]) == 1
            and sorted(map(len, texts))[len(texts) // 2] >= 3 * len(texts[0]))


def sorted_label_names(path: str | Path, labels: Iterable[str]) -> tuple[str, ...]:
    """Labels -> their names, sorted, by number if all are integers; UserError for fewer than two.
    """
    label_names = sorted(set(labels))
    if len(label_names) < 2:
        raise UserError(f"{path}: every label is {short_repr(label_names[0])}; a classifier needs "
                        "two or more")
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in label_names):
        label_names.sort(key=int)
    return tuple(label_names)


def read_prompts(path: str | Path, prompt_columns: Sequence[str], completion_column: str | None,
                 steps: Sequence[str] = (), encoding: str = "utf-8", header: bool = True,
                 delimiter: str | None = None, skip_bad_rows: bool = False,
                 max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> Prompts:
    """A file, its columns -> Prompts; UserError on an empty prompt or completion, unless bad rows
    are skipped.

    Prompt columns that are blank in a row are left out there, the others joined by a line break.
    Each value is cleaned by itself; by default not at all, so that code keeps its lines. The other
    arguments are those of `read_table`.
    """
    if completion_column in prompt_columns:
        raise UserError(f"{path}: column {short_repr(completion_column)} cannot be both prompt "
                        "and completion")
    table = read_table(path, encoding, header, delimiter, skip_bad_rows, max_compression_ratio)
    names = [*prompt_columns, *([] if completion_column is None else [completion_column])]
    require_columns(table, names, header)
    counts: Counter[str] = Counter()

    def read_row(row):
        values, changed = clean_all([text_of(row, name) for name in names], steps)
        completion = None
        if completion_column is not None:
            completion = require_not_blank(
                values.pop(), f"completion (column {short_repr(completion_column)})")
        prompt = "\n".join(value for value in values if value.strip())
        require_not_blank(prompt, "prompt")
        counts.update(changed)
        return prompt, completion

    table, rows = each_row(table, read_row, skip_bad_rows)
    prompts, completions = map(list, zip(*rows, strict=True))
    return Prompts(prompts, None if completion_column is None else completions, path=table.path,
                   lines=table.lines, cleaned=counts, notes=table.notes, bad_rows=table.bad_rows)


def _key(text):
    """Texts with the same key count as the same text."""
    return clean(text)[0].casefold()


def train_valid_split(labels: Sequence[int] | None, texts: Sequence[str], fraction: float,
                      seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (or None), texts, fraction to hold out -> indices to train on, indices held out.

    Both sorted, int64. Each label (without labels: the whole) gives its fraction of distinct texts,
    rounded, but at least one and never all if it has two or more. Equal texts (cleaned, without
    case) stay on one side; a text with several labels counts for its first. UserError if nothing
    can be held out.
    """
    if not 0 < fraction < 1:
        raise UserError("the part held out for validation must lie between 0 and 1, "
                        f"not {fraction}")
    groups: dict[str, list[int]] = {}      # equal texts -> their indices
    for index, text in enumerate(texts):
        groups.setdefault(_key(text), []).append(index)
    by_label: dict[int, list[list[int]]] = {}
    for group in groups.values():
        by_label.setdefault(0 if labels is None else labels[group[0]], []).append(group)
    generator = np.random.Generator(np.random.PCG64(seed))
    valid: list[int] = []
    for label in sorted(by_label):
        label_groups = by_label[label]
        count = min(max(round(fraction * len(label_groups)), 1), len(label_groups) - 1)
        for i in generator.permutation(len(label_groups))[:count]:
            valid += label_groups[i]
    if not valid:
        raise UserError(f"cannot hold out for validation any of {len(texts)} texts: " + (
            "no two of them differ" if labels is None else
            "no label has two distinct ones"))
    held_out = np.sort(np.array(valid, dtype=np.int64))
    return np.setdiff1d(np.arange(len(texts), dtype=np.int64), held_out), held_out


def stratified_subset(path: str | Path, labels: Sequence[int] | None, n: int, count: int,
                      seed: int) -> np.ndarray:
    """Labels of n texts (or None), how many to draw -> indices of that many of them, sorted.

    Stratified: each label keeps its share. A smaller count gives a subset of what a larger one
    gives. UserError, with the path, if there are fewer.
    """
    if count > n:
        raise UserError(f"{path}: holds {n:,} texts, but {setting('train_texts')} is {count:,}")
    classes = np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels)
    shuffled = np.random.Generator(np.random.PCG64([seed, 1])).permutation(n)
    share = np.empty(n)
    for label in np.unique(classes):
        members = shuffled[classes[shuffled] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    # where shares are equal, the order of the shuffling decides
    order = shuffled[np.argsort(share[shuffled], kind="stable")]
    return np.sort(order[:count])


def shared_texts(a: Iterable[str], b: Iterable[str]) -> int:
    """Two lists of texts -> how many of b also stand in a (cleaned, without case)."""
    keys = set(map(_key, a))
    return sum(_key(text) in keys for text in b)
