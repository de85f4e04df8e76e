"""A linear map with a low-rank update: the layer around ops/lora.py."""

from collections.abc import Sequence
from math import sqrt
from typing import Any, TypeGuard

import numpy as np

from minisft import ops
from minisft.backend import random
from minisft.backend.array import Array, array_module
from minisft.backend.cpu import row_blocks
from minisft.dispatch import dispatched, dropout, factor_gradients, linear, lora, matmul
from minisft.nn.layers import Linear
from minisft.nn.parameters import Parameter


def is_merged(rows: int, width_in: int, width_out: int) -> bool:
    """-> whether to merge the update into the matrix, and multiply once: it is then the smaller one
    of what is passed over in memory. Where dropout comes before A it cannot be merged, and in 16
    bits the sum would lose a small update."""
    return rows * (width_in + width_out) > width_in * width_out


def keeps_merged(rows: int, width_out: int) -> bool:
    """-> whether a merged matrix is kept for the backward, as x is: where it is no larger. All of
    them together are as large as the base."""
    return rows >= width_out


class LoraLinear(Linear):
    """A `Linear` in whose place this comes, with its parameters, and an update of rank r:

    `name`.lora_A.weight (r,in) and `name`.lora_B.weight (out,r). B begins as zeros, so at first the
    map gives what it gave before. `rate` is that of the dropout before A, at its own `site`.
    """

    def __init__(self, linear: Linear, rank: int, scale: float, rate: float = 0.0,
                 site: int = random.ADAPTER):
        name, layer = linear.w.name.removesuffix(".weight"), linear.w.layer
        width_in, width_out = linear.w.shape
        self.w, self.b = linear.w, linear.b
        # the variance of PEFT's uniform values
        self.lora_A = Parameter(f"{name}.lora_A.weight", (rank, width_in), layer, True,
                                scale=1 / sqrt(3 * width_in))
        self.lora_B = Parameter(f"{name}.lora_B.weight", (width_out, rank), layer, True)
        self.scale, self.rate, self.site = scale, rate, site
        self.step: tuple[Any, random.Stream | None, Array] = None, None, None

    @property
    def input_dtype(self) -> Any:
        """-> as `Linear`'s; dropout before the update takes float32."""
        return None if self.rate else super().input_dtype

    gives_16_bits = False     # two maps are added in float32
    keeps_input = True        # each has one of its own, behind dropout or rounded

    def without_adapter(self) -> Linear:
        """-> a `Linear` with the same parameters, but for those of the update."""
        linear = Linear.__new__(Linear)
        linear.w, linear.b = self.w, self.b
        return linear

    def begin(self, batch: Any, stream: random.Stream | None, rows: Array) -> None:
        """What dropout needs beside x: the batch that comes, and which of its tokens x holds where
        it does not hold all."""
        self.step = batch, stream, rows

    def forget_input(self) -> None:
        """Keeps it."""

    def recall_input(self, x: Array) -> None:
        """It is there."""

    def forward_columns(self, x: Array, columns: slice, bias: bool = True,
                        round_y: bool = False) -> tuple[Array, Any]:
        """As `Linear`'s: x (N,in) -> the outputs `columns` of y, cache."""
        if self._merges(x, columns):
            b = self.b.value[columns] if bias and self.b is not None else None
            merged = self._merged(columns)
            y = linear.forward(x, merged, b)[0]
            return y, (x, merged if keeps_merged(len(x), merged.shape[1]) else None)
        # on a CPU the bias comes last, as where a norm adds it, so that the bits are the same
        last = bias and self.b is not None and array_module(x) is np
        y, cache = super().forward_columns(x, columns, bias and not last)
        x, mask = self._dropped(x)
        # without dropout it takes x as the other map keeps it, rounded where that is
        update, low_cache = lora.forward(cache[0] if mask is None else x,
                                         self.lora_A.product_value,
                                         self.lora_B.product_value[columns], self.scale)
        y += update
        if last:
            y += self.b.value[columns]
        return y, (cache, low_cache, mask)

    def backward_columns(self, dy: Array, cache: Any, columns: slice, bias: bool = True,
                         needs_dx: bool = True, round_dx: bool = False) -> Array:
        """dy (N,columns) -> dx (N,in), or None as `Linear`'s."""
        if len(cache) == 2:
            return self._merged_backward(dy, *cache, columns, bias, needs_dx)
        cache, low_cache, mask = cache
        dx = super().backward_columns(dy, cache, columns, bias, needs_dx)
        update, da, db = lora.backward(dy, low_cache)
        self._add_grads(da, db, columns)
        if dx is None:
            return None
        dx += update if mask is None else dropout.backward(update, mask)
        return dx

    def _merges(self, x, columns):
        """-> whether this forward merges; its backward finds no gradient of the matrix."""
        drops = self.rate and self.step[1] is not None
        width_out = len(range(self.w.shape[1])[columns])
        return not (drops or self.w.trainable) and self.w.compute_dtype is None and is_merged(
            len(x), self.w.shape[0], width_out)

    def _merged(self, columns, out=None):
        """-> the matrix (in,columns) that gives both."""
        return _merge(self.w.value[:, columns], *self._factors(columns), out)

    def _factors(self, columns):
        return self.lora_A.value, self.lora_B.value[columns], self.scale

    def _merged_backward(self, dy, x, merged, columns, bias, needs_dx):
        (da, db), = factor_gradients(dy, x, [self._factors(columns)])
        self._add_grads(da, db, columns)
        if merged is None:
            merged = self._merged(columns) if needs_dx else self.w.value
        return super().backward_columns(dy, (x, merged), columns, bias, needs_dx)

    def _add_grads(self, da, db, columns):
        self.lora_A.add_grad(da)
        self.lora_B.add_grad(db, columns)

    def _dropped(self, x):
        """-> x after dropout, and dropout's cache, None where there is none."""
        batch, stream, rows = self.step
        if stream is None or not self.rate:
            return x, None
        example_ids, positions = batch.token_example_ids, batch.positions
        if len(x) != len(positions):
            example_ids, positions = example_ids[rows], positions[rows]
        return dropout.forward(x, random.Tokens(dispatched(stream), self.w.layer, self.site,
                                                example_ids, positions), self.rate)


