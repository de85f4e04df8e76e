"""A packed batch: sequences laid end to end, without padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from minisft.backend import array
from minisft.backend.constants import IGNORE

# Tokens at once of texts that need no gradient, where nobody says how many. What a CPU computes of
# 2,048 tokens comes from its caches: with 8,192 a model takes 1.4 to 1.6 times as long. A card
# needs many to be busy.
BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Batch:
    """B sequences of N tokens in all; `example_ids` are their indices in the data set.

    `cu_seqlens`, `lengths` and `example_ids` stay on the CPU, where they are read. All other arrays
    lie on the model's device.
    """

    ids: np.ndarray           # (N,)
    positions: np.ndarray     # (N,) position of each token within its sequence
    cu_seqlens: np.ndarray    # (B+1,) where each sequence begins; the last entry is N
    example_ids: np.ndarray   # (B,)
    # (B,) a class each, (N,) a label of each token, or (B,K) K tokens of each
    labels: np.ndarray | None = None
    types: np.ndarray | None = None      # (N,) 0, or 1 in the second of two texts; None: all 0
    hidden: np.ndarray | None = None     # (N,C) output of the frozen layers, where it is kept
    # another text of each sequence, which an encoder reads; ids and labels are then the decoder's
    source: "Batch | None" = None

    def to(self, xp: ModuleType) -> "Batch":
        """NumPy or CuPy -> the same batch with its arrays there.

        The one place at which a batch goes to the GPU: all whole numbers in one transfer, as int32
        (example ids, of which dropout reads the lower 32 bits, by those).
        """
        if array.array_module(self.ids) is xp:
            return self
        there = ("ids", "positions", "labels", "types")
        numbers = {name: a for name in (*there, "first", "last", "token_example_ids")
                   if (a := getattr(self, name)) is not None}
        # a kernel adds the gradients of a row in the order of its tokens; sorting is quick here
        numbers |= {"id_order": order(self.ids), "position_order": order(self.positions)}
        if self.types is not None:
            numbers["type_order"] = order(self.types)
        flat = xp.asarray(np.concatenate(
            [np.ravel(a).astype(np.uint32).view(np.int32) for a in numbers.values()]))
        moved: dict[str, Any] = {}
        start = 0
        for name, a in numbers.items():
            moved[name] = flat[start:start + a.size].reshape(a.shape)
            start += a.size
        fields: dict[str, Any] = {name: moved.get(name) for name in there}
        if self.hidden is not None:
            fields["hidden"] = xp.asarray(self.hidden)
        if self.source is not None:
            fields["source"] = self.source.to(xp)
        batch = replace(self, **fields)
        # what is cached here is not asked of the device
        vars(batch).update({name: a for name, a in moved.items() if name not in there},
                           end_positions=self.end_positions)
        return batch

    def asarray(self, a: np.ndarray) -> Any:
        """An array on the CPU -> the same on the device of the ids."""
        return array.array_module(self.ids).asarray(a)

    @cached_property
    def lengths(self) -> np.ndarray:
        """-> tokens of each sequence (B,)."""
        return np.diff(self.cu_seqlens)

    @cached_property
    def starts(self) -> np.ndarray:
        """-> the row of each sequence's first token (B,), on the CPU."""
        return self.cu_seqlens[:-1]

    @cached_property
    def edges_of_one_each(self) -> np.ndarray:
        """-> `cu_seqlens` where one token of each sequence asks (B+1,)."""
        return np.arange(len(self.cu_seqlens))

    @cached_property
    def labelled(self) -> np.ndarray:
        """-> the tokens that have a label (M,), all of them in their order; on the CPU: no waiting
        for a card."""
        return np.flatnonzero(self.labels != IGNORE)

    @cached_property
    def first(self) -> np.ndarray:
        """-> the row of each sequence's first token (B,)."""
        return self.asarray(self.cu_seqlens[:-1])

    @cached_property
    def last(self) -> np.ndarray:
        """-> the row of each sequence's last token (B,)."""
        return self.asarray(self.cu_seqlens[1:] - 1)

    @cached_property
    def token_example_ids(self) -> np.ndarray:
        """-> the example id of each token's sequence (N,)."""
        return self.asarray(np.repeat(self.example_ids, self.lengths))

    @cached_property
    def text_example_ids(self) -> np.ndarray:
        """-> the example id of each sequence (B,)."""
        return self.asarray(self.example_ids)

    @cached_property
    def id_order(self) -> np.ndarray | None:
        """-> the tokens by their ids, equal ids in their order (N,), on a card; else None."""
        return None

    @cached_property
    def position_order(self) -> np.ndarray | None:
        """-> the same by their positions."""
        return None

    @cached_property
    def type_order(self) -> np.ndarray | None:
        """-> the same by their types."""
        return None

    @cached_property
    def end_positions(self) -> np.ndarray:
        """-> the position behind each sequence's last token (B,), on the CPU."""
        return array.to_cpu(self.positions)[self.cu_seqlens[1:] - 1] + 1


