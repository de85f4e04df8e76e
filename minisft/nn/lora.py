"""A linear map with a low-rank update: the layer around ops/lora.py."""

from math import sqrt
from typing import Any

from minisft.backend import random
from minisft.backend.array import Array
from minisft.dispatch import dispatched, dropout, lora
from minisft.nn.layers import Linear
from minisft.nn.parameters import Parameter


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

    def without_adapter(self) -> Linear:
        """-> a `Linear` with the same parameters, but for those of the update."""
        linear = Linear.__new__(Linear)
        linear.w, linear.b = self.w, self.b
        return linear

    def begin(self, batch: Any, stream: random.Stream | None, rows: Array) -> None:
        """What dropout needs beside x: the batch that comes, and which of its tokens x holds where
        it does not hold all."""
        self.step = batch, stream, rows

    def forward_columns(self, x: Array, columns: slice, bias: bool = True) -> tuple[Array, Any]:
        """As `Linear`'s: x (N,in) -> the outputs `columns` of y, cache."""
        y, cache = super().forward_columns(x, columns, bias)
        x, mask = self._dropped(x)
        # without dropout it takes x as the other map keeps it, rounded where that is
        update, low_cache = lora.forward(cache[0] if mask is None else x,
                                         self.lora_A.product_value,
                                         self.lora_B.product_value[columns], self.scale)
        y += update
        return y, (cache, low_cache, mask)

    def backward_columns(self, dy: Array, cache: Any, columns: slice,
                         bias: bool = True, needs_dx: bool = True) -> Array:
        """dy (N,columns) -> dx (N,in), or None as `Linear`'s."""
        cache, low_cache, mask = cache
        dx = super().backward_columns(dy, cache, columns, bias, needs_dx)
        update, da, db = lora.backward(dy, low_cache)
        self.lora_A.add_grad(da)
        if columns == slice(None):
            self.lora_B.add_grad(db)
        elif self.lora_B.trainable:
            self.lora_B.grad[columns] += db
        if dx is None:
            return None
        dx += update if mask is None else dropout.backward(update, mask)
        return dx

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
