"""What stands on top of GPT-2 or BERT: a classifier, or a language model with the tied matrix."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from minisft.backend import random
from minisft.backend.array import DEVICES, Array, array_module, device_name, require_gpu, to_cpu
from minisft.data.batch import Batch
from minisft.data.special_tokens import SpecialTokens
from minisft.dispatch import (
    FORMATS,
    PRECISIONS,
    adds_to_out,
    cross_entropy,
    linear,
    loss_in_place,
    matmul,
    resolve_precision,
    rounded,
)
from minisft.models import logit_blocks
from minisft.models.adapters import LoraConfig, add_adapter, merge_adapter
from minisft.models.bert import Bert, MeanPooler, Pooler
from minisft.models.gpt2 import GPT2
from minisft.models.init_weights import init_weights
from minisft.nn.layers import Dropout, Layer, Linear
from minisft.nn.parameters import Parameter, Parameters
from minisft.ops.cross_entropy import IGNORE


class Model(Layer):
    """A trunk and its head, with one store for all parameters."""

    trunk: Any
    store: Parameters
    # names of the parameters that a checkpoint lacked and `load` drew
    newly_initialized: tuple[str, ...] = ()
    new_head_reason: str = ""     # why a checkpoint's head was not kept
    # which tokens begin, end and pad a text, where a folder or a tokenizer has said it
    special_tokens: SpecialTokens | None = None
    # names of the tensors of another task's head that a checkpoint holds
    unused_tensors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()     # what else a reader of the checkpoint should be told
    loss_cache: Any = None
    overwrites_logits = False     # whether `loss_backward` writes over the logits of `loss`
    pruned = False        # whether it reads one token of each text alone
    adapter: LoraConfig | None = None     # of the adapters in it (adapters.py), where it has some

    def __repr__(self) -> str:
        config = self.trunk.config
        return (f"{type(self).__name__}({config.TITLE}, {config.n_layer} "
                f"block{'s' * (config.n_layer != 1)}, width {config.n_embd}, {self.output}, "
                f"{sum(p.size for p in self.parameters()):,} parameters)")

    def __getstate__(self) -> dict[str, Any]:
        """Pickling and copying keep the shape and the values, on the CPU; no gradients, no caches.
        """
        return {"options": self.options(), "dtype": self.store.dtype,
                "values": {p.name: to_cpu(p.value) for p in self.store},
                "trainable": {p.name for p in self.store.trainable}, "adapter": self.adapter,
                "newly_initialized": self.newly_initialized, "special_tokens": self.special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        make: Any = type(self)
        make.__init__(self, **state["options"], dtype=state["dtype"], seed=None)
        if state["adapter"] is not None:
            self.add_adapter(state["adapter"], seed=None)
        for p in self.store:
            p.value[...] = state["values"][p.name]
        self.store.train(lambda p: p.name in state["trainable"])
        self.newly_initialized = state["newly_initialized"]
        self.special_tokens = state.get("special_tokens")     # a pickle of before has none

    @property
    def output(self) -> str:
        """-> what it gives for a text, as `repr` says it."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """-> the arguments that make a model of this shape."""
        raise NotImplementedError

    def backward(self, dlogits: Array) -> Array:
        """dlogits as `forward` returned them -> gradient of the embedded tokens (N,C)."""
        raise NotImplementedError

    def build(self, dtype: Any, seed: int | None = None) -> None:
        """Lays all parameters into one store, zeros or, with a seed, initial values.

        A head whose `dtype` is None has shapes but no store: a loader checks them first.
        """
        self.store = Parameters(self.parameters(), dtype)
        if seed is not None:
            init_weights(self.store, seed)

    def to(self, device: str, precision: str = "float32") -> Self:
        """cpu or cuda, a name of PRECISIONS -> self, from now on computing there and so.

        "auto" is bfloat16 where that is faster, else float32.

        Raises ValueError for a name that is none of these, UserError where there is no GPU.
        """
        device = device_name(device)
        for what, name, names in (("device", device, DEVICES),
                                  ("precision", precision, PRECISIONS)):
            if name not in names:
                raise ValueError(f"{what} is {name!r}, expected one of {', '.join(names)}")
        if device == "cuda":
            require_gpu()
            self.store.to_gpu()
        self.store.set_compute_dtype(FORMATS[resolve_precision(precision, device)])
        return self

    def received(self, batch: Batch) -> Batch:
        """Batch -> the same where the model lies, once it is seen that the model can read it.

        Raises ValueError as `check_tokens`.
        """
        # what lies on a card was seen before it went there: asking again would wait for the card
        if isinstance(batch.ids, np.ndarray):
            self.check_tokens(batch)
        return batch.to(self.store.xp)

    def check_tokens(self, batch: Batch) -> None:
        """Raises ValueError for a token id that the vocabulary lacks, and for too long a text."""
        if not len(batch.ids):
            return
        config = self.trunk.config
        low, high, last = batch.ids.min(), batch.ids.max(), batch.positions.max()
        if low < 0 or high >= config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"the batch holds the token id {wrong}, but the vocabulary has "
                             f"{config.vocab_size} tokens")
        if last >= config.n_positions:
            raise ValueError(f"a text of {last + 1} tokens, but the model takes "
                             f"{config.n_positions}")

    def check_labels(self, batch: Batch) -> None:
        """Raises ValueError for labels that the model's loss does not take."""
        raise NotImplementedError

    @staticmethod
    def require_labels(batch: Batch, n: int, classes: int, what: str) -> None:
        """Raises ValueError unless the batch has n labels, each below `classes` or ignored."""
        if batch.labels is None:
            raise ValueError(f"the batch has no labels, expected {what}")
        if np.shape(batch.labels) != (n,):
            raise ValueError(f"the batch has labels of shape {np.shape(batch.labels)}, expected "
                             f"({n},), {what}")
        labels = batch.labels
        labels = labels[labels != IGNORE] if isinstance(labels, np.ndarray) else ()
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()}, but the classes are "
                             f"0 to {classes - 1}")

    def loss_backward(self, scale: float = 1.0) -> Array:
        """Adds `scale` times the gradients of the summed loss; -> gradient of the embedded tokens
        (N,C)."""
        if self.loss_cache is None:
            raise RuntimeError(f"{type(self).__name__}.loss_backward needs a forward of its own "
                               "before")
        cache, self.loss_cache = self.loss_cache, None
        out = cache[0] if self.overwrites_logits else None
        return self.backward(cross_entropy.backward(scale, cache, out))

    def loss_and_gradients(self, batch: Batch, stream: random.Stream | None = None,
                           scale: float = 1.0, **options: Any) -> tuple[Array, Array]:
        """`loss` and `loss_backward` at once, for whom needs no logits -> loss, denominator."""
        model: Any = self     # each model's own loss
        loss, denominator, _ = model.loss(batch, stream, **options)
        self.loss_backward(scale)
        return loss, denominator

    def train_layers(self, which: str) -> None:
        """"all", "head", "last:K" (the last K blocks, the last LayerNorm and the head), or "bias"
        (all biases and the head: Ben Zaken et al. 2022, "BitFit").

        Raises ValueError for anything else.
        """
        blocks = self.trunk.config.n_layer
        if which == "bias":
            head = {p.name for p in self.head_parameters}
            self.store.train(lambda p: p.name in head or p.name.endswith(".bias"))
            return
        last = which.removeprefix("last:")
        if which == "all":
            first = self.trunk.config.EMBEDDING_LAYER
        elif which == "head":
            first = self.head_layer
        elif which.startswith("last:") and last.isdecimal() and 1 <= int(last) <= blocks:
            first = self.trunk.config.block_layer(blocks - int(last))
        else:
            raise ValueError(f"layers to train are {which!r}, expected all, head, bias or last:K "
                             f"with K from 1 to {blocks}")
        self.store.train(lambda p: p.layer >= first)

    @property
    def head_layer(self) -> int:
        """-> the number of the layer that `train_layers("head")` trains."""
        return self.trunk.config.final_layer

    @property
    def head_parameters(self) -> list[Parameter]:
        """-> what is trained whole beside an adapter: of a language model nothing."""
        return [p for p in self.parameters() if p.layer >= self.head_layer]

    def add_adapter(self, config: LoraConfig, seed: int | None = 0) -> None:
        """Low-rank adapters in place (adapters.py), trained with the head while the base is frozen.

        Raises ValueError where they fit no linear map.
        """
        add_adapter(self, config, seed)

    def merge_adapter(self) -> None:
        """Adds the adapters to the matrices that they adapt, in place, and takes them out."""
        merge_adapter(self)


