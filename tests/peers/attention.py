"""Attention of the peers, with its linear maps and the block around it; see expressions.py."""

from math import prod, sqrt

import numpy as np

from minisft import dispatch
from minisft.data.batch import pack
from minisft.models import bert
from minisft.models.config import BertConfig
from minisft.nn.parameters import Parameters
from tests.peers.expressions import ALL, Expressed, linear, require


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
              enable_gqa=False, kept=None, lengths=None, aligned_to_end=False):
    """query (...,Hq,Tq,D), key and value (...,H,Tk,D); the leading axes spread, as in PyTorch.

    There query i sees keys 0 to i; ours, like `aligned_to_end`, lets the last query see every key.
    `lengths` (B,): how many keys each sequence has, `kept` (...,Tq,Tk): which scores stay.
    """
    require(attn_mask is None, "mask of scores")
    require(dropout_p < 1, "rate of 1")
    given = {"query": query, "key": key, "value": value}
    alone = all(a.ndim == 3 for a in given.values())     # one head, without an axis
    if alone:
        query, key, value = (a[:, None] for a in given.values())
    if enable_gqa:
        key, value = (a.repeat(query.shape[-3] // a.shape[-3], axis=-3) for a in (key, value))
    require(value.shape[-1] == key.shape[-1], "values of another width")
    lead = np.broadcast_shapes(*(a.shape[:-2] for a in (query, key, value)))
    q, k, v = (_packed(np.broadcast_to(a, (*lead, *a.shape[-2:]))) for a in (query, key, value))
    (tq, width), tk = query.shape[-2:], key.shape[-2]
    if scale is not None:
        q = q * q.dtype.type(scale * sqrt(width))
    count = prod(lead[:-1])
    if lengths is None:
        lengths = np.full(count, min(tq, tk) if is_causal and not aligned_to_end else tk)
    require(not is_causal or (lengths >= tq).all(), "queries before the first key")
    edges, starts = np.arange(count + 1) * tq, np.arange(count) * tk
    drop = None
    if kept is not None and dropout_p:
        words = np.where(kept, ALL, np.uint32(0)).reshape(count, -1, tq, tk)
        drop = dropout_p, lambda b, n, block=slice(None), rows=slice(None): (
            words[b, :, rows, :n][..., block])
    y, cache = dispatch.attention.forward(q, k, v, edges, starts, lengths, is_causal, drop)
    shape = (*lead, tq, width)

    def backward(dy):
        dq, dk, dv = dispatch.attention.backward(_packed(dy.reshape(shape)), cache)
        if scale is not None:
            dq = dq * dq.dtype.type(scale * sqrt(width))
        spread = [_unpacked(d, (*lead, *a.shape[-2:])) for d, a in (
            (dq, query), (dk, key), (dv, value))]
        return {name: d[:, 0] if alone else _sum_to(d, a.shape, enable_gqa)
                for (name, a), d in zip(given.items(), spread, strict=True)}

    return Expressed(_unpacked(y, shape)[:, 0] if alone else _unpacked(y, shape), backward, [cache])


def _packed(x):
    """x (...,H,T,D) -> (N,H,D)."""
    heads, steps, width = x.shape[-3:]
    return np.ascontiguousarray(x.reshape(-1, heads, steps, width).transpose(0, 2, 1, 3)).reshape(
        -1, heads, width)


def _unpacked(x, shape):
    """x (N,H,D) -> shape (...,H,T,D)."""
    return x.reshape(-1, shape[-2], *x.shape[1:]).transpose(0, 2, 1, 3).reshape(shape)


def _sum_to(x, shape, grouped):
    """The gradient of an array that was spread over the first axes, or its heads repeated."""
    if grouped and x.shape != shape:
        return x.reshape(*shape[:-2], -1, *shape[-2:]).sum(axis=-3)
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(i for i, n in enumerate(shape) if n != x.shape[i]), keepdims=True)


def multi_head_attention(query, key, value, in_proj_weight, in_proj_bias, out_proj_weight,
                         out_proj_bias, num_heads, bias_k=None, bias_v=None, add_zero_attn=False,
                         key_padding_mask=None, attn_mask=None):
    """query (Tq,C), key and value (Tk,C) of one sequence; key_padding_mask (Tk,): keys left out."""
    require(attn_mask is None, "mask of scores")
    sides, width = (query, key, value), query.shape[-1]
    biases = [None] * 3 if in_proj_bias is None else np.split(in_proj_bias, 3)
    maps = [linear(x, w, b) for x, w, b in zip(
        sides, np.split(in_proj_weight, 3), biases, strict=True)]
    q, k, v = (part.y for part in maps)
    seen = np.ones(len(key), bool) if key_padding_mask is None else ~key_padding_mask
    # further keys: one learned, one of zeros
    more = [[b.reshape(1, width)] for b in (bias_k, bias_v)] if bias_k is not None else [[], []]
    zeros = [np.zeros((1, width), q.dtype)] * add_zero_attn
    k, v = (np.concatenate([a[seen], *rows, *zeros]) for a, rows in zip((k, v), more, strict=True))
    heads = [a.reshape(len(a), num_heads, -1).transpose(1, 0, 2)[None] for a in (q, k, v)]
    mixed = attention(*heads)
    out = linear(mixed.y[0].transpose(1, 0, 2).reshape(len(q), -1), out_proj_weight, out_proj_bias)

    def backward(dy):
        d = out.backward(dy)
        found = {"out_proj_weight": d["weight"], "out_proj_bias": d["bias"]}
        dy = d["input"].reshape(len(q), num_heads, -1).transpose(1, 0, 2)[None]
        dq, dk, dv = (a[0].transpose(1, 0, 2).reshape(a.shape[2], -1)
                      for a in mixed.backward(dy).values())
        if bias_k is not None:
            found |= {name: d[seen.sum()].reshape(bias_k.shape)
                      for name, d in (("bias_k", dk), ("bias_v", dv))}
        dk, dv = (_scattered(d[:seen.sum()], seen) for d in (dk, dv))
        parts = [part.backward(d) for part, d in zip(maps, (dq, dk, dv), strict=True)]
        found |= {name: part["input"] for name, part in zip(
            ("query", "key", "value"), parts, strict=True)}
        found["in_proj_weight"] = np.concatenate([part["weight"] for part in parts])
        if in_proj_bias is not None:
            found["in_proj_bias"] = np.concatenate([part["bias"] for part in parts])
        return found

    return Expressed(out.y, backward, [c for part in (*maps, mixed, out) for c in part.caches])


def _scattered(rows, places):
    """rows (n,C), places (T,) bool -> (T,C), zero elsewhere."""
    whole = np.zeros((len(places), rows.shape[1]), rows.dtype)
    whole[places] = rows
    return whole


def block_of(arrays, heads, eps, dtype):
    """BERT's block with these values, by their names in a checkpoint."""
    width, inner = arrays["b.intermediate.dense.weight"].shape
    config = BertConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=inner,
                        layer_norm_eps=eps)
    block = bert.Block("b", config, 0)
    store = Parameters(block.parameters(), dtype)
    for p in store.trainable:
        p.value[...] = arrays[p.name]
    return block, store


def encoder_layer(input, heads, eps, **weights):
    """input (B,T,C), BERT's weights -> y (B,T,C): a post-norm encoder layer is BERT's block."""
    block, store = block_of(weights, heads, eps, input.dtype)
    batch = pack([np.arange(input.shape[1])] * len(input))
    y = block.forward(input.reshape(-1, input.shape[-1]), batch)

    def backward(dy):
        dx = block.backward(dy.reshape(y.shape))
        return {"input": dx.reshape(input.shape)} | {p.name: p.grad for p in store.trainable}

    return Expressed(y.reshape(input.shape), backward, None)
