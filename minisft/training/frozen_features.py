"""What frozen layers make of each text, computed once: later epochs start from there."""

import tempfile
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from minisft.backend.array import to_cpu
from minisft.data.batch import token_budget_batches


class Features:
    """The frozen layers' outputs of M texts in one array, in memory or, if large, in a file.

    Dropout is off in frozen layers, so a text's output is the same in every epoch.
    """

    def __init__(self, model, sequences, batch_tokens, memory, progress=None):
        """memory: most bytes to hold in memory; more goes to a temporary file."""
        trunk, lengths = model.trunk, sequences.lengths
        # one row a text
        alone = model.pruned and trunk.first_trainable_layer > trunk.config.n_layer
        self.starts = np.concatenate([[0], np.cumsum(np.ones_like(lengths) if alone else lengths)])
        shape, dtype = (int(self.starts[-1]), trunk.config.n_embd), model.store.dtype
        self.on_disk = shape[0] * shape[1] * dtype.itemsize > memory
        if self.on_disk:     # the map keeps the nameless file, which ends with it
            with tempfile.TemporaryFile(prefix="minisft-features-") as file:
                self.rows = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
        else:
            self.rows = np.empty(shape, dtype=dtype)
        # texts of like length together: the rows are in the order of the texts all the same
        order = np.argsort(lengths, kind="stable")
        for indices in tqdm(token_budget_batches(lengths, order, batch_tokens),
                            desc="frozen layers", unit="batch", dynamic_ncols=True,
                            disable=not progress or None):
            batch = sequences.batch(indices).to(model.store.xp)
            x, start = to_cpu(trunk.frozen_forward(batch, model.pruned)), 0
            for n in indices:
                stop = start + self.starts[n + 1] - self.starts[n]
                self.rows[self.starts[n]:self.starts[n + 1]] = x[start:stop]
                start = stop

    def of(self, indices):
        """Numbers of texts (B,) -> their rows, end to end: `hidden` of their batch."""
        return np.concatenate([self.rows[self.starts[n]:self.starts[n + 1]] for n in indices])


def with_features(sequences, model, batch_tokens, memory, progress=False):
    """TokenizedDataset -> the same texts, with what the model's frozen layers make of them.

    Augmented texts are others in each step: nothing can be kept of them.
    """
    return sequences if sequences.augmentation is not None else replace(
        sequences, features=Features(model, sequences, batch_tokens, memory, progress))
