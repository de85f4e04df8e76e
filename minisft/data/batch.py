"""A packed batch: sequences laid end to end, no padding anywhere."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from minisft.backend import array


@dataclass(frozen=True)
class Batch:
    """B sequences of N tokens in all; `texts` are the sequences' own numbers in the data set.

    Where sequences lie is asked on the CPU: `cu_seqlens`, `lengths` and `texts` stay there. All
    else lies where the model does.
    """

    ids: np.ndarray           # (N,)
    positions: np.ndarray     # (N,) position of each token within its sequence
    cu_seqlens: np.ndarray    # (B+1,) where each sequence begins; the last entry is N
    example_ids: np.ndarray         # (B,)
    labels: np.ndarray | None = None     # (B,) a class each, or (N,) the next token of each token
    types: np.ndarray | None = None      # (N,) 0, or 1 in the second of two texts; None: all 0
    hidden: np.ndarray | None = None     # (N,C) what the frozen layers make of it, if it is kept

    def to(self, xp):
        """The module of a model's arrays -> the same batch where the model lies.

        The one place at which a batch goes to the GPU, each array once.
        """
        if array.array_module(self.ids) is xp:
            return self
        return replace(self, **{name: None if (a := getattr(self, name)) is None else xp.asarray(a)
                                for name in ("ids", "positions", "labels", "types", "hidden")})

    def asarray(self, a):
        """An array on the CPU -> the same beside the ids."""
        return array.array_module(self.ids).asarray(a)

    @cached_property
    def lengths(self):
        """-> tokens of each sequence (B,)."""
        return np.diff(self.cu_seqlens)

    @cached_property
    def first(self):
        """-> the row of each sequence's first token (B,)."""
        return self.asarray(self.cu_seqlens[:-1])

    @cached_property
    def last(self):
        """-> the row of each sequence's last token (B,)."""
        return self.asarray(self.cu_seqlens[1:] - 1)

    @cached_property
    def token_example_ids(self):
        """-> the number of the text that each token belongs to (N,)."""
        return self.asarray(np.repeat(self.example_ids, self.lengths))

    @cached_property
    def reach(self):
        """-> the position behind each sequence's last token (B,), on the CPU."""
        return array.to_cpu(self.positions)[self.cu_seqlens[1:] - 1] + 1


def pack(sequences, labels=None, example_ids=None, types=None):
    """B arrays of token ids, B labels or B arrays of labels, B arrays of types -> Batch.

    Raises ValueError for no sequences, an empty one, or labels, texts or types of another number.
    """
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError(f"a batch needs sequences of one token or more, got lengths {lengths}")
    if example_ids is not None and len(example_ids) != len(lengths):
        raise ValueError(f"{len(lengths)} sequences but {len(example_ids)} numbers of example_ids")
    if types is not None:
        if [len(row) for row in types] != lengths.tolist():
            raise ValueError("types for each token differ in number from their sequences")
        types = np.concatenate(types).astype(np.int64)
    if labels is not None:
        if len(labels) != len(lengths):
            raise ValueError(f"{len(lengths)} sequences but {len(labels)} labels")
        if np.ndim(labels[0]) == 1:
            if [len(row) for row in labels] != lengths.tolist():
                raise ValueError("labels for each token differ in length from their sequences")
            labels = np.concatenate(labels)
        labels = np.asarray(labels, dtype=np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(
        ids=np.concatenate(sequences).astype(np.int64),
        positions=np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths),
        cu_seqlens=cu_seqlens,
        example_ids=(np.arange(len(lengths)) if example_ids is None else
                     np.asarray(example_ids, dtype=np.int64)),
        labels=labels,
        types=types,
    )


def token_budget_batches(lengths, order, batch_tokens):
    """lengths of all texts (M,), an order -> lists of text numbers, each at most that many tokens.

    A text longer than `batch_tokens` is a batch of its own.
    """
    batches, filled = [], batch_tokens + 1
    for number in order:
        if filled + lengths[number] > batch_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(int(number))
        filled += lengths[number]
    return batches