def tied_logits(hidden: Array, table: Parameter, round_y: bool = False) -> tuple[Array, Any]:
    """hidden (M,C), the token table (V,C) -> logits (M,V), cache; `round_y`: in 16 bits.

    On a card the table has rows of zeros behind its own: the logits are then columns of a wider
    array.
    """
    options = {"round_y": True} if round_y else {}
    logits, cache = linear.forward(hidden, table.padded_product_value.T, **options)
    if logits.shape[1] == table.shape[0]:
        return logits, (cache, None)
    return logits[:, :table.shape[0]], (cache, logits)


def tied_logits_backward(dlogits: Array, cache: Any, table: Parameter) -> Array:
    """dlogits (M,V) -> dhidden (M,C); the table gets this gradient beside that of its rows."""
    (hidden, w), whole = cache
    if whole is not None:
        # where the gradient took the logits' place it has zeros behind it, as they had
        if _where(dlogits) != _where(whole):
            whole = array_module(dlogits).zeros(whole.shape, dtype=dlogits.dtype)
            whole[:, :table.shape[0]] = dlogits
        dlogits = whole
    dlogits = rounded(dlogits, w.dtype)
    dhidden = matmul(dlogits, w.T)
    if table.trainable:
        table.add_product(
            lambda rows, out, **add: matmul(dlogits[:, rows].T, hidden, out, **add),
            adds_to_out(dlogits.T, hidden))
    return dhidden


