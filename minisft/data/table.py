"""A file of rows (CSV, TSV, JSON lines, a JSON list) -> Table; every error names its line."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisft.errors import UserError, setting

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True)
class Table:
    """The rows of a file, unchanged; JSON values keep their type."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]                   # the line, from 1, where each row starts


def read_table(path: str | Path, encoding: str = "utf-8", header: bool = True) -> Table:
    """A .csv, .tsv (no quoting), .jsonl or .json file, or one of them .gz -> Table.

    Without header the columns are "1", "2", ...; blank lines are no rows. UserError names the file
    and the line of the first error.
    """
    path = Path(path)
    _require_file(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot tell its format by its name; expected one that ends in "
                        f"{' '.join(SUFFIXES)}, alone or with .gz")
    text = read_text(path, encoding)
    if suffix in (".json", ".jsonl"):
        if not header:
            raise UserError(f"{path}: JSON names its columns; {setting('no_header')} is for .csv "
                            "and .tsv")
        objects = _json_lines(path, text) if suffix == ".jsonl" else _json_list(path, text)
        if not objects:
            raise UserError(f"{path}: holds no rows")
        columns = tuple(dict.fromkeys(name for _, row in objects for name in row))
        return Table(path, columns, [row for _, row in objects], [line for line, _ in objects])
    records = _csv(path, text) if suffix == ".csv" else _tsv(text)
    return _table(path, list(records), header)


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """A file, plain or .gz -> its text; UserError names the file and the line of the first error.
    """
    path = Path(path)
    _require_file(path)
    return _decode(path, _bytes(path, path.suffix.lower() == ".gz"), encoding)


def _require_file(path):
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a file")


def _bytes(path, compressed):
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if compressed else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(path, data, encoding):
    """Bytes -> text without byte order mark; UserError if empty, of another encoding, or NUL."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line}: byte 0x{data[error.start]:02x} (number {column} of "
                        f"the line) is not {encoding}; give the right "
                        f"{setting('encoding')}") from None
    except (LookupError, ValueError):
        raise UserError(f"{path}: unknown encoding {encoding!r}; expected one such as utf-8, "
                        "utf-16, latin-1 or cp1252") from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise UserError(f"{path}: is empty")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: holds a NUL byte, which no text has; if the file is "
                        f"UTF-16, give {setting('encoding', 'utf-16')}")
    return text


def _csv(path, text):
    """Text -> the line and the fields of each row that is not blank."""
    # A field of a million characters is fine; the module's own limit is one for the whole process.
    limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote is never closed" if "end of data" in str(error) else error
        raise UserError(f"{path}, line {start}: the row that starts here is no CSV: {reason}; "
                        "a file without quoting should be .tsv") from None
    finally:
        csv.field_size_limit(limit)


def _tsv(text):
    for line, row in enumerate(text.split("\n"), 1):
        row = row.removesuffix("\r")
        if row:
            yield line, row.split("\t")


def _table(path, records, header):
    """Lines and fields -> Table; UserError if a row differs in width or a column's name repeats."""
    first_line, first = records[0]
    columns = tuple(first) if header else tuple(str(n + 1) for n in range(len(first)))
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{path}, line {first_line}: the column name {short_repr(repeated[0])} "
                        f"stands there twice; if this is no header, add {setting('no_header')}")
    records = records[1:] if header else records
    if not records:
        raise UserError(f"{path}: holds a header and no rows; if it has no header, add "
                        f"{setting('no_header')}")
    for line, fields in records:
        if len(fields) != len(columns):
            raise UserError(f"{path}, line {line}: {len(fields)} fields, but line {first_line} "
                            f"has {len(columns)}")
    rows = [dict(zip(columns, fields, strict=True)) for _, fields in records]
    return Table(path, columns, rows, [line for line, _ in records])


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


def _json_lines(path, text):
    """Text -> the line and the object of each row that is not blank."""
    objects = []
    for line, row in enumerate(text.split("\n"), 1):
        if row := row.strip(" \t\r"):
            value, end = _object(path, row, 0, line)
            if end < len(row):
                raise UserError(f"{path}, line {line}: more than one JSON value; found "
                                f"{short_repr(row[end:])} after the first")
            objects.append((line, value))
    return objects


def _json_list(path, text):
    """Text -> the line and the object of each entry of a JSON list."""
    objects, line, counted_to = [], 1, 0
    position = _BLANK.match(text).end()
    if text[position] != "[":
        raise UserError(f"{path}: starts with {short_repr(text[position])}; expected a list of "
                        "objects [{...}, ...]")
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


def short_repr(value: Any) -> str:
    """Any value -> at most 60 characters of it on one line, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
