"""The mean of a model's values over the last steps of its training, in place of the last values.

Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; for networks
Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization",
algorithm 1. With v_k the values after the k-th of these steps:

    m_k = m_(k-1) + (v_k - m_(k-1)) / k                                                   (1)
"""

from contextlib import contextmanager

import numpy as np

from minisft.backend.array import array_module

PIECE = 1 << 18     # values at once: the difference of a piece stays in a core's cache


class Mean:
    """m (P,) over `count` steps, on the device of the values."""

    def __init__(self, values, count=1):
        self.values, self.count = values.copy(), count

    def add(self, values):
        """values (P,) after one more step -> m changed in place."""
        self.count += 1
        piece = PIECE if array_module(values) is np else max(1, len(values))
        for start in range(0, len(values), piece):
            m, v = self.values[start:start + piece], values[start:start + piece]
            m += (v - m) / self.count                                                   # (1)

    @contextmanager
    def within(self, model):
        """Within it the model has the mean for its values; behind it, its own again."""
        kept = model.store.values.copy()
        self.copy_to(model)
        try:
            yield
        finally:
            model.store.values[...] = kept
            model.store.refresh()

    def copy_to(self, model):
        """The model has the mean for its values from now on."""
        model.store.values[...] = self.values
        model.store.refresh()
