"""Generation: one new token at a time for each sequence, against a cache of keys and values."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array, array_module, to_cpu
from minisft.data.batch import Batch, pack
from minisft.models.device_decoding import DeviceDecoder, decodes_on_device
from minisft.models.finite import require_finite
from minisft.ops import softmax


class KVCache:
    """Keys and values of every block: a stretch of rows for each sequence, filled in place."""

    def __init__(self, config: Any, n_sequences: int, capacity: int, like: Array,
                 n_layer: int | None = None):
        """`like`: an array of the model, for its dtype and device; `n_layer`: the blocks that
        generate, None for all of the config."""
        self.capacity = capacity
        self.slots = np.arange(n_sequences)     # the stretch that each sequence of the batch has
        shape = (n_sequences * capacity, config.n_head, config.n_embd // config.n_head)
        xp = array_module(like)
        self.blocks = [(xp.zeros(shape, like.dtype), xp.zeros(shape, like.dtype))
                       for _ in range(config.n_layer if n_layer is None else n_layer)]

    def __getitem__(self, i: int) -> "_BlockCache":
        return _BlockCache(self, *self.blocks[i])

    def select(self, rows: np.ndarray) -> None:
        """Sequence i goes on from what sequence rows[i] was; several may go on from one."""
        self.slots = self.slots[rows]
        if len(set(self.slots.tolist())) < len(rows):     # else each keeps its stretch
            self.blocks = [(self._copied(k), self._copied(v)) for k, v in self.blocks]
            self.slots = np.arange(len(rows))

    def _copied(self, a: Array) -> Array:
        stretches = a.reshape(-1, self.capacity, *a.shape[1:])[array_module(a).asarray(self.slots)]
        return stretches.reshape(-1, *a.shape[1:])


@dataclass(frozen=True)
class _BlockCache:
    kv_cache: KVCache
    keys: Array
    values: Array
    packed = decodes = False     # as those of device_decoding.py

    def extend(self, k: Array, v: Array,
               batch: Batch) -> tuple[Array, Array, np.ndarray, np.ndarray]:
        """k, v (N,H,D) of the new tokens -> all keys and values, starts (B,), lengths (B,)."""
        starts = self.kv_cache.slots * self.kv_cache.capacity
        rows = batch.asarray(np.repeat(starts, batch.lengths)) + batch.positions
        self.keys[rows], self.values[rows] = k, v
        return self.keys, self.values, starts, batch.end_positions


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen; temperature 0 takes the most probable one.

    top_k keeps the k most probable tokens (0: all); top_p then keeps the fewest that reach that
    probability together (Holtzman et al. 2020, eq. 2).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ValueError(f"temperature {self.temperature}, top-k {self.top_k}, top-p "
                             f"{self.top_p}: expected at least 0, at least 0, in (0, 1]")

    def next_token(self, logits: np.ndarray, example_ids: np.ndarray,
                   positions: np.ndarray) -> np.ndarray:
        """logits (B,V), example_ids (B,), positions of the new tokens (B,) -> ids (B,)."""
        if self.temperature == 0:
            return logits.argmax(axis=-1)
        logits = self.scaled(logits)
        order = np.argsort(-logits, axis=-1, kind="stable")              # (B,V)
        return self.draw(np.take_along_axis(logits, order, axis=-1), order, example_ids, positions)

    def scaled(self, logits: np.ndarray) -> np.ndarray:
        """logits (B,V) -> the same below the greatest and over the temperature, float64."""
        logits = logits.astype(np.float64)
        with np.errstate(over="ignore"):     # close to 0 all but the greatest become -inf
            return (logits - logits.max(axis=-1, keepdims=True)) / self.temperature

    def draw(self, logits: np.ndarray, order: np.ndarray, example_ids: np.ndarray,
             positions: np.ndarray) -> np.ndarray:
        """logits (B,V), scaled and from the greatest on, their ids (B,V) -> as `next_token`."""
        p, _ = softmax.forward(logits)
        if self.top_k:
            p[:, self.top_k:] = 0
        reached = np.cumsum(p, axis=-1) / p.sum(axis=-1, keepdims=True)
        # A token is dropped when those before it reach top_p already; the first always stays.
        p[:, 1:][reached[:, :-1] >= self.top_p] = 0
        reached = np.cumsum(p, axis=-1)
        # One uniform number for each token, keyed by its text and position: company changes none.
        words = random.Stream(self.seed, 0).tokens(
            random.SAMPLE, 0, example_ids, positions, 1)[:, 0]
        target = (words + 0.5) / 2.0**32 * reached[:, -1]
        chosen = (reached > target[:, None]).argmax(axis=-1)             # (B,)
        return np.take_along_axis(order, chosen[:, None], axis=-1)[:, 0]


class Decoder:
    """B sequences of a language model, a new token of each at a time."""

    def __init__(self, model: Any, prompts: Sequence[np.ndarray], capacity: int,
                 max_new_tokens: int, sampler: Sampler, unused_ids: Sequence[int] | np.ndarray):
        self.model, self.sampler, self.unused = model, sampler, unused_ids
        self.kv_cache = KVCache(model.trunk.config, len(prompts), capacity, model.store.values)
        self.batch = pack(prompts)
        self.ids = np.zeros(len(prompts), dtype=np.int64)     # the last of each sequence
        self.positions = self.batch.end_positions
        self.n_new = 0

    def next_ids(self, alive: np.ndarray) -> np.ndarray:
        """Sequences that have not ended -> the next token of each.

        Raises NotFiniteError where a logit is not finite.
        """
        positions = self.positions[alive] + self.n_new
        if self.n_new:
            self.batch = Batch(self.ids[alive], positions - 1, np.arange(len(alive) + 1), alive)
        self.kv_cache.slots = alive
        logits = to_cpu(self.model.forward(self.batch, last_only=True, kv_cache=self.kv_cache))
        require_finite(logits)
        if len(self.unused):
            logits[:, self.unused] = -np.inf
        self.ids[alive] = ids = self.sampler.next_token(logits, alive, positions)
        self.n_new += 1
        return ids

    def finish(self) -> None:
        """Nothing is on its way."""


@dataclass(frozen=True)
class Generated:
    """The new tokens, and why there are no more.

    finish_reason: "stop" (the end token came), "length" (as many as were asked for), or "context"
    (the model has no further position).
    """

    ids: list[int]
    finish_reason: str


@np.errstate(over="ignore", invalid="ignore")     # reported by one UserError
def generate(model: Any, prompts: Sequence[np.ndarray], max_new_tokens: int, sampler: Sampler,
             end_token: int | Collection[int] | None = None,
             progress: Callable[[int], Any] | None = None,
             unused_ids: Sequence[int] | np.ndarray = (),
             on_token: Callable[[int, int], Any] | None = None) -> list[Generated]:
    """LanguageModel, B arrays of token ids -> B Generated.

    `end_token`: the id that ends a text, or several; any of them stops. `unused_ids`: ids that no
    token has, as where a vocabulary is padded to a round size; they are never chosen.

    `progress(n)` is called with the number of new tokens, `on_token(i, id)` with each token of
    prompt i. Position embeddings are learned, so a
    sequence stops when n_positions of its tokens have been read; one more may follow. Raises
    ValueError for an empty prompt or one beyond n_positions, UserError where the logits are not
    finite.
    """
    room = model.trunk.config.n_positions
    ends = end_token if isinstance(end_token, Collection) else (end_token,)
    lengths = [len(p) for p in prompts]
    if max(lengths) > room:
        raise ValueError(f"a prompt of {max(lengths)} tokens, but the model has {room} positions")
    decoder = (DeviceDecoder if decodes_on_device(model) else Decoder)(
        model, prompts, min(room, max(lengths) + max_new_tokens), max_new_tokens, sampler,
        unused_ids)
    new: list[list[int]] = [[] for _ in prompts]
    finish_reason = ["length"] * len(prompts)
    alive = np.arange(len(prompts))
    try:
        for n in range(max_new_tokens):
            ids = decoder.next_ids(alive)
            for slot, token in zip(alive.tolist(), ids.tolist(), strict=True):
                if token in ends:
                    finish_reason[slot] = "stop"
                    continue
                new[slot].append(token)
                if on_token is not None:
                    on_token(slot, token)
                if lengths[slot] + n >= room:
                    finish_reason[slot] = "context"
            if progress is not None:
                progress(len(alive))
            alive = alive[[finish_reason[slot] == "length" for slot in alive]]
            if not len(alive):
                break
    finally:
        decoder.finish()
    for i, new_ids in enumerate(new):
        if len(new_ids) == max_new_tokens and finish_reason[i] == "context":
            finish_reason[i] = "length"
    return list(map(Generated, new, finish_reason))
