"""Data augmentation at the token level: in each step a text loses some tokens and mixes up others.

Random deletion and random swap of Wei and Zou 2019 ("EDA", section 2), for tokens in the place of
words:
    (1) tokens i and i + 1 change places where words[i, 1] < swap * 2^32, none of them twice
    (2) then token i is dropped where words[i, 0] < drop * 2^32

Special tokens stay where they are, no text loses all of its tokens, and nothing passes from one
text of a pair into the other. The random words belong to seed, step, text and position (see
`minisft/backend/random.py`), so what happens to a text does not depend on its company.
"""

from dataclasses import dataclass

import numpy as np

from minisft.backend import random


@dataclass(frozen=True)
class Augmentation:
    """What training does to the tokens of a text; `special` are the ids that stay."""

    drop: float = 0.0
    swap: float = 0.0
    special: tuple = ()

    def apply_all(self, ids, types, stream, texts):
        """Lists of ids and of types or None, random.Stream, the texts' numbers -> the same."""
        found = [self.apply(row, None if types is None else types[i], stream, text)
                 for i, (row, text) in enumerate(zip(ids, texts, strict=True))]
        ids, kinds = zip(*found, strict=True)
        return list(ids), None if types is None else list(kinds)

    def apply(self, ids, types, stream, text):
        """ids (T,), types (T,) or None, random.Stream, the text's number -> the same, changed."""
        free = ~np.isin(ids, self.special)
        if not free.any():
            return ids, types
        words = stream.tokens(random.AUGMENT, 0, np.full(len(ids), text), np.arange(len(ids)), 2)
        ids = self._swapped(ids, free, words[:, 1])
        kept = ~free | (words[:, 0] >= _threshold(self.drop))                          # (2)
        self._spare(kept, free, types, words[:, 0])
        return ids[kept], None if types is None else types[kept]

    def _swapped(self, ids, free, words):
        ids, last = ids.copy(), -1
        chosen = (words < _threshold(self.swap))[:-1] & free[:-1] & free[1:]           # (1)
        for i in np.flatnonzero(chosen):
            if i > last:
                ids[i], ids[i + 1] = ids[i + 1], ids[i]
                last = i + 1
        return ids

    @staticmethod
    def _spare(kept, free, types, words):
        """Gives each text that would lose all of its tokens the one with the largest word back."""
        types = np.zeros(len(kept), dtype=np.int64) if types is None else types
        for kind in np.unique(types[free]):
            own = np.flatnonzero(free & (types == kind))
            if not kept[own].any():
                kept[own[words[own].argmax()]] = True


def _threshold(rate):
    return np.uint32(int(rate * 2**32))
