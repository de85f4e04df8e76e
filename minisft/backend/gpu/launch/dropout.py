"""Launches kernels/dropout.cu; the same calls as minisft/ops/dropout.py, in float32."""

import numpy as np

from minisft.backend import random
from minisft.backend.array import array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

THREADS = 256


def forward(x, words, rate):
    """x (N,C), words: a random.Tokens, rate in [0, 1) -> y (N,C), cache."""
    xp = array_module(x)
    of_each = [xp.ascontiguousarray(xp.asarray(a).astype(np.uint32))
               for a in (words.example_ids, words.positions)]
    made = (int(rate * 2**32), 1 / (1 - rate), words.stream.seed & random.WORD,
            words.stream.step & random.WORD, words.layer << 16 | words.site)
    return _apply(x, of_each, made), (of_each, made)


def backward(dy, cache):
    """dy (N,C) -> dx (N,C)."""
    return _apply(dy, *cache)


def _apply(x, of_each, made):
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, (n, width) = xp.empty_like(x), x.shape
    launch("dropout", "dropout_apply", (ceil_div(n * ceil_div(width, 4), THREADS),), (THREADS,), x,
           y, *of_each, n, width, *made)
    return y
