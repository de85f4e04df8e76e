"""The encoder-decoder Transformer (Vaswani et al. 2017, "Attention is all you need"), pre-norm.

Names are those of M2M100 (Fan et al. 2020), which `transformers` opens. One table of tokens serves
three times (Press and Wolf 2017): it embeds the source, embeds the target, and makes the logits.
"""

from math import sqrt
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, array_module
from minisft.data.batch import Batch
from minisft.dispatch import cross_entropy, embedding
from minisft.models import logit_blocks
from minisft.models.adapters import LoraConfig
from minisft.models.config import Seq2SeqConfig
from minisft.models.heads import Model, scattered, tied_logits, tied_logits_backward
from minisft.nn.cross_attention import DecoderBlock, EncoderBlock
from minisft.nn.layers import Dropout, Layer, LayerNorm, backward_comes
from minisft.nn.parameters import Parameter
from minisft.ops.cross_entropy import IGNORE


def sinusoids(n: int, width: int) -> np.ndarray:
    """-> the position embeddings 0 to n - 1 (n,C) float64, C even.

    sin(t f) in the first half of the channels, cos(t f) in the second, f from 1 to 1 / 10000: as
    tensor2tensor and M2M100 have them, where Vaswani et al. 2017, section 3.5, alternate the two.
    """
    half = width // 2
    angles = np.arange(n)[:, None] * np.exp(np.arange(half) * -np.log(10000) / (half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class Embeddings(Layer):
    """One side's tokens: y = drop(sqrt(C) w[ids] + s[positions]); the table w is the model's.

    `transformers` counts positions from pad_token_id + 1 on.
    """

    def __init__(self, shared: "SharedTable", config: Seq2SeqConfig, dropout_layer: int):
        self.shared = (shared,)     # a tuple, so that its parameter does not count twice
        self.scale, self.first = sqrt(config.d_model), config.pad_token_id + 1
        self.n_positions = config.max_position_embeddings
        self.sinusoids: Array = None
        self.drop = Dropout(config.dropout, dropout_layer, random.EMBEDDING)

    def forward(self, batch: Batch, stream: random.Stream | None = None) -> Array:
        """Batch of N tokens -> y (N,C)."""
        w = self.shared[0].w.value
        x, cache = embedding.forward(batch.ids, w)
        self.save_for_backward(cache)
        x = x * self.scale + self._positions(w)[batch.positions]
        return self.drop.forward(x, stream, batch.token_example_ids, batch.positions)

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> gradient of the looked-up rows (N,C), which the table adds up."""
        (cache,) = self.pop_saved()
        dx = self.drop.backward(dy) * self.scale
        w = self.shared[0].w
        if w.trainable:
            embedding.backward(dx, cache, out=w.grad)
        return dx

    def _positions(self, like):
        xp, known = array_module(like), self.sinusoids
        if known is None or array_module(known) is not xp or known.dtype != like.dtype:
            rows = sinusoids(self.first + self.n_positions, like.shape[1])[self.first:]
            self.sinusoids = xp.asarray(rows.astype(like.dtype))
        return self.sinusoids


class SharedTable(Layer):
    """The table of tokens (V,C), whose rows begin as N(0, 1 / C)."""

    def __init__(self, config: Seq2SeqConfig):
        self.w = Parameter("shared.weight", (config.vocab_size, config.d_model),
                           config.EMBEDDING_LAYER, True, 1 / sqrt(config.d_model),
                           padded_rows=True)


class Encoder(Layer):
    """y = layer_norm(layers(embeddings)): every token of a source sees every other."""

    def __init__(self, shared: SharedTable, config: Seq2SeqConfig):
        self.embeddings = Embeddings(shared, config, config.EMBEDDING_LAYER)
        self.layers = [EncoderBlock(f"encoder.layers.{i}", config, config.block_layer(i))
                       for i in range(config.encoder_layers)]
        # of the last block's layer: it is trained where that is
        self.layer_norm = LayerNorm("encoder.layer_norm", config.d_model,
                                    config.block_layer(config.encoder_layers - 1),
                                    config.LAYER_NORM_EPS)


class Decoder(Layer):
    """y = layer_norm(layers(embeddings, encoder's y)): a token sees those before it, and all of
    its source."""

    def __init__(self, shared: SharedTable, config: Seq2SeqConfig):
        # the masks of the source's tokens hang on the same positions of the same text
        self.embeddings = Embeddings(shared, config, config.head_layer)
        self.layers = [DecoderBlock(f"decoder.layers.{j}", config,
                                    config.block_layer(config.encoder_layers + j),
                                    config.cross_layer(j))
                       for j in range(config.decoder_layers)]
        self.layer_norm = LayerNorm("decoder.layer_norm", config.d_model, config.final_layer,
                                    config.LAYER_NORM_EPS)


class Seq2Seq(Layer):
    """The table, the encoder and the decoder.

        (1) m = encoder(source)
        (2) y = decoder(target, m)
        (3) dm = sum over the decoder's blocks of each one's dm
    """

    def __init__(self, config: Seq2SeqConfig):
        self.config = config
        self.shared = SharedTable(config)
        self.encoder, self.decoder = Encoder(self.shared, config), Decoder(self.shared, config)

    @property
    def blocks(self) -> list[EncoderBlock | DecoderBlock]:
        """-> all blocks, in the order of their numbers."""
        return [*self.encoder.layers, *self.decoder.layers]

    @property
    def first_trainable_layer(self) -> int:
        """-> the number of the first layer that is trained; the head's where none of these is."""
        if self.shared.w.trainable:     # of the lowest layer of all; a step asks again and again
            return self.shared.w.layer
        return min((p.layer for p in self.parameters() if p.trainable),
                   default=self.config.head_layer)

    def encode(self, source: Batch, stream: random.Stream | None = None) -> Array:
        """Batch of M source tokens -> m (M,C). Frozen layers have no dropout."""
        first = self.first_trainable_layer
        x = self.encoder.embeddings.forward(source, None if first else stream)
        for i, block in enumerate(self.encoder.layers):
            x = block.forward(x, source, stream if self.config.block_layer(i) >= first else None)
            if not backward_comes():
                block.clear_cache()
        return self.encoder.layer_norm.forward(x)                                       # (1)

    def decode(self, batch: Batch, m: Array, stream: random.Stream | None = None,
               state: Any = None) -> Array:
        """Batch of N target tokens, m (M,C) of its source -> y (N,C); state: of earlier tokens."""
        first, before = self.first_trainable_layer, self.config.encoder_layers
        x = self.decoder.embeddings.forward(batch, None if first else stream)
        for j, block in enumerate(self.decoder.layers):
            trained = self.config.block_layer(before + j) >= first
            x = block.forward(x, m, batch, stream if trained else None,
                              None if state is None else state[j])
            if not backward_comes():
                block.clear_cache()
        return self.decoder.layer_norm.forward(x)                                       # (2)

    def backward(self, dy: Array) -> Array:
        """dy (N,C) -> gradient of the embedded target tokens (N,C).

        Stops at the first layer that is trained; returns None unless that is the embeddings.
        """
        first, before = self.first_trainable_layer, self.config.encoder_layers
        dx, dm = self.decoder.layer_norm.backward(dy), None
        for j in reversed(range(len(self.decoder.layers))):
            if self.config.block_layer(before + j) < first:
                break
            dx, d = self.decoder.layers[j].backward(dx)
            dm = d if dm is None else dm + d                                            # (3)
        if first <= self.config.block_layer(before - 1):
            dm = self.encoder.layer_norm.backward(dm)
            for i in reversed(range(before)):
                if self.config.block_layer(i) < first:
                    break
                dm = self.encoder.layers[i].backward(dm)
        if first == self.config.EMBEDDING_LAYER:
            self.encoder.embeddings.backward(dm)
            return self.decoder.embeddings.backward(dx)
        self.clear_cache()     # of the layers that no backward has reached
        return None


class EncoderDecoder(Model):
    """What gives the next token of a target, of all tokens before it and of a source."""

    head_parameters: Any = ()
    overwrites_logits = True     # as LanguageModel

    def __init__(self, config: Any, dtype: Any = np.float32, seed: int | None = 0):
        self.trunk = Seq2Seq(config)
        if dtype is not None:
            self.build(dtype, seed)

    @property
    def output(self) -> str:
        """-> what it gives for a token, as `repr` says it."""
        return f"{self.trunk.config.vocab_size:,} tokens of vocabulary"

    def options(self) -> dict[str, Any]:
        return {"config": self.trunk.config}

    def add_adapter(self, config: LoraConfig, seed: int | None = 0) -> None:
        """Raises ValueError: there are adapters for GPT-2 and BERT alone."""
        raise ValueError("an encoder-decoder has no adapters, expected a GPT-2 or a BERT")

    def received(self, batch: Batch) -> Batch:
        """As `Model.received`, of the source as well.

        Raises ValueError for a batch without a source, or with one of other texts.
        """
        if batch.source is None:
            raise ValueError("the batch has no source, expected one of pack_pairs")
        if not np.array_equal(batch.source.example_ids, batch.example_ids):
            raise ValueError(f"the batch has {len(batch.example_ids)} targets with example_ids "
                             f"{batch.example_ids}, its source has {batch.source.example_ids}")
        super().received(batch.source)
        return super().received(batch)

    def encode(self, source: Batch, stream: random.Stream | None = None) -> Array:
        """Batch of M source tokens -> the encoder's output (M,C)."""
        return self.trunk.encode(super().received(source), stream)

    def next_logits(self, batch: Batch, state: Any) -> Array:
        """Batch of one target token a sequence, translate.DecodingState of those before it and of
        the sources -> logits (B,V) of what follows."""
        hidden = self.trunk.decode(super().received(batch), None, state=state)
        self.trunk.clear_cache()     # no backward comes
        return tied_logits(hidden, self.trunk.shared.w)[0]

    def forward(self, batch: Batch, stream: random.Stream | None = None,
                rows: Array = None) -> Array:
        """Batch with a source -> logits (N,V) of what follows each token, or of some distinct rows.
        """
        self.loss_cache = None     # of an earlier forward, whose layers' caches end here
        batch = self.received(batch)
        source: Any = batch.source
        hidden = self.trunk.decode(batch, self.trunk.encode(source, stream), stream)
        n = len(hidden)
        logits, cache = tied_logits(hidden if rows is None else hidden[rows], self.trunk.shared.w)
        self.save_for_backward(cache, rows, n)
        return logits

    def backward(self, dlogits: Array) -> Array:
        """dlogits as `forward` returned them -> gradient of the embedded target tokens (N,C)."""
        cache, rows, n = self.pop_saved()
        dhidden = tied_logits_backward(dlogits, cache, self.trunk.shared.w)
        return self.trunk.backward(dhidden if rows is None else scattered(dhidden, rows, n))

    def loss(self, batch: Batch, stream: random.Stream | None = None,
             smoothing: float = 0.0) -> tuple[Array, Array, Array]:
        """Batch of pack_pairs -> loss summed over the labels that count, denominator, logits of
        their rows; `loss_backward` overwrites these. `smoothing` of the labels as cross_entropy's.

        Raises ValueError for a label that is no token.
        """
        rows = self._labelled_rows(batch)
        batch = self.received(batch)
        rows = batch.asarray(rows)
        logits = self.forward(batch, stream, rows)
        labels: Any = batch.labels
        (loss, denominator), self.loss_cache = cross_entropy.forward(
            logits, labels[rows], None, smoothing)
        return loss, denominator, logits

    def loss_and_gradients(self, batch: Batch, stream: random.Stream | None = None,
                           scale: float = 1.0, **options: Any) -> tuple[Array, Array]:
        """As `Model`'s; the logits of many rows never exist whole (logit_blocks.py)."""
        rows, table = self._labelled_rows(batch), self.trunk.shared.w
        parts = logit_blocks.blocks(len(rows), self.trunk.config.vocab_size, self.store.xp,
                                    self.store.dtype.itemsize)
        if len(parts) < 2:
            return super().loss_and_gradients(batch, stream, scale, **options)
        self.loss_cache = self.cache = None
        batch = self.received(batch)
        source: Any = batch.source
        hidden = self.trunk.decode(batch, self.trunk.encode(source, stream), stream)
        rows, labels = batch.asarray(rows), batch.labels
        loss, denominator, dhidden = logit_blocks.loss_and_dhidden(
            hidden[rows], labels[rows], parts, lambda h: tied_logits(h, table),
            lambda dlogits, cache: tied_logits_backward(dlogits, cache, table), scale, **options)
        self.trunk.backward(scattered(dhidden, rows, len(hidden)))
        return loss, denominator

    def _labelled_rows(self, batch):
        """-> the rows of a batch that have a label (M,), on the CPU: no waiting for a card."""
        self.require_labels(batch, len(batch.ids), self.trunk.config.vocab_size,
                            "the next token of each token")
        return np.flatnonzero(batch.labels != IGNORE)
