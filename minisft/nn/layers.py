"""Layers: they hold parameters, save what the backward needs, and add into the gradients.

The numbers of the layers are those of models/config.py: 0 the embeddings, then the blocks.
"""

from collections.abc import Iterator
from typing import Any

from minisft.backend import random
from minisft.backend.array import Array
from minisft.dispatch import (
    column_sums,
    dispatched,
    dropout,
    embedding,
    layer_norm,
    linear,
    matmul,
    rounded,
)
from minisft.nn.parameters import Parameter

INITIAL_SCALE = 0.02


class Layer:
    """Saves the cache of one forward for one backward."""

    cache: Any = None
    attended: Any = None     # the cache of attention, where the layer has one

    def save_for_backward(self, *cache: Any) -> None:
        """Saves what the backward needs."""
        self.cache = cache

    def pop_saved(self) -> Any:
        """-> what was saved; raises RuntimeError when a backward has used it, or nothing was."""
        if self.cache is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward of its own before")
        cache, self.cache = self.cache, None
        return cache

    def clear_cache(self) -> None:
        """Drops what this layer and those in it saved: no backward will come."""
        self.cache = self.attended = None
        for layer in self._parts(Layer):
            layer.clear_cache()

    def parameters(self) -> list[Parameter]:
        """-> the parameters of this layer and of the layers that it holds, in order."""
        parameters: list[Parameter] = []
        for part in self._parts((Parameter, Layer)):
            parameters += [part] if isinstance(part, Parameter) else part.parameters()
        return parameters

    def _parts(self, kind: Any) -> Iterator[Any]:
        for part in vars(self).values():
            yield from (x for x in (part if isinstance(part, list) else [part])
                        if isinstance(x, kind))


class Embedding(Layer):
    """A table of rows: `name`.weight (V,C)."""

    def __init__(self, name: str, rows: int, width: int, layer: int,
                 scale: float = INITIAL_SCALE):
        self.w = Parameter(f"{name}.weight", (rows, width), layer, decays=True, scale=scale)

    def forward(self, ids: Array) -> Array:
        """ids (N,) -> y (N,C)."""
        y, cache = embedding.forward(ids, self.w.value)
        self.save_for_backward(cache)
        return y

    def backward(self, dy: Array) -> None:
        """dy (N,C); ids have no gradient."""
        (cache,) = self.pop_saved()
        if self.w.trainable:
            embedding.backward(dy, cache, out=self.w.grad)


class Linear(Layer):
    """`name`.weight (in,out) and, unless told otherwise, `name`.bias (out,)."""

    def __init__(self, name: str, width_in: int, width_out: int, layer: int,
                 scale: float = INITIAL_SCALE, bias: bool = True):
        self.w = Parameter(f"{name}.weight", (width_in, width_out), layer, True, scale)
        self.b: Any = Parameter(f"{name}.bias", (width_out,), layer, False) if bias else None

    def forward(self, x: Array) -> Array:
        """x (N,in) -> y (N,out)."""
        y, cache = self.forward_columns(x, slice(None))
        self.save_for_backward(cache)
        return y

    def backward(self, dy: Array, needs_dx: bool = True) -> Array:
        """dy (N,out) -> dx (N,in), or None where nobody needs it and the matrix is frozen."""
        (cache,) = self.pop_saved()
        return self.backward_columns(dy, cache, slice(None), needs_dx=needs_dx)

    def forward_columns(self, x: Array, columns: slice, bias: bool = True) -> tuple[Array, Any]:
        """x (N,in) -> the outputs `columns` of y, cache; the caller keeps the cache.

        Without `bias` somebody else adds it, and its gradient.
        """
        b = self.b.value[columns] if bias and self.b is not None else None
        return linear.forward(x, self.w.product_value[:, columns], b)

    def backward_columns(self, dy: Array, cache: Any, columns: slice,
                         bias: bool = True, needs_dx: bool = True) -> Array:
        """dy (N,columns) -> dx (N,in), or None as `backward`."""
        b = self.b if bias and self.b is not None and self.b.trainable else None
        w = cache[1]
        if b is not None and column_sums.choose(dy).name == "fused kernel":
            out = b.first_grad() if columns == slice(None) else None
            column_sums(dy, b.grad[columns] if out is None else out, add=out is None)
            b = None
        if not self.w.trainable:     # dw is a product as large as dx
            if b is not None:
                b.grad[columns] += dy.sum(axis=0)
            return matmul(rounded(dy, w.dtype), w.T) if needs_dx else None
        out = self.w.first_grad() if columns == slice(None) else None
        dx, dw, db = linear.backward(dy, cache, b is not None, out)
        if out is None:
            self.w.grad[:, columns] += dw
        if b is not None:
            b.grad[columns] += db
        return dx


class LayerNorm(Layer):
    """`name`.weight (C,) and `name`.bias (C,)."""

    def __init__(self, name: str, width: int, layer: int, eps: float):
        self.w = Parameter(f"{name}.weight", (width,), layer, decays=False, fill=1.0)
        self.b = Parameter(f"{name}.bias", (width,), layer, decays=False)
        self.eps = eps

    def forward(self, x: Array) -> Array:
        """x (N,C) -> y (N,C)."""
        y, cache = layer_norm.forward(x, self.w.value, self.b.value, self.eps)
        self.save_for_backward(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.pop_saved()
        if cache.implementation.name == "fused kernel" and self.w.zeroed and self.b.zeroed:
            out = self.w.first_grad(), self.b.first_grad()
            return layer_norm.backward(dy, cache, out=out)[0]
        dx, dw, db = layer_norm.backward(dy, cache)
        self.w.add_grad(dw)
        self.b.add_grad(db)
        return dx


class Dropout(Layer):
    """Dropout of token rows at one site of one layer."""

    def __init__(self, rate: float, layer: int, site: int):
        self.rate, self.layer, self.site = rate, layer, site

    def forward(self, x: Array, stream: random.Stream | None, example_ids: Array,
                positions: Array) -> Array:
        """x (N,C), example_ids (N,), positions (N,) -> y (N,C); no stream, no dropout."""
        if stream is None or not self.rate:
            self.save_for_backward(None)
            return x
        words = random.Tokens(dispatched(stream), self.layer, self.site, example_ids, positions)
        y, cache = dropout.forward(x, words, self.rate)
        self.save_for_backward(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.pop_saved()
        return dy if cache is None else dropout.backward(dy, cache)
