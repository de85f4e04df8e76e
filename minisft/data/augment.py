"""Data augmentation at the token level: in each step a text loses some tokens and mixes up others.

Random deletion and random swap of Wei and Zou 2019 ("EDA", section 2), for tokens in the place of
words:
    (1) tokens i and i + 1 change places where words[i, 1] < floor(swap * 2^32), none of them twice
    (2) then token i is dropped where words[i, 0] < floor(drop * 2^32)

Special tokens stay where they are, no text loses all of its tokens, and nothing passes from one
text of a pair into the other. The random words belong to seed, step, text and position (see
`minisft/backend/random.py`), so the result does not depend on the other texts of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minisft.backend import random


@dataclass(frozen=True)
class Augmentation:
    """What training does to the tokens of a text; `special` are the ids that stay."""

    drop: float = 0.0
    swap: float = 0.0
    special: tuple[int, ...] = ()

    def apply_all(self, ids: Sequence[np.ndarray], types: Sequence[np.ndarray] | None,
                  stream: random.Stream, example_ids: Sequence[int],
                  ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """ids and types (or None) of B texts, their indices in the data set -> the same, augmented.
        """
        rows = [self.apply(row, None if types is None else types[i], stream, example_id)
                for i, (row, example_id) in enumerate(zip(ids, example_ids, strict=True))]
        return [row for row, _ in rows], None if types is None else [
            kinds for _, kinds in rows if kinds is not None]

    def apply(self, ids: np.ndarray, types: np.ndarray | None, stream: random.Stream,
              example_id: int) -> tuple[np.ndarray, np.ndarray | None]:
        """ids (T,), types (T,) or None, the text's index in the data set -> the same, augmented."""
        free = ~np.isin(ids, self.special)
        if not free.any():
            return ids, types
        words = stream.tokens(random.AUGMENT, 0, np.full(len(ids), example_id),
                              np.arange(len(ids)), 2)
        ids = self._swapped(ids, free, words[:, 1])
        keep = ~free | (words[:, 0] >= _threshold(self.drop))                          # (2)
        self._keep_one(keep, free, types, words[:, 0])
        return ids[keep], None if types is None else types[keep]

    def _swapped(self, ids, free, words):
        ids, last = ids.copy(), -1
        chosen = (words < _threshold(self.swap))[:-1] & free[:-1] & free[1:]           # (1)
        for i in np.flatnonzero(chosen):
            if i > last:
                ids[i], ids[i + 1] = ids[i + 1], ids[i]
                last = i + 1
        return ids

    @staticmethod
    def _keep_one(keep, free, types, words):
        """A text that would lose all of its tokens keeps the one with the largest random word."""
        types = np.zeros(len(keep), dtype=np.int64) if types is None else types
        for kind in np.unique(types[free]):
            rows = np.flatnonzero(free & (types == kind))
            if not keep[rows].any():
                keep[rows[words[rows].argmax()]] = True


def _threshold(rate):
    return np.uint32(int(rate * 2**32))
