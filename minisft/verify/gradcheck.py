"""Gradient checks: a backward written by hand against central finite differences, in float64.

    from minisft.verify.gradcheck import check
    check(my_op.forward, my_op.backward, x, w, b)

draws a random upstream gradient R and compares every element of every gradient.

    (1) f = sum(R * y)
    (2) df/dx ~ (f(x + h) - f(x - h)) / 2h
    (3) error = max|by hand - (2)| / max(max|(2)|, G / 1000),   G: largest (2) of all arrays

A plain `.sum()` as objective would hide bugs: the rows of a softmax sum to one, so a gradient of
zero would pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minisft.backend.array import to_cpu
from minisft.backend.cpu.row_blocks import alone
from minisft.backend.random import Stream
from minisft.dispatch import dispatched

STEP = 1e-5           # in float64 the error h^2 of the formula and the noise 1e-16 / h meet here
ALONG = 1e-6          # a direction moves every element at once, so h^2 meets a steeper curve
LIMIT = 1e-6          # one operation or layer
MODEL_LIMIT = 1e-5    # a whole model


class GradientError(AssertionError):
    """A backward disagrees with finite differences; the message says where and by how much."""


@dataclass(frozen=True)
class Result:
    """The worst element of one gradient: index None means a random direction, not an element."""

    name: str
    error: float
    index: tuple | None
    by_hand: float
    numeric: float

    def __str__(self) -> str:
        where = "along a random direction" if self.index is None else f"at {list(self.index)}"
        return (f"gradient of {self.name} {where}: by hand {self.by_hand:.9g}, "
                f"finite differences {self.numeric:.9g}, error {self.error:.1e}")


def check(forward: Callable, backward: Callable, *inputs: Any, names: list[str] | None = None,
          limit: float = LIMIT, seed: int = 0, operation: str | None = None) -> list[Result]:
    """forward(*inputs) -> (y, cache), backward(dy, cache) -> gradients of the float64 inputs.

    Returns a Result for each float64 input, in order; raises GradientError when one is beyond
    `limit` and ValueError for float32 inputs or a missing gradient. Other inputs (ids, options)
    stay as they are.
    """
    rng = np.random.default_rng(seed)
    for i, x in enumerate(inputs):
        if isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float16):
            raise ValueError(f"input {i} is {x.dtype}: gradients are checked in float64")
    checked = [i for i, x in enumerate(inputs)
               if isinstance(x, np.ndarray) and x.dtype == np.float64]
    names = names or [f"input {i}" for i in checked]
    copies = [x.copy() if i in checked else x for i, x in enumerate(inputs)]
    y, cache = forward(*copies)
    dy = rng.standard_normal(np.shape(y))
    gradients = backward(dy, cache)
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    if len(gradients) != len(checked) or len(names) != len(checked):
        raise ValueError(f"{len(checked)} float64 inputs, {len(gradients)} gradients, "
                         f"{len(names)} names")
    rows = compare(lambda: float((dy * forward(*copies)[0]).sum()),                   # (1)
                   {n: copies[i] for n, i in zip(names, checked, strict=True)},
                   dict(zip(names, gradients, strict=True)))
    require(rows, limit, operation)
    return rows


def compare(objective: Callable[[], float], values: dict[str, np.ndarray],
            gradients: dict[str, np.ndarray]) -> list[Result]:
    """objective() -> float of the arrays in `values` (dict); gradients (dict) -> a Result for each.

    Changes every element in turn and puts it back.
    """
    _require_shapes(values, gradients)
    with alone():     # arrays so small that handing them to another thread costs more than it saves
        numeric = {name: _differences(objective, x) for name, x in values.items()}
    scales = _scales(numeric)
    return [_worst(name, np.asarray(to_cpu(gradients[name])), numeric[name], scales[name])
            for name in values]


def compare_directions(objective: Callable[[], float], values: dict[str, np.ndarray],
                       gradients: dict[str, np.ndarray], seed: int = 0,
                       progress: Callable[[list[str]], Iterable[str]] = iter) -> list[Result]:
    """The same along one random direction d for each array: two objectives an array.

    For a real checkpoint, where every element would take years. The elements of d are standard
    normal, so d . g is about |g| however many of them are zero (the rows of a table that no token
    used), and the error is relative to |g|.
    """
    _require_shapes(values, gradients)
    rng = np.random.default_rng(seed)
    norms = {name: float(np.linalg.norm(g)) for name, g in gradients.items()}
    floor = 1e-3 * max(norms.values(), default=0)
    rows = []
    for name in progress(list(values)):
        x, kept = values[name], values[name].copy()
        direction = rng.standard_normal(x.shape)
        x[...] = kept + ALONG * direction
        above = objective()
        x[...] = kept - ALONG * direction
        numeric = (above - objective()) / (2 * ALONG)
        x[...] = kept
        by_hand = float(np.vdot(gradients[name], direction))
        scale = max(norms[name], abs(numeric), floor) or 1.0
        rows.append(Result(name, abs(by_hand - numeric) / scale, None, by_hand, numeric))
    return rows


def drawing_once(stream: Stream) -> Stream:
    """-> the same stream, which draws equal words once and keeps them.

    Two forwards for each element ask for the same masks: drawing them took half of a check's time.
    """
    draw, drawn = dispatched(stream).draw, {}

    def draw_once(step, example_ids, positions, heads, first, shape, key, xp=np):
        counters = (np.asarray(c) for c in (example_ids, positions, heads))
        asked = (step, first, shape, key, *((c.tobytes(), c.shape) for c in counters))
        if asked not in drawn:
            words = drawn[asked] = draw(step, example_ids, positions, heads, first, shape, key, xp)
            words.flags.writeable = False
        return drawn[asked]

    return replace(stream, draw=draw_once)


def worst_of(rows: list[Result]) -> Result:
    """-> the row with the largest error; one that is no number counts as the largest."""
    return max(rows, key=lambda row: row.error if np.isfinite(row.error) else np.inf)


def require(rows: list[Result], limit: float, operation: str | None = None) -> None:
    """Raises GradientError, naming the worst of the rows, when it is beyond the limit."""
    worst = worst_of(rows)
    if not worst.error <= limit:
        raise GradientError(f"{operation + ': ' if operation else ''}{worst} > {limit:.0e}")


def _differences(objective, x):
    """objective() -> float of x among others -> (2) for each element, in x's shape."""
    numeric = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + STEP
        above = objective()
        x[index] = kept - STEP
        numeric[index] = (above - objective()) / (2 * STEP)                           # (2)
        x[index] = kept
    return numeric


def _scales(numeric):
    """Norm of the project: max(max|reference|, 1e-3 * G), G the largest of the whole check, so
    that an array that is zero in theory is not noise divided by noise."""
    largest = {name: np.abs(g).max(initial=0) for name, g in numeric.items()}
    floor = 1e-3 * max(largest.values(), default=0)
    return {name: max(m, floor) or 1.0 for name, m in largest.items()}


def _require_shapes(values, gradients):
    for name, x in values.items():
        if gradients[name].shape != x.shape:
            raise GradientError(f"gradient of {name} has shape {gradients[name].shape}, "
                                f"the array {x.shape}")


def _worst(name, by_hand, numeric, scale):
    if not numeric.size:
        return Result(name, 0.0, (), 0.0, 0.0)
    difference = np.abs(by_hand - numeric)
    difference[~np.isfinite(difference)] = np.inf
    index = np.unravel_index(difference.argmax(), difference.shape)
    return Result(name, float(difference[index] / scale), tuple(int(i) for i in index),  # (3)
                  float(by_hand[index]), float(numeric[index]))
