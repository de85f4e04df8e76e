"""Layers: they hold parameters, save what the backward needs, and add into the gradients.

The numbers of the layers are those of models/config.py: 0 the embeddings, then the blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

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
    norm_for_product,
    rounded,
    rounded_and_summed,
    sums_before_norm,
)
from minisft.nn.parameters import Parameter

INITIAL_SCALE = 0.02

_backward_comes = ContextVar("backward_comes", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within it no backward comes: what a block saves for one it drops when it has run.

    Blocks then compute in the same memory one after the other, which caches hold.
    """
    token = _backward_comes.set(False)
    try:
        yield
    finally:
        _backward_comes.reset(token)


def backward_comes() -> bool:
    """-> whether blocks keep what a backward needs."""
    return _backward_comes.get()


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

    def replica(self) -> Self | None:
        """-> a layer with the same parameters and caches of its own, which another thread can run
        at the same time; None where somebody has put a function in a method's place, which would
        run this layer."""
        return None if self._has_functions() else _replica(self, {})

    def _has_functions(self) -> bool:
        return any(map(callable, vars(self).values())) or any(
            part._has_functions() for part in self._parts(Layer))

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


def _replica(part, made):
    """What a layer holds -> the same for its replica; `made`: {id of a layer: its replica}, since
    some are held twice."""
    if isinstance(part, list | tuple) and any(isinstance(x, Layer) for x in part):
        return type(part)(_replica(x, made) for x in part)
    if not isinstance(part, Layer):
        return part
    if id(part) not in made:
        twin = made[id(part)] = object.__new__(type(part))
        vars(twin).update({name: _replica(x, made) for name, x in vars(part).items()})
        twin.cache = twin.attended = None
    return made[id(part)]


class Embedding(Layer):
    """A table of rows: `name`.weight (V,C)."""

    def __init__(self, name: str, rows: int, width: int, layer: int,
                 scale: float = INITIAL_SCALE, padded_rows: bool = False):
        self.w = Parameter(f"{name}.weight", (rows, width), layer, decays=True, scale=scale,
                           padded_rows=padded_rows)

    def forward(self, ids: Array, order: Array = None) -> Array:
        """ids (N,) -> y (N,C); `order`: that of a batch on a card, for the kernel's backward."""
        y, cache = embedding.forward(ids, self.w.value)
        self.save_for_backward(cache, order)
        return y

    def backward(self, dy: Array) -> None:
        """dy (N,C); ids have no gradient."""
        cache, order = self.pop_saved()
        if self.w.trainable:
            by_kernel = order is not None and cache.implementation.name == "fused kernel"
            options = {"order": order} if by_kernel else {}
            embedding.backward(dy, cache, out=self.w.grad, **options)


