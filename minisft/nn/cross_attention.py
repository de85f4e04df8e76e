"""Attention between two texts, and the two blocks of an encoder-decoder (Vaswani et al. 2017).

Both blocks are pre-norm, as those of GPT-2 and of M2M100 (Fan et al. 2020).
"""

from math import sqrt
from typing import Any

from minisft.backend import random
from minisft.backend.array import Array
from minisft.nn import blocks
from minisft.nn.blocks import MultiHeadAttention, TransformerBlock
from minisft.nn.layers import Dropout, Layer, LayerNorm, Linear


def xavier_linear(name: str, width_in: int, width_out: int, layer: int) -> Linear:
    """-> Linear whose initial values are N(0, 2 / (in + out)) (Glorot and Bengio 2010, eq. 16)."""
    return Linear(name, width_in, width_out, layer, sqrt(2 / (width_in + width_out)))


class Attention(MultiHeadAttention):
    """Rows of x ask, rows of m are asked: x's own text, or another text of another length.

        (1) q = x Wq + bq,   k = m Wk + bk,   v = m Wv + bv
        (2) y = attention(q, k, v) Wo + bo
        (3) dx = dq Wq^T
        (4) dm = dk Wk^T + dv Wv^T      dk and dv sum over the queries of the other text

    `dropout_layer` tells its masks from those of another attention of the same block.
    """

    def __init__(self, name: str, config: Any, layer: int, n_head: int, causal: bool,
                 dropout_layer: int):
        width = config.d_model
        self.k_proj = xavier_linear(f"{name}.k_proj", width, width, layer)
        self.v_proj = xavier_linear(f"{name}.v_proj", width, width, layer)
        self.q_proj = xavier_linear(f"{name}.q_proj", width, width, layer)
        self.out_proj = xavier_linear(f"{name}.out_proj", width, width, layer)
        self.n_head, self.causal = n_head, causal
        self.rate, self.layer = config.attention_dropout, dropout_layer

    def project(self, m: Array) -> tuple[Array, Array]:
        """m (M,C) -> k, v (M,H,D)."""
        k, v = (layer.forward(m).reshape(len(m), self.n_head, -1)                       # (1)
                for layer in (self.k_proj, self.v_proj))
        return k, v

    def forward(self, x: Array, k: Array, v: Array, batch: Any,
                stream: random.Stream | None = None, keys: Any = None) -> Array:
        """x (N,C), k and v (M,H,D) of `project` -> y (N,C).

        keys: starts and lengths of each sequence's keys; None: those of x's own sequences.
        """
        q = self.q_proj.forward(x).reshape(len(x), self.n_head, -1)                     # (1)
        y = self.attend(q, k, v, batch, stream, self.causal, keys=keys)
        return self.out_proj.forward(y.reshape(len(y), -1))                             # (2)

    def backward(self, dy: Array) -> tuple[Array, Array]:
        """dy (N,C) -> dx (N,C), dm (M,C)."""
        dy = self.out_proj.backward(dy).reshape(len(dy), self.n_head, -1)
        dq, dk, dv = (d.reshape(len(d), -1) for d in self.attend_backward(dy))
        dm = self.k_proj.backward(dk) + self.v_proj.backward(dv)                        # (4)
        return self.q_proj.backward(dq), dm                                             # (3)


class MLP(blocks.MLP):
    """GPT-2's, under the names of M2M100."""

    def __init__(self, name: str, config: Any, layer: int, inner: int):
        self.c_fc = xavier_linear(f"{name}.fc1", config.d_model, inner, layer)
        self.c_proj = xavier_linear(f"{name}.fc2", inner, config.d_model, layer)
        self.form = config.gelu_form


class EncoderBlock(TransformerBlock):
    """A pre-norm block whose tokens all see each other; drop: dropout or nothing.

        (1) u = x + drop_1(self_attn(self_attn_layer_norm(x)))
        (2) y = u + drop_2(mlp(final_layer_norm(u)))
    """

    def __init__(self, name: str, config: Any, layer: int):
        width, eps = config.d_model, config.LAYER_NORM_EPS
        self.self_attn = Attention(f"{name}.self_attn", config, layer,
                                   config.encoder_attention_heads, False, layer)
        self.self_attn_layer_norm = LayerNorm(f"{name}.self_attn_layer_norm", width, layer, eps)
        self.drop_1 = Dropout(config.dropout, layer, random.ATTENTION_OUT)
        self.mlp = MLP(name, config, layer, config.encoder_ffn_dim)
        self.final_layer_norm = LayerNorm(f"{name}.final_layer_norm", width, layer, eps)
        self.drop_2 = Dropout(config.dropout, layer, random.MLP_OUT)

    def run(self, x: Array, batch: Any, stream: random.Stream | None, rows: Array = None,
            kv_cache: Any = None) -> Array:
        """As `forward`; all rows, and no cache of keys."""
        example_ids, positions = batch.token_example_ids, batch.positions
        h = self.self_attn_layer_norm.forward(x)
        a = self.self_attn.forward(h, *self.self_attn.project(h), batch, stream)
        x = x + self.drop_1.forward(a, stream, example_ids, positions)                  # (1)
        m = self.mlp.forward(self.final_layer_norm.forward(x))
        return x + self.drop_2.forward(m, stream, example_ids, positions)               # (2)

    def run_backward(self, dy: Array, needs_dx: bool = True) -> Array:
        """As `backward`."""
        dy = dy + self.final_layer_norm.backward(
            self.mlp.backward(self.drop_2.backward(dy)))
        dq, dm = self.self_attn.backward(self.drop_1.backward(dy))
        return dy + self.self_attn_layer_norm.backward(dq + dm)


