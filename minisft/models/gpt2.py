"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners")."""

from typing import Any

from minisft.backend import random
from minisft.backend.array import Array
from minisft.data.batch import Batch
from minisft.models.config import GPT2Config
from minisft.models.trunk import Trunk
from minisft.nn.blocks import Block
from minisft.nn.layers import Dropout, Embedding, LayerNorm


class GPT2(Trunk):
    """Embeddings, blocks and the last LayerNorm; a head of `heads.py` goes on top.

        (1) x = drop(wte[ids] + wpe[positions])
        (2) x = h[i](x)      for each block, 0 first
        (3) y = ln_f(x)
    """

    def __init__(self, config: GPT2Config):
        self.config = config
        width, scale = config.n_embd, config.initializer_range
        self.wte = Embedding("wte", config.vocab_size, width, layer=config.EMBEDDING_LAYER,
                             scale=scale, padded_rows=True)     # a language model's head too
        self.wpe = Embedding("wpe", config.n_positions, width, layer=config.EMBEDDING_LAYER,
                             scale=scale)
        self.drop = Dropout(config.embd_pdrop, config.EMBEDDING_LAYER, random.EMBEDDING)
        self.h = [Block(f"h.{i}", config, layer=config.block_layer(i))
                  for i in range(config.n_layer)]
        self.ln_f = LayerNorm("ln_f", width, config.final_layer, config.layer_norm_epsilon)

    @property
    def blocks(self) -> list[Block]:     # type: ignore[override]
        """-> the blocks, which the files call h."""
        return self.h

    def embed(self, batch: Batch, stream: random.Stream | None) -> Array:
        """Batch of N tokens -> x (N,C)."""
        x = self.wte.forward(batch.ids, batch.id_order) + self.wpe.forward(batch.positions,
                                                                           batch.position_order)
        return self.drop.forward(x, stream, batch.token_example_ids, batch.positions)          # (1)

    def pooled_rows(self, batch: Batch) -> Array:
        """-> the row of each sequence that a classifier reads (B,): its last token."""
        return batch.last

    def forward(self, batch: Batch, stream: random.Stream | None = None,
                last_only: bool = False, kv_cache: Any = None) -> Array:
        """Batch of N tokens -> hidden (N,C), or (B,C) of each sequence's last token only.

        `stream` (random.Stream) turns dropout on in the layers that are trained; `past` (a cache
        of keys and values for each block, see generate.py) holds what came before.
        """
        x = self.run_blocks(batch, stream, last_only, kv_cache)                              # (2)
        return self.ln_f.of_sum(x)[1]                                                    # (3)

    def backward(self, dy: Array) -> Array:
        """dhidden (N,C) or (B,C) -> gradient of the embedded tokens (N,C).

        Stops at the first layer that is trained; returns None unless that is the embeddings.
        """
        first_trainable = self.first_trainable_layer
        if first_trainable > self.config.final_layer:
            self.ln_f.clear_cache()     # a head's step would keep it until the next
            return None
        dx = self.run_backward(self.ln_f.backward(dy))
        if first_trainable > 0:
            return None
        dx = self.drop.backward(dx)
        self.wpe.backward(dx)
        self.wte.backward(dx)
        return dx


def count(config: Any) -> int:
    """-> parameters of the model, the tied matrix counted once.

        (4) (V + T) C + L (4 C^2 + 2 C M + M + 9 C) + 2 C      T: n_positions, M: n_inner
    """
    c, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    block = 4 * c * c + 2 * c * inner + inner + 9 * c
    return (config.vocab_size + config.n_positions) * c + config.n_layer * block + 2 * c     # (4)