def _where(a):
    """-> where an array begins in memory, and how far apart its rows are."""
    return (a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr), a.strides[0]


def scattered(d: Array, rows: Array, n: int) -> Array:
    """d (M,C) of M distinct rows -> (n,C), zeros elsewhere."""
    y = array_module(d).zeros((n, d.shape[-1]), dtype=d.dtype)
    y[rows] = d
    return y


class Classifier(Model):
    """`score` (C,K), no bias, on the last token of each text, as GPT2ForSequenceClassification.

    The last block computes only what those tokens need, forward and backward.
    """

    pruned = True

    def __init__(self, config: Any, label_names: Sequence[str], dtype: Any = np.float32,
                 seed: int | None = 0):
        self.label_names = tuple(label_names)
        self.trunk = GPT2(config)
        self.score = Linear("score", config.n_embd, len(self.label_names), config.head_layer,
                            bias=False)
        if dtype is not None:
            self.build(dtype, seed)

    @property
    def output(self) -> str:
        return f"{len(self.label_names)} classes"

    def options(self) -> dict[str, Any]:
        return {"config": self.trunk.config, "label_names": self.label_names}

    @property
    def head_layer(self) -> int:
        return self.trunk.config.head_layer

    def from_random_weights(self, dropout: float, seed: int) -> "Classifier":
        """-> a classifier of the same shape and labels that has learnt nothing."""
        return type(self)(self.trunk.config.with_dropout(dropout), self.label_names, seed=seed)

    def forward(self, batch: Batch, stream: random.Stream | None = None) -> Array:
        """Batch -> logits (B,K)."""
        self.loss_cache = None     # of an earlier forward, whose layers' caches end here
        batch = self.received(batch)
        return self.score.forward(self.trunk.forward(batch, stream, last_only=True))

    def backward(self, dlogits: Array) -> Array:
        """dlogits (B,K) -> gradient of the embedded tokens (N,C), or None where layers freeze."""
        return self.trunk.backward(self.score.backward(dlogits))

    def check_labels(self, batch: Batch) -> None:
        """Raises ValueError unless each text has a label, a class or ignored."""
        self.require_labels(batch, len(batch.lengths), len(self.label_names),
                            "a class for each text")

    def loss(self, batch: Batch, stream: random.Stream | None = None, weights: Array = None,
             smoothing: float = 0.0) -> tuple[Array, Array, Array]:
        """Batch with labels (B,) -> loss summed over the texts, denominator, logits (B,K).

        Raises ValueError for a label that is no class.
        """
        self.check_labels(batch)
        batch = self.received(batch)
        logits = self.forward(batch, stream)
        (loss, denominator), self.loss_cache = cross_entropy.forward(
            logits, batch.labels, None if weights is None else batch.asarray(weights), smoothing)
        return loss, denominator, logits