class DecoderBlock(Layer):
    """A pre-norm block that reads its own text up to each token, and all of another text m.

        (1) u = x + drop_1(self_attn(self_attn_layer_norm(x)))
        (2) w = u + drop_2(encoder_attn(encoder_attn_layer_norm(u), m))
        (3) y = w + drop_3(mlp(final_layer_norm(w)))
        (4) dw = dy + final_layer_norm'(mlp'(drop_3'(dy)))      f'(dy): the backward of f
        (5) du = dw + encoder_attn_layer_norm'(dq),   dq, dm = encoder_attn'(drop_2'(dw))
        (6) dx = du + self_attn_layer_norm'(self_attn'(drop_1'(du)))
    """

    gradient_checkpointing = False     # as that of TransformerBlock

    def __init__(self, name: str, config: Any, layer: int, cross_layer: int):
        width, eps, heads = config.d_model, config.LAYER_NORM_EPS, config.decoder_attention_heads
        self.self_attn = Attention(f"{name}.self_attn", config, layer, heads, True, layer)
        self.drop_1 = Dropout(config.dropout, layer, random.ATTENTION_OUT)
        self.self_attn_layer_norm = LayerNorm(f"{name}.self_attn_layer_norm", width, layer, eps)
        self.encoder_attn = Attention(f"{name}.encoder_attn", config, layer, heads, False,
                                      cross_layer)
        self.drop_2 = Dropout(config.dropout, cross_layer, random.ATTENTION_OUT)
        self.encoder_attn_layer_norm = LayerNorm(f"{name}.encoder_attn_layer_norm", width, layer,
                                                 eps)
        self.mlp = MLP(name, config, layer, config.decoder_ffn_dim)
        self.drop_3 = Dropout(config.dropout, layer, random.MLP_OUT)
        self.final_layer_norm = LayerNorm(f"{name}.final_layer_norm", width, layer, eps)

    def forward(self, x: Array, m: Array, batch: Any,
                stream: random.Stream | None = None, state: Any = None) -> Array:
        """x (N,C) of the batch, m (M,C) of its source -> y (N,C).

        state (one block's of seq2seq.DecodingState) holds the keys and values of earlier tokens
        and of m, which is then not asked for.
        """
        y = self._run(x, m, batch, stream, state)
        if self.gradient_checkpointing:
            self.clear_cache()
            self.save_for_backward(x, m, batch, stream)
        return y

    def backward(self, dy: Array) -> tuple[Array, Array]:
        """dy (N,C) -> dx (N,C), dm (M,C)."""
        if self.gradient_checkpointing:
            self._run(*self.pop_saved())     # dropout draws the same masks again
        dy = dy + self.final_layer_norm.backward(
            self.mlp.backward(self.drop_3.backward(dy)))                                # (4)
        dq, dm = self.encoder_attn.backward(self.drop_2.backward(dy))
        dy = dy + self.encoder_attn_layer_norm.backward(dq)                             # (5)
        dq, dkv = self.self_attn.backward(self.drop_1.backward(dy))
        return dy + self.self_attn_layer_norm.backward(dq + dkv), dm                    # (6)

    def _run(self, x, m, batch, stream, state=None):
        example_ids, positions = batch.token_example_ids, batch.positions
        h, keys = self.self_attn_layer_norm.forward(x), None
        k, v = self.self_attn.project(h)
        if state is not None:
            k, v, *keys = state.extend(k, v, batch)
        a = self.self_attn.forward(h, k, v, batch, stream, keys)
        x = x + self.drop_1.forward(a, stream, example_ids, positions)                  # (1)
        if state is None:
            k, v = self.encoder_attn.project(m)
            keys = batch.source.cu_seqlens[:-1], batch.source.lengths
        else:
            k, v, *keys = state.of_source()
        a = self.encoder_attn.forward(self.encoder_attn_layer_norm.forward(x), k, v, batch, stream,
                                      keys)
        x = x + self.drop_2.forward(a, stream, example_ids, positions)                  # (2)
        h = self.mlp.forward(self.final_layer_norm.forward(x))
        return x + self.drop_3.forward(h, stream, example_ids, positions)               # (3)
