"""What frozen layers make of each text, computed once: later epochs start from there."""

import tempfile

import numpy as np
from tqdm import tqdm

from minisft.array import to_cpu
from minisft.batch import by_tokens


class Features:
    """The frozen layers' outputs of M texts in one array, in memory or, if large, in a file.

    Dropout is off in frozen layers, so a text's output is the same in every epoch.
    """

    def __init__(self, model, sequences, batch_tokens, memory, progress=None):
        """memory: most bytes to hold in memory; more goes to a temporary file."""
        trunk, lengths = model.trunk, sequences.lengths
        alone = model.pruned and trunk.lowest > trunk.config.n_layer     # one row a text
        self.starts = np.concatenate([[0], np.cumsum(np.ones_like(lengths) if alone else lengths)])
        shape, dtype = (int(self.starts[-1]), trunk.config.n_embd), model.store.dtype
        self.on_disk = shape[0] * shape[1] * dtype.itemsize > memory
        if self.on_disk:     # the map keeps the nameless file, which ends with it
            with tempfile.TemporaryFile(prefix="minisft-features-") as file:
                self.rows = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
        else:
            self.rows = np.empty(shape, dtype=dtype)
        # texts of like length together: the rows are in the order of the texts all the same
        for numbers in tqdm(by_tokens(lengths, np.argsort(lengths, kind="stable"), batch_tokens),
                            desc="frozen layers", unit="batch", dynamic_ncols=True,
                            disable=not progress or None):
            batch = sequences.batch(numbers).beside(model.store.xp)
            x, start = to_cpu(trunk.below(batch, model.pruned)), 0
            for n in numbers:
                stop = start + self.starts[n + 1] - self.starts[n]
                self.rows[self.starts[n]:self.starts[n + 1]] = x[start:stop]
                start = stop

    def of(self, numbers):
        """Numbers of texts (B,) -> their rows, end to end: `hidden` of their batch."""
        return np.concatenate([self.rows[self.starts[n]:self.starts[n + 1]] for n in numbers])
