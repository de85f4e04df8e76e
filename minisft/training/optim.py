"""Optimizers over the flat buffers, learning-rate schedules, and the norm of all gradients.

g: gradient, w: value, lr: learning rate, d: weight decay, t: number of the step from 1 on.

SGD with momentum (Polyak 1964, as PyTorch writes it):
    (1) m = momentum * m + g,   w = w - lr * m
Adam (Kingma and Ba 2015, algorithm 1):
    (2) m = b1 * m + (1 - b1) * g,   v = b2 * v + (1 - b2) * g^2
    (3) w = w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
AdamW (Loshchilov and Hutter 2019), before (3):
    (4) w = w - lr * d * w          the decay passes by the moments; Adam and SGD add d * w to g
        PyTorch's form; algorithm 2 of the paper has the schedule's factor in the place of lr

Each works block by block, in place, so that a block is read once while it is in the cache.
"""

from collections.abc import Mapping, Sequence
from math import cos, pi, sqrt
from typing import Any

import numpy as np

from minisft.backend.array import Array, array_module
from minisft.dispatch import adamw, squared_norm
from minisft.nn.parameters import Parameters

BLOCK = 1 << 16


class Optimizer:
    """Walks the parameter groups; `rates` are factors of the learning rate, one for each."""

    buffers: tuple[str, ...] = ()     # names of the arrays that a run must save to be resumed

    def __init__(self, store: Parameters, weight_decay: float = 0.0,
                 rates: Sequence[float] | None = None) -> None:
        self.store, self.weight_decay = store, weight_decay
        self.rates = [1.0] * len(store.param_groups) if rates is None else rates
        if len(self.rates) != len(store.param_groups):
            raise ValueError(f"{len(self.rates)} rates for {len(store.param_groups)} parameter "
                             "groups")
        self.t = 0
        self.last_lr = 0.0     # of the last step, should somebody ask why a run diverged
        for name in self.buffers:
            setattr(self, name, store.xp.zeros_like(store.values))

    def step(self, lr: float, scale: float = 1.0) -> None:
        """Updates every trained value; `scale` multiplies the gradients (mean, clipping)."""
        self.t += 1
        self.last_lr = lr
        self.update_groups([(group.stop, lr * rate, self.weight_decay if group.decays else 0.0)
                            for group, rate in zip(self.store.param_groups, self.rates,
                                                   strict=True)], scale)

    def update_groups(self, groups: Sequence[tuple[int, float, float]], scale: float) -> None:
        """(end, learning rate, decay) of each parameter group, in order; block by block."""
        grads, start = self.store.grads, 0
        for stop, lr, decay in groups:
            for block in _blocks(grads, slice(start, stop)):
                self.update(block, lr, decay, grads[block] * scale)
            start = stop
        self.store.refresh()

    def update(self, block: slice, lr: float, decay: float, g: Array) -> None:
        """One block, whose gradient g may be overwritten."""
        raise NotImplementedError

    def state(self) -> tuple[dict[str, Array], int]:
        """-> the arrays to keep and the number of steps, for an exact resume."""
        return {name: getattr(self, name) for name in self.buffers}, self.t

    def restore(self, arrays: Mapping[str, Array], t: int) -> None:
        """The other way round; raises ValueError when the sizes disagree."""
        for name in self.buffers:
            kept = getattr(self, name)
            if arrays[name].shape != kept.shape:
                raise ValueError(f"{name}: {arrays[name].shape} kept, {kept.shape} expected")
            kept[...] = self.store.xp.asarray(arrays[name])
        self.t = t


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, equation (1)."""

    buffers: tuple[str, ...] = ("m",)
    m: Array

    def __init__(self, store: Parameters, momentum: float = 0.9, weight_decay: float = 0.0,
                 rates: Sequence[float] | None = None) -> None:
        super().__init__(store, weight_decay, rates)
        self.momentum = momentum

    def update(self, block: slice, lr: float, decay: float, g: Array) -> None:
        w, m = self.store.values[block], self.m[block]
        if decay:
            g += decay * w
        m *= self.momentum
        m += g                                                  # (1)
        w -= lr * m


class Adam(Optimizer):
    """Adam, equations (2) and (3); a decay is added to the gradient."""

    buffers: tuple[str, ...] = ("m", "v")
    m: Array
    v: Array
    decoupled = False

    def __init__(self, store: Parameters, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0,
                 rates: Sequence[float] | None = None) -> None:
        super().__init__(store, weight_decay, rates)
        self.betas, self.eps = betas, eps

    def update(self, block: slice, lr: float, decay: float, g: Array) -> None:
        w, m, v = self.store.values[block], self.m[block], self.v[block]
        xp = array_module(w)
        b1, b2 = self.betas
        if decay and self.decoupled:
            w *= 1 - lr * decay                                 # (4)
        elif decay:
            g += decay * w
        m *= b1
        m += (1 - b1) * g                                       # (2)
        g *= g
        g *= 1 - b2
        v *= b2
        v += g
        xp.sqrt(v, out=g)
        g *= 1 / sqrt(1 - b2**self.t)
        g += self.eps
        xp.divide(m, g, out=g)
        g *= lr / (1 - b1**self.t)
        w -= g                                                  # (3)


class AdamW(Adam):
    """Adam with decoupled weight decay, equations (2), (4) and (3)."""

    decoupled = True

    def __init__(self, store: Parameters, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.01,
                 rates: Sequence[float] | None = None) -> None:
        super().__init__(store, betas, eps, weight_decay, rates)

    def update_groups(self, groups: Sequence[tuple[int, float, float]], scale: float) -> None:
        """All in one pass over the buffers where there is a kernel or a loop for it."""
        store = self.store
        buffers = store.values, store.grads, self.m, self.v
        step = adamw.choose(*buffers).load()
        if step is None:
            return super().update_groups(groups, scale)
        low = store.room_for_rounded()
        if low is None:
            step(*buffers, self.t, groups, self.betas, self.eps, scale)
        else:     # what it has in its registers it rounds as well
            step(*buffers, self.t, groups, self.betas, self.eps, scale, low=low)
        if store.compute_values is None:
            store.refresh(low)


OPTIMIZERS: dict[str, Any] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
SCHEDULES = ("linear", "cosine", "constant", "inverse_sqrt")


def gradient_norm(store: Parameters) -> float:
    """-> length of all gradients as one vector, summed block by block in a fixed order."""
    grads, total = store.grads, 0.0
    if (squares := squared_norm.choose(grads).load()) is not None:
        return sqrt(float(squares(grads)[0]))
    for part in _blocks(grads, slice(0, len(grads))):
        block = grads[part]
        total += float(block @ block)
    return sqrt(total)


def _blocks(buffer, group):
    """-> blocks of a group that a core's cache holds; on a GPU the group at once."""
    step = BLOCK if array_module(buffer) is np else group.stop - group.start
    return [slice(start, min(start + step, group.stop))
            for start in range(group.start, group.stop, step)]