class Linear(Layer):
    """`name`.weight (in,out) and, unless told otherwise, `name`.bias (out,)."""

    def __init__(self, name: str, width_in: int, width_out: int, layer: int,
                 scale: float = INITIAL_SCALE, bias: bool = True):
        self.w = Parameter(f"{name}.weight", (width_in, width_out), layer, True, scale)
        self.b: Any = Parameter(f"{name}.bias", (width_out,), layer, False) if bias else None

    keeps_input = False     # whether `forget_input` leaves it there

    @property
    def input_dtype(self) -> Any:
        """-> the 16-bit format that x may have already; None: x has to be float32."""
        return self.w.storage_dtype

    @property
    def gives_16_bits(self) -> bool:
        """-> whether it can give y and dx in 16 bits, as products on a card can."""
        return self.w.storage_dtype is not None

    def forward(self, x: Array, bias: bool = True, round_y: bool = False) -> Array:
        """x (N,in) -> y (N,out); `bias` and `round_y` as of `forward_columns`."""
        y, cache = self.forward_columns(x, slice(None), bias, round_y)
        self.save_for_backward(cache)
        return y

    def backward(self, dy: Array, needs_dx: bool = True, bias: bool = True,
                 round_dx: bool = False) -> Array:
        """dy (N,out) -> dx (N,in), or None where nobody needs it and the matrix is frozen."""
        (cache,) = self.pop_saved()
        return self.backward_columns(dy, cache, slice(None), bias, needs_dx, round_dx)

    def forget_input(self) -> None:
        """Drops the x of the last `forward`; `recall_input` must bring it before the backward."""
        (cache,) = self.cache
        self.cache = (cache.with_entry(0, None),)

    def recall_input(self, x: Array) -> None:
        """x (N,in), as the last `forward` had it."""
        (cache,) = self.cache
        self.cache = (cache.with_entry(0, rounded(x, cache[1].dtype)),)

    def forward_columns(self, x: Array, columns: slice, bias: bool = True,
                        round_y: bool = False) -> tuple[Array, Any]:
        """x (N,in) -> the outputs `columns` of y, cache; the caller keeps the cache.

        Without `bias` somebody else adds it, and its gradient. `round_y`: y in 16 bits, and so is
        the bias.
        """
        b = None
        if bias and self.b is not None:
            b = (self.b.product_value if round_y else self.b.value)[columns]
        options = {"round_y": True} if round_y else {}
        return linear.forward(x, self.w.product_value[:, columns], b, **options)

    def backward_columns(self, dy: Array, cache: Any, columns: slice, bias: bool = True,
                         needs_dx: bool = True, round_dx: bool = False) -> Array:
        """dy (N,columns), also in 16 bits -> dx (N,in), or None as `backward`; `round_dx`: in 16
        bits."""
        b = self.b if bias and self.b is not None and self.b.trainable else None
        w = cache[1]
        if b is not None and (dy.itemsize == 2 or
                              column_sums.choose(dy).name != "formula"):
            out = b.first_grad() if columns == slice(None) else None
            dy = rounded_and_summed(dy, w.dtype, b.grad[columns] if out is None else out,
                                    add=out is None)
            b = None
        if not self.w.trainable:     # dw is a product as large as dx
            if b is not None:
                b.add_grad(dy.sum(axis=0), columns)
            if not needs_dx:
                return None
            dx = matmul(rounded(dy, w.dtype), w.T)
            return rounded(dx, w.dtype) if round_dx else dx
        out = self.w.first_grad() if columns == slice(None) else None
        options = {"round_dx": True} if round_dx else {}
        dx, dw, db = linear.backward(dy, cache, b is not None, out, **options)
        if out is None:
            self.w.add_grad(dw, (slice(None), columns))
        if b is not None:
            b.add_grad(db, columns)
        return dx


