"""Launches kernels/dropout.cu; the same calls as minisft/ops/dropout.py, in float32."""

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, address, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

MOST_THREADS = 256


def forward(x: Array, words: random.Tokens, rate: float) -> tuple[Array, tuple]:
    """x (N,C), words: a random.Tokens, rate in [0, 1) -> y (N,C), cache."""
    mask = mask_of(array_module(x), words, rate)
    return _apply(x, mask), (mask,)


def mask_of(xp: ModuleType, words: random.Tokens, rate: float) -> dict[str, Any]:
    """-> the mask of token rows, as kernels take it."""
    return {"example_ids": _words(xp, words.example_ids),
            "positions": _words(xp, words.positions), "threshold": int(rate * 2**32),
            "keep": 1 / (1 - rate), "seed": words.stream.seed & random.WORD,
            "step": step_of(xp, words.stream), "site": words.layer << 16 | words.site}


def step_of(xp: ModuleType, stream: random.Stream) -> Array:
    """-> the step's number as kernels read it (1,) uint32."""
    return _step(xp, stream.step & random.WORD) if stream.place is None else stream.place


@lru_cache(maxsize=8)     # the same in all layers
def _step(xp, step):
    return xp.asarray(np.array([step], dtype=np.uint32))


def backward(dy: Array, cache: tuple) -> Array:
    """dy (N,C) -> dx (N,C)."""
    return _apply(dy, *cache)


def _words(xp, numbers):
    """Whole numbers (N,) -> their lower 32 bits; those of a batch on a card have no more."""
    a = xp.asarray(numbers)
    return xp.ascontiguousarray(a.view(np.uint32) if a.dtype == np.int32 else a.astype(np.uint32))


def _apply(x, mask):
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, (n, width) = xp.empty_like(x), x.shape
    aligned = width % 4 == 0 and not (address(x) | address(y)) % 16
    launch("dropout", "dropout_apply", (n,), (min(MOST_THREADS, 32 * ceil_div(width, 128)),),
           x=x, y=y, width=width, aligned=int(aligned), **mask)
    return y
