"""What a training step needs before it is taken: bytes by tensor, operations by formula.

A ledger follows the step as models/ and blocks.py take it: what a forward keeps is held until its
backward has used it, what a formula needs meanwhile is a temporary. The peak is the fullest moment.
Sizes are counted in values, of `ITEM` bytes each. Compiled twins (extra `fast`) hold no more than
that.
"""

from dataclasses import dataclass

import numpy as np

from minisft.backend import random
from minisft.backend.cpu import row_blocks
from minisft.data.batch import token_budget_batches
from minisft.dispatch import attention_groups, attention_key_blocks
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.planning import operations
from minisft.planning.ledger import Ledger

ITEM = 4         # float32
MOMENTS = 2      # AdamW's
FORMULA = 5      # arrays that a formula has at once in a block of rows (rows.BLOCK)


@dataclass(frozen=True)
class Step:
    """A training step: the model's shape and the texts computed at once.

    A step that is accumulated over several such batches needs, from the second on, memory for the
    gradient of one matrix more.
    """

    config: GPT2Config
    lengths: tuple
    task: str = "classify"        # or "complete", a language model
    classes: int = 2
    train_layers: str = "all"
    gradient_checkpointing: bool = False
    dropout: float | None = None  # None: the config's
    features: bool = True         # frozen layers' outputs are computed once and kept

    @property
    def tokens(self):
        """-> N, the tokens of the batch."""
        return int(sum(self.lengths))

    def rows_out(self, i):
        """-> tokens that leave block i: a classifier wants each text's last from the last one."""
        last = self.task == "classify" and i == self.config.n_layer - 1
        return len(self.lengths) if last else self.tokens

    def rate(self, name):
        """-> a rate of dropout of the config, or the one that replaces all."""
        return getattr(self.config, name) if self.dropout is None else self.dropout


@dataclass(frozen=True)
class Plan:
    """Values by name, of the state, of what the forward keeps, and of the fullest moment."""

    weights: dict
    gradients: dict
    moments: dict
    kept: dict
    at_peak: dict
    largest: tuple
    operations: dict     # floating-point operations by name: (forward, backward)
    first_trainable: int          # number of the lowest layer that is trained

    @property
    def state(self):
        """-> values of weights, gradients and moments."""
        return sum(sum(part.values()) for part in (self.weights, self.gradients, self.moments))

    @property
    def above(self):
        """-> values beyond the state at the fullest moment."""
        return sum(self.at_peak.values())


class _Trained:
    """Stands in the place of a model's store: hears which parameters are trained, holds none."""

    def __init__(self, parameters):
        self.parameters = self.trainable = parameters

    def train(self, wanted):
        self.trainable = [p for p in self.parameters if wanted(p)]


def plan(step):
    """Step -> Plan; raises ValueError for layers that the model does not have."""
    model = (Classifier(step.config, [str(k) for k in range(step.classes)], dtype=None)
             if step.task == "classify" else LanguageModel(step.config, dtype=None))
    model.store = _Trained(model.parameters())
    model.train_layers(step.train_layers)
    weights = {p.name: p.size for p in model.parameters()}
    live = {p.name: p.size for p in model.store.trainable}
    first_trainable = min(p.layer for p in model.store.trainable)
    walk = _Walk(step, first_trainable)
    walk.forward()
    kept = dict(walk.ledger.held)
    walk.backward()
    return Plan(weights, live, {name: MOMENTS * n for name, n in live.items()}, kept,
                walk.ledger.at_peak, walk.ledger.largest,
                operations.operations(step, first_trainable, sum(live.values())), first_trainable)


def largest_of(lengths, batch_tokens, seed, config, **options):
    """Lengths of all texts -> the Step of an epoch that needs most memory, and its Plan."""
    lengths = np.asarray(lengths)
    order = random.permutation(len(lengths), seed, 0)
    steps = [Step(config, tuple(lengths[batch].tolist()), **options)
             for batch in token_budget_batches(lengths, order, batch_tokens)]
    return max(((step, plan(step)) for step in steps), key=lambda pair: pair[1].above)


