"""Launches kernels/attention_decode.cu: attention of one new token a sequence over a cache."""

from math import sqrt
from typing import Any

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

WARP, MOST_WARPS = 32, 16
KEYS_OF_WARP = 16     # which it asks for at once, in 16 bits with heads of 64 channels
LONGEST = 1024     # keys that one block takes: up to here no second launch joins what blocks found
CHUNK = 256        # keys of a block where there are more


def forward(qkv: Array, keys: Array, values: Array, lengths: Array, dtype: Any = None,
            chunk: int | None = None) -> Array:
    """qkv (B,3HD) float32, keys and values (B*capacity,H,D), lengths (B,) int32 of the keys that
    are there -> y (B,HD); the new key and value are put behind them.

    The cache is float32, bfloat16 (uint16) or float16, and each number is rounded to that. `dtype`:
    y's, of 16 bits; None for float32. `chunk`: keys of a block; None for what is fast.
    """
    xp, (_, heads, width) = array_module(qkv), keys.shape
    n, capacity = len(lengths), len(keys) // len(lengths)
    if chunk is None:
        chunk = capacity if capacity <= LONGEST else CHUNK
    chunks = ceil_div(capacity, chunk)
    y = xp.empty((n, heads * width), dtype=np.float32 if dtype is None else dtype)
    outs = states = None
    if chunks > 1:
        outs = xp.empty((n, heads, chunks, width), dtype=np.float32)
        states = xp.empty((n, heads, chunks, 2), dtype=np.float32)
    low = keys.dtype != np.float32
    result = {"y": None if dtype is not None else y,
              "low": None if dtype is None else y.view(np.uint16)}
    defines = {"HEAD_WIDTH": width,
               "FLOAT16": int(np.float16 in (keys.dtype, y.dtype))}
    launch("attention_decode", f"attention_decode{'_16_bits' * low}", (chunks, heads, n),
           (WARP * min(MOST_WARPS, ceil_div(chunk, KEYS_OF_WARP)),), qkv=qkv, keys=_words(keys),
           values=_words(values), lengths=lengths, outs=outs, states=states, capacity=capacity,
           chunk=chunk, scale=1 / sqrt(width), defines=defines, **result)
    if chunks > 1:
        launch("attention_decode", "attention_decode_join", (heads, n),
               (WARP * ceil_div(width, WARP),), outs=outs, states=states, lengths=lengths,
               chunks=chunks, chunk=chunk, defines=defines, **result)
    return y


def _words(cache):
    return cache if cache.dtype == np.float32 else cache.view(np.uint16)
