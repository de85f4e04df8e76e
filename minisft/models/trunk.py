"""What stands between the embeddings and a head: blocks, of which some may be frozen."""

from minisft.layers import Layer


class Trunk(Layer):
    """Embeddings and `blocks`: what frozen layers save, whatever the model.

    A model gives `embed(batch, stream)` and `wanted(batch)`, the rows that a classifier reads.
    """

    @property
    def lowest(self):
        """-> the number of the lowest layer that is trained; beyond all where none is."""
        return min((p.layer for p in self.parameters() if p.live),
                   default=self.config.n_layer + 2)

    def run_blocks(self, batch, stream=None, pruned=False, past=None):
        """Batch of N tokens -> x (N,C), or (B,C) of the wanted rows when `pruned`.

        Frozen layers have no dropout, and are passed by where the batch has their output.
        """
        lowest = self.lowest
        x = batch.hidden
        if x is None:
            x = self.embed(batch, None if lowest else stream)
        for i, block in enumerate(self.blocks):
            live = i + 1 >= lowest
            if live or batch.hidden is None:
                x = block.forward(x, batch, stream if live else None,
                                  self._rows(batch, pruned, i),
                                  None if past is None else past[i])
            if not live:
                block.forget()     # no backward comes so far down
        return x

    def run_back(self, dx):
        """dx behind the blocks -> dx before the lowest that is trained."""
        for block in reversed(self.blocks[max(self.lowest - 1, 0):]):
            dx = block.backward(dx)
        return dx

    def below(self, batch, pruned=False):
        """Batch -> what the frozen layers make of it (N,C): the input of the lowest live layer.

        (B,C) of the wanted rows where all blocks are frozen and `pruned`.
        """
        x = self.embed(batch, None)
        for i, block in enumerate(self.blocks[:max(self.lowest - 1, 0)]):
            x = block.forward(x, batch, None, self._rows(batch, pruned, i))
            block.forget()
        return x

    def _rows(self, batch, pruned, i):
        return self.wanted(batch) if pruned and i == len(self.blocks) - 1 else None