class BertClassifier(Classifier):
    """`classifier` (C,K) on what a pooler makes of each text.

    `pooling` "first": the first token through BERT's pooler, as BertForSequenceClassification; the
    last block computes only what that token needs. "mean": the mean of the text's tokens, which
    `transformers` has no class for.
    """

    POOLINGS = "first", "mean"

    def __init__(self, config: Any, label_names: Sequence[str], dtype: Any = np.float32,
                 seed: int | None = 0, pooling: str = "first"):
        if pooling not in self.POOLINGS:
            raise ValueError(f"pooling is {pooling!r}, expected first or mean")
        self.label_names, self.pooling = tuple(label_names), pooling
        self.pruned = pooling == "first"
        self.trunk = Bert(config)
        self.pooler = Pooler("pooler", config) if pooling == "first" else MeanPooler()
        head = config.head_layer
        self.drop = Dropout(config.pooled_rate, head, random.POOLED)
        self.classifier = Linear("classifier", config.n_embd, len(self.label_names), head)
        if dtype is not None:
            self.build(dtype, seed)

    def options(self) -> dict[str, Any]:
        return super().options() | {"pooling": self.pooling}

    def from_random_weights(self, dropout: float, seed: int) -> "Classifier":
        return type(self)(self.trunk.config.with_dropout(dropout), self.label_names, seed=seed,
                          pooling=self.pooling)

    @property
    def head_layer(self) -> int:
        return self.trunk.config.final_layer     # the pooler too: a checkpoint may lack it

    def forward(self, batch: Batch, stream: random.Stream | None = None) -> Array:
        """Batch -> logits (B,K)."""
        self.loss_cache = None     # of an earlier forward, whose layers' caches end here
        batch = self.received(batch)
        hidden = self.trunk.forward(batch, stream, self.pruned)
        pooled = self.pooler.forward(hidden, batch)
        # one mask a text: its first position stands for the whole
        example_ids = batch.text_example_ids
        pooled = self.drop.forward(pooled, stream, example_ids, 0 * example_ids)
        return self.classifier.forward(pooled)

    def backward(self, dlogits: Array) -> Array:
        """dlogits (B,K) -> gradient of the embedded tokens (N,C), or None where layers freeze."""
        dpooled = self.drop.backward(self.classifier.backward(dlogits))
        return self.trunk.backward(self.pooler.backward(dpooled))


