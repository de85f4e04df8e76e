"""What a step of BERT holds at each moment, where that is not as in GPT-2's.

The methods follow models/bert.py line by line.
"""

from minisft.planning import operations
from minisft.planning.walk import Walk, row_blocks_of


class BertWalk(Walk):
    """BERT: post-norm blocks, one map each for queries, keys and values, a pooler."""

    def forward(self):
        """Embeddings with their norm, blocks, the pooler and the head."""
        allocate, observe, n, c = self.tracker.allocate, self.tracker.observe, self.n, self.c
        first = operations.first_block(self.step, self.first_trainable_layer)
        if self.first_trainable_layer == 0:
            allocate("embeddings.sum", n * c)      # which their norm reads
            allocate("embeddings.norm", 2 * n)
            observe(token_rows=n * c, type_rows=n * c)
            if self.step.rate("resid_pdrop"):
                allocate("embeddings.dropout", n * c)
                observe(embedded=2 * n * c, words=n * c)
        allocate(f"h.{first}.x", (n if first < self.layers else self.step.rows_out(first - 1)) * c)
        for i in range(first, self.layers):
            self.block_forward(i)
            if i + 1 < self.first_trainable_layer:
                self.tracker.free(f"h.{i}.")
            elif self.step.gradient_checkpointing:
                x = self.tracker.allocated[f"h.{i}.x"]
                self.tracker.free(f"h.{i}.")
                allocate(f"h.{i}.x", x)
        if self.step.token_outputs:
            self.token_head_forward()
        else:
            allocate("pooler", 2 * self.b * c)

    def block_forward(self, i):
        """Block i, from h.i.x to the x of what follows."""
        allocate, free = self.tracker.allocate, self.tracker.free
        n, out, c, h = self.n, self.step.rows_out(i), self.c, f"h.{i}."
        trained = i + 1 >= self.first_trainable_layer
        if out < n:
            allocate(f"{h}attn.asking", out * c)
        allocate(f"{h}attn.q, k, v", (out + 2 * n) * c)
        self.attention_forward(i, trained)
        allocate("attention", out * c)          # the block's own, until it ends
        self.dropout_forward(f"{h}drop_1", out, trained)
        allocate(f"{h}x_1", out * c)
        free("dropped")
        allocate(f"{h}norms", 4 * out)
        allocate(f"{h}norm_1", out * c)
        allocate(f"{h}mlp.c_fc", out * self.inner)
        self.gelu_forward(i)
        allocate("mlp", out * c)
        self.forget_gelu(i)
        self.dropout_forward(f"{h}drop_2", out, trained)
        allocate(f"{h}x_2", out * c)
        free("dropped")
        allocate(f"h.{i + 1}.x", out * c)
        free("attention", "mlp")

    def backward(self):
        """The mirror image; stops at the first trainable layer."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        n, c, config = self.n, self.c, self.step.config
        out = self.step.rows_out(self.layers - 1)
        if self.first_trainable_layer > self.layers:
            return
        self.token_head_backward()
        allocate("dhidden", out * c)     # until the trunk's backward ends
        # a head over tokens gives the last block's dy itself
        allocate("dy", 0 if self.step.token_outputs else out * c)
        free("pooler", f"h.{self.layers}.x")
        for i in reversed(range(max(self.first_trainable_layer - 1, 0), self.layers)):
            if self.step.gradient_checkpointing:
                self.block_forward(i)
                free(f"h.{i + 1}.x")
            self.block_backward(i)
        if self.first_trainable_layer == 0:
            free("embeddings.dropout")
            observe(gradient_of_norm=n * c)
            free("embeddings.")
            observe(dx=n * c, sorted_rows=n * c, summed_rows=2 * min(n, config.vocab_size) * c)

    def block_backward(self, i):
        """Block i, from the dy of its output to that of its input."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        out, c, inner, h = self.step.rows_out(i), self.c, self.inner, f"h.{i}."
        observe(gradients_of_norm=2 * out * c)
        allocate("dx_2", out * c)
        free(f"{h}x_2")
        if f"{h}drop_2" in self.tracker.allocated:
            allocate("d mlp", out * c)
        self.gelu_again(i)
        observe(gradient_of_gelu=out * inner)
        free(f"{h}mlp.gelu", f"{h}drop_2")
        allocate("d gelu", out * inner)
        allocate("d c_fc", out * inner)
        observe(row_blocks=row_blocks_of(out * inner))
        free("d gelu")
        observe(gradient_of_norm=out * c)
        free(f"{h}mlp.", f"{h}norm_1", "d c_fc", "d mlp")
        observe(sum=2 * out * c)
        observe(gradients_of_norm=3 * out * c)
        free(f"{h}x_1", "dx_2")
        allocate("dx_1", out * c)
        if f"{h}drop_1" in self.tracker.allocated:
            allocate("d attention", out * c)
        self.attention_backward(i)
        free("d attention", f"{h}drop_1", h)
        observe(gradients_of_x=self.n * c)
        free("dx_1")
        allocate("dy", self.n * c)

    def attention_backward(self, i):
        """From the gradient of the block's attention to that of its input."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        n, out, c, h = self.n, self.step.rows_out(i), self.c, f"h.{i}.attn."
        observe(gradient_of_y=out * c)
        allocate("d y", out * c)
        if f"{h}lse" not in self.tracker.allocated:
            free(f"{h}y")
        allocate("dq, dk, dv", (out + 2 * n) * c)
        observe(scores=self.scores(i)[1])
        free(h)
        # both and their sum; of a pruned block x is freed before that sum is made
        observe(gradients_of_keys_and_values=(3 if out == n else 2) * n * c)
        free("d y", "dq, dk, dv")
