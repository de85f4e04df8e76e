"""Layers: they hold parameters, keep what the backward needs, and add into the gradients.

Numbers of the layers: 0 the embeddings, 1 + i block i, n_layer + 1 what comes after the blocks.
"""

from minisft import matmul, random
from minisft.ops import dropout, embedding, layer_norm, linear
from minisft.parameters import Parameter

INITIAL_SCALE = 0.02


class Layer:
    """Keeps the cache of one forward for one backward."""

    cache = attended = None

    def keep(self, *cache):
        self.cache = cache

    def take(self):
        """-> the kept cache; raises RuntimeError when a backward has used it, or none was kept."""
        if self.cache is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward of its own before")
        cache, self.cache = self.cache, None
        return cache

    def forget(self):
        """Drops what this layer and those in it keep: no backward will come."""
        self.cache = self.attended = None
        for layer in self._parts(Layer):
            layer.forget()

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
        self.keep(cache)
        return y

    def backward(self, dy):
        """dy (N,C); ids have no gradient."""
        (cache,) = self.take()
        if self.w.live:
            embedding.backward(dy, cache, out=self.w.grad)


class Linear(Layer):
    """`name`.weight (in,out) and, unless told otherwise, `name`.bias (out,)."""

    def __init__(self, name, width_in, width_out, layer, scale=INITIAL_SCALE, bias=True):
        self.w = Parameter(f"{name}.weight", (width_in, width_out), layer, True, scale)
        self.b = Parameter(f"{name}.bias", (width_out,), layer, False) if bias else None

    def forward(self, x):
        """x (N,in) -> y (N,out)."""
        y, cache = self.part_forward(x, slice(None))
        self.keep(cache)
        return y

    def backward(self, dy):
        """dy (N,out) -> dx (N,in)."""
        (cache,) = self.take()
        return self.part_backward(dy, cache, slice(None))

    def part_forward(self, x, columns, bias=True):
        """x (N,in) -> the outputs `columns` of y, cache; the caller keeps the cache.

        Without `bias` somebody else adds it, and its gradient.
        """
        b = self.b.value[columns] if bias and self.b is not None else None
        if self.w.low is not None:
            return matmul.forward(x, self.w.low[:, columns], b)
        return linear.forward(x, self.w.value[:, columns], b)

    def part_backward(self, dy, cache, columns, bias=True):
        """dy (N,columns) -> dx (N,in)."""
        bias = bias and self.b is not None and self.b.live
        way, w = linear if self.w.low is None else matmul, cache[1]
        if not (self.w.live or bias):
            return matmul.product(matmul.rounded(dy, w.dtype), w.T)
        out = self.w.first_grad() if columns == slice(None) else None
        dx, dw, db = way.backward(dy, cache, bias, out)
        if out is None and self.w.live:
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
        self.keep(cache)
        return y

    def backward(self, dy):
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.take()
        dx, dw, db = layer_norm.backward(dy, cache)
        self.w.add_grad(dw)
        self.b.add_grad(db)
        return dx


class Dropout(Layer):
    """Dropout of token rows at one site of one layer."""

    def __init__(self, rate, layer, site):
        self.rate, self.layer, self.site = rate, layer, site

    def forward(self, x, stream, texts, positions):
        """x (N,C), the texts' numbers (N,), positions (N,) -> y (N,C); no stream, no dropout."""
        if stream is None or not self.rate:
            self.keep(None)
            return x
        words = random.Tokens(stream, self.layer, self.site, texts, positions)
        y, cache = dropout.forward(x, words, self.rate)
        self.keep(cache)
        return y

    def backward(self, dy):
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.take()
        return dy if cache is None else dropout.backward(dy, cache)
