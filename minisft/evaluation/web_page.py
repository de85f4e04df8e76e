"""The blocks of a report -> one HTML file: its pictures inside, no script, nothing fetched."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

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

_NUMBER = re.compile(r"-|(< ?)?[\d.,]+(e[-+]?\d+)?%?")
_STYLE = Path(__file__).with_name("report.css")
# Should a text of the user's data ever get through: nothing runs, and nothing is fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(blocks: Sequence[Block], folder: str | Path) -> str:
    """Blocks of `document`, the folder of their pictures -> the text of a file."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>", f"<style>\n{_STYLE.read_text()}</style>", "</head>",
        "<body>", *(_block(block, Path(folder)) for block in blocks), "</body>", "</html>", ""])


def _block(block, folder):
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Note(text):
            return f"<blockquote>{html.escape(text)}</blockquote>"
        case Picture(name, words):
            data = base64.b64encode((folder / name).read_bytes()).decode()
            return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{data}">'
        case Table():
            return _table(block)
    return "\n".join(["<details>", f"<summary>{html.escape(block.title)}</summary>",
                      *(_block(inner, folder) for inner in block.blocks), "</details>"])


def _table(block):
    kinds = []
    for j in range(len(block.head)):
        cells = [row[j] if isinstance(row[j], str) else row[j].text for row in block.rows]
        numeric = bool(cells) and all(map(_NUMBER.fullmatch, cells))
        kinds.append(' class="number"' if numeric else
                     ' class="long"' if any(len(cell) > 60 for cell in cells) else "")
    lines = ['<div class="table"><table>', "<thead><tr>" + "".join(
        f"<th{kind}>{html.escape(cell)}</th>"
        for kind, cell in zip(kinds, block.head, strict=True)) + "</tr></thead>", "<tbody>"]
    lines += ["<tr>" + "".join(f"<td{kind}>{_inline(cell)}</td>"
                               for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
              for row in block.rows]
    return "\n".join([*lines, "</tbody></table></div>"])


def _inline(text):
    match text:
        case str():
            return html.escape(text)
        case Strong(text):
            return f"<strong>{html.escape(text)}</strong>"
        case Link(text, report):
            return f'<a href="{html.escape(report)}.html">{html.escape(text)}</a>'
    return "".join(map(_inline, text))
