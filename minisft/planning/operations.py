"""Floating-point operations of a training step: every matrix product, and the formulas by value.

A product of (m,k) and (k,n) is 2mkn operations. A formula counts one for each value and each step
that its file in ops/ takes; an exponential or a root counts as one.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from minisft.dispatch import attention_groups, attention_key_blocks
from minisft.models.config import BertConfig, Seq2SeqConfig
from minisft.nn.lora import is_merged, keeps_merged

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
    def operations(self) -> int:
        """-> floating-point operations of all of them."""
        return 2 * self.m * self.k * self.n * self.times


def products(step: Any, first_trainable: int) -> list[Product]:
    """memory.Step, its first trainable layer -> Products of a step."""
    c, width = step.config, step.config.n_embd
    result = [product for side in sides(step) for product in _blocks(side, first_trainable)]
    if step.token_outputs:
        return result + _linear("head", step.tokens, width, step.token_outputs, True, True)
    if isinstance(c, BertConfig):
        result += _linear("pooler", len(step.lengths), width, width, True, True)
    if step.task == "classify":
        return result + _linear("score", len(step.lengths), width, step.classes, True, True)
    result += _linear("head", step.labels, width, c.vocab_size, True, False)
    if first_trainable == 0:      # the token table's gradient, (V,C) as it is
        result.append(Product("head", c.vocab_size, step.labels, width, 1, True))
    return result


def sides(step: Any) -> list[Any]:
    """-> the step itself; of an encoder-decoder those of its encoder and of its decoder."""
    return [step.encoder, step.decoder] if isinstance(step.config, Seq2SeqConfig) else [step]


def _blocks(step, first_trainable):
    """-> the products of all blocks."""
    c, result = step.config, []
    width, own_maps = c.n_embd, isinstance(c, BertConfig) or step.task == "translate"
    for i in range(first_block(step, first_trainable), c.n_layer):
        trained, n, out = i + 1 >= first_trainable, step.tokens, step.rows_out(i)
        again = trained and step.gradient_checkpointing
        if own_maps:
            linears = [("attn.query", out, width, width), ("attn.key", n, width, width),
                       ("attn.value", n, width, width)]
        elif out == n:
            linears = [("attn.c_attn", n, width, 3 * width)]
        else:
            linears = [("attn.c_attn", out, width, width), ("attn.c_attn", n, width, 2 * width)]
        if m := sum(step.sources):
            linears += [("cross.query", n, width, width), ("cross.key", m, width, width),
                        ("cross.value", m, width, width), ("cross.c_proj", n, width, width)]
        linears += [("attn.c_proj", out, width, width), ("mlp.c_fc", out, width, inner(c)),
                    ("mlp.c_proj", out, inner(c), width)]
        for linear in linears:
            needs_dx = trained and not _ends_at(step, i, linear[0], first_trainable)
            result += _linear(*linear, needs_dx, trained and step.trains_matrices, again)
            if rank := step.rank(i, linear[0]):
                result += _adapter(*linear[1:], rank, needs_dx, again)
        result += _attention(step, out < n, trained, again)
    return result


def operations(step: Any, first_trainable: int,
               trainable_parameters: int) -> dict[str, tuple[int, int]]:
    """-> {name: (forward, backward)}: operations of a step, the optimizer's among the backward."""
    totals: dict[str, tuple[int, int]] = {}

    def add(name, forward=0, backward=0):
        before = totals.get(name, (0, 0))
        totals[name] = int(before[0] + forward), int(before[1] + backward)

    for p in products(step, first_trainable):
        add(p.name, *((0, p.operations) if p.backward else (p.operations, 0)))
    c = step.config
    width, bert = c.n_embd, isinstance(c, BertConfig)
    tokens = step.tokens + sum(step.sources)

    def formula(name, values, counts, trained, again=False):
        add(name, counts[0] * values, trained * counts[1] * values + again * counts[0] * values)

    for side in sides(step):
        for i in range(first_block(side, first_trainable), side.config.n_layer):
            trained, n, out = i + 1 >= first_trainable, side.tokens, side.rows_out(i)
            again, asked = trained and step.gradient_checkpointing, n * bool(side.sources)
            scores = sum(p.m * p.n * p.times for p in _attention(side, out < n, False, False)
                         if p.name == "attention scores")
            for name, values, counts in (
                    ("layer_norm", ((out if bert else n) + asked + out) * width, LAYER_NORM),
                    ("gelu", out * inner(side.config), GELU), ("softmax", scores, SOFTMAX),
                    ("residual sums", (2 * out + asked) * width, SUM)):
                formula(name, values, counts, trained, again)
    last = len(step.lengths) if step.task == "classify" else tokens
    if not bert:
        formula("layer_norm", last * width, LAYER_NORM, first_trainable <= c.n_layer + 1)
    elif not (first_trainable and step.features):
        formula("layer_norm", step.tokens * width, LAYER_NORM, first_trainable == 0)
    if step.labels:
        formula("cross_entropy", step.labels * c.vocab_size, CROSS_ENTROPY, True)
    if step.token_outputs:
        formula("cross_entropy", step.tokens * step.token_outputs, CROSS_ENTROPY, True)
    if not (first_trainable and step.features):
        formula("embeddings", tokens * width, SUM, first_trainable == 0)
    add("adamw", 0, ADAMW * trainable_parameters)
    return totals


