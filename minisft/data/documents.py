"""Plain text for pretraining: files to documents, documents to pieces for the model."""

import re

import numpy as np

from minisft.data.table import read_text
from minisft.data.text import encode_all
from minisft.errors import UserError

BORDER = re.compile(r"^<\|endoftext\|>[ \t]*$", re.M)
PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# A file without borders is divided at blank lines, so that a part of it can be held out.
GROUP = 8000


def documents(path, encoding="utf-8"):
    """A text file, plain or .gz -> its documents (list of str); raises UserError.

    Lines `<|endoftext|>` end a document. A file without any is divided at blank lines into runs of
    paragraphs of 8,000 characters or more.
    """
    text = read_text(path, encoding).replace("\r\n", "\n")
    if BORDER.search(text):
        found = [part.strip() for part in BORDER.split(text)]
    else:
        found, size = [[]], 0
        for paragraph in PARAGRAPH.split(text):
            if size >= GROUP:
                found.append([])
                size = 0
            found[-1].append(paragraph)
            size += len(paragraph)
        found = ["\n\n".join(part).strip() for part in found]
    found = [part for part in found if part]
    if not found:
        raise UserError(f"{path}: holds no text")
    return found


def encode(tokenizer, texts, end, positions):
    """Documents -> token ids of their pieces (T,), the next token of each token (T,).

    A document is <|endoftext|>, its tokens, <|endoftext|>: begun by one and ended by predicting
    one, as in GPT-2's training. Each token but the first is predicted once.
    """
    ids, labels = [], []
    for found in encode_all(tokenizer, texts)[0]:
        whole = np.concatenate([[end], found, [end]])
        for start in range(0, len(whole) - 1, positions):
            piece = whole[start:start + positions + 1]
            ids.append(piece[:-1])
            labels.append(piece[1:])
    return ids, labels
