"""Layers: they hold parameters, keep what the backward needs, and add into the gradients.

Numbers of the layers: 0 the embeddings, 1 + i block i, n_layer + 1 what comes after the blocks.
"""

from math import sqrt

import numpy as np

from minisft import random
from minisft.array import array_module
from minisft.ops import attention, dropout, embedding, gelu, layer_norm, linear
from minisft.parameters import Parameter

INITIAL_SCALE = 0.02


class Layer:
    """Keeps the cache of one forward for one backward."""

    cache = None

    def keep(self, *cache):
        self.cache = cache

    def take(self):
        """-> the kept cache; raises RuntimeError when a backward has used it, or none was kept."""
        if self.cache is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward of its own before")
        cache, self.cache = self.cache, None
        return cache

    def parameters(self):
        """-> the parameters of this layer and of the layers that it holds, in order."""
        found = []
        for part in vars(self).values():
            if isinstance(part, Parameter):
                found.append(part)
            elif isinstance(part, Layer):
                found += part.parameters()
            elif isinstance(part, list):
                found += [p for layer in part for p in layer.parameters()]
        return found


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
        if self.w.grad is not None:
            self.w.add_grad(embedding.backward(dy, cache))


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

    def part_forward(self, x, columns):
        """x (N,in) -> the outputs `columns` of y, cache; the caller keeps the cache."""
        b = None if self.b is None else self.b.value[columns]
        return linear.forward(x, self.w.value[:, columns], b)

    def part_backward(self, dy, cache, columns):
        """dy (N,columns) -> dx (N,in)."""
        live = [p for p in (self.w, self.b) if p is not None and p.grad is not None]
        if not live:
            return dy @ cache[1].T
        dx, dw, db = linear.backward(dy, cache)
        for p, gradient in ((self.w, dw), (self.b, db)):
            if p in live:
                p.grad[..., columns] += gradient
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


class SelfAttention(Layer):
    """`c_attn` makes queries, keys and values at once (C,3C), `c_proj` mixes the heads (C,C)."""

    def __init__(self, name, config, layer):
        width = config.n_embd
        self.c_attn = Linear(f"{name}.c_attn", width, 3 * width, layer)
        self.c_proj = Linear(f"{name}.c_proj", width, width, layer,
                             INITIAL_SCALE / sqrt(2 * config.n_layer))
        self.n_head, self.rate, self.layer = config.n_head, config.attn_pdrop, layer

    def forward(self, x, batch, stream=None, rows=None, past=None):
        """x (N,C) -> y (N,C); with `rows` (B,), each sequence's last, y (B,C) of those rows only.

        `past` (one block's of generate.Past) holds the keys and values of earlier tokens; those
        of this batch are written into it.
        """
        width, heads = x.shape[-1], (self.n_head, x.shape[-1] // self.n_head)
        cu_seqlens, starts, lengths = batch.cu_seqlens, batch.cu_seqlens[:-1], batch.lengths
        if rows is None:
            q, k, v = self.c_attn.forward(x).reshape(len(x), 3, *heads).swapaxes(0, 1)
            parts = None
        else:
            q, q_cache = self.c_attn.part_forward(x[rows], slice(width))
            kv, kv_cache = self.c_attn.part_forward(x, slice(width, None))
            q = q.reshape(-1, *heads)
            k, v = kv.reshape(len(x), 2, *heads).swapaxes(0, 1)
            cu_seqlens, parts = np.arange(len(rows) + 1), (q_cache, kv_cache)
        if past is not None:
            k, v, starts, lengths = past.extend(k, v, batch)
        y, cache = attention.forward(q, k, v, cu_seqlens, starts, lengths, True,
                                     self._dropout(batch, stream, cu_seqlens))
        self.keep(cache, rows, parts)
        return self.c_proj.forward(y.reshape(len(y), -1))

    def backward(self, dy):
        """dy (N,C), or (B,C) after `rows` -> dx (N,C)."""
        cache, rows, parts = self.take()
        dy = self.c_proj.backward(dy)
        xp, width = array_module(dy), dy.shape[-1]
        dq, dk, dv = attention.backward(dy.reshape(cache[0].shape), cache)
        if rows is None:
            return self.c_attn.backward(xp.stack([dq, dk, dv], axis=1).reshape(len(dq), -1))
        q_cache, kv_cache = parts
        dkv = xp.stack([dk, dv], axis=1).reshape(len(dk), -1)
        dx = self.c_attn.part_backward(dkv, kv_cache, slice(width, None))
        dx[rows] += self.c_attn.part_backward(dq.reshape(len(dq), -1), q_cache, slice(width))
        return dx

    def _dropout(self, batch, stream, cu_seqlens):
        if stream is None or not self.rate:
            return None
        return self.rate, random.Scores(stream, self.layer, batch.texts, cu_seqlens, self.n_head)


class MLP(Layer):
    """Two linear maps with GELU between them; the inner width is n_inner."""

    def __init__(self, name, config, layer):
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(f"{name}.c_fc", config.n_embd, inner, layer)
        self.c_proj = Linear(f"{name}.c_proj", inner, config.n_embd, layer,
                             INITIAL_SCALE / sqrt(2 * config.n_layer))
        self.form = config.gelu_form

    def forward(self, x):
        """x (N,C) -> y (N,C)."""
        h, cache = gelu.forward(self.c_fc.forward(x), self.form)
        self.keep(cache)
        return self.c_proj.forward(h)

    def backward(self, dy):
        """dy (N,C) -> dx (N,C)."""
        (cache,) = self.take()
        return self.c_fc.backward(gelu.backward(self.c_proj.backward(dy), cache))


class Block(Layer):
    """A pre-norm Transformer block (Radford et al. 2019, section 2.3)."""

    def __init__(self, name, config, layer):
        eps = config.layer_norm_epsilon
        self.ln_1 = LayerNorm(f"{name}.ln_1", config.n_embd, layer, eps)
        self.attn = SelfAttention(f"{name}.attn", config, layer)
        self.drop_1 = Dropout(config.resid_pdrop, layer, random.ATTENTION_OUT)
        self.ln_2 = LayerNorm(f"{name}.ln_2", config.n_embd, layer, eps)
        self.mlp = MLP(f"{name}.mlp", config, layer)
        self.drop_2 = Dropout(config.resid_pdrop, layer, random.MLP_OUT)

    def forward(self, x, batch, stream=None, rows=None, past=None):
        """x (N,C) -> y (N,C); with `rows` (B,), each sequence's last, y (B,C) of those only."""
        texts, positions = batch.token_texts, batch.positions
        a = self.attn.forward(self.ln_1.forward(x), batch, stream, rows, past)
        self.keep(rows)
        if rows is not None:
            x, texts, positions = x[rows], texts[rows], positions[rows]
        x = x + self.drop_1.forward(a, stream, texts, positions)
        m = self.mlp.forward(self.ln_2.forward(x))
        return x + self.drop_2.forward(m, stream, texts, positions)

    def backward(self, dy):
        """dy (N,C), or (B,C) after `rows` -> dx (N,C)."""
        (rows,) = self.take()
        dy = dy + self.ln_2.backward(self.mlp.backward(self.drop_2.backward(dy)))
        da = self.ln_1.backward(self.attn.backward(self.drop_1.backward(dy)))
        if rows is None:
            return dy + da
        da[rows] += dy
        return da
