"""Planted bugs: broken variants of a backward, which a gradient check must detect.

The command `check` shows each by its name; a test asserts that every one is detected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from minisft.models import bert
from minisft.models.heads import LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.nn.blocks import Block
from minisft.nn.cross_attention import Attention, DecoderBlock
from minisft.ops import attention, cross_entropy, lora, softmax
from minisft.verify.gradcheck import Result, check


def softmax_rowsum(dp: np.ndarray, cache: tuple) -> np.ndarray:
    (p,) = cache
    return p * dp


def softmax_zeros(dp: np.ndarray, cache: tuple) -> np.ndarray:
    return np.zeros_like(dp)


def layer_norm_term(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w, mean, rstd = cache
    n, g = (x - mean) * rstd, dy * w
    return rstd * (g - g.mean(axis=-1, keepdims=True)), (dy * n).sum(axis=0), dy.sum(axis=0)


def linear_transposed(dy: np.ndarray, cache: tuple,
                      bias: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w = cache
    return dy @ w.T, dy.T @ x, dy.sum(axis=0)


def lora_scale(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dx, da, _ = lora.backward(dy, cache)
    *_, u = cache
    return dx, da, dy.T @ u


def lora_side(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, a, b, scale, u = cache
    du = scale * dy @ b.T
    return du @ a, du.T @ x, scale * dy.T @ u


def embedding_repeats(dy: np.ndarray, cache: tuple, out: np.ndarray | None = None) -> np.ndarray:
    ids, shape = cache
    dw = np.zeros(shape) if out is None else out
    dw[ids] = dy
    return dw


def gelu_chain(dy: np.ndarray, cache: tuple) -> np.ndarray:
    x, t, _ = cache
    return dy * ((1 + t) / 2 + x / 2 * (1 - t * t))


def dropout_mask(dy: np.ndarray, cache: tuple) -> np.ndarray:
    return dy


def cross_entropy_onehot(dloss: np.ndarray, cache: tuple) -> np.ndarray:
    z, m, e, _, counted, on_label, weights, smoothing = cache
    spread = 0 if weights is None else smoothing * weights.mean()
    return dloss * np.exp(z - m) / e * (on_label + counted * spread)[:, None]


def cross_entropy_ignored(dloss: np.ndarray, cache: tuple) -> np.ndarray:
    z, m, e, y, counted, *rest = cache
    return cross_entropy.backward(dloss, (z, m, e, y, np.ones_like(counted), *rest))


def attention_scale(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dq, dk, dv = attention.backward(dy, cache)
    d = cache[0].shape[-1]
    return dq * sqrt(d), dk * sqrt(d), dv


def attention_mask(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, k, v, cu_seqlens, key_starts, key_lengths, _, _ = cache
    _, (*_, unmasked) = attention.forward(q, k, v, cu_seqlens, key_starts, key_lengths,
                                          causal=False)
    return attention.backward(dy, (*cache[:-1], unmasked))


def attention_rowsum(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _attention(dy, cache, lambda p, m, dp: p * dp)


def attention_dropout(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _attention(dy, cache,
                      lambda p, m, dp: p * (dp - (dp * p * m).sum(axis=-1, keepdims=True)))


def _attention(dy, cache, equation_6):
    """The backward of ops/attention.py with another equation (6): p, m, dp (H,Tq,Tk) -> ds."""
    q, k, v, cu_seqlens, key_starts, key_lengths, _, kept = cache
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, (p, m) in enumerate(kept):
        queries = slice(cu_seqlens[b], cu_seqlens[b + 1])
        keys = slice(key_starts[b], key_starts[b] + key_lengths[b])
        m = 1 if m is None else m
        dp = np.einsum("ihd,jhd->hij", dy[queries], v[keys]) * m                   # (5)
        ds = equation_6(p, m, dp) / sqrt(q.shape[-1])
        dv[keys] = np.einsum("hij,ihd->jhd", p * m, dy[queries])                   # (4)
        dq[queries] = np.einsum("hij,jhd->ihd", ds, k[keys])                       # (7)
        dk[keys] = np.einsum("hij,ihd->jhd", ds, q[queries])
    return dq, dk, dv


class BlockResidual(Block):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.pop_saved()
        dy = self.ln_2.backward(self.mlp.backward(self.drop_2.backward(dy)))
        return self.ln_1.backward(self.attn.backward(self.drop_1.backward(dy)))


class TiedMatrix(LanguageModel):
    def backward(self, dlogits: np.ndarray) -> np.ndarray:
        self.pop_saved()
        return self.trunk.backward(dlogits @ self.trunk.wte.w.value)


class PostNormResidual(bert.Block):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.pop_saved()
        dx = self.norm_2.backward(dy)
        dx = dy + self.norm_1.backward(dx + self.mlp.backward(self.drop_2.backward(dx)))
        da = self.attention.backward(self.drop_1.backward(dx))
        return dx + da


class BertKeys(bert.SelfAttention):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.pop_saved()
        dy = self.dense.backward(dy).reshape(len(dy), self.n_head, -1)
        dq, dk, dv = (d.reshape(len(d), -1) for d in self.attend_backward(dy))
        return self.query.backward(dq) + self.value.backward(dv)


class TokenTypes(bert.Embeddings):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = self.norm.backward(self.drop.backward(dy))
        self.position.backward(dx)
        self.word.backward(dx)
        return dx


class PoolerTanh(bert.Pooler):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        (y,) = self.pop_saved()
        return self.dense.backward(dy * (1 - y))


class MeanOfBatch(bert.MeanPooler):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        (lengths,) = self.pop_saved()
        return np.repeat(dy / lengths.mean(), lengths, axis=0)


class CrossValues(Attention):
    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dy = self.out_proj.backward(dy).reshape(len(dy), self.n_head, -1)
        dq, dk, dv = (d.reshape(len(d), -1) for d in self.attend_backward(dy))
        self.k_proj.backward(dk)
        return self.q_proj.backward(dq), self.v_proj.backward(dv)


class CrossResidual(DecoderBlock):
    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dy = dy + self.final_layer_norm.backward(self.mlp.backward(self.drop_3.backward(dy)))
        dq, dm = self.encoder_attn.backward(self.drop_2.backward(dy))
        dy = self.encoder_attn_layer_norm.backward(dq)
        dq, dkv = self.self_attn.backward(self.drop_1.backward(dy))
        return dy + self.self_attn_layer_norm.backward(dq + dkv), dm


class LastBlockReads(EncoderDecoder):
    def backward(self, dlogits: np.ndarray) -> np.ndarray:
        first, *_ = self.trunk.decoder.layers
        dx_and_dm = first.backward
        first.backward = lambda dy: (dx_and_dm(dy)[0], 0)
        try:
            return super().backward(dlogits)
        finally:
            del first.backward


class TargetTable(EncoderDecoder):
    def backward(self, dlogits: np.ndarray) -> np.ndarray:
        self.trunk.encoder.embeddings.backward = lambda dm: None
        try:
            return super().backward(dlogits)
        finally:
            del self.trunk.encoder.embeddings.backward


@dataclass(frozen=True)
class PlantedBug:
    """A broken variant of the part of one check, and what is wrong with it."""

    check: str
    broken: Callable
    wrong: str


PLANTED = {
    "softmax-rowsum": PlantedBug("softmax", softmax_rowsum,
        "(4) without its sum: ds = p * dp. Each probability also falls when another rises."),
    "softmax-zeros": PlantedBug("softmax", softmax_zeros,
        "(4) replaced by ds = 0, which a check with sum(y) as its objective lets pass."),
    "layer_norm-term": PlantedBug("layer_norm", layer_norm_term,
        "(3) without its third term n * mean(g * n): rstd taken for a constant."),
    "linear-transposed": PlantedBug("linear", linear_transposed,
        "(3) transposed: dw = dy^T @ x. Of the right shape where w is square."),
    "lora-scale": PlantedBug("lora", lora_scale,
        "(3) without s: dB = dy^T @ u. The loss still falls, at another rate than A's."),
    "lora-side": PlantedBug("lora", lora_side,
        "(4) with B on the wrong side: du = s dy @ B^T. Of the right shape where B is square."),
    "embedding-repeats": PlantedBug("embedding", embedding_repeats,
        "(2) assigned, not summed: dw[ids] = dy keeps the last token of each id."),
    "gelu-chain": PlantedBug("gelu (tanh)", gelu_chain,
        "(3) without the factor du/dx: the chain rule stops at tanh(u)."),
    "dropout-mask": PlantedBug("dropout", dropout_mask,
        "(3) without m: dx = dy also where x was dropped."),
    "cross_entropy-onehot": PlantedBug("cross_entropy", cross_entropy_onehot,
        "(4) without - t[k]: the label never enters the gradient."),
    "cross_entropy-ignored": PlantedBug("cross_entropy (all options)", cross_entropy_ignored,
        "(4) without the factor sum_j t[j]: an ignored row, whose t is 0, gets softmax(z)."),
    "attention-scale": PlantedBug("attention (causal)", attention_scale,
        "(7) without 1 / sqrt(D) in dQ and dK: the scale of (1) is missing in the backward."),
    "attention-rowsum": PlantedBug("attention (causal)", attention_rowsum,
        "(6) without rowsum(dP * P): dS = P * dP."),
    "attention-mask": PlantedBug("attention (causal)", attention_mask,
        "P of (4) and (6) computed again, without the causal mask of (1)."),
    "attention-dropout": PlantedBug("attention (causal, dropout)", attention_dropout,
        "(6) with P * M in its rowsum: the mask counts twice, dP has it from (5) already."),
    "block-residual": PlantedBug("layer: Block (dropout)", BlockResidual,
        "y = x + f(x) gone back as dx = f'(x) dy: the gradient of the residual x is missing."),
    "tied-matrix": PlantedBug("GPT-2 language model (tied)", TiedMatrix,
        "wte gets its gradient from the embedding only: as the output matrix it has another."),
    "bert-residual": PlantedBug("BERT layer: Block (dropout)", PostNormResidual,
        "y = LayerNorm(x + f(x)) gone back as if the residual passed the norm by, as in GPT-2."),
    "bert-keys": PlantedBug("BERT layer: SelfAttention (dropout)", BertKeys,
        "x enters as query, key and value: the gradient through the keys is missing."),
    "bert-types": PlantedBug("BERT layer: Embeddings (dropout)", TokenTypes,
        "the table of token types gets no gradient: it is one of three summed tables."),
    "bert-pooler": PlantedBug("BERT layer: Pooler", PoolerTanh,
        "tanh gone back as 1 - y in the place of 1 - y^2."),
    "cross-keys": PlantedBug("seq2seq layer: Attention (dropout)", CrossValues,
        "(4) without dk Wk^T: the other text enters as keys and as values."),
    "cross-residual": PlantedBug("seq2seq layer: DecoderBlock (dropout)", CrossResidual,
        "(5) without dw: the gradient of the residual around the cross-attention is missing."),
    "cross-blocks": PlantedBug("encoder-decoder (dropout)", LastBlockReads,
        "(3) with the last block alone: every block of the decoder reads the encoder's output."),
    "cross-table": PlantedBug("encoder-decoder (dropout)", TargetTable,
        "the table gets no gradient from the source's tokens: it embeds both texts."),
    "bert-mean": PlantedBug("BERT layer: MeanPooler", MeanOfBatch,
        "each token divided by the mean length of the batch, not by its own text's."),
}


def sum_hides() -> Result:
    """-> the Result of a softmax whose backward returns zeros, with sum(y) as the objective."""
    def forward(s):
        p, cache = softmax.forward(s)
        return p.sum(), cache

    def backward(dsum, cache):
        return softmax_zeros(np.full(cache[0].shape, dsum), cache)

    s = np.random.default_rng(1).standard_normal((4, 5))
    return check(forward, backward, s, names=["s"], limit=np.inf)[0]
