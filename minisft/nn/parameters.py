"""Parameters: named views into one buffer of values and one of gradients.

The gradient norm and AdamW are then each one pass over one array. The buffer is ordered by layer
and, within it, by what decays and what does not, so that a learning rate or a decay is a number for
each parameter group of the buffer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from minisft.backend import array
from minisft.backend.array import Array
from minisft.backend.constants import ceil_div
from minisft.backend.cpu.allocator import aligned, aligned_zeros
from minisft.dispatch import BFLOAT16, FLOAT16, TF32, rounded

ALIGN = 64           # numbers at whose multiples parameters begin on a card: 128 bytes of 16 bits
ROWS = 128           # a padded parameter's number of rows there is a multiple of this

ROWS_AT_ONCE = 8192     # of a gradient that is added to another


class Parameter:
    """A named array with its gradient; `grad` is None while it is frozen.

    Zeroing only marks the gradient. Who asks for `grad` finds zeros; the first gradient that is
    added takes their place, which spares a pass over memory to write them and three to add.

    With `padded_rows` it has rows of zeros behind its own on a card, which nobody but products
    sees: a table of 50,257 rows is multiplied at a fraction of the speed of one of 50,304.
    """

    value: Array     # a view into the store's buffer of values, once there is a store
    padded_value: Array     # the same with the rows of zeros behind it

    def __init__(self, name: str, shape: Sequence[int], layer: int, decays: bool,
                 scale: float = 0.0, fill: float = 0.0, padded_rows: bool = False):
        self.name, self.shape, self.layer, self.decays = name, tuple(shape), layer, decays
        self.scale, self.fill = scale, fill     # initial values: fill + scale * normal
        self.padded_rows = padded_rows
        self.value = self.padded_value = None
        self._grad: Array = None
        self._padded_grad: Array = None
        self.zeroed = False     # to be read as zeros, whatever the memory holds
        self.compute_dtype: Any = None     # of 16 bits, where the model computes in them
        self._compute_value: Array = None     # of the rows of zeros, too

    def __repr__(self) -> str:
        dtype = "no values yet" if self.value is None else self.value.dtype
        return (f"Parameter({self.name}, {self.shape}, {dtype}, "
                f"{'trainable' if self.trainable else 'frozen'})")

    @property
    def size(self) -> int:
        """-> number of values."""
        return prod(self.shape)

    @property
    def compute_value(self) -> Array:
        """-> the value in 16 bits; None where the model does not compute in them.

        On a CPU it is rounded when it is first asked for, since a classifier never multiplies with
        its token table, the largest of all.
        """
        if self.compute_dtype is None:
            return None
        padded = self.padded_product_value
        return padded if len(padded) == self.shape[0] else padded[:self.shape[0]]

    @compute_value.setter
    def compute_value(self, rounded_value: Array) -> None:
        self._compute_value = rounded_value

    @property
    def product_value(self) -> Array:
        """-> the value that matrix products take: in 16 bits where the model computes in them."""
        return self.value if self.compute_dtype is None else self.compute_value

    @property
    def storage_dtype(self) -> Any:
        """-> the 16-bit format in which activations beside it may be kept; None: float32."""
        return self.compute_dtype if self.compute_dtype in (BFLOAT16, FLOAT16) else None

    @property
    def padded_product_value(self) -> Array:
        """-> the same with the rows of zeros behind it."""
        if self.compute_dtype is None:
            return self.padded_value
        if self._compute_value is None:
            self._compute_value = rounded(self.padded_value, self.compute_dtype)
        return self._compute_value

    @property
    def trainable(self) -> bool:
        """-> whether it is trained."""
        return self._grad is not None

    @property
    def grad(self) -> Array:
        """-> the gradient, a view into the store's buffer; None while it is frozen."""
        self.write_zeros()
        return self._grad

    @grad.setter
    def grad(self, gradient: Array) -> None:     # grad += x and the like end here
        self._grad[...], self.zeroed = gradient, False

    def write_zeros(self) -> None:
        """Writes the zeros that a zeroed gradient only stands for."""
        if self.zeroed:
            self._padded_grad[...], self.zeroed = 0, False

    def set_grad_view(self, view: Array) -> None:
        """The gradient, with the rows of zeros, lives in this part of the store's buffer from now
        on; None: it is frozen."""
        self._padded_grad, self.zeroed = view, False
        self._grad = None if view is None else view[:self.shape[0]]

    def first_grad(self) -> Array:
        """-> where to put the first gradient since zeroing, whole; None if it must be added."""
        if not self.zeroed:
            return None
        self.zeroed = False
        return self._grad

    def add_product(self, product: Callable[..., Array], adds: bool = False) -> None:
        """product(rows, where to put them or None) -> those rows of a gradient with the rows of
        zeros, which is added: if some are there already, part by part, to need little memory, or
        `adds` says that product(rows, gradient, add=True) does so."""
        if adds and not self.zeroed:
            product(slice(None), self._padded_grad, add=True)
            return
        if self.zeroed:
            self.zeroed = False
            product(slice(None), self._padded_grad)
            return
        for start in range(0, len(self._padded_grad), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            self._padded_grad[rows] += product(rows, None)

    def add_grad(self, gradient: Array, part: Any = slice(None)) -> None:
        """gradient of this parameter's shape, or of a part of it that an index gives; a frozen
        parameter lets it go by."""
        whole = part == slice(None)
        if not (whole or self.trainable):
            return
        shape = self.shape if whole else self.grad[part].shape
        if gradient.shape != shape:     # += would spread a smaller one without a word
            raise ValueError(f"{self.name} has shape {shape}, its gradient {gradient.shape}")
        if not self.trainable:
            return
        if whole and (out := self.first_grad()) is not None:
            out[...] = gradient
        else:
            place = self.grad[part]     # a view: += on the index would write it a second time
            place += gradient


@dataclass(frozen=True)
class ParamGroup:
    """A stretch of the flat buffer whose parameters share layer and decay."""

    start: int
    stop: int
    layer: int
    decays: bool


class Parameters:
    """The store: `values` and `grads` are flat (P,), `param_groups` says what lies where.

    Each parameter begins at a multiple of `align` numbers, and where that is more than 1 padded
    ones have their rows of zeros. The gaps hold zeros, and so do their gradients, moments and
    updates; they belong to the parameter group before them. What is saved has no gaps.
    """

    def __init__(self, parameters: Sequence[Parameter], dtype: Any = np.float32,
                 xp: ModuleType = np, align: int = 1):
        self.all = {p.name: p for p in parameters}
        if len(self.all) != len(parameters):
            raise ValueError("two parameters have the same name")
        self.dtype, self.xp, self.compute_dtype = np.dtype(dtype), xp, None
        self.align = align
        self.generation = 0     # of the buffers: another one lies elsewhere in memory
        self._low: dict[bool, Array] = {}     # the buffers in 16 bits; on a CPU those trained
        for p in parameters:
            p.value = xp.zeros(p.shape, dtype=dtype)
        self.train(lambda p: True)

    def __getitem__(self, name: str) -> Parameter:
        return self.all[name]

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.all.values())

    @property
    def trainable(self) -> list[Parameter]:
        """-> the parameters that are trained, in the order of the buffer."""
        return [p for p in self._ordered if p.trainable]

    @property
    def grads(self) -> Array:
        """-> all gradients (P,), in the order of `values`."""
        self.write_zeros()
        return self._grads

    @grads.setter
    def grads(self, gradients: Array) -> None:     # grads /= n and the like end here
        self.grads[...] = gradients

    @property
    def size(self) -> int:
        """-> number of values, trained and frozen."""
        return sum(p.size for p in self)

    def train(self, is_trained: Callable[[Parameter], bool]) -> None:
        """is_trained(parameter) says which are; lays both buffers out anew."""
        self.generation += 1
        self._ordered = sorted(self, key=lambda p: (p.layer, not p.decays))
        trained = [p for p in self._ordered if is_trained(p)]
        self.values, views = self._lay(trained)
        # not zeros_like: pages that nobody trains are then never touched
        self._grads = (aligned_zeros if self.xp is np else self.xp.zeros)(
            self.values.shape, dtype=self.dtype)
        self.frozen_values, frozen_views = self._lay(
            [p for p in self._ordered if not is_trained(p)])
        for p in self:
            p.set_grad_view(None)
        self.param_groups: list[ParamGroup] = []
        start = 0
        for p, view in self._views(self._grads, trained).items():
            p.set_grad_view(view)
            stop = start + self._room(p)
            last = self.param_groups[-1] if self.param_groups else None
            if last and (last.layer, last.decays) == (p.layer, p.decays):
                self.param_groups[-1] = ParamGroup(last.start, stop, p.layer, p.decays)
            else:
                self.param_groups.append(ParamGroup(start, stop, p.layer, p.decays))
            start = stop
        for p, view in (views | frozen_views).items():
            p.padded_value, p.value = view, view[:p.shape[0]]
        self.refresh()

    def add(self, parameters: Sequence[Parameter]) -> None:
        """More parameters, zeros and frozen at first; raises ValueError for a name that is there.
        """
        trained = set(self.trainable)
        for p in parameters:
            if p.name in self.all:
                raise ValueError(f"there is a parameter {p.name} already")
            self.all[p.name] = p
            p.value = self.xp.zeros(p.shape, dtype=self.dtype)
        self.train(trained.__contains__)

    def remove(self, parameters: Sequence[Parameter]) -> None:
        """Forgets these; the others are trained or frozen as before."""
        trained = set(self.trainable)
        for p in parameters:
            del self.all[p.name]
        self.train(trained.__contains__)

    def to_gpu(self) -> None:
        """Lays both buffers out anew on the GPU, from the values that they have here."""
        self.xp, self.align, trained = array.cupy, ALIGN, set(self.trainable)
        self._low.clear()
        self.train(trained.__contains__)

    def set_compute_dtype(self, dtype: Any) -> None:
        """From now on every parameter also has `compute_value`, rounded to this 16-bit format.

        None: no parameter has one, products are of the dtype of the values.
        """
        self.compute_dtype = dtype
        self.refresh()

    def room_for_rounded(self) -> Array:
        """-> where a step may put the new values (P,) rounded to the 16-bit format; None where it
        need not."""
        if self.xp is not np:
            return self.compute_values
        if self.compute_dtype != BFLOAT16:
            return None
        if self._low.get(True) is None or len(self._low[True]) != len(self.values):
            self._low[True] = np.empty(len(self.values), BFLOAT16)
        return self._low[True]

    def refresh(self, rounded_values: Array = None) -> None:
        """Rounds all values anew, after some have changed: on a GPU in one pass over each buffer.

        rounded_values (P,): on a CPU those that are trained, where they are rounded already.
        """
        if self.xp is np and rounded_values is not None:
            for p, view in self._views(rounded_values, self.trainable).items():
                p.compute_value = view
            return
        for p in self:
            p.compute_dtype, p.compute_value = self.compute_dtype, None
        self.compute_values: Array = None     # on a card all that are trained (P,), in 16 bits
        if self.compute_dtype is None or self.xp is np:
            self._low.clear()
            return
        for buffer, trained in ((self.values, True), (self.frozen_values, False)):
            flat, kept = rounded(buffer, self.compute_dtype), self._low.get(trained)
            if kept is not None and (kept.shape, kept.dtype) == (flat.shape, flat.dtype):
                kept[...] = flat     # where recorded launches look for it
                flat = kept
            elif self.compute_dtype != TF32:
                self._low[trained] = flat
                self.generation += 1
            if trained and self.compute_dtype != TF32:     # whose bits are the values' own
                self.compute_values = flat
            there = [p for p in self._ordered if p.trainable == trained]
            for p, view in self._views(flat, there).items():
                p.compute_value = view

    def without_gaps(self, flat: Array, trained: bool = True) -> np.ndarray:
        """A buffer of values, or of what belongs to each of them -> the same on the CPU as it is
        where nothing is aligned."""
        flat = array.to_cpu(flat)
        if self.align == 1:
            return flat
        there = [p for p in self._ordered if p.trainable == trained]
        return np.concatenate([np.empty(0, flat.dtype), *(
            view[:p.shape[0]].ravel() for p, view in self._views(flat, there).items())])

    def with_gaps(self, flat: np.ndarray) -> Array:
        """The other way round, for those that are trained."""
        trained, start = self.trainable, 0
        if self.align == 1:
            return self.xp.asarray(flat)
        whole = np.zeros(self.values.shape, dtype=flat.dtype)
        for p, view in self._views(whole, trained).items():
            view[:p.shape[0]] = flat[start:start + p.size].reshape(p.shape)
            start += p.size
        return self.xp.asarray(whole)

    def _padded_shape(self, p: Parameter) -> tuple[int, ...]:
        if self.align == 1 or not p.padded_rows:
            return p.shape
        return ceil_div(p.shape[0], ROWS) * ROWS, *p.shape[1:]

    def _room(self, p: Parameter) -> int:
        """-> numbers from the beginning of a parameter to that of the next."""
        return ceil_div(prod(self._padded_shape(p)), self.align) * self.align

    def _views(self, flat: Array, parameters: Sequence[Parameter]) -> dict[Parameter, Array]:
        """A buffer of these parameters -> of each a view into it, with its rows of zeros."""
        views, start = {}, 0
        for p in parameters:
            shape = self._padded_shape(p)
            views[p] = flat[start:start + prod(shape)].reshape(shape)
            start += self._room(p)
        return views

    def _lay(self, parameters: Sequence[Parameter]) -> tuple[Array, dict[Parameter, Array]]:
        """-> one flat array with these parameters' values, and a view into it for each."""
        # pages that are all written are not zeroed first
        make = aligned if self.xp is np and self.align == 1 else self.xp.zeros
        flat = make((sum(map(self._room, parameters)),), dtype=self.dtype)
        views = self._views(flat, parameters)
        for p, view in views.items():
            there = view[:p.shape[0]]
            if self.xp is not np and isinstance(p.value, np.ndarray):
                # without a copy on the card, which its pool would keep
                there.set(np.asarray(p.value, dtype=self.dtype),
                          self.xp.cuda.get_current_stream())
            else:
                there[...] = p.value
        return flat, views

    def zero_grad(self) -> None:
        """Sets every gradient to zero."""
        for p in self.trainable:
            p.zeroed = True

    def write_zeros(self) -> None:
        """Writes the zeros that zeroed gradients only stand for."""
        for p in self.trainable:
            p.write_zeros()

    def mark_written(self) -> None:
        """Every gradient has been written by somebody who did not say so."""
        for p in self.trainable:
            p.zeroed = False
