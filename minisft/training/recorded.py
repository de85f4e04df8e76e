"""Loss and gradients of a batch; on a card as a recorded step (backend/gpu/graph.py).

A recorded step serves all batches of one bucket (data/buckets.py): what changes from one to the
next goes to the card in one copy, to where the step reads it, and one copy brings back loss,
denominator and the gradients' squares. What is decided upon these, and the optimizer's step, is not
recorded. Recorded or not, a step of a bucket has the same bits.

GPT-2's and BERT's classifiers and language models are recorded where their products go to cuBLASLt.
Kept features, pooling by the mean, adapters in float32, other models and other kernels are not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minisft.backend import array
from minisft.backend.array import Array
from minisft.backend.gpu import cuda, gemm, graph, launch
from minisft.backend.gpu.launch.packed import Placed
from minisft.backend.random import WORD, Stream
from minisft.data.batch import Batch, order
from minisft.data.buckets import Bucket, bucket_of, filled
from minisft.dispatch import squared_norm
from minisft.models.bert import Bert
from minisft.models.heads import BertClassifier, Classifier, LanguageModel, Model
from minisft.models.token_heads import TokenClassifier

MODELS = Classifier, BertClassifier, LanguageModel, TokenClassifier


@dataclass(frozen=True)
class Ready:
    """A batch whose step is recorded; `whole` fills its bucket, the card gets its `numbers`."""

    batch: Batch
    bucket: Bucket
    whole: Batch
    numbers: np.ndarray


def ready(model: Any, batch: Batch, stream: Stream | None) -> "Batch | Ready":
    """What the CPU can do for a step on this batch before its turn has come -> Ready, or the batch
    where its step is not recorded. Raises ValueError for a batch that the model cannot read."""
    if not _can_be_recorded(model, batch):
        return batch
    model.check_tokens(batch)
    model.check_labels(batch)
    if batch.types is None and type(model.trunk) is Bert:
        batch = replace(batch, types=np.zeros(len(batch.ids), np.int64))
    bucket = bucket_of(batch, model.trunk.config.n_positions, type(model) is LanguageModel)
    whole = filled(batch, bucket, type(model) in (LanguageModel, TokenClassifier))
    parts = _parts(whole, 0 if stream is None else stream.step).values()
    return Ready(batch, bucket, whole, np.concatenate(
        [a.ravel().astype(np.uint32) for a in parts]).view(np.int32))


def loss_and_gradients(model: Any, batch: Batch | Ready, stream: Stream | None, scale: float,
                       options: Mapping[str, Any], first: bool,
                       meanwhile: Callable[[], None] | None = None
                       ) -> tuple[float, float, float | None]:
    """As the model's -> summed loss, denominator, and the sum of the squares of all gradients so
    far, or None, where that is yet to be computed.

    `first`: all gradients are zero before. meanwhile() is called while a card computes; elsewhere
    it is not.
    """
    if isinstance(batch, Ready):
        if model not in _steps:
            _steps[model] = Steps()
        return _steps[model](model, batch, stream, scale, options, first, meanwhile)
    loss, denominator = model.loss_and_gradients(batch, stream, scale, **options)
    return float(loss), float(denominator), None


class Ahead:
    """The batches of a step, and those of the next one, made while the card computes.

    pieces_of(indices, step) -> the batches. `steps`: the texts of each step, from number `first`.
    """

    def __init__(self, pieces_of: Callable[[Any, int], Any], steps: Sequence[Any], first: int):
        self.pieces_of, self.steps, self.first = pieces_of, steps, first
        self.now = 0
        self.made: list | None = None

    def pieces(self) -> Any:
        """-> the batches of the next step, made already or not."""
        made, self.made = self.made, None
        self.now += 1
        return self._pieces(self.now - 1) if made is None else made

    def make(self) -> None:
        """Makes the batches of the step after that whose batches were asked for."""
        if self.now < len(self.steps):
            # a batch that cannot be made is told of when its turn has come
            with suppress(Exception):
                self.made = list(self._pieces(self.now))

    def _pieces(self, i):
        return self.pieces_of(self.steps[i], self.first + i)


@contextmanager
def kept(model: Model) -> Iterator[None]:
    """Within it steps of a model are recorded; behind it their memory is free again."""
    try:
        yield
    finally:
        _steps.pop(model, None)


def make_room(model: Model) -> None:
    """Before other work, such as a validation: drops what was recorded where the card has less
    memory left than that holds."""
    steps = _steps.get(model)
    if steps is not None and (held := steps.recorder.total_bytes()) and \
            array.cupy.cuda.runtime.memGetInfo()[0] < held:
        del _steps[model]


def steps_of(model: Model) -> "Steps | None":
    """-> what was recorded for a model; None: nothing."""
    return _steps.get(model)


def _can_be_recorded(model, batch):
    store, config = model.store, model.trunk.config
    return (graph.enabled() and store.xp is array.cupy and type(model) in MODELS
            and (type(model) is not BertClassifier or model.pooling == "first")
            and batch.hidden is None and batch.labels is not None
            and store.dtype == np.float32
            # in float32 some of an adapter's products are the formula's, CuPy's own
            and (model.adapter is None or store.compute_dtype is not None)
            and cuda.version_for(store.values) == "fused"
            # wider heads attend by the formula, text by text
            and config.n_embd // config.n_head <= launch.attention.WIDEST
            and gemm.planned(array.cupy)
            and (type(model) is not LanguageModel or len(batch.labelled) > 0))


class Steps:
    """The recorded steps of one model, and where on the card they read and write."""

    def __init__(self) -> None:
        self.recorder = graph.Recorder()
        self._places: dict[tuple[Bucket, bool], Place] = {}
        self._weights: dict[bytes, Array] = {}

    def __call__(self, model: Any, batch: Ready, stream: Stream | None, scale: float,
                 options: Mapping[str, Any], first: bool,
                 meanwhile: Callable[[], None] | None = None) -> tuple[float, float, float]:
        """As `loss_and_gradients`."""
        place = self._place(batch)
        if not first:
            model.store.write_zeros()     # a recorded step adds to what is there
        place.bring(batch.numbers)
        if stream is not None:
            stream = replace(stream, step=0, place=place.step)
        store, given = model.store, self._on_card(options)

        def work():
            if first:
                store.zero_grad()
            loss, denominator = model.loss_and_gradients(place.batch, stream, scale, **given)
            place.found[0], place.found[1] = loss, denominator
            place.found[2:] = squared_norm.choose(store.grads).load()(store.grads)

        self.recorder.run((batch.bucket, batch.batch.types is None,
                           None if stream is None else stream.seed, scale, first,
                           model.trunk.blocks[0].gradient_checkpointing, store.generation,
                           store.compute_dtype, *(
                               (name, id(value) if hasattr(value, "shape") else value)
                               for name, value in given.items())), work)
        store.mark_written()
        if meanwhile is not None:
            meanwhile()
        loss, denominator, squares = array.to_cpu(place.found).tolist()
        return loss, denominator, squares

    def _place(self, batch):
        key = batch.bucket, batch.batch.types is None
        if key not in self._places:
            self._places[key] = Place(batch.whole, batch.bucket.longest)
        return self._places[key]

    def _on_card(self, options):
        """-> the same, with arrays that stay on the card."""
        given = dict(options)
        for name, value in options.items():
            if isinstance(value, np.ndarray):
                kept = value.tobytes()
                if kept not in self._weights:
                    self._weights[kept] = array.to_gpu(value)
                given[name] = self._weights[kept]
        return given


class Place:
    """Where on the card the batches of a bucket come to lie: `batch`, whose arrays are views into
    one; `step`, of the dropout; and `found` (3,), what comes back."""

    def __init__(self, example: Batch, longest: int):
        cupy = array.cupy
        parts = _parts(example, 0)
        size = sum(a.size for a in parts.values())
        # pinned: the card reads it by itself, and the CPU goes on
        self._here = np.frombuffer(cupy.cuda.alloc_pinned_memory(4 * size), np.int32, size)
        self._there = cupy.zeros(size, dtype=np.int32)
        self.found = cupy.zeros(3, dtype=np.float32)
        there, start = {}, 0
        for name, a in parts.items():
            there[name] = self._there[start:start + a.size].reshape(a.shape)
            start += a.size
        n, b = len(example.ids), len(example.lengths)

        def placed(name, total=n, most=longest):
            return Placed(there.pop(name), total, most)

        self.step = there.pop("step").view(np.uint32)
        lengths, starts, one_each = (placed("lengths"), placed("starts"),
                                     placed("edges_of_one_each", b, 1))
        self.batch = Batch(
            ids=there.pop("ids"), positions=there.pop("positions"),
            cu_seqlens=placed("cu_seqlens"),     # type: ignore[arg-type]
            example_ids=placed("example_ids"),     # type: ignore[arg-type]
            labels=there.pop("labels"), types=there.pop("types", None))
        example_ids: Any = self.batch.example_ids
        vars(self.batch).update(there, lengths=lengths, starts=starts, edges_of_one_each=one_each,
                                first=starts.there, text_example_ids=example_ids.there)

    def bring(self, numbers: np.ndarray) -> None:
        """What the card gets for a batch of the bucket -> there, once it has done what it was asked
        for before."""
        self._here[...] = numbers
        self._there.set(self._here, array.cupy.cuda.get_current_stream())


def _parts(batch, step):
    """-> {name: whole numbers} of what a step reads, of which the card gets the lower 32 bits."""
    parts = {"step": np.array([step & WORD]), "ids": batch.ids, "positions": batch.positions,
             "labels": batch.labels, "types": batch.types, "cu_seqlens": batch.cu_seqlens,
             "starts": batch.starts, "lengths": batch.lengths, "last": batch.cu_seqlens[1:] - 1,
             "edges_of_one_each": batch.edges_of_one_each, "example_ids": batch.example_ids,
             "token_example_ids": np.repeat(batch.example_ids, batch.lengths),
             "id_order": order(batch.ids), "position_order": order(batch.positions),
             "type_order": None if batch.types is None else order(batch.types),
             "labelled": vars(batch).get("labelled")}
    return {name: a for name, a in parts.items() if a is not None}


_steps: WeakKeyDictionary[Model, Steps] = WeakKeyDictionary()
