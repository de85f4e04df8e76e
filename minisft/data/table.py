"""A file of rows (CSV, TSV, JSON lines, a JSON list) -> Table; every error names its line."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisft.data import delimited
from minisft.data.encoding import (
    MAX_COMPRESSION_RATIO,
    STDIN,
    fault,
    read_text,
    reads_as_utf8,
    require_file,
)
from minisft.errors import UserError, setting, short_repr

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
# What people and programs call columns; a row of nothing else is a header.
_TYPICAL = frozenset("""text texts label labels class category topic target tag title headline
    description body content message sms sentence review comment tweet post email subject question
    answer prompt completion instruction input output context response sentiment rating score id
    index name date v1 v2""".split())


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read: where it stands, why, and its text."""

    path: Path
    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Table:
    """The rows of a file, unchanged; JSON values keep their type."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]                   # the line, from 1, where each row starts
    notes: tuple[str, ...] = ()        # what a reader of the file should be told
    bad_rows: tuple[BadRow, ...] = ()  # those that were skipped
    hint: str = ""                     # what to try where a column is missing


def read_table(path: str | Path, encoding: str = "utf-8", header: bool = True,
               delimiter: str | None = None, skip_bad_rows: bool = False,
               max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> Table:
    """A .csv, .tsv, .jsonl or .json file, or one of them .gz -> Table; "-" is standard input.

    The delimiter is what the file's name says, unless the rows plainly have another. A .tsv is
    quoted only where every sign says so. Without header the columns are "1", "2", ...; names are
    stripped, nameless last columns that hold nothing are dropped, other nameless ones are called
    "Unnamed: 0", ... as in pandas. Blank lines are no rows. UserError names the file and the line
    of the first error; with `skip_bad_rows` the row goes to the table's `bad_rows` instead.
    `max_compression_ratio` as in `encoding.read_text`.
    """
    path = Path(path)
    require_file(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])
    if suffix not in SUFFIXES and str(path) != STDIN:
        hint = "; save the spreadsheet as CSV" if suffix in _SPREADSHEETS else ""
        raise UserError(f"{path}: cannot tell its format by its name; expected one that ends in "
                        f"{' '.join(SUFFIXES)}, alone or with .gz{hint}")
    text = read_text(path, encoding, skip_bad_rows, max_compression_ratio)
    if str(path) == STDIN:
        suffix = ".jsonl" if text.lstrip().startswith("{") else ".csv"
    note = reads_as_utf8(path, encoding, text, max_compression_ratio)
    notes = [] if note is None else [note]
    bad_rows: list[BadRow] | None = [] if skip_bad_rows else None
    if suffix in (".json", ".jsonl"):
        for name, given in (("no_header", not header), ("delimiter", delimiter is not None)):
            if given:
                raise UserError(f"{path}: JSON names its columns; {setting(name)} is for .csv and "
                                ".tsv")
        table = _read_json(path, text, suffix, encoding, bad_rows, notes)
    else:
        table = _read_delimited(path, text, suffix, delimiter, header, encoding, bad_rows, notes)
    if not table.rows:
        raise UserError(f"{path}: no row of it can be read, the first is line {bad_rows[0].line}: "
                        f"{bad_rows[0].reason}")
    return table


def bad_rows_csv(bad_rows: Iterable[BadRow]) -> str:
    """The rows that were skipped -> CSV: file, line, reason, text."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("file", "line", "reason", "text"))
    writer.writerows((row.path, row.line, row.reason, row.text) for row in bad_rows)
    return file.getvalue()