def clip_scale(norm: float, limit: float) -> float:
    """-> factor that brings gradients of that norm down to `limit` (Pascanu et al. 2013)."""
    return min(1.0, limit / norm) if limit and norm > 0 else 1.0


def schedule(name: str, step: int, steps: int, warmup: int) -> float:
    """step from 0, steps in all, steps of warm-up -> factor of the learning rate in (0, 1].

    Warm-up rises linearly to 1; then it stays, falls to 0 linearly or by half a cosine (Loshchilov
    and Hutter 2017, eq. 5), or falls by the inverse square root of the step and does not end at 0
    (Vaswani et al. 2017, eq. 3, divided by its highest value). Raises ValueError for another name.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = (steps - step) / max(steps - warmup, 1)
    if name == "linear":
        return left
    if name == "cosine":
        return 0.5 * (1 + cos(pi * (1 - left)))
    if name == "constant":
        return 1.0
    if name == "inverse_sqrt":
        return sqrt((warmup + 1) / (step + 1))
    raise ValueError(f"schedule is {name!r}, expected one of {', '.join(SCHEDULES)}")


def layer_wise_lr_factors(store: Parameters, decay: float) -> list[float]:
    """-> a factor for each parameter group: 1 for the highest layer, `decay` less for each below.

    Layer-wise learning-rate decay (Howard and Ruder 2018, section 3.2).
    """
    highest = max(group.layer for group in store.param_groups)
    return [decay ** (highest - group.layer) for group in store.param_groups]
