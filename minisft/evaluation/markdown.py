"""Any text -> Markdown that shows it literally; tables."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}


def escape(text: Any, limit: int = 200) -> str:
    """Any text -> one line of at most `limit` characters that Markdown shows literally."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[:limit - 1] + "…"
    line = "".join(_escape_character(c) for c in line)
    # An underscore inside a word starts no emphasis, and paths stay readable.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line) or "(empty)"


def _escape_character(c):
    if c in _ENTITIES:
        return _ENTITIES[c]
    if c in "\\`*[]~|":
        return "\\" + c
    # Control characters, lone surrogates (not writable as UTF-8), marks that reverse the line.
    reverses = "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    return "\ufffd" if reverses or unicodedata.category(c) in ("Cc", "Cs") else c


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """head (k cells), rows of k escaped cells -> lines of a table; numbers are right-aligned."""
    number = re.compile(r"-|\**[\d.,]+(e[-+]?\d+)?%?\**")
    numeric = [bool(rows) and all(number.fullmatch(row[j]) for row in rows)
               for j in range(len(head))]
    rule = ["---:" if right else "---" for right in numeric]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)] + [""]
