"""Parameters: named views into one buffer of values and one of gradients.

The gradient norm and AdamW are then each one pass over one array. The buffer is ordered by layer
and, within it, by what decays and what does not, so that a learning rate or a decay is a number for
each run of the buffer.
"""

from dataclasses import dataclass

import numpy as np

from minisft.backend import array
from minisft.dispatch import rounded


class Parameter:
    """A named array with its gradient; `grad` is None while it is frozen.

    Zeroing only marks the gradient. Who asks for `grad` finds zeros; the first gradient that is
    added takes their place, which spares a pass over memory to write them and three to add.
    """

    def __init__(self, name, shape, layer, decays, scale=0.0, fill=0.0):
        self.name, self.shape, self.layer, self.decays = name, tuple(shape), layer, decays
        self.scale, self.fill = scale, fill     # initial values: fill + scale * normal
        self.value = self._grad = None
        self.zeroed = False     # to be read as zeros, whatever the memory holds
        self.compute_value = None     # the value in 16 bits, where the model computes in them

    def __repr__(self):
        dtype = "no values yet" if self.value is None else self.value.dtype
        return (f"Parameter({self.name}, {self.shape}, {dtype}, "
                f"{'trainable' if self.trainable else 'frozen'})")

    @property
    def size(self):
        """-> number of values."""
        return int(np.prod(self.shape))

    @property
    def product_value(self):
        """-> the value that matrix products take: in 16 bits where the model computes in them."""
        return self.value if self.compute_value is None else self.compute_value

    @property
    def trainable(self):
        """-> whether it is trained."""
        return self._grad is not None

    @property
    def grad(self):
        """-> the gradient, a view into the store's buffer; None while it is frozen."""
        if self.zeroed:
            self._grad[...], self.zeroed = 0, False
        return self._grad

    @grad.setter
    def grad(self, gradient):     # grad += x and the like end here
        self._grad[...], self.zeroed = gradient, False

    def set_grad_view(self, view):
        """The gradient lives in this part of the store's buffer from now on; None: it is frozen."""
        self._grad, self.zeroed = view, False

    def first_grad(self):
        """-> where to put the first gradient since zeroing, whole; None if it must be added."""
        if not self.zeroed:
            return None
        self.zeroed = False
        return self._grad

    def add_grad(self, gradient):
        """gradient of this parameter's shape; a frozen parameter lets it go by."""
        if gradient.shape != self.shape:     # += would spread a smaller one without a word
            raise ValueError(f"{self.name} has shape {self.shape}, its gradient {gradient.shape}")
        if not self.trainable:
            return
        if (out := self.first_grad()) is not None:
            out[...] = gradient
        else:
            self._grad += gradient


@dataclass(frozen=True)
class ParamGroup:
    """A stretch of the flat buffer whose parameters share layer and decay."""

    start: int
    stop: int
    layer: int
    decays: bool


class Parameters:
    """The store: `values` and `grads` are flat (P,), `runs` says what lies where."""

    def __init__(self, parameters, dtype=np.float32, xp=np):
        self.all = {p.name: p for p in parameters}
        if len(self.all) != len(parameters):
            raise ValueError("two parameters have the same name")
        self.dtype, self.xp, self.compute_dtype = np.dtype(dtype), xp, None
        for p in parameters:
            p.value = xp.zeros(p.shape, dtype=dtype)
        self.train(lambda p: True)

    def __getitem__(self, name):
        return self.all[name]

    def __iter__(self):
        return iter(self.all.values())

    @property
    def trainable(self):
        """-> the parameters that are trained, in the order of the buffer."""
        return [p for p in self._ordered if p.trainable]

    @property
    def grads(self):
        """-> all gradients (P,), in the order of `values`."""
        for p in self.trainable:
            p.grad     # noqa: B018  writes the zeros that it only stood for
        return self._grads

    @grads.setter
    def grads(self, gradients):     # grads /= n and the like end here
        self.grads[...] = gradients

    @property
    def size(self):
        """-> number of values, trained and frozen."""
        return sum(p.size for p in self)

    def train(self, wanted):
        """wanted(parameter) -> bool says which are trained; lays both buffers anew."""
        self._ordered = sorted(self, key=lambda p: (p.layer, not p.decays))
        live = [p for p in self._ordered if wanted(p)]
        self.values, views = self._lay(live)
        # not zeros_like: pages that nobody trains are then never touched
        self._grads = self.xp.zeros(self.values.shape, dtype=self.dtype)
        self.frozen_values, frozen_views = self._lay([p for p in self._ordered if not wanted(p)])
        for p in self:
            p.set_grad_view(None)
        self.param_groups, start = [], 0
        for p in live:
            p.set_grad_view(self._grads[start:start + p.size].reshape(p.shape))
            last = self.param_groups[-1] if self.param_groups else None
            if last and (last.layer, last.decays) == (p.layer, p.decays):
                self.param_groups[-1] = ParamGroup(last.start, start + p.size, p.layer, p.decays)
            else:
                self.param_groups.append(ParamGroup(start, start + p.size, p.layer, p.decays))
            start += p.size
        for p, view in (views | frozen_views).items():
            p.value = view
        self.refresh()

    def to_gpu(self):
        """Lays both buffers anew on the GPU, from the values that they have here."""
        self.xp, live = array.cupy, set(self.trainable)
        self.train(live.__contains__)

    def set_compute_dtype(self, dtype):
        """From now on every parameter also has `low`, rounded to a format of matmul.py, or None."""
        self.compute_dtype = dtype
        self.refresh()

    def refresh(self):
        """Rounds all values anew, after some have changed: one pass over each buffer."""
        if self.compute_dtype is None:
            return
        for buffer, live in ((self.values, True), (self.frozen_values, False)):
            flat, start = rounded(buffer, self.compute_dtype), 0
            for p in self._ordered:
                if p.trainable == live:
                    p.compute_value = flat[start:start + p.size].reshape(p.shape)
                    start += p.size

    def _lay(self, parameters):
        """-> one flat array with these parameters' values, and a view into it for each."""
        flat = self.xp.empty(sum(p.size for p in parameters), dtype=self.dtype)
        views, start = {}, 0
        for p in parameters:
            views[p] = flat[start:start + p.size].reshape(p.shape)
            views[p][...] = self.xp.asarray(p.value)
            start += p.size
        return flat, views

    def zero_grad(self):
        """Sets every gradient to zero."""
        for p in self.trainable:
            p.zeroed = True