def order(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers of 0 or more (N,) -> their indices by size, equal ones as they stand (N,)."""
    # NumPy counts numbers of 16 bits instead of comparing them, ten times as fast
    small = numbers.astype(np.uint16) if numbers.max(initial=0) < 1 << 16 else numbers
    return np.argsort(small, kind="stable")


def pack(sequences: Sequence[Any], labels: Sequence[Any] | np.ndarray | None = None,
         example_ids: Sequence[int] | np.ndarray | None = None,
         types: Sequence[Any] | None = None) -> Batch:
    """B arrays of token ids, B labels or B arrays of labels, B arrays of types -> Batch.

    An array of labels (B,K) is K labels for each sequence, a list of B arrays one for each token.

    Raises ValueError for no sequences or an empty one, for ids that are not whole numbers of 0 or
    more in one dimension, for labels that are not whole numbers, and for labels, example_ids or
    types that differ in number from the sequences.
    """
    arrays = [np.asarray(s) for s in sequences]
    lengths = np.array([a.size for a in arrays], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError(f"a batch needs sequences of one token or more, got lengths {lengths}")
    ids = np.concatenate([_whole_numbers(a, "ids", i) for i, a in enumerate(arrays)])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    if ids.min() < 0:
        sequence = np.searchsorted(cu_seqlens, ids.argmin(), side="right") - 1
        raise ValueError(f"ids of sequence {sequence}: {ids.min()}, expected 0 or more")
    if example_ids is not None and len(example_ids) != len(lengths):
        raise ValueError(f"{len(lengths)} sequences but {len(example_ids)} example_ids")
    if types is not None:
        if [len(row) for row in types] != lengths.tolist():
            raise ValueError("types for each token differ in number from their sequences")
    return Batch(
        ids=ids,
        positions=np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths),
        cu_seqlens=cu_seqlens,
        example_ids=(np.arange(len(lengths)) if example_ids is None else
                     np.asarray(example_ids, dtype=np.int64)),
        labels=None if labels is None else _pack_labels(labels, lengths),
        types=None if types is None else np.concatenate(
            # a mask of bools will do
            [_whole_numbers(np.asarray(row) + 0, "types", i) for i, row in enumerate(types)]),
    )


def pack_pairs(sources: Sequence[Any], targets: Sequence[Any], start_id: int, end_id: int,
               example_ids: Sequence[int] | np.ndarray | None = None) -> Batch:
    """B arrays of an encoder's token ids, B of a decoder's -> Batch with `source`.

    The decoder reads the start token and the target, and its labels are the target and the end
    token: at each position the token that comes next (teacher forcing). A source is read as it
    stands. Raises ValueError as `pack`, and for sources and targets that differ in number.
    """
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources but {len(targets)} targets")
    rows = [_whole_numbers(np.asarray(t, dtype=None if len(t) else np.int64), "targets", i)
            for i, t in enumerate(targets)]
    batch = pack([np.concatenate([[start_id], row]) for row in rows],
                 [np.concatenate([row, [end_id]]) for row in rows], example_ids)
    return replace(batch, source=pack(sources, example_ids=example_ids))


def _pack_labels(labels, lengths):
    """B labels, (B,K) labels or B arrays of one label a token -> (B,), (B,K) or (N,) of int64.

    Raises ValueError.
    """
    if len(labels) != len(lengths):
        raise ValueError(f"{len(lengths)} sequences but {len(labels)} labels")
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        return np.stack([_whole_numbers(row, "labels", i) for i, row in enumerate(labels)])
    if np.ndim(labels[0]) == 0:
        for i, label in enumerate(labels):
            if np.ndim(label) or np.asarray(label).dtype.kind not in "iu":
                raise ValueError(f"label of sequence {i}: {label!r}, expected a whole number")
        return np.asarray(labels, dtype=np.int64)
    rows = [_whole_numbers(row, "labels", i) for i, row in enumerate(labels)]
    if [len(row) for row in rows] != lengths.tolist():
        raise ValueError("labels for each token differ in length from their sequences")
    return np.concatenate(rows)


def _whole_numbers(values, name, sequence):
    """Values of one sequence -> the same as int64 (T,); raises ValueError."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"{name} of sequence {sequence}: {values.dtype} {values.shape}, expected "
                         "whole numbers (T,)")
    return values.astype(np.int64, copy=False)


def token_budget_batches(lengths: Sequence[int] | np.ndarray, order: Iterable[int],
                         batch_tokens: int) -> list[list[int]]:
    """lengths of all texts (M,), an order -> lists of indices, at most that many tokens in each.

    A text longer than `batch_tokens` is a batch of its own.
    """
    batches: list[list[int]] = []
    filled = batch_tokens + 1
    for index in order:
        if filled + lengths[index] > batch_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(int(index))
        filled += lengths[index]
    return batches
