"""What stands between the embeddings and a head: blocks, of which some may be frozen."""

from typing import Any

from minisft.backend.array import Array
from minisft.backend.random import Stream
from minisft.data.batch import Batch
from minisft.nn.layers import Layer, Sum, backward_comes


class Trunk(Layer):
    """Embeddings and `blocks`: what frozen layers save, whatever the model.

    A model gives its config and its blocks, how it embeds, and which rows a classifier reads.
    """

    config: Any
    blocks: Any

    def embed(self, batch: Batch, stream: Stream | None) -> Array:
        """Batch of N tokens -> x (N,C)."""
        raise NotImplementedError

    def pooled_rows(self, batch: Batch) -> Array:
        """-> the row of each sequence that a classifier reads (B,)."""
        raise NotImplementedError

    @property
    def first_trainable_layer(self) -> int:
        """-> the number of the first layer that is trained; the head's where none of these is."""
        # in the order of their numbers, as a trunk names its parts: a step asks four times
        return next((p.layer for part in self._parts(Layer) for p in part.parameters()
                     if p.trainable), self.config.head_layer)

    def run_blocks(self, batch: Batch, stream: Stream | None = None, pruned: bool = False,
                   kv_cache: Any = None) -> Array:
        """Batch of N tokens -> x (N,C), or (B,C) of the pooled rows when `pruned`.

        Frozen layers have no dropout, and are skipped where the batch has their output.
        """
        first_trainable = self.first_trainable_layer
        x = batch.hidden
        if x is None:
            x = self.embed(batch, None if first_trainable else stream)
            if first_trainable:
                self.clear_cache()     # no backward comes so far down
        for i, block in enumerate(self.blocks):
            trained = self.config.block_layer(i) >= first_trainable
            if trained or batch.hidden is None:
                x = block.forward(x, batch, stream if trained else None,
                                  self._rows(batch, pruned, i),
                                  None if kv_cache is None else kv_cache[i])
            if not (trained and backward_comes()):
                block.clear_cache()     # no backward comes so far down
        return x

    def run_backward(self, dx: Array) -> Array:
        """dx behind the blocks -> dx before the first that is trained, as far as it is needed."""
        trained, to_embeddings = self.blocks[self._n_frozen():], self.first_trainable_layer == 0
        for block in reversed(trained):
            dx = block.backward(dx, block is not trained[0] or to_embeddings)
        return dx

    def frozen_forward(self, batch: Batch, pruned: bool = False) -> Array:
        """Batch -> the output of the frozen layers (N,C), the input of the first that is trained.

        (B,C) of the pooled rows where all blocks are frozen and `pruned`.
        """
        x = self.embed(batch, None)
        self.clear_cache()
        for i, block in enumerate(self.blocks[:self._n_frozen()]):
            x = block.forward(x, batch, None, self._rows(batch, pruned, i))
            block.clear_cache()
        return x.total() if isinstance(x, Sum) else x

    def _n_frozen(self) -> int:
        """-> the number of blocks below the first that is trained."""
        return max(self.first_trainable_layer - self.config.block_layer(0), 0)

    def _rows(self, batch: Batch, pruned: bool, i: int) -> Array:
        return self.pooled_rows(batch) if pruned and i == len(self.blocks) - 1 else None