class LanguageModel(Model):
    """Next-token prediction; the output matrix is the token table (Press and Wolf 2017) or its own.

    With the tied matrix one parameter gets two gradients.
    """

    head_parameters: Any = ()     # the token table's, or one that PEFT does not adapt either
    overwrites_logits = True     # N x V numbers, held once: the gradient takes their place

    def __init__(self, config: Any, tied: bool = True, dtype: Any = np.float32,
                 seed: int | None = 0):
        self.trunk = GPT2(config)
        self.lm_head: Any = None if tied else Linear("lm_head", config.n_embd, config.vocab_size,
                                                config.head_layer, bias=False)
        if dtype is not None:
            self.build(dtype, seed)

    @property
    def output(self) -> str:
        """-> what it gives for a token, as `repr` says it."""
        return f"{self.trunk.config.vocab_size:,} tokens of vocabulary"

    def options(self) -> dict[str, Any]:
        return {"config": self.trunk.config, "tied": self.lm_head is None}

    def forward(self, batch: Batch, stream: random.Stream | None = None, rows: Array = None,
                last_only: bool = False, kv_cache: Any = None) -> Array:
        """Batch -> logits (N,V), or of some distinct rows, or (B,V) of each sequence's last."""
        # of an earlier forward, whose layers' caches and logits end here
        self.loss_cache = self.cache = None
        batch = self.received(batch)
        hidden = self.trunk.forward(batch, stream, last_only, kv_cache)
        n = len(hidden)
        if rows is not None:
            hidden = hidden[rows]
        logits, cache = self._head(hidden)
        self.save_for_backward(cache, rows, n)
        return logits

    def backward(self, dlogits: Array) -> Array:
        """dlogits as `forward` returned them -> gradient of the embedded tokens (N,C)."""
        cache, rows, n = self.pop_saved()
        dhidden = self._head_backward(dlogits, cache)
        if rows is not None:
            dhidden = scattered(dhidden, rows, n)
        return self.trunk.backward(dhidden)

    def check_labels(self, batch: Batch) -> None:
        """Raises ValueError unless each token has a label, a token or ignored."""
        self.require_labels(batch, len(batch.ids), self.trunk.config.vocab_size,
                            "the next token of each token")

    def loss(self, batch: Batch, stream: random.Stream | None = None) -> tuple[Array, Array, Array]:
        """Batch with the next token of each token (N,) as labels -> summed loss, denominator,
        logits of the rows that count; `loss_backward` overwrites them."""
        self.check_labels(batch)
        rows = batch.labelled
        batch = self.received(batch)
        rows = batch.asarray(rows)
        logits = self.forward(batch, stream, rows)
        labels: Any = batch.labels
        (loss, denominator), self.loss_cache = cross_entropy.forward(logits, labels[rows])
        return loss, denominator, logits

    def loss_and_gradients(self, batch: Batch, stream: random.Stream | None = None,
                           scale: float = 1.0, **options: Any) -> tuple[Array, Array]:
        """As `Model`'s; the logits of many rows never exist whole (logit_blocks.py), and on a card
        the gradient takes their place at once."""
        self.check_labels(batch)
        rows: Any = batch.labelled
        train = loss_in_place(self.trunk.wte.w.value, self.trunk.wte.w.storage_dtype)
        low = train is not None and self.trunk.wte.w.storage_dtype is not None
        parts = logit_blocks.blocks(len(rows), self.trunk.config.vocab_size, self.store.xp,
                                    2 if low else self.store.dtype.itemsize)
        if options or not parts or len(parts) < 2 and train is None:
            return super().loss_and_gradients(batch, stream, scale, **options)
        self.loss_cache = self.cache = None
        batch = self.received(batch)
        # a card's pool keeps together for the logits what smaller arrays would break up
        room = None if train is None or self.store.xp is np else \
            self._room_for_logits(len(rows), parts[0], low)
        hidden, every = self.trunk.forward(batch, stream), len(rows) == len(batch.ids)
        rows = slice(None) if every else batch.asarray(rows)
        del room
        labels: Any = batch.labels
        loss, denominator, dhidden = logit_blocks.loss_and_dhidden(
            hidden[rows], labels[rows], parts,
            partial(self._head, round_y=True) if low else self._head, self._head_backward, scale,
            train=train)
        self.trunk.backward(dhidden if every else scattered(dhidden, rows, len(hidden)))
        return loss, denominator

    def _room_for_logits(self, rows, part, low):
        """-> an array as large as the logits of a block and two of hidden (rows,C), which come
        before them."""
        classes, width = self.trunk.wte.w.padded_product_value.shape
        size = (part.stop - part.start) * classes * (2 if low else 4) + 8 * rows * width
        return self.store.xp.empty(size, dtype=np.uint8)

    def _head(self, hidden, round_y=False):
        """hidden (M,C) -> logits (M,V), in 16 bits with `round_y`, cache."""
        if self.lm_head is not None:
            return self.lm_head.forward_columns(hidden, slice(None), round_y=round_y)
        return tied_logits(hidden, self.trunk.wte.w, round_y)

    def _head_backward(self, dlogits, cache):
        """dlogits (M,V) -> dhidden (M,C)."""
        if self.lm_head is not None:
            return self.lm_head.backward_columns(dlogits, cache, slice(None))
        return tied_logits_backward(dlogits, cache, self.trunk.wte.w)
