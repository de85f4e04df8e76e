"""What a step holds at each moment: GPT-2's forward and backward.

The methods follow models/gpt2.py and nn/blocks.py line by line; bert_walk.py and seq2seq_walk.py
have what BERT and an encoder-decoder do in another way.
"""

import numpy as np

from minisft.backend.cpu import row_blocks
from minisft.dispatch import attention_groups, attention_key_blocks
from minisft.models import logit_blocks
from minisft.nn.lora import is_merged, keeps_merged
from minisft.nn.parameters import ROWS_AT_ONCE
from minisft.planning import operations
from minisft.planning.memory_tracker import MemoryTracker

ITEM = 4         # bytes of a value: float32
FORMULA = 5      # arrays that a formula has at once in a block of rows (row_blocks.BLOCK)


def row_blocks_of(values):
    """-> what a formula needs besides its result of that many values, run in blocks of rows."""
    return min(FORMULA * row_blocks.threads() * row_blocks.BLOCK // ITEM, FORMULA * values)


class Walk:
    """One step's forward and backward, followed by a MemoryTracker."""

    def __init__(self, step, first_trainable, tracker=None):
        self.step, self.first_trainable_layer = step, first_trainable
        self.tracker = tracker or MemoryTracker()
        c = step.config
        self.n, self.b, self.layers = step.tokens, len(step.lengths), c.n_layer
        self.c, self.inner, self.heads = c.n_embd, operations.inner(c), c.n_head
        # ids, positions, the text of each token: 8 bytes each
        self.tracker.allocate("batch", 3 * 8 // ITEM * self.n)

    def forward(self):
        """Embeddings, blocks, the last LayerNorm and the head, with its loss."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        n, c, first = self.n, self.c, operations.first_block(self.step, self.first_trainable_layer)
        if self.first_trainable_layer and self.step.features:
            pass      # they start where the frozen layers ended
        elif self.first_trainable_layer == 0 and self.step.rate("embd_pdrop"):
            allocate("embeddings.dropout", n * c)
            observe(embedded=2 * n * c, words=n * c)
        else:
            observe(token_rows=n * c, position_rows=n * c)
        allocate(f"h.{first}.x", (n if first < self.layers else self.step.rows_out(first - 1)) * c)
        for i in range(first, self.layers):
            self.block_forward(i)
            if i + 1 < self.first_trainable_layer:
                free(f"h.{i}.")
            elif self.step.gradient_checkpointing:
                x = self.tracker.allocated[f"h.{i}.x"]
                free(f"h.{i}.")
                allocate(f"h.{i}.x", x)
        out = self.step.rows_out(self.layers - 1)
        allocate("ln_f", out * c)
        if self.step.token_outputs:
            self.token_head_forward()
        if self.step.task != "complete":
            return
        counted = n - self.b      # the last token of a text has no next one
        allocate("head.hidden", counted * c)
        free("ln_f")
        self.logits_forward(counted, self.step.config.vocab_size)

    def logits_forward(self, rows, classes):
        """The logits; where they are computed in blocks of rows, one of them for a moment, beside
        the gradient of what the head reads and a part of that of its matrix."""
        parts = logit_blocks.blocks(rows, classes, np)
        if len(parts) < 2:
            self.tracker.allocate("head.logits", rows * classes)
            return
        self.tracker.observe(logits=parts[0].stop * classes, dhidden=rows * self.c,
                             matrix_gradient=min(classes, ROWS_AT_ONCE) * self.c)

    def token_head_forward(self):
        """Dropout where it has some, the logits, and what their loss keeps."""
        if self.step.task == "tag":
            self.dropout_forward("head.dropout", self.n, True)
            if dropped := self.tracker.allocated.get("dropped"):
                self.tracker.allocate("head.dropped", dropped)
                self.tracker.free("dropped")
        self.tracker.allocate("head.logits", 2 * self.n * self.step.token_outputs)

    def token_head_backward(self):
        """The gradients of the logits and of what dropout gave."""
        if self.step.token_outputs:
            self.tracker.observe(dlogits=self.n * self.step.token_outputs, dhidden=self.n * self.c)
            self.tracker.free("head.")

    def block_forward(self, i):
        """Block i, from h.i.x to the x of what follows."""
        self.attention_part(i)
        self.mlp_part(i)

    def attention_part(self, i):
        """From h.i.x to h.i.x_1."""
        allocate, n, out, c = self.tracker.allocate, self.n, self.step.rows_out(i), self.c
        trained, h = i + 1 >= self.first_trainable_layer, f"h.{i}."
        allocate(f"{h}norms", 2 * (n + out))
        allocate(f"{h}ln_1", n * c)
        qkv = 3 * n * c if out == n else 2 * n * c + 2 * out * c
        allocate(f"{h}attn.c_attn", qkv)
        self.adapter_forward(i, "attn.c_attn")
        self.attention_forward(i, trained)
        allocate("attention", out * c)          # the block's own, until it ends
        self.adapter_forward(i, "attn.c_proj")
        self.dropout_forward(f"{h}drop_1", out, trained)
        allocate(f"{h}x_1", out * c)
        self.tracker.free("dropped")

    def mlp_part(self, i):
        """From there to the x of what follows."""
        allocate, free = self.tracker.allocate, self.tracker.free
        out, c, h = self.step.rows_out(i), self.c, f"h.{i}."
        allocate(f"{h}ln_2", out * c)
        allocate(f"{h}mlp.c_fc", out * self.inner)
        self.adapter_forward(i, "mlp.c_fc")
        self.gelu_forward(i)
        allocate("mlp", out * c)
        self.adapter_forward(i, "mlp.c_proj")
        self.forget_gelu(i)
        self.dropout_forward(f"{h}drop_2", out, i + 1 >= self.first_trainable_layer)
        allocate(f"h.{i + 1}.x", out * c)
        free("attention", "mlp", "dropped")

    def gelu_forward(self, i):
        """GELU's output, and tanh or Phi, which its formula keeps."""
        values = self.step.rows_out(i) * self.inner
        self.tracker.allocate(f"h.{i}.mlp.inside gelu", values)
        self.tracker.allocate(f"h.{i}.mlp.gelu", values)
        self.tracker.observe(row_blocks=row_blocks_of(values))

    def forget_gelu(self, i):
        """Where it runs again neither is kept, but for what an adapter reads."""
        if self.gelu_runs_again:
            self.tracker.free(f"h.{i}.mlp.inside gelu")
            if not self.step.rank(i, "mlp.c_proj"):
                self.tracker.free(f"h.{i}.mlp.gelu")

    def gelu_again(self, i):
        """The same before the backward."""
        if self.gelu_runs_again:
            if self.step.rank(i, "mlp.c_proj"):     # which has the output already
                self.tracker.observe(gelu=2 * self.step.rows_out(i) * self.inner)
            self.gelu_forward(i)

    @property
    def gelu_runs_again(self):
        """-> whether nn/blocks.py keeps GELU's input alone."""
        return self.step.config.gelu_form == "tanh"

    def adapter_forward(self, i, name):
        """The merged matrix, kept or for a moment; or what an adapter keeps, u, and for a moment
        its part of the result."""
        rank = self.step.rank(i, name)
        for rows, width_in, width_out in self.maps(i, name) if rank else ():
            if is_merged(rows, width_in, width_out):
                self.tracker.observe(merged_matrix=width_in * width_out)
                if keeps_merged(rows, width_out):
                    self.tracker.allocate(f"h.{i}.{name}.merged", width_in * width_out)
            else:
                self.tracker.allocate(f"h.{i}.{name}.u", rows * rank)
                self.tracker.observe(update_of_adapter=rows * width_out)

    def gradient_of_input(self, i, name):
        """-> values that the gradient of a linear map's input takes, an adapter's part too."""
        def of_adapter(rows, width_in, width_out):
            if not is_merged(rows, width_in, width_out):
                return rows * width_in
            return 0 if keeps_merged(rows, width_out) else width_in * width_out

        adapted = self.step.rank(i, name) > 0
        return max(rows * width_in + adapted * of_adapter(rows, width_in, width_out)
                   for rows, width_in, width_out in self.maps(i, name))

    def maps(self, i, name):
        """-> rows, width in, width out of a linear map, or of the two parts of a pruned one."""
        n, out, c = self.n, self.step.rows_out(i), self.c
        if name == "attn.c_attn":
            return [(n, c, 3 * c)] if out == n else [(out, c, c), (n, c, 2 * c)]
        return [{"attn.c_proj": (out, c, c), "mlp.c_fc": (out, c, self.inner),
                 "mlp.c_proj": (out, self.inner, c)}[name]]

    def attention_forward(self, i, trained):
        """Scores, what is kept of them, and the mixed values."""
        allocate, out, h = self.tracker.allocate, self.step.rows_out(i), f"h.{i}.attn."
        kept, moment = self.scores(i)
        if kept:
            allocate(f"{h}probabilities", kept)
        else:
            allocate(f"{h}lse", out * self.heads)
        if kept and trained and self.step.rate("attn_pdrop"):
            # a byte each in a group of texts, a value each where one query asks
            allocate(f"{h}dropout", kept if out == self.b else kept / ITEM)
        self.tracker.observe(scores=moment)
        allocate(f"{h}y", out * self.c)

    def scores(self, i):
        """-> scores kept for the backward, and what they and their like take at one time."""
        last_only = self.step.rows_out(i) == self.b
        pairs, longest = operations.attended(self.step, last_only), max(self.step.lengths)
        if not last_only and longest > attention_key_blocks.SHORT:
            return 0, 3 * self.heads * longest * attention_key_blocks.KEYS
        moment = self.heads * max(q * k for q, k in pairs)
        if not last_only:     # a group for each thread
            moment = row_blocks.threads() * max(moment, min(
                attention_groups.NUMBERS,
                self.heads * sum(q * k * texts for (q, k), texts in pairs.items())))
        return self.heads * sum(q * k * texts for (q, k), texts in pairs.items()), 3 * moment

    def dropout_forward(self, name, out, trained):
        """A mask that is kept, and the product, until the sum is made."""
        if trained and self.step.rate("resid_pdrop"):
            self.tracker.allocate(name, out * self.c)
            self.tracker.allocate("dropped", out * self.c)
            self.tracker.observe(words=out * self.c)

    def backward(self):
        """The mirror image; stops at the first trainable layer."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        n, c, config = self.n, self.c, self.step.config
        out = self.step.rows_out(self.layers - 1)
        if self.step.task == "complete":
            observe(dhidden=(n - self.b) * c)
        self.token_head_backward()
        free("ln_f")
        if self.first_trainable_layer > self.layers + 1:
            return
        allocate("dhidden", out * c)     # until the trunk's backward ends
        allocate("dy", out * c)
        free(f"h.{self.layers}.x")
        for i in reversed(range(max(self.first_trainable_layer - 1, 0), self.layers)):
            if self.step.gradient_checkpointing:
                self.block_forward(i)
                free(f"h.{i + 1}.x")
            self.block_backward(i)
        if self.first_trainable_layer == 0:
            free("embeddings.dropout")
            observe(sorted_rows=n * c, summed_rows=2 * min(n, config.vocab_size) * c)

    def block_backward(self, i):
        """Block i, from the dy of its output to that of its input."""
        self.mlp_part_backward(i)
        self.attention_part_backward(i)

    def mlp_part_backward(self, i):
        """From dy to dx_1."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        out, c, inner, h = self.step.rows_out(i), self.c, self.inner, f"h.{i}."
        if f"{h}drop_2" in self.tracker.allocated:
            allocate("d mlp", out * c)
        self.gelu_again(i)
        observe(gradient_of_gelu=self.gradient_of_input(i, "mlp.c_proj"))
        free(f"{h}mlp.gelu", f"{h}drop_2")
        allocate("d gelu", out * inner)
        allocate("d c_fc", out * inner)
        observe(row_blocks=row_blocks_of(out * inner))
        free("d gelu")
        observe(gradient_of_norm=self.gradient_of_input(i, "mlp.c_fc"))
        free(f"{h}mlp.", f"{h}ln_2", "d c_fc", "d mlp")
        observe(gradients_of_norm=2 * out * c)
        free(f"{h}x_1")
        allocate("dx_1", out * c)

    def attention_part_backward(self, i):
        """From dx_1 to the dy of the block's input."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        out, c, h = self.step.rows_out(i), self.c, f"h.{i}."
        if f"{h}drop_1" in self.tracker.allocated:
            allocate("d attention", out * c)
        self.attention_backward(i)
        free("d attention", f"{h}drop_1")
        observe(gradients_of_norm=2 * self.n * c)
        free(h)
        observe(gradients_of_x=2 * self.n * c)
        free("dx_1")
        allocate("dy", self.n * c)

    def attention_backward(self, i):
        """From the gradient of the block's attention to that of its normalised input."""
        allocate, free, observe = self.tracker.allocate, self.tracker.free, self.tracker.observe
        n, out, c, h = self.n, self.step.rows_out(i), self.c, f"h.{i}.attn."
        observe(gradient_of_y=self.gradient_of_input(i, "attn.c_proj"))
        allocate("d y", out * c)
        if f"{h}lse" not in self.tracker.allocated:
            free(f"{h}y")
        allocate("dq, dk, dv", (out + 2 * n) * c)
        observe(scores=self.scores(i)[1])
        free(h)
        width = 3 if out == n else 2
        allocate("d c_attn", width * n * c)
        if out < n:
            allocate("dq, dk, dv", out * c)     # dq alone is still asked for
        # a matrix's gradient goes where it stays, but for the parts of a pruned block's
        pruned_matrices = out < n and self.step.trains_matrices
        observe(gradient_of_norm=self.gradient_of_input(i, "attn.c_attn"),
                attention_matrix_gradient=pruned_matrices * width * c * c)
        free("d y", "dq, dk, dv", "d c_attn", f"h.{i}.ln_1")
