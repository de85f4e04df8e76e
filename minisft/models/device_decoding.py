"""Generation whose state lies on the card: ids, lengths, keys and values.

A step is a function of arrays that stay where they are, and of nothing else: how many keys there
are is read on the card. So it is recorded once, and replayed for each token.

    (1) id = the first of the largest logits      greedy; a sampler draws on the CPU
    (2) length = length + 1                       below the capacity of the cache

The CPU reads the ids of a greedy step when the next one is on its way, and drops what a sequence
writes after its end: there are B sequences until the last has ended.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minisft.backend.array import Array, fetched, to_cpu
from minisft.backend.gpu.graph import Recorder
from minisft.data.batch import Batch, pack
from minisft.dispatch import decoding_kernels, rounded
from minisft.models.finite import require_finite


def decodes_on_device(model: Any) -> bool:
    """-> whether its steps run as kernels whose state lies on the card."""
    config = model.trunk.config
    return decoding_kernels(model.trunk.wte.w.value, config.n_embd // config.n_head) is not None


class DeviceCache:
    """Keys and values of every block, in the format in which the model stores activations.

    The prompts come as a packed batch, which attends to its own keys. Then `decodes` is set, and
    each sequence has one new token at a time.
    """

    decodes = False

    def __init__(self, model: Any, lengths: Array, capacity: int):
        """`lengths` (B,) int32 on the card: of the keys that are there, below `capacity`."""
        config, xp = model.trunk.config, model.store.xp
        self.lengths, self.capacity = lengths, capacity
        shape = (len(lengths) * capacity, config.n_head, config.n_embd // config.n_head)
        dtype = model.trunk.wte.w.storage_dtype or np.float32
        self.kernels = decoding_kernels(model.trunk.wte.w.value, shape[-1])
        self.blocks = [(xp.empty(shape, dtype=dtype), xp.empty(shape, dtype=dtype))
                       for _ in range(config.n_layer)]
        self.rows: Array = None     # of the prompts' tokens, the same in all blocks

    def __getitem__(self, i: int) -> "_BlockCache":
        return _BlockCache(self, *self.blocks[i])


@dataclass(frozen=True)
class _BlockCache:
    cache: DeviceCache
    keys: Array
    values: Array
    packed = True

    @property
    def decodes(self) -> bool:
        return self.cache.decodes

    def extend(self, k: Array, v: Array,
               batch: Batch) -> tuple[Array, Array, np.ndarray, np.ndarray]:
        """k, v (N,H,D) of the prompts -> the same; starts (B,) and lengths (B,) in them."""
        cache = self.cache
        if cache.rows is None:
            starts = np.arange(len(batch.lengths)) * cache.capacity
            cache.rows = batch.asarray(np.repeat(starts, batch.lengths)) + batch.positions
        for to, numbers in ((self.keys, k), (self.values, v)):
            to[cache.rows] = rounded(numbers, to.dtype)
        return k, v, batch.cu_seqlens[:-1], batch.lengths

    def attend(self, qkv: Array, dtype: Any) -> Array:
        """qkv (B,3C) of the new tokens -> y (B,C), of 16 bits with `dtype`."""
        return self.cache.kernels.attention(qkv, self.keys, self.values, self.cache.lengths, dtype)


def one_token_each(ids: Array, positions: Array) -> Batch:
    """ids (B,), positions (B,) on the card -> Batch, which reads these arrays whatever they hold.
    """
    n = len(ids)
    batch = Batch(ids, positions, np.arange(n + 1), np.arange(n))
    vars(batch)["token_example_ids"] = None     # for dropout, of which there is none
    return batch


class DeviceDecoder:
    """B sequences of a language model on a card, a new token of each at a time."""

    def __init__(self, model: Any, prompts: Sequence[np.ndarray], capacity: int,
                 max_new_tokens: int, sampler: Any, unused_ids: Sequence[int] | np.ndarray):
        xp, n, self.size = model.store.xp, len(prompts), model.trunk.config.vocab_size
        self.model, self.prompts, self.sampler, self.xp = model, prompts, sampler, xp
        self.capacity, self.left = capacity, max_new_tokens
        self.n_prompt = np.array([len(p) for p in prompts])
        self.n_new = 0
        # one transfer takes both
        self.state = xp.asarray(np.stack([np.zeros(n), self._n_keys()]).astype(np.int32))
        self.ids, self.lengths = self.state
        self.chosen = xp.zeros(n, dtype=np.int32)
        self.cache = DeviceCache(model, self.lengths, capacity)
        self.batch = one_token_each(self.ids, self.lengths)
        self.unused: Array = None
        if len(unused_ids):
            bits = self.cache.kernels.bits(unused_ids, self.size)
            self.unused = xp.asarray(bits if sampler.temperature == 0 else np.asarray(unused_ids))
        self.recorder = Recorder()
        self.coming: deque[Callable[[], np.ndarray]] = deque()     # ids that the CPU has not read
        self.logits: Array = None     # where a sampler reads them

    def next_ids(self, alive: np.ndarray) -> np.ndarray:
        """Sequences that have not ended -> the next token of each.

        Raises NotFiniteError where a logit is not finite.
        """
        if self.sampler.temperature > 0:
            return self._drawn(alive)
        while self.left and len(self.coming) < 2:
            if self.cache.decodes:
                self.recorder.run("step", self._greedy_step)
            else:
                self._choose(self._prompts_read(), None)
            self.coming.append(fetched(self.chosen))
            self.left -= 1
        ids = self.coming.popleft()()[alive]
        require_finite(np.where(ids < 0, np.nan, ids))
        return ids

    def finish(self) -> None:
        """Waits for the ids that nobody will read: until then their copies need their place."""
        while self.coming:
            self.coming.popleft()()

    def _prompts_read(self):
        """-> logits of the first new token of each (B,V)."""
        logits = self.model.forward(pack(self.prompts), last_only=True, kv_cache=self.cache)
        self.cache.decodes = True
        return logits

    def _step(self):
        """The last token of each sequence -> logits of the next (B,V)."""
        return self.model.forward(self.batch, kv_cache=self.cache)

    def _greedy_step(self):
        self._choose(self._step(), self.lengths)

    def _choose(self, logits, lengths):
        self.cache.kernels.next_token(logits, self.ids, self.chosen, lengths, self.capacity,
                                      self.unused)

    def _step_into_logits(self):
        self.logits[...] = self._step()

    def _drawn(self, alive):
        """As `next_ids`, by the sampler; the card sorts the logits, which takes a CPU longest."""
        if self.cache.decodes:
            self.recorder.run("step", self._step_into_logits)
        else:
            self.logits = self._prompts_read().copy()
        finite = to_cpu(self.xp.isfinite(self.logits).all(axis=-1))
        require_finite(np.where(finite[alive], 0.0, np.nan))
        if self.unused is not None:
            self.logits[:, self.unused] = -np.inf
        order = self.xp.argsort(-self.logits, axis=-1, kind="stable")
        ordered = self.xp.take_along_axis(self.logits, order, axis=-1)
        order, ordered = to_cpu(order.astype(np.int32))[alive], to_cpu(ordered)[alive]
        ids = self.sampler.draw(self.sampler.scaled(ordered), order, alive,
                                self.n_prompt[alive] + self.n_new)
        whole = np.stack([np.zeros(len(self.n_prompt)), self._n_keys()]).astype(np.int32)
        whole[0, alive] = ids
        self.state[...] = self.xp.asarray(whole)
        self.n_new += 1
        return ids

    def _n_keys(self):
        """-> keys in the cache before the next step (B,)."""
        return np.minimum(self.n_prompt + self.n_new, self.capacity - 1)
