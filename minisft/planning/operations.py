"""Floating-point operations of a training step: every matrix product, and the formulas by value.

A product of (m,k) and (k,n) is 2mkn operations. A formula counts one for each value and each step
that its file in ops/ takes; an exponential or a root counts as one.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from minisft.dispatch import attention_groups, attention_key_blocks

# Operations for each value: (forward, backward)
LAYER_NORM, GELU, SOFTMAX, CROSS_ENTROPY, SUM = (7, 13), (9, 13), (6, 4), (4, 3), (1, 1)
ADAMW = 15


@dataclass(frozen=True)
class Product:
    """A matrix product of (m,k) and (k,n), so many times in a step."""

    name: str
    m: int
    k: int
    n: int
    times: int = 1
    backward: bool = False

    @property
    def operations(self):
        """-> floating-point operations of all of them."""
        return 2 * self.m * self.k * self.n * self.times


def products(step, first_trainable):
    """plan.Step, its lowest live layer -> Products of a step."""
    c, made = step.config, []
    width, inner = c.n_embd, c.n_inner or 4 * c.n_embd
    for i in range(first_block(step, first_trainable), c.n_layer):
        live, n, out = i + 1 >= first_trainable, step.tokens, step.rows_out(i)
        again = live and step.gradient_checkpointing
        if out == n:
            linears = [("attn.c_attn", n, width, 3 * width)]
        else:
            linears = [("attn.c_attn", out, width, width), ("attn.c_attn", n, width, 2 * width)]
        linears += [("attn.c_proj", out, width, width), ("mlp.c_fc", out, width, inner),
                    ("mlp.c_proj", out, inner, width)]
        for linear in linears:
            made += _linear(*linear, live, live, again)
        made += _attention(step, out < n, live, again)
    if step.task == "classify":
        return made + _linear("score", len(step.lengths), width, step.classes, True, True)
    counted = step.tokens - len(step.lengths)      # the last token of a text has no next one
    made += _linear("head", counted, width, c.vocab_size, True, False)
    if first_trainable == 0:      # the token table's gradient, (V,C) as it is
        made.append(Product("head", c.vocab_size, counted, width, 1, True))
    return made


def operations(step, first_trainable, live_parameters):
    """-> {name: (forward, backward)}: operations of a step, the optimizer's among the backward."""
    found = {}

    def add(name, forward=0, backward=0):
        had = found.get(name, (0, 0))
        found[name] = int(had[0] + forward), int(had[1] + backward)

    for p in products(step, first_trainable):
        add(p.name, *((0, p.operations) if p.backward else (p.operations, 0)))
    c = step.config
    width, inner = c.n_embd, c.n_inner or 4 * c.n_embd

    def formula(name, values, counts, live, again=False):
        add(name, counts[0] * values, live * counts[1] * values + again * counts[0] * values)

    for i in range(first_block(step, first_trainable), c.n_layer):
        live, out = i + 1 >= first_trainable, step.rows_out(i)
        again = live and step.gradient_checkpointing
        scores = sum(p.m * p.n * p.times for p in _attention(step, out < step.tokens, False, False)
                     if p.name == "attention scores")
        for name, values, counts in (
                ("layer_norm", (step.tokens + out) * width, LAYER_NORM),
                ("gelu", out * inner, GELU), ("softmax", scores, SOFTMAX),
                ("residual sums", 2 * out * width, SUM)):
            formula(name, values, counts, live, again)
    last = len(step.lengths) if step.task == "classify" else step.tokens
    formula("layer_norm", last * width, LAYER_NORM, first_trainable <= c.n_layer + 1)
    if step.task == "complete":
        formula("cross_entropy", (step.tokens - len(step.lengths)) * c.vocab_size, CROSS_ENTROPY,
                True)
    if not (first_trainable and step.features):
        formula("embeddings", step.tokens * width, SUM, first_trainable == 0)
    add("adamw", 0, ADAMW * live_parameters)
    return found


def first_block(step, first_trainable):
    """-> the first block that a step computes: none below where their output is kept."""
    return min(first_trainable - 1, step.config.n_layer) if first_trainable and step.features else 0


def _linear(name, rows, width_in, width_out, dx, dw, again=False):
    """-> the product of a linear layer, and those of its backward that are wanted."""
    made = [Product(name, rows, width_in, width_out)]
    if again:
        made.append(Product(name, rows, width_in, width_out, 1, True))
    if dx:
        made.append(Product(name, rows, width_out, width_in, 1, True))
    if dw:
        made.append(Product(name, width_in, rows, width_out, 1, True))
    return made


def _attention(step, last_only, live, again):
    """-> the products of one block's attention, texts of equal length together."""
    heads, made = step.config.n_head, []
    d = step.config.n_embd // heads
    for (q, k), texts in attended(step, last_only).items():
        times = texts * heads
        forward = [Product("attention scores", q, d, k, times),
                   Product("attention values", q, k, d, times)]
        made += forward
        if again:
            made += [Product(p.name, p.m, p.k, p.n, times, True) for p in forward]
        if live:
            scored_anew = not last_only and max(step.lengths) > attention_key_blocks.SHORT
            made += [Product(name, *shape, times, True) for name, shape in (
                ("attention values", (k, q, d)), ("attention values", (q, d, k)),
                ("attention scores", (q, k, d)), ("attention scores", (k, q, d)),
                *([("attention scores", (q, d, k))] * scored_anew))]
    return made


def attended(step, last_only):
    """-> Counter of (queries, keys) that one block's attention scores at a time for a head, by the
    way that blocks.Attending takes: one query for each text, groups of texts, or blocks of keys."""
    lengths = np.array(step.lengths)
    if last_only:
        return Counter((1, int(n)) for n in lengths)
    if lengths.max() <= attention_key_blocks.SHORT:
        return Counter((length, length) for numbers, length in attention_groups.groups_of(
            lengths, step.config.n_head) for _ in numbers)
    keys = attention_key_blocks.KEYS
    return Counter((int(n) - start, min(keys, int(n) - start))
                   for n in lengths for start in range(0, int(n), keys))


def largest(step, first_trainable, most=None):
    """-> Counter of the step's products by shape (m,k,n) and times, the most work first."""
    found = Counter()
    for p in products(step, first_trainable):
        found[p.m, p.k, p.n] += p.times
    return sorted(found.items(), key=lambda entry: -np.prod(entry[0]) * entry[1])[:most]
