"""Texts with their translations: two columns of a table, or two files of aligned lines.

Line n of the second file translates line n of the first, as the corpora of the WMT shared tasks
come (Multi30k, Europarl).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import realpath
from pathlib import Path

import numpy as np

from minisft.backend import random
from minisft.data.batch import Batch, pack_pairs
from minisft.data.dataset import TokenizedDataset
from minisft.data.encoding import MAX_COMPRESSION_RATIO, fault, read_text
from minisft.data.read import FileRows, each_row, require_columns, require_not_blank, text_of
from minisft.data.table import SUFFIXES, BadRow, Table, read_table
from minisft.data.text import clean_all
from minisft.errors import UserError, setting, short_repr


@dataclass(frozen=True)
class TextPairs(FileRows):
    """Texts to translate and their translations; targets are None where none were asked for."""

    sources: list[str]
    targets: list[str] | None


@dataclass(frozen=True)
class PairDataset(TokenizedDataset):
    """Token ids of each source, the end token behind them, and of its translation.

    A step's tokens are those of both, and `ids` are the sources'.
    """

    targets: Sequence[np.ndarray] = ()
    start: int = 0     # the token that begins a translation, and the one that ends it
    end: int = 0

    @cached_property
    def lengths(self) -> np.ndarray:
        """-> tokens of each pair (M,), as encoder and decoder read them."""
        return np.array([len(a) + len(b) + 1
                         for a, b in zip(self.ids, self.targets, strict=True)])

    def batch(self, indices: Sequence[int], stream: random.Stream | None = None) -> Batch:
        """indices of the pairs (B,) -> Batch with `source`."""
        return pack_pairs([self.ids[n] for n in indices], [self.targets[n] for n in indices],
                          self.start, self.end, indices)


def is_table(path: str | Path) -> bool:
    """-> whether a file's name is that of a table; others are plain lines."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != ".gz"]
    return suffixes[-1:] != [] and suffixes[-1] in SUFFIXES or str(path) == "-"


def read_pairs(path: str | Path, source_column: str, target_column: str | None,
               target_path: str | Path | None = None, steps: Sequence[str] = (),
               encoding: str = "utf-8", header: bool = True, delimiter: str | None = None,
               skip_bad_rows: bool = False,
               max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> TextPairs:
    """A table and two of its columns, or a file of lines and `target_path`, that of their
    translations -> TextPairs.

    Without `target_column` and `target_path` there are no targets. Raises UserError, with file and
    line, for what cannot be read: a blank side (unless bad rows are skipped), two files of
    different numbers of lines, one column or file for both sides. Lines that are blank in both
    files are no pairs.
    """
    if target_path is None and is_table(path):
        if source_column == target_column:
            raise UserError(f"{path}: column {short_repr(source_column)} cannot be both source and "
                            "target")
        table = read_table(path, encoding, header, delimiter, skip_bad_rows, max_compression_ratio)
        names = [source_column, *([] if target_column is None else [target_column])]
        require_columns(table, names, header)
    else:
        names = ["source", *([] if target_column is None else ["target"])]
        table = _lines(Path(path), None if target_column is None else target_path, encoding,
                       skip_bad_rows, max_compression_ratio)
    cleaned: Counter[str] = Counter()

    def read_row(row):
        values, changed = clean_all([text_of(row, name) for name in names], steps)
        for text, what in zip(values, ("source", "target"), strict=False):
            require_not_blank(text, f"{what} (after cleaning)" if steps else what)
        cleaned.update(changed)
        return values

    table, rows = each_row(table, read_row, skip_bad_rows)
    columns = list(map(list, zip(*rows, strict=True)))
    return TextPairs(columns[0], columns[1] if len(columns) == 2 else None, path=table.path,
                     lines=table.lines, cleaned=cleaned, notes=table.notes,
                     bad_rows=table.bad_rows)


def _lines(path, target_path, encoding, skip_bad_rows, max_compression_ratio):
    """A file of lines, perhaps that of their translations -> Table; UserError."""
    if target_path is not None and is_table(path):
        raise UserError(f"{path}: is a table, which holds both languages, but there is a file of "
                        f"translations beside it, {target_path}; expected lines of text")
    if target_path is not None and realpath(path) == realpath(target_path):
        raise UserError(f"{path}: cannot be both source and target")
    columns = {"source": _lines_of(path, encoding, skip_bad_rows, max_compression_ratio)}
    if target_path is not None:
        columns["target"] = _lines_of(Path(target_path), encoding, skip_bad_rows,
                                      max_compression_ratio)
        counts = {name: len(lines) for name, lines in columns.items()}
        if counts["source"] != counts["target"]:
            raise UserError(f"{path} has {counts['source']:,} lines, {target_path} "
                            f"{counts['target']:,}: expected as many, line by line translations "
                            "of one another")
    rows, lines, bad_rows = [], [], []
    for number, values in enumerate(zip(*columns.values(), strict=True), 1):
        if not any(value.strip() for value in values):
            continue
        reason = next((found for value in values if (found := fault(value, encoding))), None)
        if reason is None:
            rows.append(dict(zip(columns, values, strict=True)))
            lines.append(number)
        else:
            bad_rows.append(BadRow(path, number, reason, "\t".join(values)))
    return Table(path, tuple(columns), rows, lines, (), tuple(bad_rows))


def _lines_of(path, encoding, escape, max_compression_ratio):
    """-> the lines of a file, without what ends them."""
    lines = read_text(path, encoding, escape, max_compression_ratio).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def require_table(given: Collection[str], paths: Iterable[str | Path | None]) -> None:
    """Raises UserError for the first of some options that tables alone have a use for, where no
    file is one."""
    files = [path for path in paths if path is not None]
    for name in ("source_column", "target_column", "no_header", "delimiter"):
        if name in given and not any(map(is_table, files)):
            raise UserError(f"{setting(name)} is for a table, {files[0]} is plain lines of text")


def require_kinds(path: str | Path, target_path: str | Path | None, target_setting: str) -> None:
    """Raises UserError for a file of lines whose translations nobody named."""
    if target_path is None and not is_table(path):
        raise UserError(f"{path}: cannot tell its format by its name; expected a table "
                        f"({' '.join(SUFFIXES)}, alone or with .gz), or {setting(target_setting)} "
                        "with the file whose lines are the translations of its lines")
