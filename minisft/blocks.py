"""Transformer blocks and what they are made of: self-attention and the MLP."""

from math import sqrt

import numpy as np

from minisft import attention_blocks, attention_groups, cuda, matmul, random
from minisft.array import array_module
from minisft.launch import attention_bfloat16
from minisft.launch import gelu as gelu_kernel
from minisft.layers import INITIAL_SCALE, Dropout, Layer, LayerNorm, Linear
from minisft.ops import attention, gelu


class Attending(Layer):
    """What the self-attentions of all models share: the choice of the way, and dropout.

    A model's sets `n_head`, `rate` (of dropout) and `layer`.
    """

    plain = False     # True: the formula of ops/attention.py alone, to compare with

    def attend(self, q, k, v, batch, stream, causal, rows=None, keys=None):
        """q (Nq,H,D), k and v (Nk,H,D) -> y (Nq,H,D); `attend_back` finds what it needs.

        rows: which tokens of the batch ask, one of each sequence; None for all. keys: starts and
        lengths of the sequences' keys, where they are not the batch's own tokens.
        """
        cu_seqlens = batch.cu_seqlens if rows is None else np.arange(len(rows) + 1)
        longest = int(np.diff(cu_seqlens).max())
        drop = None if stream is None or not self.rate else self.rate
        sequences = self.plain or cuda.chosen(q) != "off"      # ops/attention.py has the kernel
        rest = self._each(batch, stream, causal, rows, keys, cu_seqlens, drop)
        if keys is None and self._on_tensor_cores(q, rest[-1]):
            way = attention_bfloat16.Rounding
        elif not sequences and longest > attention_blocks.SHORT:
            way = attention_blocks     # the scores of long texts grow with the square of the length
        elif not sequences and rows is None and keys is None and array_module(q) is np:
            way, rest = attention_groups, (cu_seqlens, causal, drop and (
                drop, random.GroupScores(stream, self.layer, batch.texts, self.n_head)))
        else:
            way = attention
        y, cache = way.forward(q, k, v, *rest)
        self.attended = way, cache
        return y

    def attend_back(self, dy):
        """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D)."""
        (way, cache), self.attended = self.attended, None
        return way.backward(dy, cache)

    def _on_tensor_cores(self, q, drop):
        low = next(self._parts(Linear)).w.low
        return (low is not None and low.dtype == matmul.BFLOAT16 and not self.plain
                and cuda.chosen(q) == "fused" and attention_bfloat16.Rounding.fits(q, drop))

    def _each(self, batch, stream, causal, rows, keys, cu_seqlens, drop):
        """-> what a way that takes one sequence after the other is told beside q, k and v."""
        starts, lengths = (batch.cu_seqlens[:-1], batch.lengths) if keys is None else keys
        words = drop and random.Scores(stream, self.layer, batch.texts, cu_seqlens, self.n_head,
                                       array_module(batch.ids))
        if drop and not causal and rows is not None:
            asking = batch.positions[rows]     # Scores would count from the end of the text

            def words(b, n_keys):
                return stream.scores(self.layer, batch.texts[b], asking[b:b + 1], self.n_head,
                                     n_keys)

        return cu_seqlens, starts, lengths, causal, drop and (drop, words)


