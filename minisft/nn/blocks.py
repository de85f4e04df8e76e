"""Transformer blocks and what they are made of: self-attention and the MLP."""

from math import sqrt
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, array_module, side_by_side
from minisft.dispatch import (
    attention,
    attention_in_16_bits,
    dispatched,
    gelu,
    gelu_adds_bias,
    rounded,
    sums_before_norm,
)
from minisft.nn.layers import Dropout, Layer, LayerNorm, Linear
from minisft.nn.lora import LoraLinear


class MultiHeadAttention(Layer):
    """What the self-attentions of all models share: dropout's words, and which keys are asked."""

    n_head: int
    rate: float     # of dropout
    layer: int

    def attend(self, q: Array, k: Array, v: Array, batch: Any, stream: random.Stream | None,
               causal: bool, rows: Array = None, keys: Any = None) -> Array:
        """q (Nq,H,D), k and v (Nk,H,D) -> y (Nq,H,D); `attend_backward` finds what it needs.

        rows: which tokens of the batch ask, the last of each sequence or, without a causal mask,
        the first; None for all. keys: starts and lengths of the sequences' keys, where they are not
        the batch's own tokens.
        """
        cu_seqlens = batch.cu_seqlens if rows is None else batch.edges_of_one_each
        starts, lengths = (batch.starts, batch.lengths) if keys is None else keys
        drop = None
        if stream is not None and self.rate:
            drop = self.rate, random.Scores(
                dispatched(stream), self.layer, batch.example_ids, cu_seqlens, self.n_head,
                array_module(batch.ids), rows is not None and not causal, lengths)
        weight = next(self._parts(Linear)).w     # those of a model are of one kind
        y, self.attended = attention.forward(
            q, k, v, cu_seqlens, starts, lengths, causal, drop,
            compute_dtype=weight.compute_dtype)
        return y

    def attend_backward(self, dy: Array, out: Any = None) -> tuple[Array, Array, Array]:
        """dy (Nq,H,D) -> dq (Nq,H,D), dk and dv (Nk,H,D); `out`: where kernels of 16 bits put them.
        """
        cache, self.attended = self.attended, None
        options = {} if out is None else {"out": out}
        return attention.backward(dy, cache, **options)


