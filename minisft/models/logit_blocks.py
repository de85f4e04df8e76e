"""The loss of a language model's logits and its gradient, block by block of rows.

50,257 logits a token are more than all activations of a small model. A step needs each row of them
once: for the row's loss and, right after it, for the gradient of what the head read and of the
head's matrix. So with many rows the logits never exist whole.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.dispatch import cross_entropy

# Bytes of logits at a time. For every block but the first the gradient of the whole matrix is read
# and written once more; a card's products need more rows to be fast.
ON_CPU, ON_GPU = 128 << 20, 768 << 20


def blocks(rows: int, classes: int, xp: Any, itemsize: int = 4) -> list[slice]:
    """How many rows of how many logits, NumPy or CuPy -> the rows of each block, of equal size."""
    most = max(1, (ON_CPU if xp is np else ON_GPU) // (classes * itemsize))
    step = ceil_div(rows, max(1, ceil_div(rows, most)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)] if rows else []


def loss_and_dhidden(hidden: Array, labels: Array, parts: list[slice],
                     head: Callable[[Array], tuple[Array, Any]],
                     head_backward: Callable[[Array, Any], Array], scale: float,
                     train: Any = None, **options: Any) -> tuple[Array, Array, Array]:
    """hidden (M,C), labels (M,), blocks of rows -> summed loss, denominator, dhidden (M,C).

    head(hidden) -> logits, cache; head_backward(dlogits, cache) -> dhidden, and adds the gradients
    of the head's own parameters. All gradients are those of `scale` times the loss. `train`: what
    `dispatch.loss_in_place` gave; without it `cross_entropy` takes the options.
    """
    dhidden = array_module(hidden).empty_like(hidden) if len(parts) > 1 else None
    sums = []
    for part in parts:
        logits, cache = head(hidden[part])
        if train is not None:
            one, counted = train(logits, labels[part], scale)
        else:
            (one, counted), saved = cross_entropy.forward(logits, labels[part], **options)
            logits = cross_entropy.backward(scale, saved, saved[0])
            del saved
        sums.append((one, counted))
        if dhidden is None:     # of one block it is the whole
            dhidden = head_backward(logits, cache)
        else:
            dhidden[part] = head_backward(logits, cache)
        del logits, cache     # before the next block's
    loss, denominator = sums[0]
    for one, counted in sums[1:]:
        loss, denominator = loss + one, denominator + counted
    return loss, denominator, dhidden