class LayerNorm(Layer):
    """`name`.weight (C,) and `name`.bias (C,)."""

    def __init__(self, name: str, width: int, layer: int, eps: float):
        self.w = Parameter(f"{name}.weight", (width,), layer, decays=False, fill=1.0)
        self.b = Parameter(f"{name}.bias", (width,), layer, decays=False)
        self.eps = eps

    def forward(self, x: Array, dtype: Any = None) -> Array:
        """x (N,C) -> y (N,C); `dtype` as of `of_sum`."""
        y, cache = norm_for_product(x, self.w.value, self.b.value, self.eps, dtype)
        self.save_for_backward(None, cache, None)
        return y

    def of_sum(self, x: Any, dtype: Any = None) -> tuple[Array, Array]:
        """x (N,C), an array or a Sum -> x as an array, y (N,C).

        `dtype`: what y may be rounded to, since a product would do so; None for nothing.
        """
        term = x if isinstance(x, Sum) else None
        kernel = sums_before_norm(x if term is None else term.x)
        if kernel is None:
            return x, self.forward(x, dtype)
        options = {} if term is None else {
            "more": term.more, "bias": None if term.bias is None else term.bias.value,
            "drop": term.drop}
        x, y, cache = kernel.forward(x if term is None else term.x, self.w.value, self.b.value,
                                     self.eps, dtype=dtype, **options)
        # not the arrays of the Sum, which nobody needs any more
        self.save_for_backward(kernel, cache, None if term is None else (term.bias, term.dtype))
        return x, y

    def backward(self, dy: Array, residual: Array = None) -> Any:
        """dy (N,C) -> dx (N,C), with `residual` (N,C) added; after `of_sum` of a Sum a Gradient."""
        kernel, cache, term = self.pop_saved()
        if kernel is not None:
            return self._backward_of_sum(dy, kernel, cache, term, residual)
        if residual is not None and cache.implementation.name == "compiled":
            return self._backward(dy, cache, residual=residual)
        dx = self._backward(dy, cache)
        return dx if residual is None else residual + dx

    def _backward_of_sum(self, dy, kernel, cache, term, residual):
        bias, dtype = (None, None) if term is None else term
        outs, add = _sums_of([self.w, self.b] if term is None else [self.w, self.b, bias])
        dx, dmore = kernel.backward(dy, cache, residual, dtype, outs, add, more=term is not None)
        return dx if term is None else Gradient(dx, dmore)

    def _backward(self, dy, cache, **options):
        if cache.implementation.name == "fused kernel" and self.w.zeroed and self.b.zeroed:
            out = self.w.first_grad(), self.b.first_grad()
            return layer_norm.backward(dy, cache, out=out)[0]
        dx, dw, db = layer_norm.backward(dy, cache, **options)
        self.w.add_grad(dw)
        self.b.add_grad(db)
        return dx


@dataclass(frozen=True)
class Sum:
    """x + drop(more + bias), not yet added: the LayerNorm that takes it adds while it reads.

    x, more (N,C), `bias` a parameter whose gradient that LayerNorm sums, `drop` rate and words of
    dropout or None. `dtype`: in which 16-bit format the gradient of `more` is wanted, if any.
    """

    x: Array
    more: Array
    bias: Parameter | None
    drop: tuple[float, random.Tokens] | None = None
    dtype: Any = None

    def total(self) -> Array:
        """-> the sum (N,C)."""
        more = self.more if self.bias is None else self.more + self.bias.value
        if self.drop is not None:
            rate, words = self.drop
            more = dropout.forward(more, words, rate)[0]
        return self.x + more


@dataclass(frozen=True)
class Gradient:
    """Of a Sum: that of x (N,C), and that of `more`, behind dropout and rounded, if it is."""

    x: Array
    more: Array


def _sums_of(parameters):
    """-> where sums over the tokens go, for each parameter its gradient, None where it is frozen;
    whether they are added to what is there."""
    trained = [p for p in parameters if p is not None and p.trainable]
    add = not all(p.zeroed for p in trained)
    return [None if p is None or not p.trainable else p.grad if add else p.first_grad()
            for p in parameters], add


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

    def added(self, x: Array, more: Array, linear: Linear, stream: random.Stream | None,
              example_ids: Array, positions: Array, bias_is_in: bool) -> Any:
        """x, more (N,C) -> x + drop(more); a Sum that is yet to be added unless `more` holds the
        bias of `linear`, which gave it."""
        if bias_is_in:
            return x + self.forward(more, stream, example_ids, positions)
        drop = None
        if stream is not None and self.rate:
            drop = self.rate, random.Tokens(dispatched(stream), self.layer, self.site, example_ids,
                                            positions)
        return Sum(x, more, linear.b, drop, linear.w.storage_dtype)

    def behind(self, dy: Any) -> tuple[Array, Array]:
        """The gradient of what `added` gave -> dx, dmore (N,C)."""
        if isinstance(dy, Gradient):
            return dy.x, dy.more
        return dy, self.backward(dy)

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.pop_saved()
        return dy if cache is None else dropout.backward(dy, cache)
