"""The blocks of a report -> Markdown that shows their text literally."""

import re
from collections.abc import Sequence

from minisft.evaluation.document import (
    Block,
    Heading,
    Link,
    Note,
    Paragraph,
    Picture,
    Strong,
    Table,
)

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
_NUMBER = re.compile(r"-|(&lt; )?[\d.,]+(e[-+]?\d+)?%?")


def render(blocks: Sequence[Block]) -> str:
    """Blocks of `document` -> the text of a file."""
    return "\n".join(line for block in blocks for line in _lines(block)).rstrip("\n") + "\n"


def escape(text: str) -> str:
    """Any line -> the same for Markdown."""
    line = "".join(_ENTITIES.get(c, "\\" + c if c in "\\`*[]~|" else c) for c in text)
    # An underscore inside a word starts no emphasis, and paths stay readable.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """head (k cells), rows of k escaped cells -> lines of a table; numbers are right-aligned."""
    numeric = [bool(rows) and all(_NUMBER.fullmatch(row[j].strip("*")) for row in rows)
               for j in range(len(head))]
    rule = ["---:" if right else "---" for right in numeric]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)] + [""]


def _lines(block):
    match block:
        case Heading(text, level):
            return ["#" * level + " " + escape(text), ""]
        case Paragraph(text):
            return [_inline(text), ""]
        case Note(text):
            return ["> " + escape(text), ""]
        case Picture(name, words):
            return [f"![{escape(words)}]({name})", ""]
        case Table(head, rows):
            return table([escape(cell) for cell in head],
                         [[_inline(cell) for cell in row] for row in rows])
    return ["<details>", f"<summary>{escape(block.title)}</summary>", "",
            *(line for inner in block.blocks for line in _lines(inner)), "</details>", ""]


def _inline(text):
    match text:
        case str():
            return escape(text)
        case Strong(text):
            return f"**{escape(text)}**"
        case Link(text, report):
            return f"[{escape(text)}]({report}.md)"
    return "".join(map(_inline, text))