def _read_delimited(path, text, suffix, delimiter, header, encoding, bad_rows, notes):
    """The text of a .csv or .tsv -> Table."""
    usual = "," if suffix == ".csv" else "\t"
    named, text, first = delimited.split_sep_line(text)
    if not text.strip():
        raise UserError(f"{path}: is empty")
    other = None
    char = delimited.parse_delimiter(delimiter) or named
    if char is None:
        char, other = delimited.guess(text, usual)
        if char != usual:
            notes.append(f"{path}: its fields are separated by {char!r}")
    hint = "" if other is None else (f"; looks separated by {other!r}: see "
                                     f"{setting('delimiter', delimited.spelled(other))}")

    def bad(line, reason, row):
        bad_rows.append(BadRow(path, line, reason, row))

    quoted = char != "\t" or suffix == ".csv"
    if not quoted and delimited.is_quoted_tsv(text):
        quoted = True
        notes.append(f"{path}: its fields are quoted, as pandas and Excel write them, and are "
                     "read so")
    elif not quoted and (line := delimited.line_of_doubled_quotes(text, first)):
        notes.append(f"{path}, line {line}: a field stands in quotes, with quotes doubled inside, "
                     "but others do not: all quotes are read as text; a quoted file should be .csv")
    try:
        records = list(
            delimited.read_csv(text, char, first, None if bad_rows is None else bad) if quoted else
            delimited.read_tsv(text, first))
    except UserError as error:
        raise UserError(f"{path}, {error.args[0]}") from None
    if bad_rows is not None:
        records = _without_faults(path, records, encoding, char, bad_rows)
    if header and bad_rows and (not records or bad_rows[0].line < records[0][0]):
        raise UserError(f"{path}, line {bad_rows[0].line}: the header cannot be read: "
                        f"{bad_rows[0].reason}; see {setting('encoding')}")
    return _table(path, records, header, hint, char, notes, bad_rows)


def _without_faults(path, records, encoding, delimiter, bad_rows):
    """-> the records whose bytes are text; the others go to bad_rows."""
    kept = []
    for line, fields in records:
        row = delimiter.join(fields)
        if (reason := fault(row, encoding)) is None:
            kept.append((line, fields))
        else:
            bad_rows.append(BadRow(path, line, reason, row))
    bad_rows.sort(key=lambda bad: bad.line)
    return kept


def _table(path, records, header, hint, delimiter, notes, bad_rows):
    """Lines and fields -> Table; UserError if a row differs in width or a column's name repeats."""
    if not records:
        raise UserError(f"{path}: holds no rows")
    first_line, names = records[0]
    rows = records[1:] if header else records
    named = _trailing_blank(names) if header else min(
        max(_trailing_blank(fields) for _, fields in rows), len(names))
    extra = sum(any(map(str.strip, fields[named:len(names)])) for _, fields in rows)
    width = len(names) if extra else named
    columns = _column_names(path, first_line, names[:width], header, hint)
    if extra:
        notes.append(f"{path}: columns without a name hold something in {extra:,} rows; they are "
                     f"called {', '.join(map(repr, columns[named:]))}")
    if not rows:
        raise UserError(f"{path}: holds a header and no rows; if it has no header, add "
                        f"{setting('no_header')}")
    if not header and all(name.strip().casefold() in _TYPICAL for name in names[:width]):
        raise header_as_data(path, first_line, names[:width])
    kept, lines = [], []
    for line, fields in rows:
        if len(fields) > width and not any(map(str.strip, fields[width:])):
            fields = fields[:width]      # as Excel pads rows
        elif named <= len(fields) < width:
            fields = fields + [""] * (width - len(fields))
        if len(fields) == width:
            kept.append(dict(zip(columns, fields, strict=True)))
            lines.append(line)
            continue
        reason = f"{len(fields)} fields, but line {first_line} has {width}"
        if bad_rows is None:
            raise UserError(f"{path}, line {line}: {reason}{hint}")
        bad_rows.append(BadRow(path, line, reason, delimiter.join(fields)))
    if header and not hint and _looks_like_data(names[:width], kept):
        hint = (f"; if that is no header, add {setting('no_header')} and name the columns 1, 2, "
                "...")
    return Table(path, columns, kept, lines, tuple(notes), tuple(bad_rows or ()), hint)


def header_as_data(path: Path, line: int, values: Iterable[str]) -> UserError:
    """-> the error for a header that is read as the first row."""
    return UserError(f"{path}, line {line}: {', '.join(map(short_repr, values))} look like the "
                     f"names of the columns, and would be read as a row: leave out "
                     f"{setting('no_header')}, or move the line further down if it is a row")


def _trailing_blank(fields):
    """-> how many fields there are without the blank ones at the end, at least one."""
    return max((n for n, value in enumerate(fields, 1) if value.strip()), default=1)


