"""Sentences whose words have tags: CoNLL-U, columns as in CoNLL 2003, or lines of JSON.

CoNLL-U (universaldependencies.org/format.html): ten columns between tabs, `#` before comments,
an empty line behind each sentence. Multiword tokens (`1-2`) and empty nodes (`8.1`) are no words.
CoNLL 2003 (Tjong Kim Sang and De Meulder 2003): columns between spaces or tabs, `-DOCSTART-` before
a document. JSON: {"words": ["Jane", "runs"], "tags": ["PROPN", "VERB"]} on each line.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisft.data.encoding import MAX_COMPRESSION_RATIO, read_text
from minisft.errors import UserError, setting, short_repr

CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
DOCUMENT = "-DOCSTART-"
# format -> the columns of word and tag where nobody names them; columns count from 1, -1 is the
# last
DEFAULT_COLUMNS = {"conllu": ("FORM", "UPOS"), "columns": ("1", "-1"), "jsonl": ("words", "tags")}
SUFFIXES = {".conllu": "conllu", ".jsonl": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True)
class TaggedSentences:
    """Words of each sentence and an index into label_names for each word; tags may be None."""

    path: Path
    words: list[list[str]]
    tags: list[list[int]] | None
    label_names: tuple[str, ...] | None
    lines: list[int]                   # the line in the file, from 1, where each sentence starts
    notes: tuple[str, ...] = ()        # what a reader of the file should be told
    bad_rows: tuple[()] = ()           # none is skipped

    def place(self, n: int) -> str:
        """-> where the sentence of index n stands."""
        return f"{self.path}, line {self.lines[n]}"

    @property
    def texts(self) -> list[str]:
        """-> each sentence with a space between its words, which is how a model reads it."""
        return [" ".join(words) for words in self.words]

    @property
    def n_words(self) -> int:
        """-> words of all sentences."""
        return sum(map(len, self.words))


def read_tagged(path: str | Path, word_column: str | None = None, tag_column: str | None = None,
                label_names: Iterable[str] | None = None, encoding: str = "utf-8",
                with_tags: bool = True, max_compression_ratio: int = MAX_COMPRESSION_RATIO,
                more_labels: bool = False) -> TaggedSentences:
    """A file -> TaggedSentences; .conllu, .jsonl and .json say their format, others are columns.

    Columns are named (CoNLL-U: FORM, UPOS, ...; JSON: keys) or counted from 1, -1 being the last.
    With `label_names`, the tags of a training file in their order, any other tag is refused, or,
    with `more_labels`, comes behind them with a note.
    Without `with_tags` the file need have none. Raises UserError, with file and line.
    """
    path = Path(path)
    text = read_text(path, encoding, max_compression_ratio=max_compression_ratio)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = SUFFIXES.get(suffixes[-1] if suffixes else "", "columns")
    columns = [given or default for given, default in zip(
        (word_column, tag_column), DEFAULT_COLUMNS[kind], strict=True)]
    read = _read_json if kind == "jsonl" else _read_columns
    rows = list(read(path, text, columns[0], columns[1] if with_tags else None, kind == "conllu"))
    if not rows:
        raise UserError(f"{path}: holds no sentence")
    words, lines = [row[0] for row in rows], [row[2] for row in rows]
    if not with_tags:
        return TaggedSentences(path, words, None, None, lines)
    if label_names is None:
        label_names = sorted({tag for _, tags, _ in rows for tag in tags})
        if len(label_names) < 2:
            raise UserError(f"{path}: every word has the tag {label_names[0]!r} in column "
                            f"{columns[1]}, expected two tags or more; see "
                            f"{setting('tag_column')}")
    label_names, notes = tuple(label_names), []
    if more_labels and (more := sorted({tag for _, tags, _ in rows for tag in tags} -
                                       set(label_names))):
        label_names += tuple(more)
        notes.append(f"{path}: has tags that the training file lacks, so none of them can be "
                     f"right: {', '.join(map(short_repr, more[:10]))}")
    numbers = {name: i for i, name in enumerate(label_names)}
    for _, tags, line in rows:
        for tag in tags:
            if tag not in numbers:
                raise UserError(f"{path}, line {line}: the sentence has the tag {short_repr(tag)}, "
                                f"which the training file has not, expected one of "
                                f"{', '.join(label_names[:20])}")
    return TaggedSentences(path, words, [[numbers[tag] for tag in tags] for _, tags, _ in rows],
                           label_names, lines, (*notes, *_notes(path, label_names, rows)))


def is_bio(label_names: Iterable[str]) -> bool:
    """-> whether the tags are those of entities: O, and B- and I- (or I- alone) before a type."""
    names = set(label_names)
    return "O" in names and len(names) > 1 and all(
        name == "O" or name[:2] in ("B-", "I-") and len(name) > 2 for name in names)


def _notes(path, label_names, rows):
    words = Counter(len(words) for words, _, _ in rows)
    if len(words) == 1 and 1 in words:
        yield f"{path}: every sentence is a single word, is an empty line missing between them?"
    if len(label_names) > sum(len(tags) for _, tags, _ in rows) / 2:
        yield (f"{path}: {len(label_names):,} different tags, is "
               f"{setting('tag_column')} the column of the tags?")


def _read_columns(path, text, word_column, tag_column, conllu):
    """-> (words, tags, line) of each sentence."""
    words: list[str] = []
    tags: list[str] = []
    first = 0
    for number, line in enumerate([*text.split("\n"), ""], 1):
        line = line.removesuffix("\r")
        if not line.strip():
            if words:
                yield words, tags, first
            words, tags = [], []
            continue
        if conllu and line.startswith("#"):
            continue
        cells = line.split("\t") if conllu or "\t" in line else line.split()
        if conllu:
            if len(cells) != len(CONLLU):
                raise UserError(f"{path}, line {number}: {len(cells)} columns, expected the "
                                f"{len(CONLLU)} of CoNLL-U between tabs")
            if not cells[0].isdecimal():
                if not cells[0].replace("-", "").replace(".", "").isdecimal():
                    raise UserError(f"{path}, line {number}: the word's number is "
                                    f"{short_repr(cells[0])}, expected 1, 1-2 or 1.1")
                continue
        elif cells[0].startswith(DOCUMENT):
            continue
        elif tag_column is not None and len(cells) < 2:
            raise UserError(f"{path}, line {number}: one column, expected a word and its tag")
        if not words:
            first = number
        words.append(_cell(path, number, cells, word_column, conllu, "word"))
        if tag_column is not None:
            tags.append(_cell(path, number, cells, tag_column, conllu, "tag"))


def _cell(path, number, cells, column, conllu, what):
    """-> the cell of a column, without what stands around it; UserError for an empty one."""
    if conllu and column in CONLLU:
        index = CONLLU.index(column)
    else:
        try:
            index = int(column)
        except ValueError:
            index = 0
        if index == 0 or not -len(cells) <= index <= len(cells):
            known = f"{', '.join(CONLLU)}, or " if conllu else ""
            raise UserError(f"{path}, line {number}: no column {short_repr(column)} for the "
                            f"{what}; expected {known}a number up to {len(cells)}")
        index -= index > 0
    cell = cells[index].strip()
    if not cell:
        raise UserError(f"{path}, line {number}: the {what} is empty")
    return cell


def _read_json(path, text, word_key, tag_key, conllu):
    """-> (words, tags, line) of each sentence."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: is no JSON ({error})") from None
        lists = []
        for key in (word_key, *([] if tag_key is None else [tag_key])):
            values = row.get(key) if isinstance(row, dict) else None
            if not isinstance(values, list) or not values or not all(
                    isinstance(value, str) and value.strip() for value in values):
                raise UserError(f"{path}, line {number}: {key} is {short_repr(values)}, expected "
                                "a list of words" + (" for the tags" if key == tag_key else ""))
            lists.append([value.strip() for value in values])
        if len({len(values) for values in lists}) > 1:
            raise UserError(f"{path}, line {number}: {len(lists[0])} words but {len(lists[1])} "
                            "tags, expected one for each word")
        yield lists[0], lists[1] if len(lists) > 1 else [], number
