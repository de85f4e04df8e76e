"""What peers compute, in our operations: each function has its peer's arguments, as NumPy arrays.

-> Expressed(y, backward, caches). `backward(dy)` gives the gradients by the names of the arguments;
None where there is no gradient to compare. `caches` say which implementations ran; None where
layers hold them.
Raises NotExpressible with a key of `tables.LIMITS`.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minisft import dispatch, ops
from minisft.backend.constants import IGNORE
from minisft.backend.erf import erf as our_erf
from minisft.nn.parameters import Parameter, Parameters

ALL = np.uint32(2**32 - 1)     # a random word that keeps its value at any rate


class NotExpressible(Exception):
    """The argument is a key of `tables.LIMITS`."""


class Expressed(NamedTuple):
    y: Any
    backward: Callable[[np.ndarray], dict[str, np.ndarray]] | None
    caches: list


def require(possible, limit):
    if not possible:
        raise NotExpressible(limit)


def rows_of(x):
    """x (...,C) -> (N,C)."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


# Row by row

def embedding(weight, indices, padding_idx=None, max_norm=None, norm_type=2.0,
              scale_grad_by_freq=False, sparse=False):
    require(padding_idx is None, "padding row")
    require(max_norm is None, "rows of a largest norm")
    require(not scale_grad_by_freq, "gradient by frequency")
    y, cache = dispatch.embedding.forward(indices.reshape(-1), weight)

    def backward(dy):
        return {"weight": dispatch.embedding.backward(dy.reshape(y.shape), cache)}

    return Expressed(y.reshape(*indices.shape, -1), backward, [cache])


def linear(input, weight, bias=None):
    y, cache = dispatch.linear.forward(rows_of(np.atleast_1d(input)), weight.T, bias)

    def backward(dy):
        dx, dw, db = dispatch.linear.backward(dy.reshape(y.shape), cache, bias is not None)
        return {"input": dx.reshape(input.shape), "weight": dw.T, "bias": db}

    return Expressed(y.reshape(*input.shape[:-1], -1 if y.size else len(weight)), backward, [cache])


