"""What stands between the embeddings and a head: blocks, of which some may be frozen."""

from minisft.nn.layers import Layer


class Trunk(Layer):
    """Embeddings and `blocks`: what frozen layers save, whatever the model.

    A model gives `embed(batch, stream)` and `wanted(batch)`, the rows that a classifier reads.
    """

    @property
    def first_trainable_layer(self):
        """-> the number of the lowest layer that is trained; beyond all where none is."""
        return min((p.layer for p in self.parameters() if p.trainable),
                   default=self.config.head_layer)

    def run_blocks(self, batch, stream=None, pruned=False, kv_cache=None):
        """Batch of N tokens -> x (N,C), or (B,C) of the wanted rows when `pruned`.

        Frozen layers have no dropout, and are passed by where the batch has their output.
        """
        first_trainable = self.first_trainable_layer
        x = batch.hidden
        if x is None:
            x = self.embed(batch, None if first_trainable else stream)
        for i, block in enumerate(self.blocks):
            live = i + 1 >= first_trainable
            if live or batch.hidden is None:
                x = block.forward(x, batch, stream if live else None,
                                  self._rows(batch, pruned, i),
                                  None if kv_cache is None else kv_cache[i])
            if not live:
                block.clear_cache()     # no backward comes so far down
        return x

    def run_backward(self, dx):
        """dx behind the blocks -> dx before the lowest that is trained."""
        for block in reversed(self.blocks[max(self.first_trainable_layer - 1, 0):]):
            dx = block.backward(dx)
        return dx

    def frozen_forward(self, batch, pruned=False):
        """Batch -> what the frozen layers make of it (N,C): the input of the lowest live layer.

        (B,C) of the wanted rows where all blocks are frozen and `pruned`.
        """
        x = self.embed(batch, None)
        for i, block in enumerate(self.blocks[:max(self.first_trainable_layer - 1, 0)]):
            x = block.forward(x, batch, None, self._rows(batch, pruned, i))
            block.clear_cache()
        return x

    def _rows(self, batch, pruned, i):
        return self.pooled_rows(batch) if pruned and i == len(self.blocks) - 1 else None
