"""What a step of an encoder-decoder holds at each moment.

The methods follow models/seq2seq.py and nn/cross_attention.py line by line. Each side's blocks are
pre-norm as GPT-2's, with one map each for queries, keys and values as BERT's.
"""

from minisft.dispatch import attention_key_blocks
from minisft.planning.bert_walk import BertWalk
from minisft.planning.memory_tracker import MemoryTracker
from minisft.planning.walk import ITEM, Walk, row_blocks_of


class Side(BertWalk):
    """The encoder: a step of its own, of the sources."""

    block_forward, block_backward = Walk.block_forward, Walk.block_backward

    def run(self, first):
        """Embeddings, blocks from number `first` on, the last LayerNorm under the next number."""
        allocate, observe, n, c = self.tracker.allocate, self.tracker.observe, self.n, self.c
        observe(scaled=2 * n * c, position_rows=n * c, embedded=n * c)
        if self.step.rate("embd_pdrop"):
            allocate(f"embeddings.{first}.dropout", n * c)
            observe(embedded=2 * n * c, words=n * c)
        allocate(f"h.{first}.x", n * c)
        last = first + self.layers
        for i in range(first, last):
            self.block_forward(i)
            if self.step.gradient_checkpointing:
                self.tracker.free(f"h.{i}.")
                allocate(f"h.{i}.x", n * c)
        allocate(f"h.{last}.norms", 2 * n)
        allocate(f"h.{last}.norm", n * c)

    def run_backward(self, first):
        """The mirror image, from dy on; dy is that of the embedded tokens then."""
        last = first + self.layers
        self.tracker.observe(gradients_of_norm=2 * self.n * self.c)
        self.tracker.free(f"h.{last}.x", f"h.{last}.norms")
        for i in reversed(range(first, last)):
            if self.step.gradient_checkpointing:
                self.block_forward(i)
                self.tracker.free(f"h.{i + 1}.x")
            self.block_backward(i)


class Decoder(Side):
    """The decoder, whose blocks look at the sources as well."""

    def block_forward(self, i):
        """Block i, from h.i.x to the x of what follows."""
        self.attention_part(i)
        self.cross_part(i)
        self.mlp_part(i)

    def block_backward(self, i):
        """Block i, from the dy of its output to that of its input, and d m."""
        self.mlp_part_backward(i)
        self.cross_part_backward(i)
        self.attention_part_backward(i)

    def cross_part(self, i):
        """From h.i.x_1 to h.i.x_2."""
        allocate, n, m, c = self.tracker.allocate, self.n, sum(self.step.sources), self.c
        h = f"h.{i}.cross."
        allocate(f"{h}k, v", 2 * m * c)
        allocate(f"{h}norms", 2 * n)
        allocate(f"{h}norm", n * c)
        allocate(f"{h}q", n * c)
        if max(self.step.lengths) > attention_key_blocks.SHORT:
            allocate(f"{h}lse", n * self.heads)
            self.tracker.observe(scores=self.largest_scores())
        else:     # a sequence at a time; its mask is kept as numbers
            scores = self.heads * sum(a * b for a, b in zip(
                self.step.lengths, self.step.sources, strict=True))
            allocate(f"{h}probabilities", scores)
            if self.step.rate("attn_pdrop"):
                allocate(f"{h}dropout", scores)
        allocate(f"{h}y", n * c)
        allocate("attention", n * c)
        self.dropout_forward(f"{h}drop", n, True)
        allocate(f"h.{i}.x_2", n * c)
        self.tracker.free("dropped")

    def cross_part_backward(self, i):
        """From dx_1 to the same of what the attention read, and d m."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        n, m, c, h = self.n, sum(self.step.sources), self.c, f"h.{i}.cross."
        if f"{h}drop" in self.tracker.allocated:
            allocate("d cross", n * c)
        observe(gradient_of_y=n * c)
        allocate("d y", n * c)
        free("d cross", f"{h}drop")
        allocate("dq, dk, dv", (n + 2 * m) * c)
        observe(scores=self.largest_scores())
        free(f"{h}probabilities", f"{h}dropout", f"{h}lse", f"{h}k, v", f"{h}q", f"{h}y")
        observe(gradients_of_keys_and_values=3 * m * c)
        known = "d m" in self.tracker.allocated
        allocate("d m of the block", m * c)
        observe(gradient_of_norm=n * c)
        free("d y", "dq, dk, dv")
        observe(gradients_of_norm=3 * n * c)
        free(h, f"h.{i}.x_2")
        observe(sum=known * m * c)
        free("d m of the block")
        allocate("d m", m * c)

    def largest_scores(self):
        """-> the scores of one sequence and two arrays like them."""
        return 3 * self.heads * max(
            a * min(b, attention_key_blocks.KEYS
                    if max(self.step.lengths) > attention_key_blocks.SHORT else b)
            for a, b in zip(self.step.lengths, self.step.sources, strict=True))


class Seq2SeqWalk:
    """One step's forward and backward, followed by a MemoryTracker."""

    def __init__(self, step, first_trainable):
        self.step, self.tracker = step, MemoryTracker()
        self.encoder = Side(step.encoder, first_trainable, self.tracker)
        self.decoder = Decoder(step.decoder, first_trainable, self.tracker)
        # ids, positions, the text of each token; the labels: 8 bytes each
        self.tracker.allocate("batch", 8 // ITEM * (3 * self.encoder.n + 4 * self.decoder.n))

    def forward(self):
        """Both sides, the logits and their loss."""
        allocate, n, vocab = self.tracker.allocate, self.step.labels, self.step.config.vocab_size
        self.encoder.run(0)
        self.decoder.run(self.encoder.layers + 1)
        allocate("head.hidden", n * self.decoder.c)
        self.decoder.logits_forward(n, vocab)
        self.tracker.free(f"h.{self.encoder.layers + 1 + self.decoder.layers}.norm")
        self.tracker.observe(row_blocks=row_blocks_of(n * vocab))

    def backward(self):
        """The mirror image."""
        allocate, observe, c = self.tracker.allocate, self.tracker.observe, self.decoder.c
        allocate("dhidden", self.decoder.n * c)      # until the trunk's backward ends
        self.tracker.free("head.hidden")
        allocate("d target", self.decoder.n * c)     # the same at its rows; then the embeddings'
        allocate("dy", self.decoder.n * c)
        self.decoder.run_backward(self.encoder.layers + 1)
        self.tracker.free(f"h.{self.encoder.layers}.norm", "d m")
        allocate("dy", self.encoder.n * c)
        self.encoder.run_backward(0)
        for n in (self.encoder.n, self.decoder.n):
            observe(scaled=2 * n * c)
            observe(scaled=n * c, sorted_rows=n * c,
                    summed_rows=2 * min(n, self.step.config.vocab_size) * c)
