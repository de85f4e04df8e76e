"""Layers: they hold parameters, keep what the backward needs, and add into the gradients.

Numbers of the layers: 0 the embeddings, 1 + i block i, n_layer + 1 what comes after the blocks.
"""

from minisft.backend import random
from minisft.dispatch import (
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
    """Keeps the cache of one forward for one backward."""

    cache = attended = None

    def save_for_backward(self, *cache):
        self.cache = cache

    def pop_saved(self):
        """-> the kept cache; raises RuntimeError when a backward has used it, or none was kept."""
        if self.cache is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward of its own before")
        cache, self.cache = self.cache, None
        return cache

    def clear_cache(self):
        """Drops what this layer and those in it keep: no backward will come."""
        self.cache = self.attended = None
        for layer in self._parts(Layer):
            layer.clear_cache()

    def parameters(self):
        """-> the parameters of this layer and of the layers that it holds, in order."""
        found = []
        for part in self._parts((Parameter, Layer)):
            found += [part] if isinstance(part, Parameter) else part.parameters()
        return found

    def _parts(self, kind):
        for part in vars(self).values():
            yield from (x for x in (part if isinstance(part, list) else [part])
                        if isinstance(x, kind))


class Embedding(Layer):
    """A table of rows: `name`.weight (V,C)."""

    def __init__(self, name, rows, width, layer, scale=INITIAL_SCALE):
        self.w = Parameter(f"{name}.weight", (rows, width), layer, decays=True, scale=scale)

    def forward(self, ids):
        """ids (N,) -> y (N,C)."""
        y, cache = embedding.forward(ids, self.w.value)
        self.save_for_backward(cache)
        return y

    def backward(self, dy):
        """dy (N,C); ids have no gradient."""
        (cache,) = self.pop_saved()
        if self.w.trainable:
            embedding.backward(dy, cache, out=self.w.grad)


class Linear(Layer):
    """`name`.weight (in,out) and, unless told otherwise, `name`.bias (out,)."""

    def __init__(self, name, width_in, width_out, layer, scale=INITIAL_SCALE, bias=True):
        self.w = Parameter(f"{name}.weight", (width_in, width_out), layer, True, scale)
        self.b = Parameter(f"{name}.bias", (width_out,), layer, False) if bias else None

    def forward(self, x):
        """x (N,in) -> y (N,out)."""
        y, cache = self.forward_columns(x, slice(None))
        self.save_for_backward(cache)
        return y

    def backward(self, dy):
        """dy (N,out) -> dx (N,in)."""
        (cache,) = self.pop_saved()
        return self.backward_columns(dy, cache, slice(None))

    def forward_columns(self, x, columns, bias=True):
        """x (N,in) -> the outputs `columns` of y, cache; the caller keeps the cache.

        Without `bias` somebody else adds it, and its gradient.
        """
        b = self.b.value[columns] if bias and self.b is not None else None
        return linear.forward(x, self.w.product_value[:, columns], b)

    def backward_columns(self, dy, cache, columns, bias=True):
        """dy (N,columns) -> dx (N,in)."""
        bias = bias and self.b is not None and self.b.trainable
        w = cache[1]
        if not (self.w.trainable or bias):
            return matmul(rounded(dy, w.dtype), w.T)
        out = self.w.first_grad() if columns == slice(None) else None
        dx, dw, db = linear.backward(dy, cache, bias, out)
        if out is None and self.w.trainable:
            self.w.grad[:, columns] += dw
        if bias:
            self.b.grad[columns] += db
        return dx


class LayerNorm(Layer):
    """`name`.weight (C,) and `name`.bias (C,)."""

    def __init__(self, name, width, layer, eps):
        self.w = Parameter(f"{name}.weight", (width,), layer, decays=False, fill=1.0)
        self.b = Parameter(f"{name}.bias", (width,), layer, decays=False)
        self.eps = eps

    def forward(self, x):
        """x (N,C) -> y (N,C)."""
        y, cache = layer_norm.forward(x, self.w.value, self.b.value, self.eps)
        self.save_for_backward(cache)
        return y

    def backward(self, dy):
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.pop_saved()
        dx, dw, db = layer_norm.backward(dy, cache)
        self.w.add_grad(dw)
        self.b.add_grad(db)
        return dx


class Dropout(Layer):
    """Dropout of token rows at one site of one layer."""

    def __init__(self, rate, layer, site):
        self.rate, self.layer, self.site = rate, layer, site

    def forward(self, x, stream, example_ids, positions):
        """x (N,C), the texts' numbers (N,), positions (N,) -> y (N,C); no stream, no dropout."""
        if stream is None or not self.rate:
            self.save_for_backward(None)
            return x
        words = random.Tokens(dispatched(stream), self.layer, self.site, example_ids, positions)
        y, cache = dropout.forward(x, words, self.rate)
        self.save_for_backward(cache)
        return y

    def backward(self, dy):
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.pop_saved()
        return dy if cache is None else dropout.backward(dy, cache)