class SelfAttention(Attending):
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
        keys = parts = None
        if rows is None:
            q, k, v = self.c_attn.forward(x).reshape(len(x), 3, *heads).swapaxes(0, 1)
        else:
            q, q_cache = self.c_attn.part_forward(x[rows], slice(width))
            kv, kv_cache = self.c_attn.part_forward(x, slice(width, None))
            q = q.reshape(-1, *heads)
            k, v = kv.reshape(len(x), 2, *heads).swapaxes(0, 1)
            parts = q_cache, kv_cache
        if past is not None:
            k, v, *keys = past.extend(k, v, batch)
        y = self.attend(q, k, v, batch, stream, True, rows, keys)
        self.keep(rows, parts, q.shape)
        return self.c_proj.forward(y.reshape(len(y), -1))

    def backward(self, dy):
        """dy (N,C), or (B,C) after `rows` -> dx (N,C)."""
        rows, parts, shape = self.take()
        dy = self.c_proj.backward(dy)
        xp, width = array_module(dy), dy.shape[-1]
        dq, dk, dv = self.attend_back(dy.reshape(shape))
        if rows is None:
            return self.c_attn.backward(xp.stack([dq, dk, dv], axis=1).reshape(len(dq), -1))
        q_cache, kv_cache = parts
        dkv = xp.stack([dk, dv], axis=1).reshape(len(dk), -1)
        dx = self.c_attn.part_backward(dkv, kv_cache, slice(width, None))
        dx[rows] += self.c_attn.part_backward(dq.reshape(len(dq), -1), q_cache, slice(width))
        return dx


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
        fused = cuda.runs_on(x)     # then GELU's kernel adds the bias, and makes its gradient
        z, to_z = self.c_fc.part_forward(x, slice(None), bias=not fused)
        h, cache = (gelu_kernel.forward(z, self.form, self.c_fc.b.value) if fused else
                    gelu.forward(z, self.form))
        self.keep(cache, to_z, fused)
        return self.c_proj.forward(h)

    def backward(self, dy):
        """dy (N,C) -> dx (N,C)."""
        cache, to_z, fused = self.take()
        dz = (gelu_kernel if fused else gelu).backward(self.c_proj.backward(dy), cache)
        if fused:
            dz, db = dz
            self.c_fc.b.add_grad(db)
        return self.c_fc.part_backward(dz, to_z, slice(None), bias=not fused)


class TransformerBlock(Layer):
    """What all blocks share: with `recompute`, x alone is kept and the block runs again before its
    backward. A block says how it runs in `run` and `run_back`."""

    recompute = False

    def forward(self, x, batch, stream=None, rows=None, past=None):
        """x (N,C) -> y (N,C); with `rows` (B,), one of each sequence, y (B,C) of those only."""
        y = self.run(x, batch, stream, rows, past)
        if self.recompute:
            self.forget()
            self.keep(x, batch, stream, rows)
        return y

    def backward(self, dy):
        """dy (N,C), or (B,C) after `rows` -> dx (N,C)."""
        if self.recompute:
            self.run(*self.take())     # dropout draws the same masks again
        return self.run_back(dy)


class Block(TransformerBlock):
    """A pre-norm Transformer block (Radford et al. 2019, section 2.3); drop: dropout or nothing.

        (1) u = x + drop_1(attn(ln_1(x)))
        (2) y = u + drop_2(mlp(ln_2(u)))
        (3) du = dy + ln_2'(mlp'(drop_2'(dy)))      f'(dy): the backward of f
        (4) dx = du + ln_1'(attn'(drop_1'(du)))
    """

    def __init__(self, name, config, layer):
        eps = config.layer_norm_epsilon
        self.ln_1 = LayerNorm(f"{name}.ln_1", config.n_embd, layer, eps)
        self.attn = SelfAttention(f"{name}.attn", config, layer)
        self.drop_1 = Dropout(config.resid_pdrop, layer, random.ATTENTION_OUT)
        self.ln_2 = LayerNorm(f"{name}.ln_2", config.n_embd, layer, eps)
        self.mlp = MLP(f"{name}.mlp", config, layer)
        self.drop_2 = Dropout(config.resid_pdrop, layer, random.MLP_OUT)

    def run(self, x, batch, stream, rows, past=None):
        """As `forward`."""
        texts, positions = batch.token_texts, batch.positions
        a = self.attn.forward(self.ln_1.forward(x), batch, stream, rows, past)
        self.keep(rows)
        if rows is not None:
            x, texts, positions = x[rows], texts[rows], positions[rows]
        x = x + self.drop_1.forward(a, stream, texts, positions)                          # (1)
        m = self.mlp.forward(self.ln_2.forward(x))
        return x + self.drop_2.forward(m, stream, texts, positions)                       # (2)

    def run_back(self, dy):
        """As `backward`."""
        (rows,) = self.take()
        dy = dy + self.ln_2.backward(self.mlp.backward(self.drop_2.backward(dy)))         # (3)
        da = self.ln_1.backward(self.attn.backward(self.drop_1.backward(dy)))
        if rows is None:
            return dy + da                                                                # (4)
        da[rows] += dy
        return da
