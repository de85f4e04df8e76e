"""Dropout's random words: Philox in NumPy or CuPy, or in compiled loops, bit for bit the same."""

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.cpu import jit
from minisft.dispatch.selection import FORMULA, Function, Implementation, Site


def _compiled(site: Site, arguments: dict[str, Any]) -> str:
    if arguments["xp"] is not np:
        return "the arrays are CuPy's"
    return "" if site.compiled else "Numba is not installed or switched off"


def _compiled_words(step, example_ids, positions, heads, first, shape, key, xp):
    """As `random.draw_words`."""
    from minisft.backend.cpu.compiled.philox import fill  # here, since it imports Numba
    of_rows = [np.broadcast_to(np.asarray(c).astype(np.uint32), (*shape[:-1], 1)).ravel()
               for c in (example_ids, positions, heads)]
    words = np.empty((prod(shape[:-1]), 4 * shape[-1]), dtype=np.uint32)
    step, first, *key = (np.uint32(c & random.WORD) for c in (step, first, *key))
    jit.each(lambda start, stop: fill(words, step, *of_rows, first, *key, start, stop),
             len(words), 16 * shape[-1])
    return words.reshape(*shape, 4)


random_words = Function("random_words", random.draw_words, [
    Implementation("compiled", (_compiled,), lambda: _compiled_words),
    Implementation(FORMULA, (), lambda: random.draw_words),
])


def dispatched(stream: random.Stream) -> random.Stream:
    """-> the same stream, whose words come from the implementation that applies.

    A stream with a `draw` of its own stays as it is.
    """
    return stream if stream.draw is not random.draw_words else replace(stream, draw=random_words)