def merges_together(layers: Sequence[Linear], x: Array) -> TypeGuard[Sequence[LoraLinear]]:
    """-> whether several maps of one x (N,in) are a single product on a CPU: those whose matrices
    are merged, and so copied, anyway."""
    return array_module(x) is np and all(
        isinstance(layer, LoraLinear) and layer._merges(x, slice(None))
        and not layer.b.trainable for layer in layers)


def forward_together(layers: Sequence[LoraLinear], x: Array) -> tuple[Array, Any]:
    """x (N,in) -> what the maps make of it, side by side (N, sum of out), cache."""
    merged = _merged_together(layers)
    y, _ = linear.forward(x, merged, np.concatenate([layer.b.value for layer in layers]))
    kept = all(keeps_merged(len(x), layer.w.shape[1]) for layer in layers)
    return y, (layers, x, merged if kept else None)


def backward_together(dy: Array, cache: Any, needs_dx: bool = True) -> Array:
    """dy (N, sum of out) -> dx (N,in), or None as `Linear`'s."""
    layers, x, merged = cache
    found = factor_gradients(dy, x, [layer._factors(slice(None)) for layer in layers])
    for layer, (da, db) in zip(layers, found, strict=True):
        layer._add_grads(da, db, slice(None))
    if not needs_dx:
        return None
    return matmul(dy, (_merged_together(layers) if merged is None else merged).T)


def _merged_together(layers):
    """-> the merged matrices side by side (in, sum of out)."""
    edges = np.cumsum([0, *(layer.w.shape[1] for layer in layers)])
    merged = np.empty((layers[0].w.shape[0], edges[-1]), layers[0].w.value.dtype)
    for layer, first, last in zip(layers, edges, edges[1:], strict=False):
        layer._merged(slice(None), merged[:, first:last])
    return merged


def _merge(w, a, b, scale, out=None):
    """As the formula's, on a CPU by one thread of BLAS: several would wait for one another longer
    than a product with so few terms takes."""
    if array_module(w) is not np:
        return ops.lora.merge(w, a, b, scale, out)
    with row_blocks.one_blas_thread:
        return ops.lora.merge(w, a, b, scale, out)