class SelfAttention(MultiHeadAttention):
    """`c_attn` makes queries, keys and values at once (C,3C), `c_proj` mixes the heads (C,C)."""

    def __init__(self, name: str, config: Any, layer: int):
        width, scale = config.n_embd, config.initializer_range
        self.c_attn = Linear(f"{name}.c_attn", width, 3 * width, layer, scale)
        self.c_proj = Linear(f"{name}.c_proj", width, width, layer,
                             scale / sqrt(2 * config.n_layer))
        self.n_head, self.rate, self.layer = config.n_head, config.attn_pdrop, layer

    def forward(self, x: Array, batch: Any, stream: random.Stream | None = None,
                rows: Array = None, kv_cache: Any = None, bias: bool = True) -> Array:
        """x (N,C) -> y (N,C); with `rows` (B,), each sequence's last, y (B,C) of those rows only.

        `kv_cache` (one block's of generate.KVCache) holds the keys and values of earlier tokens;
        those of this batch are written into it. Without `bias` somebody else adds that of c_proj.
        """
        if kv_cache is not None and kv_cache.decodes:     # q, k and v are read where they lie
            y = kv_cache.attend(self.c_attn.forward(x), self.c_proj.input_dtype)
            return self.c_proj.forward(y, bias)
        width, heads = x.shape[-1], (self.n_head, x.shape[-1] // self.n_head)
        keys = parts = None
        # then q, k and v are stored in 16 bits, and y goes on as it is to the product
        low = (kv_cache is None or kv_cache.packed) and self.c_proj.input_dtype is not None and \
            attention_in_16_bits(self.c_attn.b.value, heads[1], self.c_attn.w.compute_dtype)
        dtype = self.c_attn.w.compute_dtype if low else None
        low = low and self.c_attn.gives_16_bits     # else two maps are added first
        if rows is None:
            qkv = rounded(self.c_attn.forward(x, round_y=low), dtype)
            q, k, v = qkv.reshape(len(x), 3, *heads).swapaxes(0, 1)
        else:
            q, q_saved = self.c_attn.forward_columns(x[rows], slice(width), round_y=low)
            kv, kv_saved = self.c_attn.forward_columns(x, slice(width, None), round_y=low)
            q, kv = rounded(q, dtype).reshape(-1, *heads), rounded(kv, dtype)
            k, v = kv.reshape(len(x), 2, *heads).swapaxes(0, 1)
            parts = q_saved, kv_saved
        if kv_cache is not None:
            k, v, *keys = kv_cache.extend(k, v, batch)
        y = self.attend(q, k, v, batch, stream, True, rows, keys)
        self.save_for_backward(rows, parts, q.shape, len(x), bias, dtype)
        return self.c_proj.forward(y.reshape(len(y), -1), bias)

    def backward(self, dy: Array, needs_dx: bool = True) -> Array:
        """dy (N,C), or (B,C) after `rows` -> dx (N,C); None as `Linear`'s."""
        rows, parts, shape, n, bias, dtype = self.pop_saved()
        dy = rounded(self.c_proj.backward(dy, bias=bias, round_dx=dtype is not None), dtype)
        xp, width = array_module(dy), dy.shape[-1]
        if dtype is None:
            dq, *dkv = self.attend_backward(dy.reshape(shape))
            whole = side_by_side(*([dq, *dkv] if rows is None else dkv))
        else:     # the kernels write where the product reads
            stored = dtype if self.c_attn.gives_16_bits else np.float32
            whole = xp.empty((n, 3 if rows is None else 2, *shape[1:]), dtype=stored)
            *dq, dk, dv = whole.swapaxes(0, 1)
            dq = dq[0] if dq else xp.empty(shape, dtype=stored)
            self.attend_backward(dy.reshape(shape), out=(dq, dk, dv))
        if rows is None:
            return self.c_attn.backward(whole.reshape(n, -1), needs_dx)
        q_saved, kv_saved = parts
        dkv = whole.reshape(n, -1)
        dx = self.c_attn.backward_columns(dkv, kv_saved, slice(width, None), needs_dx=needs_dx)
        dx_q = self.c_attn.backward_columns(dq.reshape(len(dq), -1), q_saved, slice(width),
                                            needs_dx=needs_dx)
        if dx is not None:
            dx[rows] += dx_q
        return dx


class MLP(Layer):
    """Two linear maps with GELU between them; the inner width is n_inner.

    A backward needs three arrays of that width: GELU's input, its output and what its formula
    keeps. Where that is cheap the input alone is kept, and GELU runs again; but not where an
    adapter keeps the output anyway and GELU nothing more.
    """

    def __init__(self, name: str, config: Any, layer: int):
        inner, scale = config.n_inner or 4 * config.n_embd, config.initializer_range
        self.c_fc = Linear(f"{name}.c_fc", config.n_embd, inner, layer, scale)
        self.c_proj = Linear(f"{name}.c_proj", inner, config.n_embd, layer,
                             scale / sqrt(2 * config.n_layer))
        self.form = config.gelu_form

    def forward(self, x: Array, bias: bool = True) -> Array:
        """x (N,C) -> y (N,C); without `bias` somebody else adds that of c_proj."""
        low = self.c_fc.gives_16_bits and self.c_proj.gives_16_bits
        # then its backward makes the bias's gradient
        fused = gelu_adds_bias(self.c_fc.b.value, self.c_fc.w.compute_dtype if low else None)
        low = low and fused     # it reads and writes what two products of 16 bits store
        z, to_z = self.c_fc.forward_columns(x, slice(None), bias=not fused, round_y=low)
        h, cache = (gelu.forward(z, self.form, self.c_fc.b.value) if fused else
                    gelu.forward(z, self.form))
        y = self.c_proj.forward(h, bias)
        # erf costs NumPy a tenth of the block's products, the other ways 2% at most
        again = not fused and (
            not self.c_proj.keeps_input if cache.implementation.name == "compiled" else
            self.form == "tanh")
        if again:
            self.c_proj.forget_input()
        self.save_for_backward(z if again else cache, to_z, fused, low, bias, again)
        return y

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> dx (N,C)."""
        kept, to_z, fused, low, bias, again = self.pop_saved()
        cache = kept
        if again:
            h, cache = gelu.forward(kept, self.form)
            self.c_proj.recall_input(h)
            del h     # so that the product's backward frees it
        dh = self.c_proj.backward(dy, bias=bias, round_dx=low)
        if not fused:
            dz = gelu.backward(dh, cache)
        elif (out := self.c_fc.b.first_grad()) is not None:
            dz, _ = gelu.backward(dh, cache, out=out)
        else:
            dz, db = gelu.backward(dh, cache)
            self.c_fc.b.add_grad(db)
        return self.c_fc.backward_columns(dz, to_z, slice(None), bias=not fused)


class TransformerBlock(Layer):
    """What all blocks share: with `gradient_checkpointing`, x alone is saved and the block runs
    again before its backward. A block says how it runs in `run` and `run_backward`."""

    gradient_checkpointing = False
    # its linear maps that have one; a tuple, so that they do not count as parts twice
    adapters: tuple[LoraLinear, ...] = ()

    def run(self, x: Array, batch: Any, stream: random.Stream | None, rows: Array,
            kv_cache: Any = None) -> Array:
        """As `forward`."""
        raise NotImplementedError

    def run_backward(self, dy: Array, needs_dx: bool) -> Array:
        """As `backward`."""
        raise NotImplementedError

    def forward(self, x: Array, batch: Any, stream: random.Stream | None = None,
                rows: Array = None, kv_cache: Any = None) -> Array:
        """x (N,C) -> y (N,C); with `rows` (B,), one of each sequence, y (B,C) of those only."""
        y = self._run(x, batch, stream, rows, kv_cache)
        if self.gradient_checkpointing:
            self.clear_cache()
            self.save_for_backward(x, batch, stream, rows)
        return y

    def backward(self, dy: Array, needs_dx: bool = True) -> Array:
        """dy (N,C), or (B,C) after `rows` -> dx (N,C), or None where nobody needs it and that saves
        work."""
        if self.gradient_checkpointing:
            self._run(*self.pop_saved())     # dropout draws the same masks again
        return self.run_backward(dy, needs_dx)

    def _run(self, x, batch, stream, rows, kv_cache=None):
        for adapter in self.adapters:
            adapter.begin(batch, stream, rows)
        y = self.run(x, batch, stream, rows, kv_cache)
        for adapter in self.adapters:
            adapter.begin(None, None, None)     # the batch may hold what frozen layers gave
        return y


class Block(TransformerBlock):
    """A pre-norm Transformer block (Radford et al. 2019, section 2.3); drop: dropout or nothing.

        (1) u = x + drop_1(attn(ln_1(x)))
        (2) y = u + drop_2(mlp(ln_2(u)))
        (3) du = dy + ln_2'(mlp'(drop_2'(dy)))      f'(dy): the backward of f
        (4) dx = du + ln_1'(attn'(drop_1'(du)))
    """

    def __init__(self, name: str, config: Any, layer: int):
        eps = config.layer_norm_epsilon
        self.ln_1 = LayerNorm(f"{name}.ln_1", config.n_embd, layer, eps)
        self.attn = SelfAttention(f"{name}.attn", config, layer)
        self.drop_1 = Dropout(config.resid_pdrop, layer, random.ATTENTION_OUT)
        self.ln_2 = LayerNorm(f"{name}.ln_2", config.n_embd, layer, eps)
        self.mlp = MLP(f"{name}.mlp", config, layer)
        self.drop_2 = Dropout(config.resid_pdrop, layer, random.MLP_OUT)

    def run(self, x: Array, batch: Any, stream: random.Stream | None, rows: Array,
            kv_cache: Any = None) -> Array:
        """As `forward`."""
        example_ids, positions = batch.token_example_ids, batch.positions
        x, y = self.ln_1.of_sum(x, self.attn.c_attn.input_dtype)
        # a kernel of the next norm adds residual and bias; a block that runs again hands on x alone
        late = sums_before_norm(x) is not None
        last = late and not self.gradient_checkpointing
        a = self.attn.forward(y, batch, stream, rows, kv_cache, bias=not late)
        self.save_for_backward(rows, late)
        if rows is not None:
            x, example_ids, positions = x[rows], example_ids[rows], positions[rows]
        x = self.drop_1.added(x, a, self.attn.c_proj, stream, example_ids, positions,
                              bias_is_in=not late)                                          # (1)
        x, y = self.ln_2.of_sum(x, self.mlp.c_fc.input_dtype)
        m = self.mlp.forward(y, bias=not last)
        return self.drop_2.added(x, m, self.mlp.c_proj, stream, example_ids, positions,
                                 bias_is_in=not last)                                       # (2)

    def run_backward(self, dy: Any, needs_dx: bool) -> Any:
        """As `backward`."""
        rows, late = self.pop_saved()
        dy, dm = self.drop_2.behind(dy)
        dy, da = self.drop_1.behind(self.ln_2.backward(self.mlp.backward(dm), dy))       # (3)
        needs_dx = needs_dx or any(p.trainable for p in self.ln_1.parameters())
        da = self.attn.backward(da, needs_dx)
        if da is None:
            self.ln_1.clear_cache()
            return None
        if rows is None:
            return self.ln_1.backward(da, dy)                                            # (4)
        if late:
            residual = array_module(da).zeros_like(da)
            residual[rows] = dy
            return self.ln_1.backward(da, residual)
        da = self.ln_1.backward(da)
        da[rows] += dy
        return da
