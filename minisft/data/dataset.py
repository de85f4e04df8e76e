"""A data set of token ids with labels: what the training loop and the evaluation read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.data.augment import Augmentation
from minisft.data.batch import Batch, pack


@dataclass(frozen=True)
class TokenizedDataset:
    """Token ids of each text, and its label: a class, a label of each token, or, as a row of an
    array (M,K), K of its tokens.

    `types` are those of each token where some sequences hold two texts, else None.
    """

    ids: list[np.ndarray]
    labels: Sequence[Any] | np.ndarray
    types: list[np.ndarray] | None = None
    features: Any = None     # training.frozen_features.Features, once they are computed
    augmentation: Augmentation | None = None     # what training does to the texts in each step

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property     # a step asks for it, and should not take longer the more texts there are
    def lengths(self) -> np.ndarray:
        """-> tokens of each text (M,)."""
        return np.array([len(ids) for ids in self.ids])

    def batch(self, indices: Sequence[int], stream: random.Stream | None = None) -> Batch:
        """indices of the texts (B,) -> Batch; with a random.Stream, in training, augmented."""
        ids = [self.ids[n] for n in indices]
        types = None if self.types is None else [self.types[n] for n in indices]
        if stream is not None and self.augmentation is not None:
            ids, types = self.augmentation.apply_all(ids, types, stream, indices)
        labels: Any = [self.labels[n] for n in indices]
        if isinstance(self.labels, np.ndarray) and self.labels.ndim == 2:
            labels = np.array(labels)
        batch = pack(ids, labels, indices, types)
        return batch if self.features is None else replace(
            batch, hidden=self.features.of(indices))