def inner(config: Any) -> int:
    """-> the width between the two maps of the MLP."""
    if isinstance(config, BertConfig):
        return config.intermediate_size
    return config.n_inner or 4 * config.n_embd


def first_block(step: Any, first_trainable: int) -> int:
    """-> the first block that a step computes: none below where their output is kept."""
    return min(first_trainable - 1, step.config.n_layer) if first_trainable and step.features else 0


def _linear(name, rows, width_in, width_out, dx, dw, again=False):
    """-> the product of a linear layer, and those of its backward that are wanted."""
    result = [Product(name, rows, width_in, width_out)]
    if again:
        result.append(Product(name, rows, width_in, width_out, 1, True))
    if dx:
        result.append(Product(name, rows, width_out, width_in, 1, True))
    if dw:
        result.append(Product(name, width_in, rows, width_out, 1, True))
    return result


def _ends_at(step, i, name, first_trainable):
    """-> whether nobody needs the gradient of the input of this linear map."""
    return step.adapter is not None and i + 1 == first_trainable and name == "attn.c_attn"


def _adapter(rows, width_in, width_out, rank, dx, again):
    """-> the products of an adapter's forward and backward."""
    merged = is_merged(rows, width_in, width_out)
    forward = ([(width_in, rank, width_out)] if merged else
               [(rows, width_in, rank), (rows, rank, width_out)])
    backward = [(rank, rows, width_out), (rows, width_out, rank), (rank, rows, width_in)]
    if merged:
        backward += [(rows, width_in, rank)] + (dx and not keeps_merged(rows, width_out)) * forward
    else:
        backward.append((rows, rank, width_in))
    return [Product("adapters", *shape) for shape in forward] + [
        Product("adapters", *shape, 1, True) for shape in forward * again + backward]


def _attention(step, last_only, trained, again):
    """-> the products of one block's attention, or two, texts of equal length together."""
    heads, result = step.config.n_head, []
    d = step.config.n_embd // heads
    for (q, k), texts in (attended(step, last_only) + crossed(step)).items():
        times = texts * heads
        forward = [Product("attention scores", q, d, k, times),
                   Product("attention values", q, k, d, times)]
        result += forward
        if again:
            result += [Product(p.name, p.m, p.k, p.n, times, True) for p in forward]
        if trained:
            scored_anew = not last_only and max(step.lengths) > attention_key_blocks.SHORT
            result += [Product(name, *shape, times, True) for name, shape in (
                ("attention values", (k, q, d)), ("attention values", (q, d, k)),
                ("attention scores", (q, k, d)), ("attention scores", (k, q, d)),
                *([("attention scores", (q, d, k))] * scored_anew))]
    return result


def attended(step: Any, last_only: bool) -> Counter[tuple[int, int]]:
    """-> Counter of (queries, keys) that one block's attention scores at a time for a head, by the
    implementation that runs: one query for each text, groups of texts, or blocks of keys."""
    lengths = np.array(step.lengths)
    if last_only:
        return Counter((1, int(n)) for n in lengths)
    if lengths.max() <= attention_key_blocks.SHORT:
        return Counter((length, length) for numbers, length in attention_groups.groups_of(
            lengths, step.config.n_head) for _ in numbers)
    keys = attention_key_blocks.KEYS
    causal = not isinstance(step.config, BertConfig)     # then only later queries ask a block
    return Counter((int(n) - causal * start, min(keys, int(n) - start))
                   for n in lengths for start in range(0, int(n), keys))


def crossed(step: Any) -> Counter[tuple[int, int]]:
    """-> the same of a decoder block's attention to the sources: one text after the other, or
    blocks of keys."""
    keys = attention_key_blocks.KEYS
    if max(step.lengths) <= attention_key_blocks.SHORT:
        return Counter(zip(step.lengths, step.sources, strict=False))
    return Counter((n, min(keys, m - start)) for n, m in zip(
        step.lengths, step.sources, strict=False) for start in range(0, m, keys))


def largest(step: Any, first_trainable: int,
            most: int | None = None) -> list[tuple[tuple[int, int, int], int]]:
    """-> Counter of the step's products by shape (m,k,n) and times, the most work first."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    for p in products(step, first_trainable):
        shapes[p.m, p.k, p.n] += p.times
    return sorted(shapes.items(), key=lambda entry: -np.prod(entry[0]) * entry[1])[:most]
