"""BERT (Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers").

A block is post-norm (Vaswani et al. 2017, section 5.4): y = LayerNorm(x + f(x)), twice, and every
token sees every other. Names are BERT's own, so a name in the code is a name in the file.
"""

from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, array_module, side_by_side
from minisft.data.batch import Batch
from minisft.dispatch import sums_before_norm
from minisft.models.config import BertConfig
from minisft.models.trunk import Trunk
from minisft.nn import blocks
from minisft.nn.blocks import MultiHeadAttention, TransformerBlock
from minisft.nn.layers import Dropout, Embedding, Layer, LayerNorm, Linear
from minisft.nn.lora import backward_together, forward_together, merges_together


class Embeddings(Layer):
    """Token, position and type of each token, summed, then LayerNorm."""

    def __init__(self, name: str, config: BertConfig):
        width, layer = config.hidden_size, config.EMBEDDING_LAYER
        self.word = Embedding(f"{name}.word_embeddings", config.vocab_size, width, layer)
        self.position = Embedding(f"{name}.position_embeddings", config.max_position_embeddings,
                                  width, layer)
        self.type = Embedding(f"{name}.token_type_embeddings", config.type_vocab_size, width,
                              layer)
        self.norm = LayerNorm(f"{name}.LayerNorm", width, layer, config.layer_norm_eps)
        self.drop = Dropout(config.hidden_dropout_prob, layer, random.EMBEDDING)

    def forward(self, batch: Batch, stream: random.Stream | None = None) -> Array:
        """Batch of N tokens -> y (N,C)."""
        types = batch.asarray(np.zeros(len(batch.ids), int)) if batch.types is None else batch.types
        x = self.word.forward(batch.ids, batch.id_order) + self.type.forward(types,
                                                                            batch.type_order)
        x = self.norm.forward(x + self.position.forward(batch.positions, batch.position_order))
        return self.drop.forward(x, stream, batch.token_example_ids, batch.positions)

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> gradient of the sum before the norm (N,C)."""
        dx = self.norm.backward(self.drop.backward(dy))
        self.position.backward(dx)
        self.type.backward(dx)
        self.word.backward(dx)
        return dx


class SelfAttention(MultiHeadAttention):
    """Every token attends to every token of its sequence; four maps (C,C)."""

    def __init__(self, name: str, config: BertConfig, layer: int):
        width = config.hidden_size
        self.query = Linear(f"{name}.self.query", width, width, layer)
        self.key = Linear(f"{name}.self.key", width, width, layer)
        self.value = Linear(f"{name}.self.value", width, width, layer)
        self.dense = Linear(f"{name}.output.dense", width, width, layer)
        self.n_head, self.layer = config.num_attention_heads, layer
        self.rate = config.attention_probs_dropout_prob

    def forward(self, x: Array, batch: Batch, stream: random.Stream | None = None,
                rows: Array = None, bias: bool = True) -> Array:
        """x (N,C) -> y (N,C); with `rows` (B,), one of each sequence, y (B,C) of those only.

        Without `bias` somebody else adds that of `dense`.
        """
        maps = self.query, self.key, self.value
        together = None
        if rows is None and merges_together(maps, x):
            qkv, together = forward_together(maps, x)
            q, k, v = qkv.reshape(len(x), 3, self.n_head, -1).swapaxes(0, 1)
        else:
            asking = x if rows is None else x[rows]
            q, k, v = (layer.forward(part).reshape(len(part), self.n_head, -1)
                       for layer, part in zip(maps, (asking, x, x), strict=True))
        y = self.attend(q, k, v, batch, stream, False, rows)
        self.save_for_backward(rows, together, bias)
        return self.dense.forward(y.reshape(len(y), -1), bias)

    def backward(self, dy: Array, needs_dx: bool = True) -> Array:
        """dy (N,C), or (B,C) after `rows` -> dx (N,C); None as `Linear`'s."""
        rows, together, bias = self.pop_saved()
        dy = self.dense.backward(dy, bias=bias)
        gradients = self.attend_backward(dy.reshape(len(dy), self.n_head, -1))
        if together is not None:
            dy = side_by_side(*gradients).reshape(len(dy), -1)
            return backward_together(dy, together, needs_dx)
        dq, dk, dv = (d.reshape(len(d), -1) for d in gradients)
        dx_k, dx_v, dx_q = (layer.backward(d, needs_dx) for layer, d in (
            (self.key, dk), (self.value, dv), (self.query, dq)))
        if dx_k is None or dx_v is None or dx_q is None:
            return None
        dx = dx_k + dx_v
        dx[slice(None) if rows is None else rows] += dx_q
        return dx


class MLP(blocks.MLP):
    """GPT-2's, under BERT's names."""

    def __init__(self, name: str, config: BertConfig, layer: int):
        width, inner = config.hidden_size, config.intermediate_size
        self.c_fc = Linear(f"{name}.intermediate.dense", width, inner, layer)
        self.c_proj = Linear(f"{name}.output.dense", inner, width, layer)
        self.form = config.gelu_form


