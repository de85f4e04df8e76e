"""Text of separated fields -> its rows: what separates them, and whether they are quoted."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

from minisft.errors import UserError, setting

CANDIDATES = (",", ";", "\t", "|")
_SAMPLE = 200_000     # characters that are looked at to find the delimiter
_SEP = re.compile(r'"?sep=(.)"?[ \t]*\r?\n', re.I)     # Excel's own line above the header
# Fields in quotes, and fields without any quote: nothing else.
_QUOTED = re.compile(r'(?:(?:"[^"]*+(?:""[^"]*+)*+"|[^\t\n"]*+)(?:\t|\r?\n|\Z))*+')
_DOUBLED = re.compile(r'(?:^|\t)"[^"]*+""', re.M)

_LIKE_QUOTED = re.compile(r'(?:^|\t)"(?:[^"\t\n]*+"")++[^"\t\n]*+"(?=\t|\r?$)', re.M)

Bad = Callable[[int, str, str], Any]     # the line, why it cannot be read, its text


def parse_delimiter(text: str | None) -> str | None:
    """An option's value -> one character, or None for "guess"; UserError for what cannot part
    fields."""
    if text is None:
        return None
    char = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(char) != 1 or char in '"\r\n' or char.isalnum():
        raise UserError(f"{setting('delimiter')} is {text!r}, expected one character such as , or "
                        "; or the word tab")
    return char


def spelled(delimiter: str) -> str:
    """A delimiter -> as an option has it."""
    return "tab" if delimiter == "\t" else delimiter


def split_sep_line(text: str) -> tuple[str | None, str, int]:
    """Text -> the delimiter that its first line sep=; names or None, the text below, its line."""
    match = _SEP.match(text)
    return (match[1], text[match.end():], 2) if match else (None, text, 1)


def guess(text: str, default: str) -> tuple[str, str | None]:
    """Text, the delimiter that the file's name stands for -> the delimiter, another likely one.

    Another than the default is taken when it divides three rows of four into as many fields as the
    first row, two or more, and the default does so with less than half of them.
    """
    shares = {char: _regular(text, char) for char in (default, *CANDIDATES)}
    best = max(shares, key=lambda char: shares[char])
    if shares[default] >= 0.5 or shares[best] < 0.5:
        return default, None
    return (best, None) if shares[best] >= 0.75 else (default, best)


def _regular(text, delimiter):
    """-> which part of the rows has as many fields as the first, which has two or more, or 0."""
    sample = text[:_SAMPLE]
    if delimiter not in sample:
        return 0.0
    widths = [[len(fields) for _, fields in read_tsv(sample, 1)]] if delimiter == "\t" else []
    limit = csv.field_size_limit(_SAMPLE)
    try:
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
        widths.append([len(fields) for fields in reader if fields])
    except csv.Error:
        pass
    finally:
        csv.field_size_limit(limit)
    if len(sample) < len(text):
        widths = [rows[:-1] or rows for rows in widths]      # the last row is cut in two
    return max((rows.count(rows[0]) / len(rows) for rows in widths if rows and rows[0] > 1),
               default=0.0)


def is_quoted_tsv(text: str) -> bool:
    """Is text of tabs quoted, as pandas and Excel do it, and not a text in which quotes stand?

    Every field with a quote must be quoted as a whole, and something must show that it is: a quote
    doubled inside, a header in quotes, or fields that only without their quotes are too many.
    """
    if '"' not in text or not _QUOTED.fullmatch(text):
        return False
    header = text.split("\n", 1)[0].rstrip("\r").split("\t")
    if _DOUBLED.search(text) or len(header) > 1 and all(
            len(name) > 1 and name[0] == name[-1] == '"' for name in header):
        return True
    raw = {len(fields) for _, fields in read_tsv(text, 1)}
    return len(raw) > 1 and len({len(fields) for _, fields in read_csv(text, "\t", 1, None)}) == 1


def line_of_doubled_quotes(text: str, first: int) -> int | None:
    """Text of tabs, the number of its first line -> the line of the first field that looks as if
    it were quoted, or None."""
    match = _LIKE_QUOTED.search(text)
    return None if match is None else first + text.count("\n", 0, match.end())


def read_tsv(text: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """Text of tabs without quoting, the number of its first line -> the line and the fields of
    each row that is not blank."""
    for line, row in enumerate(text.split("\n"), first):
        row = row.removesuffix("\r")
        if row:
            yield line, row.split("\t")


def read_csv(text: str, delimiter: str, first: int,
             bad: Bad | None) -> Iterator[tuple[int, list[str]]]:
    """Text with quoting, the number of its first line -> the line and the fields of each row that
    is not blank.

    A row that is no CSV raises UserError, without the file's name, or goes to `bad`. A quote that
    is never closed raises: nobody knows where its row ends.
    """
    # A field of a million characters is fine; the module's own limit is one for the whole process.
    limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    lines = io.StringIO(text, newline="").readlines() if bad else []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 0
    try:
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                endless = "end of data" in str(error)
                reason = "a quote is never closed" if endless else str(error)
                if bad is None or endless:
                    raise UserError(
                        f"line {first + start}: the row that starts here is no CSV: {reason}; a "
                        "file without quoting should be .tsv") from None
                bad(first + start, f"is no CSV: {reason}", "".join(lines[start:reader.line_num]))
                fields = []
            if fields:
                yield first + start, fields
            start = reader.line_num
    finally:
        csv.field_size_limit(limit)