def _column_names(path, line, names, header, hint):
    if not header:
        return tuple(str(n + 1) for n in range(len(names)))
    columns = tuple(name.strip() or f"Unnamed: {n}" for n, name in enumerate(names))
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{path}, line {line}: the column name {short_repr(repeated[0])} stands "
                        f"there twice{hint}; if this is no header, add {setting('no_header')}")
    return columns


def _looks_like_data(names, rows):
    """Is a header the first row instead: long, or with a value that its column has again?"""
    values = list(zip(*(row.values() for row in rows[:1000]), strict=True))
    return any(len(name) > 40 or name.strip() and name in column
               for name, column in zip(names, values, strict=False))


def _read_json(path, text, suffix, encoding, bad_rows, notes):
    """The text of a .json or .jsonl -> Table."""
    start = text[_BLANK.match(text).end()]
    # named the wrong way round, which the first character tells
    lines = suffix == ".jsonl" and start != "[" or suffix == ".json" and start == "{" and \
        len(_complete_lines(text)) > 1
    objects = (_json_lines(path, text, encoding, bad_rows) if lines else
               _json_list(path, text))
    if not objects and not bad_rows:
        raise UserError(f"{path}: holds no rows")
    columns = tuple(dict.fromkeys(name for _, row in objects for name in row))
    return Table(path, columns, [row for _, row in objects], [line for line, _ in objects],
                 tuple(notes), tuple(bad_rows or ()))


def _unique(pairs):
    names = Counter(name for name, _ in pairs)
    if len(names) < len(pairs):
        repeated = short_repr(names.most_common(1)[0][0])
        raise ValueError(f"the name {repeated} stands twice in an object")
    return dict(pairs)


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_BLANK = re.compile(r"[ \t\r\n]*")


def _object(path, text, start, line):
    """Text, a position and its line -> the JSON object there, the position after it."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        line += text.count("\n", start, error.pos)
        raise UserError(f"{path}, line {line}: no valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {line}: no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}, line {line}: {short_repr(value)} instead of an object {{...}}")
    return value, end


def _json_lines(path, text, encoding, bad_rows):
    """Text -> the line and the object of each row that is not blank."""
    objects = []
    for line, row in enumerate(text.split("\n"), 1):
        if not (row := row.strip(" \t\r")):
            continue
        try:
            if bad_rows is not None and (reason := fault(row, encoding)):
                raise UserError(f"{path}, line {line}: {reason}")
            value, end = _object(path, row, 0, line)
            if end < len(row):
                raise UserError(f"{path}, line {line}: more than one JSON value; found "
                                f"{short_repr(row[end:])} after the first")
            objects.append((line, value))
        except UserError as error:
            if bad_rows is None:
                raise
            reason = str(error).removeprefix(f"{path}, line {line}: ")
            bad_rows.append(BadRow(path, line, reason, row))
    return objects


def _complete_lines(text):
    """-> the first two lines that are not blank, where each is a JSON object of its own."""
    rows = [row for row in text.split("\n") if row.strip()][:2]
    return [row for row in rows if row.strip().startswith("{") and row.strip().endswith("}")]


def _json_list(path, text):
    """Text -> the line and the object of each entry of a JSON list."""
    objects, line, counted_to = [], 1, 0
    position = _BLANK.match(text).end()
    if text[position] != "[":
        raise UserError(f"{path}: starts with {short_repr(text[position])}; expected a list of "
                        "objects [{...}, ...], as pandas writes it with orient='records'")
    while text[position:position + 1] != "]":
        position = _BLANK.match(text, position + 1).end()
        line += text.count("\n", counted_to, position)
        counted_to = position
        if not objects and text[position:position + 1] == "]":
            break
        value, end = _object(path, text, position, line)
        objects.append((line, value))
        position = _BLANK.match(text, end).end()
        if text[position:position + 1] not in (",", "]"):
            line += text.count("\n", counted_to, position)
            raise UserError(f"{path}, line {line}: no valid JSON: expected , or ] after an object")
    if text[position + 1:].strip():
        raise UserError(f"{path}: no valid JSON: something follows the list's closing bracket")
    return objects