def mm(input, mat2):
    y, backward, caches = linear(input, mat2.T)
    return Expressed(y, lambda dy: {"input": (found := backward(dy))["input"],
                                    "mat2": found["weight"].T}, caches)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    width = prod(normalized_shape)
    x = input.reshape(input.size // max(width, 1), width)
    w = np.ones(width, x.dtype) if weight is None else weight.reshape(width)
    b = np.zeros(width, x.dtype) if bias is None else bias.reshape(width)
    y, cache = dispatch.layer_norm.forward(x, w, b, eps)

    def backward(dy):
        dx, dw, db = dispatch.layer_norm.backward(dy.reshape(x.shape), cache)
        return {"input": dx.reshape(input.shape), "weight": dw.reshape(normalized_shape),
                "bias": db.reshape(normalized_shape)}

    return Expressed(y.reshape(input.shape), backward, [cache])


def gelu(input, approximate="none"):
    y, cache = dispatch.gelu.forward(input, {"none": "erf", "tanh": "tanh"}[approximate])
    return Expressed(y, lambda dy: {"input": dispatch.gelu.backward(dy, cache)}, [cache])


def erf(input):
    return Expressed(our_erf(input), None, [])


def softmax(input, dim=-1, dtype=None, sign=1, mask=None):
    """mask: where the scores stay; the others are minus infinity."""
    s = sign * np.atleast_1d(input if dtype is None else input.astype(dtype))
    if mask is not None:
        s = np.where(mask, s, -np.inf)
    s = np.moveaxis(s, dim, -1)
    require(s.shape[-1], "axis without a class")
    p, cache = dispatch.softmax.forward(s)

    def backward(dy):
        dp = np.moveaxis(np.atleast_1d(dy), dim, -1)
        ds = np.moveaxis(dispatch.softmax.backward(dp, cache), -1, dim)
        if mask is not None:
            ds = np.where(mask, ds, 0)
        return {"input": sign * ds.reshape(input.shape)}

    return Expressed(np.moveaxis(p, -1, dim).reshape(input.shape), backward, [cache])


softmin = partial(softmax, sign=-1)


def masked_softmax(input, dim, dtype=None, mask=None):
    return softmax(input, dim, dtype, mask=mask)


def masked_softmin(input, dim, dtype=None, mask=None):
    return softmax(input, dim, dtype, -1, mask)


def safe_softmax(input, dim, dtype=None):
    require(np.isfinite(input).any(axis=dim).all(), "row without a score")
    return softmax(input, dim, dtype)


def softmax_backward_data(grad_output, output, dim, input_dtype):
    """The formula's backward alone, from any p; its own gradient is no operation of ours."""
    dp, p = (np.moveaxis(a, dim, -1) for a in (grad_output, output))
    return Expressed(np.moveaxis(ops.softmax.backward(dp, (p,)), -1, dim), None, [])


def log_softmax(input, dim=-1, dtype=None):
    """Of the formula, which has no backward of its own: it is part of cross_entropy."""
    z = np.moveaxis(np.atleast_1d(input if dtype is None else input.astype(dtype)), dim, -1)
    require(z.shape[-1], "axis without a class")
    return Expressed(np.moveaxis(ops.cross_entropy.log_softmax(z), -1, dim).reshape(input.shape),
                     None, [])


def dropout(input, p=0.5, training=True, kept=None):
    """kept: which values the peer kept."""
    if not training:     # then the layer does not call the operation
        return Expressed(input, lambda dy: {"input": dy}, [])
    require(p < 1, "rate of 1")
    words = np.full(input.shape, ALL) if kept is None or not p else np.where(
        kept, ALL, np.uint32(0))
    y, cache = dispatch.dropout.forward(input, words, p)
    return Expressed(y, lambda dy: {"input": dispatch.dropout.backward(dy, cache)}, [cache])


def dropout_backward(grad_output, mask, scale):
    m = mask * grad_output.dtype.type(scale)
    return Expressed(ops.dropout.backward(grad_output, (m,)), None, [])


# Losses

def cross_entropy(input, target, weight=None, ignore_index=IGNORE, reduction="mean",
                  label_smoothing=0.0):
    """Labels of any shape, each with its classes along axis 1 (0 of a single text)."""
    require(target.dtype.kind == "i", "probabilities as targets")
    require(weight is None or (weight >= 0).all(), "negative weights")
    axis = min(1, input.ndim - 1)
    z = np.moveaxis(input, axis, -1)
    rows, labels = rows_of(z), target.reshape(-1)
    # without a reduction each row is a batch of its own
    parts = [slice(n, n + 1) for n in range(len(rows))] if reduction == "none" else [slice(None)]
    found = [dispatch.cross_entropy.forward(rows[part], labels[part], weight, label_smoothing,
                                            ignore_index) for part in parts]
    require(reduction != "mean" or found[0][0][1], "mean of nothing")
    losses = np.array([loss for (loss, _), _ in found], dtype=input.dtype)
    if reduction == "mean":
        losses = losses / np.array([denominator for (_, denominator), _ in found], input.dtype)
    caches = [cache for _, cache in found]

    def backward(dy):
        dy = np.atleast_1d(dy).reshape(-1)
        if reduction == "mean":
            dy = dy / found[0][0][1]
        dz = [dispatch.cross_entropy.backward(d, cache) for d, cache in zip(
            dy, caches, strict=True)]
        dz = np.concatenate([np.asarray(part) for part in dz]).reshape(z.shape)
        return {"input": np.moveaxis(dz, -1, axis)}

    return Expressed(losses.reshape(target.shape if reduction == "none" else ()), backward, caches)


def linear_cross_entropy(input, linear_weight, target, linear_bias=None, weight=None,
                         ignore_index=IGNORE, reduction="mean", label_smoothing=0.0, options=None):
    """linear_weight (K,...,C): logits (N,K,...)."""
    matrix, bias = rows_of(linear_weight), linear_bias
    logits = linear(input, matrix, None if bias is None else bias.reshape(-1))
    shape = (*input.shape[:-1], *linear_weight.shape[:-1])
    loss = cross_entropy(logits.y.reshape(shape), target, weight,
                         IGNORE if ignore_index is None else ignore_index, reduction,
                         label_smoothing)

    def backward(dy):
        d = logits.backward(loss.backward(dy)["input"].reshape(logits.y.shape))
        return {"input": d["input"], "linear_weight": d["weight"].reshape(linear_weight.shape),
                "linear_bias": None if bias is None else d["bias"].reshape(bias.shape)}

    return Expressed(loss.y, backward, logits.caches + loss.caches)


# Optimizers, through the store of parameters

def store_of(arrays, dtype=np.float64):
    """{name: values} -> Parameters that hold them, all of one group that decays."""
    store = Parameters([Parameter(name, a.shape, 0, True) for name, a in arrays.items()], dtype)
    for p in store.trainable:
        p.value[...] = arrays[p.name]
    return store


def optimizer_step(kind, options, lr, t, values, gradients, **buffers):
    """values (P,) before step t, from 1 on, and the optimizer's buffers -> values behind it."""
    store = store_of({"w": values}, values.dtype)
    store.grads[...] = gradients
    optimizer = kind(store, **options)
    optimizer.restore(buffers, t - 1)
    optimizer.step(lr)
    return Expressed(store.values.copy(), None, None)
