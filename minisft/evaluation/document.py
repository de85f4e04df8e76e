"""A report as a list of blocks, from which `markdown` and `web_page` make the same two files.

Blocks hold text as it is to be read; whoever renders them escapes it. Texts and names come from
the user's data and may hold anything, so they pass `one_line` on their way into a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minisft.errors import disturbs


@dataclass(frozen=True)
class Strong:
    """Text that stands out."""

    text: str


@dataclass(frozen=True)
class Link:
    """Text that leads to another report: its path without the suffix."""

    text: str
    report: str


Inline = str | Strong | Link


@dataclass(frozen=True)
class Heading:
    """The title (level 1), or that of a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text; one that is a string alone may be given as such."""

    text: Inline | Sequence[Inline]


@dataclass(frozen=True)
class Note:
    """What a reader must not miss."""

    text: str


@dataclass(frozen=True)
class Table:
    """head (k cells), rows of k cells each."""

    head: Sequence[str]
    rows: Sequence[Sequence[Inline]]


@dataclass(frozen=True)
class Picture:
    """A PNG file in the folder of the report, and what it shows."""

    name: str
    words: str


@dataclass(frozen=True)
class Folded:
    """Blocks behind a title that opens them."""

    title: str
    blocks: Sequence["Block"]


Block = Heading | Paragraph | Note | Table | Picture | Folded


def one_line(text: Any, limit: int = 200) -> str:
    """Any text -> one line of at most `limit` characters, without what would disturb a page."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[:limit - 1] + "…"
    return "".join("\ufffd" if disturbs(c) else c for c in line) or "(empty)"
