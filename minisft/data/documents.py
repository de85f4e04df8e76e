"""Plain text for pretraining: files to documents, documents to pieces for the model."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from minisft.data.encoding import MAX_COMPRESSION_RATIO, read_text
from minisft.data.text import END_OF_TEXT, encode_all
from minisft.errors import UserError, setting

DOCUMENT_SEPARATOR = re.compile(rf"^{re.escape(END_OF_TEXT)}[ \t]*$", re.M)
PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# Of a document in a file without separators: it is divided at blank lines, so that a part of it
# can be held out.
MIN_CHARACTERS = 8000


def read_documents(path: str | Path, encoding: str = "utf-8", parse_special: bool = False,
                   max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> list[str]:
    """A text file, plain or .gz -> its documents; raises UserError.

    Lines `<|endoftext|>` end a document. A file without any is divided at blank lines into runs of
    paragraphs of 8,000 characters or more. Within a line `<|endoftext|>` is refused; with
    `parse_special` it ends a document wherever it stands.
    """
    text = read_text(path, encoding, max_compression_ratio=max_compression_ratio)
    text = text.replace("\r\n", "\n")
    if parse_special and END_OF_TEXT in text:
        parts = text.split(END_OF_TEXT)
    elif DOCUMENT_SEPARATOR.search(text):
        parts = DOCUMENT_SEPARATOR.split(text)
    else:
        groups: list[list[str]] = [[]]
        size = 0
        for paragraph in PARAGRAPH.split(text):
            if size >= MIN_CHARACTERS:
                groups.append([])
                size = 0
            groups[-1].append(paragraph)
            size += len(paragraph)
        parts = ["\n\n".join(group) for group in groups]
    if any(END_OF_TEXT in part for part in parts):
        line = next(n for n, row in enumerate(text.split("\n"), 1)
                    if END_OF_TEXT in row and not DOCUMENT_SEPARATOR.match(row))
        raise UserError(f"{path}, line {line}: {END_OF_TEXT} stands within a line and would be "
                        "learnt as characters; expected a line of its own, or "
                        f"{setting('parse_special')}")
    parts = [stripped for part in parts if (stripped := part.strip())]
    if not parts:
        raise UserError(f"{path}: holds no text")
    return parts


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], end: int,
                     positions: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Documents -> token ids of their pieces (T,), the next token of each token (T,).

    A piece has at most `positions` tokens. A document is <|endoftext|>, its tokens, <|endoftext|>:
    begun by one and ended by predicting one, as in GPT-2's training. Each token but the first is
    predicted once.
    """
    ids, labels = [], []
    for tokens in encode_all(tokenizer, texts)[0]:
        document = np.concatenate([[end], tokens, [end]])
        for start in range(0, len(document) - 1, positions):
            piece = document[start:start + positions + 1]
            ids.append(piece[:-1])
            labels.append(piece[1:])
    return ids, labels
