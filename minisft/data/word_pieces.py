"""From words to the tokens of a model and back: which token speaks for a word, and in which window.

A sentence is read with a space between its words. The first token that reaches into a word speaks
for it; the others are not asked (the labels of all pieces of a word would split entities). What is
longer than the model's maximum is read in windows that overlap by half, and a word is asked where
it has most text around it. So every word is asked once; a word of which the tokenizer makes no
token takes the answer of the word before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from minisft.data.sequences import special_frame
from minisft.data.tokenizer import encode_batch
from minisft.errors import UserError


@dataclass(frozen=True)
class Windows:
    """Token ids of windows over M sentences, and which token of which window speaks for a word."""

    ids: list[np.ndarray]           # of each window (T,)
    types: list[np.ndarray] | None
    sentences: list[int]            # the sentence that each window is of
    words: list[np.ndarray]         # of each window (T,): the word that a token speaks for, or -1
    silent: int                     # words without a token

    def labels(self, tags: Sequence[Sequence[int]], ignore: int) -> list[np.ndarray]:
        """A tag for each word of each sentence -> a label for each token of each window."""
        found = []
        for sentence, words in zip(self.sentences, self.words, strict=True):
            labels = np.full(len(words), ignore, np.int64)
            asked = words >= 0
            labels[asked] = np.asarray(tags[sentence], np.int64)[words[asked]]
            found.append(labels)
        return found

    def of_words(self, values: Sequence[np.ndarray], lengths: Sequence[int]) -> list[np.ndarray]:
        """Values of each window's tokens (T,K), words of each sentence -> of its words (W,K)."""
        width = values[0].shape[1]
        found = [np.full((n, width), np.nan) for n in lengths]
        for sentence, words, rows in zip(self.sentences, self.words, values, strict=True):
            asked = words >= 0
            found[sentence][words[asked]] = rows[asked]
        for rows in found:
            for w in np.flatnonzero(np.isnan(rows[:, 0])):     # of the word before, or else behind
                known = np.flatnonzero(~np.isnan(rows[:, 0]))
                before = known[known < w]
                rows[w] = rows[before[-1] if len(before) else known[0]]
        return found


def windows(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]],
            max_length: int) -> Windows:
    """Words of M sentences -> Windows of at most `max_length` tokens, special tokens included.

    A sentence without any token becomes a window of none. Raises UserError for a length without
    room.
    """
    before, behind, kinds = special_frame(tokenizer)
    room = max_length - len(before) - len(behind)
    if room < 1:
        raise UserError(f"a maximum sequence length of {max_length} tokens leaves no room for a "
                        f"word besides the {len(before) + len(behind)} special tokens")
    ids, types, of_sentence, asked, silent = [], [], [], [], 0
    encodings = encode_batch(tokenizer, [" ".join(words) for words in sentences], offsets=True)
    for n, (words, encoding) in enumerate(zip(sentences, encodings, strict=True)):
        first = first_tokens(words, encoding.offsets)
        silent += int((first < 0).sum())
        tokens = np.array(encoding.ids, np.int64)
        for start, stop, own in _cut(len(tokens), room, first):
            speaks = np.full(stop - start, -1, np.int64)
            speaks[first[own] - start] = own
            frame = (np.full(len(before), -1), speaks, np.full(len(behind), -1))
            ids.append(np.concatenate([before, tokens[start:stop], behind]))
            types.append(np.repeat(kinds, [len(part) for part in frame]))
            asked.append(np.concatenate(frame))
            of_sentence.append(n)
    return Windows(ids, types if any(kinds) else None, of_sentence, asked, silent)


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Words joined by spaces, where each token begins and ends there -> the first token of each
    word (W,), -1 for a word that has none of its own."""
    first, token, start = np.full(len(words), -1, np.int64), 0, 0
    for w, word in enumerate(words):
        stop = start + len(word)
        # a byte-level token may hold the space before the word
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        if token < len(offsets) and offsets[token][0] < stop:
            first[w] = token
            token += 1
        start = stop + 1
    return first


def _cut(n, room, first):
    """n tokens, room of a window, words' first tokens -> (start, stop, the words it is asked for).
    """
    if n <= room:
        return [(0, n, np.flatnonzero(first >= 0))]
    step = max(room // 2, 1)
    starts = [*range(0, n - room, step), n - room]
    # the text around a token in each window; the ends of the sentence are no ends of sight
    left = np.array([[np.inf if s == 0 else t - s for s in starts] for t in first])
    right = np.array([[np.inf if s + room == n else s + room - 1 - t for s in starts]
                      for t in first])
    best = np.minimum(left, right).argmax(axis=1)
    return [(s, s + room, np.flatnonzero((best == i) & (first >= 0)))
            for i, s in enumerate(starts)]
