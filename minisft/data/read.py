"""From a table to texts with labels, or prompts with completions; every error names its line."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minisft.data.table import Table as Table
from minisft.data.table import read_table, short_repr
from minisft.data.text import CLEANING_STEPS, clean, clean_all
from minisft.errors import UserError, setting


@dataclass(frozen=True)
class Examples:
    """Texts to classify: labels are indices into label_names, None if no label was asked for."""

    path: Path
    texts: list[str]
    labels: list[int] | None
    label_names: tuple[str, ...] | None
    lines: list[int]                   # the line in the file, from 1, where each row starts
    cleaned: Counter[str]              # cleaning step -> how many texts it changed
    pairs: list[str] | None = None     # the second text of each, where there are two

    def place(self, n: int) -> str:
        """-> where the text of index n stands."""
        return f"{self.path}, line {self.lines[n]}"

    @property
    def full_texts(self) -> list[str]:
        """-> each text, joined with its second text where there are two."""
        if self.pairs is None:
            return self.texts
        return [f"{text}\n{pair}" for text, pair in zip(self.texts, self.pairs, strict=True)]


@dataclass(frozen=True)
class Prompts:
    """Texts to continue, and how; completions are None where no column was asked for."""

    path: Path
    prompts: list[str]
    completions: list[str] | None
    lines: list[int]                   # the line in the file, from 1, where each row starts
    cleaned: Counter[str]              # cleaning step -> how many texts it changed

    def place(self, n: int) -> str:
        """-> where the prompt of index n stands."""
        return f"{self.path}, line {self.lines[n]}"


def _column(table, name, header):
    """Table, a column's name -> its values as str; UserError if it is absent or one is no text."""
    if name not in table.columns:
        columns = ", ".join(short_repr(column).strip("'\"") for column in table.columns[:20])
        hint = ""
        if not header:
            hint = f"; {setting('no_header')} numbers the columns from 1"
        elif table.path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
            hint = (f"; if that is no header, add {setting('no_header')} and name the columns 1, "
                    "2, ...")
        raise UserError(f"{table.path}: no column {short_repr(name)}; the columns are: "
                        f"{columns}{hint}")
    return [_value(table, row, line, name)
            for row, line in zip(table.rows, table.lines, strict=True)]


def _value(table, row, line, name):
    value = row.get(name)
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise UserError(f"{table.path}, line {line}: column {short_repr(name)} holds half a "
                            "character (a lone surrogate)")
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)       # true, 3, 0.5: as the file spells them
    type_name = {list: "a list", dict: "an object"}.get(type(value), "null")
    raise UserError(f"{table.path}, line {line}: column {short_repr(name)} is "
                    f"{type_name if name in row else 'missing'}; expected a text")


def _require_not_blank(path, texts, lines, name):
    for text, line in zip(texts, lines, strict=True):
        if not text.strip():
            raise UserError(f"{path}, line {line}: the {name} is empty")


def read_examples(path: str | Path, text_columns: Sequence[str], label_column: str | None,
                  label_names: Iterable[str] | None = None, steps: Sequence[str] = CLEANING_STEPS,
                  encoding: str = "utf-8", header: bool = True,
                  pair_column: str | None = None) -> Examples:
    """A file, its columns, perhaps the label names of the training data -> Examples.

    Several text columns are joined by a space, then cleaned. Without `label_names` they are those
    of the file, sorted, by number if all are integers. UserError on a blank text or label, an
    unknown label, or fewer than two label names in the file.
    """
    if label_column is not None and label_column in (*text_columns, pair_column):
        raise UserError(f"{path}: column {short_repr(label_column)} cannot be both text and label")
    table, texts, cleaned = read_texts(path, text_columns, steps, encoding, header)
    pairs, counts = read_pairs(table, pair_column, steps, header)
    cleaned += counts
    labels = None
    if label_column is not None:
        values = [value.strip() for value in _column(table, label_column, header)]
        _require_not_blank(path, values, table.lines, "label")
        label_names = (sorted_label_names(path, values) if label_names is None
                       else tuple(label_names))
        label2id = {name: i for i, name in enumerate(label_names)}
        for value, line in zip(values, table.lines, strict=True):
            if value not in label2id:
                raise UserError(f"{path}, line {line}: unknown label {short_repr(value)}; known: "
                                f"{', '.join(map(short_repr, label_names))}")
        labels = [label2id[value] for value in values]
    return Examples(table.path, texts, labels,
                    None if label_names is None else tuple(label_names), table.lines, cleaned,
                    pairs)


def read_texts(path: str | Path, text_columns: Sequence[str],
               steps: Sequence[str] = CLEANING_STEPS, encoding: str = "utf-8",
               header: bool = True) -> tuple[Table, list[str], Counter[str]]:
    """A file, its columns -> Table, the cleaned texts, Counter of how many each step changed.

    Several columns are joined by a space. UserError on a blank text.
    """
    table = read_table(path, encoding, header)
    joined = zip(*(_column(table, name, header) for name in text_columns), strict=True)
    texts, cleaned = clean_all(map(" ".join, joined), steps)
    _require_not_blank(path, texts, table.lines, "text (after cleaning)")
    return table, texts, cleaned


def read_pairs(table: Table, column: str | None, steps: Sequence[str] = CLEANING_STEPS,
               header: bool = True) -> tuple[list[str] | None, Counter[str]]:
    """Table, the column of a second text or None -> the cleaned texts or None, Counter of steps.

    UserError on a blank text.
    """
    if column is None:
        return None, Counter()
    pairs, cleaned = clean_all(_column(table, column, header), steps)
    _require_not_blank(table.path, pairs, table.lines,
                       f"text of column {short_repr(column)} (after cleaning)")
    return pairs, cleaned


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
                 steps: Sequence[str] = (), encoding: str = "utf-8",
                 header: bool = True) -> Prompts:
    """A file, its columns -> Prompts; UserError on an empty prompt or completion.

    Prompt columns that are blank in a row are left out there, the others joined by a line break.
    Each value is cleaned by itself; by default not at all, so that code keeps its lines.
    """
    if completion_column in prompt_columns:
        raise UserError(f"{path}: column {short_repr(completion_column)} cannot be both prompt "
                        "and completion")
    table = read_table(path, encoding, header)
    columns: list[list[str]] = []
    counts: Counter[str] = Counter()
    for name in [*prompt_columns, *([completion_column] if completion_column is not None else [])]:
        values, changed = clean_all(_column(table, name, header), steps)
        columns.append(values)
        counts += changed
    completions = None
    if completion_column is not None:
        completions = columns.pop()
        _require_not_blank(path, completions, table.lines,
                           f"completion (column {short_repr(completion_column)})")
    prompts = ["\n".join(value for value in values if value.strip())
               for values in zip(*columns, strict=True)]
    _require_not_blank(path, prompts, table.lines, "prompt")
    return Prompts(table.path, prompts, completions, table.lines, counts)


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
        raise UserError(f"cannot hold out for validation any of {len(texts)} texts: "
                        "no label has two distinct ones")
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
