"""A residual sum and the layer normalisation of it as compiled loops, block of rows by block.

    u = x + dropout(more + bias),   y = layer_norm(u)

Each array is read from memory once: what one loop has written the next one finds in the cache.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.compiled import column_sums, dropout, layer_norm
from minisft.backend.cpu.compiled.bits import rounded
from minisft.backend.cpu.compiled.exp import ONE, ZERO

ROWS = column_sums.ROWS     # of a part of the bias's gradient: it has the bits of `column_sums`


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float = 1e-5,
            more: np.ndarray | None = None, bias: np.ndarray | None = None,
            drop: tuple[float, random.Tokens] | None = None,
            dtype: Any = None) -> tuple[np.ndarray, np.ndarray, tuple]:
    """x (N,C), w, b (C,), more (N,C), bias (C,) or None -> u (N,C), y (N,C), cache.

    Without `more` u is x. `drop`: rate and words. y is bfloat16 where `dtype` is, else float32.
    """
    x = np.ascontiguousarray(x)
    mean, rstd = np.empty((2, len(x)), x.dtype)
    low = dtype == np.uint16
    y = aligned(x.shape, np.uint16) if low else np.empty_like(x)
    norm = layer_norm.forward_rows_rounded if low else layer_norm.forward_rows
    u = x if more is None else np.empty_like(x)
    keep, scale = np.empty((0, 0), bool), ONE
    if more is not None:
        more = np.ascontiguousarray(more)
        bias = np.zeros_like(w) if bias is None else bias
        if drop is not None:
            rate, words = drop
            keep, mask = np.empty(x.shape, bool), dropout.mask_of(words, rate)
            scale = mask[-1]

    def work(rows):
        part = rows.start, rows.stop
        if drop is not None and more is not None:
            _dropped_sum(x, more, bias, u, keep, *mask, *part)
        elif more is not None:
            _sum(x, more, bias, u, *part)
        norm(u, w, b, np.float32(eps), y, mean, rstd, *part)

    row_blocks.each(work, _blocks(x))
    return u, y, (u, w, mean, rstd, keep, scale)


def backward(dy: np.ndarray, cache: tuple, residual: np.ndarray | None = None, dtype: Any = None,
             outs: Sequence[np.ndarray | None] = (None, None), add: bool = False,
             more: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """dy (N,C), residual (N,C) or None -> dx (N,C), the gradient of `more` (N,C) or, if not `more`,
    None.

    dx is the gradient of u, the residual's added, and of x. `outs`: where dw, db and, as a third,
    the gradient of the bias go, or with `add` are added; None for one that nobody wants. The
    gradient of `more` is bfloat16 where `dtype` is, else float32, and dx itself where it is equal.
    """
    u, w, mean, rstd, keep, scale = cache
    dy = np.ascontiguousarray(dy)
    dx, low = np.empty_like(dy), dtype == np.uint16
    dmore = dx
    if low:
        dmore = aligned(dy.shape, np.uint16)
    elif keep.size:
        dmore = np.empty_like(dy)
    behind = _behind_rounded if low else _behind
    residual = dy[:0] if residual is None else np.ascontiguousarray(residual)
    normed = any(out is not None for out in outs[:2])
    biased = any(out is not None for out in outs[2:])
    of_bias = np.zeros((ceil_div(len(dy), ROWS) if biased else 0, len(w)), dy.dtype)

    def work(rows):
        n_parts = ceil_div(rows.stop - rows.start, layer_norm.ROWS) if normed else 0
        parts = np.zeros((n_parts, 2, len(w)), dy.dtype)
        layer_norm.backward_rows(dy, u, w, mean, rstd, residual, dx, parts, rows.start, rows.stop)
        if more and (biased or dmore is not dx):
            behind(dx, keep, scale, dmore, of_bias, rows.start, rows.stop)
        return parts.sum(axis=0)

    of_norm = row_blocks.each(work, _blocks(dy))
    sums = [*sum(of_norm[1:], start=of_norm[0]), of_bias.sum(axis=0)]
    for out, found in zip(outs, sums, strict=False):
        if out is not None:
            out[...] = out + found if add else found
    return dx, dmore if more else None


def _blocks(x):
    """x (N,C) -> slices of its rows, each of whole parts."""
    step = ROWS * max(1, 2 * row_blocks.BLOCK // (ROWS * x.shape[1] * x.itemsize))
    return [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]


@jit.loop(jit.NONE)
def _sum(x, more, bias, u, start, stop):
    for i in range(start, stop):
        row, term, out = x[i], more[i], u[i]
        for j in range(row.size):
            out[j] = row[j] + (term[j] + bias[j])


@jit.loop(jit.NONE)
def _dropped_sum(x, more, bias, u, keep, example_ids, positions, step, k0, k1, limit, scale, start,
                 stop):
    words = np.empty(4 * -(-x.shape[1] // 4), dtype=np.uint32)
    for i in range(start, stop):
        row, term, out, kept = x[i], more[i], u[i], keep[i]
        dropout.draw(words, step, example_ids[i], positions[i], k0, k1)
        for j in range(row.size):
            kept[j] = words[j] >= limit
        for j in range(row.size):
            out[j] = row[j] + (term[j] + bias[j]) * (scale if words[j] >= limit else ZERO)


@jit.loop(jit.NONE)
def _behind(dx, keep, scale, dmore, parts, start, stop):
    for i in range(start, stop):
        if keep.size:
            _masked(dx[i], keep[i], scale, dmore[i])
        _add_row(dmore[i], i, parts)


@jit.loop(jit.NONE)
def _behind_rounded(dx, keep, scale, dmore, parts, start, stop):
    plain = np.empty(dx.shape[1], np.float32)
    for i in range(start, stop):
        out = dmore[i]
        if keep.size:
            _masked(dx[i], keep[i], scale, plain)
        else:
            plain[:] = dx[i]
        _add_row(plain, i, parts)
        for j in range(plain.size):
            out[j] = rounded(plain[j])


@jit.loop(jit.NONE, part="own")
def _masked(row, kept, scale, out):
    for j in range(row.size):
        out[j] = row[j] * (scale if kept[j] else ZERO)


@jit.loop(jit.NONE, part="own")
def _add_row(row, i, parts):
    if len(parts):
        sums = parts[i // ROWS]
        for j in range(row.size):
            sums[j] += row[j]