class _Walk:
    """One step's forward and backward, told to a ledger."""

    def __init__(self, step, first_trainable):
        self.step, self.first_trainable_layer, self.ledger = step, first_trainable, Ledger()
        c = step.config
        self.n, self.b, self.layers = step.tokens, len(step.lengths), c.n_layer
        self.c, self.inner, self.heads = c.n_embd, c.n_inner or 4 * c.n_embd, c.n_head
        self.classifies = step.task == "classify"
        # ids, positions, the text of each token: 8 bytes each
        self.ledger.hold("batch", 3 * 8 // ITEM * self.n)

    def forward(self):
        """Embeddings, blocks, the last LayerNorm and the head, with its loss."""
        hold, drop, look = self.ledger.hold, self.ledger.drop, self.ledger.look
        n, c, first = self.n, self.c, operations.first_block(self.step, self.first_trainable_layer)
        if self.first_trainable_layer and self.step.features:
            pass      # they start where the frozen layers ended
        elif self.first_trainable_layer == 0 and self.step.rate("embd_pdrop"):
            hold("embeddings.dropout", n * c)
            look(embedded=2 * n * c, words=n * c)
        else:
            look(token_rows=n * c, position_rows=n * c)
        hold(f"h.{first}.x", (n if first < self.layers else self.step.rows_out(first - 1)) * c)
        for i in range(first, self.layers):
            self.block_forward(i)
            if i + 1 < self.first_trainable_layer:
                drop(f"h.{i}.")
            elif self.step.gradient_checkpointing:
                x = self.ledger.held[f"h.{i}.x"]
                drop(f"h.{i}.")
                hold(f"h.{i}.x", x)
        out = self.step.rows_out(self.layers - 1)
        hold("ln_f", out * c)
        if self.classifies:
            return
        counted = n - self.b      # the last token of a text has no next one
        hold("head.hidden", counted * c)
        drop("ln_f")
        hold("head.logits", counted * self.step.config.vocab_size)

    def block_forward(self, i):
        """Block i, from h.i.x to the x of what follows."""
        hold, drop, look = self.ledger.hold, self.ledger.drop, self.ledger.look
        n, out, c, h = self.n, self.step.rows_out(i), self.c, f"h.{i}."
        live = i + 1 >= self.first_trainable_layer
        hold(f"{h}norms", 2 * (n + out))
        hold(f"{h}ln_1", n * c)
        hold(f"{h}attn.c_attn", 3 * n * c if out == n else 2 * n * c + 2 * out * c)
        self.attention_forward(i, live)
        hold("attention", out * c)          # the block's own, until it ends
        self.dropout_forward(f"{h}drop_1", out, live)
        hold(f"{h}x_1", out * c)
        drop("dropped")
        hold(f"{h}ln_2", out * c)
        hold(f"{h}mlp.c_fc", out * self.inner)
        hold(f"{h}mlp.tanh", out * self.inner)
        hold(f"{h}mlp.gelu", out * self.inner)
        look(row_blocks=_row_blocks(out * self.inner))
        hold("mlp", out * c)
        self.dropout_forward(f"{h}drop_2", out, live)
        hold(f"h.{i + 1}.x", out * c)
        drop("attention", "mlp", "dropped")

    def attention_forward(self, i, live):
        """Scores, what is kept of them, and the mixed values."""
        hold, out, h = self.ledger.hold, self.step.rows_out(i), f"h.{i}.attn."
        kept, moment = self.scores(i)
        if kept:
            hold(f"{h}probabilities", kept)
        else:
            hold(f"{h}lse", out * self.heads)
        if kept and live and self.step.rate("attn_pdrop"):
            # a byte each in a group of texts, a value each where one query asks
            hold(f"{h}dropout", kept if out == self.b else kept / ITEM)
        self.ledger.look(scores=moment)
        hold(f"{h}y", out * self.c)

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

    def dropout_forward(self, name, out, live):
        """A mask that is kept, and the product, until the sum is made."""
        if live and self.step.rate("resid_pdrop"):
            self.ledger.hold(name, out * self.c)
            self.ledger.hold("dropped", out * self.c)
            self.ledger.look(words=out * self.c)

    def backward(self):
        """The mirror image; stops at the lowest live layer."""
        hold, drop, look = self.ledger.hold, self.ledger.drop, self.ledger.look
        n, c, config = self.n, self.c, self.step.config
        out = self.step.rows_out(self.layers - 1)
        if not self.classifies:
            look(dhidden=(n - self.b) * c)
        drop("ln_f")
        if self.first_trainable_layer > self.layers + 1:
            return
        hold("dhidden", out * c)     # until the trunk's backward ends
        hold("dy", out * c)
        drop(f"h.{self.layers}.x")
        for i in reversed(range(max(self.first_trainable_layer - 1, 0), self.layers)):
            if self.step.gradient_checkpointing:
                self.block_forward(i)
                drop(f"h.{i + 1}.x")
            self.block_backward(i)
        if self.first_trainable_layer == 0:
            drop("embeddings.dropout")
            look(sorted_rows=n * c, summed_rows=2 * min(n, config.vocab_size) * c)

    def block_backward(self, i):
        """Block i, from the dy of its output to that of its input."""
        hold, drop, look = self.ledger.hold, self.ledger.drop, self.ledger.look
        out, c, inner, h = self.step.rows_out(i), self.c, self.inner, f"h.{i}."
        if f"{h}drop_2" in self.ledger.held:
            hold("d mlp", out * c)
        look(gradient_of_gelu=out * inner)
        drop(f"{h}mlp.gelu", f"{h}drop_2")
        hold("d gelu", out * inner)
        hold("d c_fc", out * inner)
        look(row_blocks=_row_blocks(out * inner))
        drop("d gelu")
        look(gradient_of_norm=out * c)
        drop(f"{h}mlp.", f"{h}ln_2", "d c_fc", "d mlp")
        look(gradients_of_norm=2 * out * c)
        drop(f"{h}x_1")
        hold("dx_1", out * c)
        if f"{h}drop_1" in self.ledger.held:
            hold("d attention", out * c)
        self.attention_backward(i)
        drop("d attention", f"{h}drop_1")
        look(gradients_of_norm=2 * self.n * c)
        drop(h)
        look(gradients_of_x=2 * self.n * c)
        drop("dx_1")
        hold("dy", self.n * c)

    def attention_backward(self, i):
        """From the gradient of the block's attention to that of its normalised input."""
        hold, drop, look = self.ledger.hold, self.ledger.drop, self.ledger.look
        n, out, c, h = self.n, self.step.rows_out(i), self.c, f"h.{i}.attn."
        look(gradient_of_y=out * c)
        hold("d y", out * c)
        if f"{h}lse" not in self.ledger.held:
            drop(f"{h}y")
        hold("dq, dk, dv", (out + 2 * n) * c)
        look(scores=self.scores(i)[1])
        drop(h)
        width = 3 if out == n else 2
        hold("d c_attn", width * n * c)
        # a matrix's gradient goes where it stays, but for the parts of a pruned block's
        look(gradient_of_norm=n * c, attention_matrix_gradient=0 if out == n else width * c * c)
        drop("d y", "dq, dk, dv", "d c_attn", f"h.{i}.ln_1")


def _row_blocks(values):
    """-> what a formula needs beside its result of that many values, run in blocks of rows."""
    return min(FORMULA * row_blocks.threads() * row_blocks.BLOCK // ITEM, FORMULA * values)