class Block(TransformerBlock):
    """A post-norm Transformer block."""

    def __init__(self, name: str, config: BertConfig, layer: int):
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(f"{name}.attention", config, layer)
        self.drop_1 = Dropout(config.hidden_dropout_prob, layer, random.ATTENTION_OUT)
        self.norm_1 = LayerNorm(f"{name}.attention.output.LayerNorm", width, layer, eps)
        self.mlp = MLP(name, config, layer)
        self.drop_2 = Dropout(config.hidden_dropout_prob, layer, random.MLP_OUT)
        self.norm_2 = LayerNorm(f"{name}.output.LayerNorm", width, layer, eps)

    def run(self, x: Array, batch: Batch, stream: random.Stream | None, rows: Array,
            kv_cache: Any = None) -> Array:
        """As `forward`; there is no cache of keys."""
        example_ids, positions = batch.token_example_ids, batch.positions
        late = sums_before_norm(x) is not None     # a norm adds residual and bias
        a = self.attention.forward(x, batch, stream, rows, bias=not late)
        self.save_for_backward(rows)
        if rows is not None:
            x, example_ids, positions = x[rows], example_ids[rows], positions[rows]
        _, x = self.norm_1.of_sum(self.drop_1.added(
            x, a, self.attention.dense, stream, example_ids, positions, bias_is_in=not late))
        m = self.mlp.forward(x, bias=not late)
        return self.norm_2.of_sum(self.drop_2.added(
            x, m, self.mlp.c_proj, stream, example_ids, positions, bias_is_in=not late))[1]

    def run_backward(self, dy: Array, needs_dx: bool) -> Array:
        """As `backward`."""
        (rows,) = self.pop_saved()
        dy, dm = self.drop_2.behind(self.norm_2.backward(dy))
        dy, da = self.drop_1.behind(self.norm_1.backward(dy + self.mlp.backward(dm)))
        dx = self.attention.backward(da, needs_dx)
        if dx is None:
            return None
        dx[slice(None) if rows is None else rows] += dy
        return dx


class Pooler(Layer):
    """y = tanh(x @ w + b) of the first token of each sequence (Devlin et al. 2019, figure 1)."""

    def __init__(self, name: str, config: BertConfig):
        self.dense = Linear(f"{name}.dense", config.hidden_size, config.hidden_size,
                            config.final_layer)

    def forward(self, first: Array, batch: Batch) -> Array:
        """first (B,C), of the first tokens -> y (B,C)."""
        y = array_module(first).tanh(self.dense.forward(first))
        self.save_for_backward(y)
        return y

    def backward(self, dy: Array) -> Array:
        """dy (B,C) -> dfirst (B,C)."""
        (y,) = self.pop_saved()
        return self.dense.backward(dy * (1 - y * y))


class MeanPooler(Layer):
    """The mean of each sequence's tokens, [CLS] and [SEP] among them; no parameters."""

    def forward(self, hidden: Array, batch: Batch) -> Array:
        """hidden (N,C) -> y (B,C)."""
        xp = array_module(hidden)
        lengths = batch.asarray(batch.lengths)
        self.save_for_backward(lengths)
        return xp.add.reduceat(hidden, batch.first, axis=0) / lengths[:, None].astype(hidden.dtype)

    def backward(self, dy: Array) -> Array:
        """dy (B,C) -> dhidden (N,C)."""
        (lengths,) = self.pop_saved()
        xp = array_module(dy)
        return xp.repeat(dy / lengths[:, None].astype(dy.dtype), lengths, axis=0)


class Bert(Trunk):
    """Embeddings and blocks; a head of `heads.py` goes on top."""

    def __init__(self, config: BertConfig):
        self.config = config
        self.embeddings = Embeddings("embeddings", config)
        self.blocks = [Block(f"encoder.layer.{i}", config, layer=config.block_layer(i))
                       for i in range(config.n_layer)]

    def embed(self, batch: Batch, stream: random.Stream | None) -> Array:
        """Batch of N tokens -> x (N,C)."""
        return self.embeddings.forward(batch, stream)

    def pooled_rows(self, batch: Batch) -> Array:
        """-> the row of each sequence that the pooler reads (B,): its first token."""
        return batch.first

    def forward(self, batch: Batch, stream: random.Stream | None = None,
                first_only: bool = False) -> Array:
        """Batch of N tokens -> hidden (N,C), or (B,C) of each sequence's first token only.

        `stream` (random.Stream) turns dropout on in the layers that are trained.
        """
        return self.run_blocks(batch, stream, first_only)

    def backward(self, dy: Array) -> Array:
        """dhidden (N,C) or (B,C) -> gradient of the embedded tokens (N,C).

        Stops at the first layer that is trained; returns None unless that is the embeddings.
        """
        first_trainable = self.first_trainable_layer
        if first_trainable > self.config.n_layer:
            return None
        dx = self.run_backward(dy)
        return self.embeddings.backward(dx) if first_trainable == 0 else None


def count(config: Any) -> int:
    """-> parameters of the trunk and the pooler, as the published numbers have them."""
    c, inner = config.hidden_size, config.intermediate_size
    tables = (config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2) * c
    block = 4 * c * c + 2 * c * inner + inner + 9 * c
    return tables + config.num_hidden_layers * block + c * c + c
