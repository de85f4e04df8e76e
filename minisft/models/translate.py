"""Translations: a target token at a time, the most probable one or the best of several beams.

The encoder reads each source once; its keys and values stay for all steps and all beams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minisft.backend.array import Array, to_cpu
from minisft.data.batch import Batch, pack
from minisft.models.finite import require_finite
from minisft.models.generate import Generated, KVCache
from minisft.models.seq2seq import EncoderDecoder


class DecodingState:
    """Keys and values of the targets so far, and of the sources, for a number of rows.

    At first there is one row for each source; `select` makes others of them.
    """

    def __init__(self, model: EncoderDecoder, sources: Sequence[Any], capacity: int):
        """B arrays of token ids, at most so many target tokens; raises ValueError as `pack`."""
        self.model, self.n_tokens = model, 0
        source, layers = pack(sources), model.trunk.decoder.layers
        m = model.encode(source)
        self.of_blocks = [block.encoder_attn.project(m) for block in layers]
        model.trunk.clear_cache()
        self.starts, self.lengths = source.cu_seqlens[:-1], source.lengths
        self.kv_cache = KVCache(model.trunk.config, len(sources), capacity, m, len(layers))

    def __getitem__(self, j: int) -> "_BlockState":
        return _BlockState(self, j)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """The last token of each row (R,) -> logits of the next (R,V), on the CPU."""
        rows = np.arange(len(ids) + 1)
        batch = Batch(ids, np.full(len(ids), self.n_tokens), rows, rows[:-1])
        logits = to_cpu(self.model.next_logits(batch, self))
        require_finite(logits)
        self.n_tokens += 1
        return logits

    def select(self, rows: np.ndarray) -> None:
        """Row i goes on from what row rows[i] was; several may go on from one."""
        self.kv_cache.select(rows)
        self.starts, self.lengths = self.starts[rows], self.lengths[rows]


@dataclass(frozen=True)
class _BlockState:
    state: DecodingState
    j: int

    def extend(self, k: Array, v: Array, batch: Batch) -> tuple[Any, ...]:
        """k, v (R,H,D) of the new tokens -> all keys and values, starts (R,), lengths (R,)."""
        return self.state.kv_cache[self.j].extend(k, v, batch)

    def of_source(self) -> tuple[Any, ...]:
        """-> keys and values (M,H,D) of the sources, starts (R,), lengths (R,)."""
        return *self.state.of_blocks[self.j], self.state.starts, self.state.lengths


@dataclass(frozen=True)
class Hypothesis(Generated):
    """A translation and its score: the sum of its log-probabilities over length ** penalty."""

    score: float


def _capacity(model, max_new_tokens):
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    return min(max_new_tokens, model.trunk.config.n_positions)


@np.errstate(over="ignore", invalid="ignore")     # reported by one UserError
def greedy(model: EncoderDecoder, sources: Sequence[Any],
           max_new_tokens: int) -> list[Generated]:
    """B arrays of an encoder's token ids -> B Generated: the most probable token at each step.

    The end token counts among the new ones, and is not among the ids. Raises ValueError for an
    empty source or one beyond n_positions, UserError where the logits are not finite.
    """
    config, capacity = model.trunk.config, _capacity(model, max_new_tokens)
    state = DecodingState(model, sources, capacity)
    new: list[list[int]] = [[] for _ in sources]
    reasons = ["length" if capacity == max_new_tokens else "context"] * len(sources)
    alive = np.arange(len(sources))
    ids = np.full(len(alive), config.decoder_start_token_id)
    for _ in range(capacity):
        ids = state.logits(ids).argmax(axis=-1)
        for text, token in zip(alive, ids, strict=True):
            if token == config.eos_token_id:
                reasons[text] = "stop"
            else:
                new[text].append(int(token))
        going = np.flatnonzero(ids != config.eos_token_id)
        if not len(going):
            break
        alive, ids = alive[going], ids[going]
        state.select(going)
    return list(map(Generated, new, reasons))


@dataclass(frozen=True)
class _Beam:
    row: int        # of the state
    total: float    # the sum of its log-probabilities
    ids: list[int]


@np.errstate(over="ignore", invalid="ignore")     # reported by one UserError
def beam_search(model: EncoderDecoder, sources: Sequence[Any], beam_size: int = 4,
                length_penalty: float = 1.0, max_new_tokens: int = 128) -> list[Hypothesis]:
    """B arrays of an encoder's token ids -> B Hypothesis, the best that each search has seen.

    A hypothesis of n tokens, its end token among them, scores the sum of their log-probabilities
    divided by n ** length_penalty: above 0 long ones gain. A text's search ends when no beam can
    still overtake its best, not when a beam has ended. Raises as `greedy`, and ValueError for a
    beam_size below 1 and a length_penalty beyond 10.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}, expected 1 or more")
    if not -10 <= length_penalty <= 10:     # nor NaN, with which no score is the best
        raise ValueError(f"length_penalty is {length_penalty}, expected from -10 to 10")
    config, capacity = model.trunk.config, _capacity(model, max_new_tokens)
    state = DecodingState(model, sources, capacity)
    beams = {text: [_Beam(text, 0.0, [])] for text in range(len(sources))}
    best: list[Hypothesis | None] = [None] * len(sources)
    ids = np.full(len(sources), config.decoder_start_token_id)
    for n in range(1, capacity + 1):
        logp = _log_softmax(state.logits(ids))                                       # (R,V)
        for text in list(beams):
            # twice as many: those that end leave enough that go on
            going, rank = [], 0
            for rank, beam in enumerate(_extended(beams[text], logp, 2 * beam_size)):
                ends = beam.ids[-1] == config.eos_token_id
                if (ends or n == capacity) and rank < beam_size:
                    reason = ("stop" if ends else
                              "length" if capacity == max_new_tokens else "context")
                    score, known = beam.total / n ** length_penalty, best[text]
                    if known is None or score > known.score:
                        best[text] = Hypothesis(beam.ids[:len(beam.ids) - ends], reason, score)
                if not ends and len(going) < beam_size:
                    going.append(beam)
            # a total only falls: at best it stays, and is divided by the best length that is left
            longest = capacity if length_penalty > 0 else n + 1
            found = best[text]
            if n < capacity and going and (
                    found is None or going[0].total / longest ** length_penalty > found.score):
                beams[text] = going
            else:
                del beams[text]
        if not beams:
            break
        rows = [beam.row for going in beams.values() for beam in going]
        ids = np.array([beam.ids[-1] for going in beams.values() for beam in going])
        state.select(np.array(rows))
        numbers = iter(range(len(rows)))
        beams = {text: [_Beam(next(numbers), beam.total, beam.ids) for beam in going]
                 for text, going in beams.items()}
    return [found for found in best if found is not None]


def _extended(beams, logp, n):
    """Beams of a text -> the n best of those that are a token longer, the best first."""
    totals = np.array([[beam.total] for beam in beams]) + logp[[beam.row for beam in beams]]
    flat, (_, width) = totals.ravel(), totals.shape
    best = np.argpartition(-flat, n - 1)[:n] if n < len(flat) else np.arange(len(flat))
    best = best[np.lexsort((best, -flat[best]))]
    for place in best.tolist():
        beam = beams[place // width]
        yield _Beam(beam.row, float(flat[place]), [*beam.ids, place % width])


def _log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
