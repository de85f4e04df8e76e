"""Random numbers by what they are for, not by the order of calls: Philox4x32-10.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
four words of output are a fixed function of four words of counter and two of key. The key says
which dropout (seed; layer, site), the counter which number of it (optimizer step, the example's id
in the data set, position in the text, channel). Nothing depends on where a token lies in the packed
batch, so a mask is the same whatever else is in the batch, in whatever order or micro-batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.backend.constants import PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_WEYL, WORD, ceil_div
from minisft.backend.cpu import row_blocks

# The places in a layer that have a dropout mask; the number goes into the key.
EMBEDDING, SCORES, ATTENTION_OUT, MLP_OUT, POOLED = range(5)
ADAPTER = 5     # of the first linear map of a block; of the next one 6, ...
TOGETHER = 1 << 22     # words of a batch's scores that are drawn at once, 16 MB, at most
# In place of a layer's number: a shuffled order, initial values, a next token, an augmented text.
SHUFFLE, INITIAL, SAMPLE, AUGMENT = 0xFFFF, 0xFFFE, 0xFFFD, 0xFFFC


def philox(counter: Sequence[Array], key: tuple[int, int],
           xp: ModuleType = np) -> tuple[Array, Array, Array, Array]:
    """counter: four uint32 arrays of one shape, key: two ints -> four uint32 arrays of that shape.

    Salmon et al. 2011, section 3.3 and figure 2; ten rounds.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = int(key[0]) & WORD, int(key[1]) & WORD
    m0, m1 = (xp.uint64(m) for m in PHILOX_MULTIPLIERS)
    half = xp.uint64(32)
    for _ in range(PHILOX_ROUNDS):
        product0 = c0.astype(xp.uint64) * m0
        product1 = c2.astype(xp.uint64) * m1
        high0, low0 = (product0 >> half).astype(xp.uint32), product0.astype(xp.uint32)
        high1, low1 = (product1 >> half).astype(xp.uint32), product1.astype(xp.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ xp.uint32(k0), low1, high0 ^ c3 ^ xp.uint32(k1), low0
        k0, k1 = (k0 + PHILOX_WEYL[0]) & WORD, (k1 + PHILOX_WEYL[1]) & WORD
    return c0, c1, c2, c3


def draw_words(step: int, example_ids: Array, positions: Array, heads: Array, first: int,
               shape: tuple[int, ...], key: tuple[int, int], xp: ModuleType = np) -> Array:
    """The parts of a counter, a key of two ints -> words (*shape,4) uint32.

    `shape` is that of the counters: step, example_ids, positions, and heads + first + 0, 1, 2, ...
    along its last axis, all of which broadcast to it.
    """
    last = heads + first + xp.arange(shape[-1])
    counter = [xp.broadcast_to(xp.asarray(c).astype(xp.uint32), shape)
               for c in (step, example_ids, positions, last)]
    words = xp.empty((*shape, 4), dtype=xp.uint32)

    def draw(part):
        drawn = philox([c[part] for c in counter], key, xp)
        for i, word in enumerate(drawn):
            words[part][..., i] = word

    if xp is np:     # the products have 64 bits
        row_blocks.each(draw, row_blocks.blocks(shape[0], 8 * math.prod(shape[1:])))
    else:
        draw(slice(None))
    return words


@dataclass(frozen=True)
class Stream:
    """All random numbers of one optimizer step: words for the mask of each layer and site."""

    seed: int
    step: int
    draw: Callable = field(default=draw_words, repr=False, compare=False)
    # (1,) uint32 on a card, where kernels read the step's number in the place of `step`
    place: Any = field(default=None, repr=False, compare=False)

    def tokens(self, layer: int, site: int, example_ids: Array, positions: Array,
               width: int) -> Array:
        """example_ids (N,), positions (N,) -> words (N,width) uint32, one a token and channel."""
        return self._words(layer, site, example_ids[:, None], positions[:, None], 0, width)

    def scores(self, layer: int, example_id: Array, positions: Array, n_head: int, n_keys: int,
               first: int = 0) -> Array:
        """query positions (Tq,) of one example -> words (H,Tq,Tk) uint32, one for each score.

        Of several examples (G,1,1,1) at the same positions: (G,H,Tq,Tk).
        With `first`, a multiple of four: of the keys from there to n_keys only.
        """
        xp = array_module(positions)
        heads = xp.arange(n_head)[:, None, None] << 20
        return self._words(layer, SCORES, example_id, positions[None, :, None], heads,
                           n_keys - first, first)

    def score_rows(self, layer: int, example_ids: Array, positions: Array, heads: Array,
                   n_keys: int) -> Array:
        """One query and head a row, example_ids (R,), positions (R,), heads (R,) -> words (R,Tk)
        uint32, those that `scores` gives."""
        return self._words(layer, SCORES, example_ids[:, None], positions[:, None],
                           heads[:, None] << 20, n_keys)

    def _words(self, layer, site, example_ids, positions, heads, width, first=0):
        # Counter (step, example id, position, head << 20 | last // 4); word last % 4 of the output.
        if first % 4:
            raise ValueError(f"words start at {first}, expected a multiple of 4")
        xp = array_module(positions)
        shape = xp.broadcast_shapes(xp.shape(example_ids), positions.shape, xp.shape(heads),
                                    (ceil_div(width, 4),))
        words = self.draw(self.step, example_ids, positions, heads, first // 4, shape,
                          (self.seed, layer << 16 | site), xp)
        return words.reshape(*shape[:-1], -1)[..., :width]


@dataclass(frozen=True)
class Tokens:
    """The words of every token and channel of a packed batch, drawn when called.

    A kernel draws the same words itself, from the numbers held here.
    """

    stream: Stream
    layer: int
    site: int
    example_ids: np.ndarray
    positions: np.ndarray

    def __call__(self, width: int) -> Array:
        """number of channels -> words (N,width) uint32."""
        return self.stream.tokens(self.layer, self.site, self.example_ids, self.positions, width)


@dataclass(frozen=True)
class Scores:
    """The words of every score of a packed batch, given for one sequence when called.

    A kernel draws the same words itself, from the numbers held here. On a CPU those of short
    sequences are drawn together: a call for each would take longer than the drawing.
    """

    stream: Stream
    layer: int
    example_ids: np.ndarray
    cu_seqlens: np.ndarray     # of the queries
    n_head: int
    xp: ModuleType = np     # of the words
    from_start: bool = False     # queries are the first of each text's tokens, not the last
    key_lengths: np.ndarray | None = None     # of the sequences; None: each is drawn by itself

    def __call__(self, b: int, n_keys: int, block: slice | None = None,
                 queries: slice = slice(None)) -> Array:
        """sequence, its number of keys -> words (H,Tq,Tk) uint32; or of a slice of keys, which
        starts at a multiple of four, and a slice of queries."""
        if block is None and queries == slice(None) and self._together is not None:
            return self._together[b]
        start, stop = self.cu_seqlens[b], self.cu_seqlens[b + 1]
        before = 0 if self.from_start else n_keys - (stop - start)
        positions = self.xp.arange(before, before + stop - start)
        first, last = (0, n_keys) if block is None else (block.start, block.stop)
        return self.stream.scores(self.layer, self.example_ids[b], positions[queries], self.n_head,
                                  last, first)

    @cached_property
    def _together(self) -> list[np.ndarray] | None:
        """-> the words (H,Tq,Tk) of each sequence; None where they are too many to be held."""
        if self.key_lengths is None or self.xp is not np:
            return None
        n_queries, n_keys = np.diff(self.cu_seqlens), np.asarray(self.key_lengths)
        ends = np.cumsum(self.n_head * n_queries)     # of the sequences' rows, one a head and query
        width = int(n_keys.max(initial=0))
        if not len(ends) or ends[-1] * width > TOGETHER:
            return None
        number = np.repeat(np.arange(len(n_queries)), self.n_head * n_queries)
        row = np.arange(ends[-1]) - (ends - self.n_head * n_queries)[number]
        head, query = np.divmod(row, n_queries[number])
        before = 0 if self.from_start else (n_keys - n_queries)[number]
        words = self.stream.score_rows(self.layer, np.asarray(self.example_ids)[number],
                                       before + query, head, width)
        return [part[:, :keys].reshape(self.n_head, queries, keys) for part, queries, keys in zip(
            np.split(words, ends[:-1]), n_queries, n_keys, strict=True)]

    def of_groups(self) -> "GroupScores":
        """-> the words of the same scores for groups of whole sequences."""
        return GroupScores(self.stream, self.layer, self.example_ids, self.n_head)


@dataclass(frozen=True)
class GroupScores:
    """The words of every score of some texts from their first token on, drawn when called.

    A compiled loop draws the same words itself, from the numbers held here.
    """

    stream: Stream
    layer: int
    example_ids: np.ndarray
    n_head: int

    def __call__(self, indices: list[int], length: int) -> Array:
        """sequences (G), the longest length -> words (G,H,length,length) uint32."""
        return self.stream.scores(self.layer, self.example_ids[indices, None, None, None],
                                  np.arange(length), self.n_head, length)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """-> a random order of n indices (n,) int64; it depends on seed and epoch alone."""
    index = np.arange(n, dtype=np.uint32)
    fixed = np.full(n, epoch, dtype=np.uint32)
    zero = np.zeros(n, dtype=np.uint32)
    high, low, _, _ = philox((fixed, zero, zero, index), (seed, SHUFFLE << 16))
    return np.argsort(high.astype(np.uint64) << np.uint64(32) | low, kind="stable")


def normal(shape: tuple[int, ...], seed: int, number: int) -> np.ndarray:
    """-> standard normal values float64 of that shape: the initial values of parameter `number`.

    Box and Muller 1958, from two uniform numbers of 32 bits each.
    """
    size = int(np.prod(shape))
    pairs = np.empty(((size + 1) // 2, 2))

    def draw(part):
        index = np.arange(part.start, part.stop, dtype=np.uint32)
        fixed = np.full(len(index), number, dtype=np.uint32)
        zero = np.zeros(len(index), dtype=np.uint32)
        first, second, _, _ = philox((fixed, zero, zero, index), (seed, INITIAL << 16))
        radius = np.sqrt(-2 * np.log((first + 0.5) / 2.0**32))
        angle = 2 * np.pi * (second + 0.5) / 2.0**32
        pairs[part, 0], pairs[part, 1] = radius * np.cos(angle), radius * np.sin(angle)

    row_blocks.each(draw, row_blocks.blocks(len(pairs), 8))
    return pairs.ravel()[:size].reshape(shape)
