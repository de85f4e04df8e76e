"""Launches kernels/dropout.cu; the same calls as minisft/ops/dropout.py, in float32."""

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 256


def forward(x: Array, words: random.Tokens, rate: float) -> tuple[Array, tuple]:
    """x (N,C), words: a random.Tokens, rate in [0, 1) -> y (N,C), cache."""
    xp = array_module(x)
    example_ids, positions = (xp.ascontiguousarray(xp.asarray(a).astype(np.uint32))
                              for a in (words.example_ids, words.positions))
    mask = {"example_ids": example_ids, "positions": positions, "threshold": int(rate * 2**32),
            "keep": 1 / (1 - rate), "seed": words.stream.seed & random.WORD,
            "step": words.stream.step & random.WORD, "site": words.layer << 16 | words.site}
    return _apply(x, mask), (mask,)


def backward(dy: Array, cache: tuple) -> Array:
    """dy (N,C) -> dx (N,C)."""
    return _apply(dy, *cache)


def _apply(x, mask):
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, (n, width) = xp.empty_like(x), x.shape
    launch("dropout", "dropout_apply", (ceil_div(n * ceil_div(width, 4), THREADS),), (THREADS,),
           x=x, y=y, n=n, width=width, **mask)
    return y
