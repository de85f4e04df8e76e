"""ONNX's nodes in our operations: each function has the node's attributes, and its inputs by name.

-> expression, its arguments by name.
"""

from functools import partial
from math import sqrt

import numpy as np

from minisft.training.optim import SGD, Adam
from tests.peers import attention as attn
from tests.peers import expressions as ours


def softmax(express, X, axis=-1):
    return express, {"input": X, "dim": axis}


def gelu(X, approximate="none"):
    return ours.gelu, {"input": X, "approximate": approximate}


def erf(input):
    return ours.erf, {"input": input}


def layer_normalization(X, Scale, B=None, axis=-1, epsilon=1e-5):
    return ours.layer_norm, {"input": X, "normalized_shape": X.shape[axis:], "weight": Scale,
                             "bias": B, "eps": epsilon}


def gather(data, indices, axis=0):
    ours.require(axis == 0, "another axis")
    ours.require(data.ndim == 2, "table of another rank")
    return ours.embedding, {"weight": data, "indices": indices}


def matmul(A, B):
    ours.require(B.ndim <= 2, "a matrix for each text")
    return ours.linear if B.ndim == 2 else _by_vector, {"input": A, "weight": B.T}


def _by_vector(input, weight):
    found = ours.linear(input, weight[None])
    return found._replace(y=found.y[..., 0])


def gemm(A, B, C=None, alpha=1.0, beta=1.0, transA=0, transB=0):
    """A factor of the product is one of its matrix."""
    weight = np.float32(alpha) * (B if transB else B.T)
    if C is not None:
        ours.require(C.ndim < 2 or C.shape[0] == 1, "a bias for each row")
        C = np.float32(beta) * np.broadcast_to(C.reshape(-1), len(weight))
    return ours.linear, {"input": A.T if transA else A, "weight": weight, "bias": C}


def cross_entropy(scores, labels, weights=None, ignore_index=ours.IGNORE, reduction="mean"):
    return ours.cross_entropy, {"input": scores, "target": labels, "weight": weights,
                                "ignore_index": ignore_index, "reduction": reduction}


def dropout(data, ratio=0.5, training_mode=False, seed=None, kept=None):
    return ours.dropout, {"input": data, "p": float(ratio), "training": bool(training_mode),
                          "kept": kept}


def attention(Q, K, V, attn_mask=None, past_key=None, past_value=None, nonpad_kv_seqlen=None,
              q_num_heads=None, kv_num_heads=None, is_causal=0, scale=None, softcap=0.0,
              left_window_size=-1, right_window_size=-1, qk_matmul_output_mode=0,
              softmax_precision=None):
    """Query i stands at the number of earlier keys, and i: their last query sees key past + Tq."""
    ours.require(Q.dtype == np.float32, "16 bits")
    ours.require(attn_mask is None, "mask of scores")
    ours.require(left_window_size == right_window_size == -1, "window of keys")
    ours.require(not softcap, "bounded scores")
    flat = Q.ndim == 3     # heads side by side in the channels
    if flat:
        Q, K, V = (a.reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3) for a, heads in (
            (Q, q_num_heads), (K, kv_num_heads), (V, kv_num_heads)))
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        K, V = (np.concatenate(pair, axis=2) for pair in ((past_key, K), (past_value, V)))
    tq, tk = Q.shape[2], K.shape[2]
    lengths = np.full(len(Q), min(past + tq, tk) if is_causal else tk)
    if nonpad_kv_seqlen is not None:
        lengths = nonpad_kv_seqlen
    return _flat_attention if flat else attn.attention, {
        "query": Q, "key": K, "value": V, "is_causal": bool(is_causal), "scale": scale,
        "enable_gqa": True, "lengths": lengths, "aligned_to_end": True}


def _flat_attention(**arguments):
    found = attn.attention(**arguments)
    y = found.y.transpose(0, 2, 1, 3)
    return found._replace(y=y.reshape(*y.shape[:2], -1))


def momentum(R, T, tensors, alpha, beta, mode, norm_coefficient=0.0):
    """`alpha` is momentum; the first step, of number 0, is not damped by `beta`."""
    ours.require(mode == "standard", "Nesterov's momentum")
    ours.require(T == 0 or beta == 1, "damped momentum")
    values, gradients, m = np.concatenate(tensors).reshape(3, -1)
    return ours.optimizer_step, {
        "kind": SGD, "options": {"momentum": alpha, "weight_decay": norm_coefficient},
        "lr": float(R), "t": 1, "values": values, "gradients": gradients, "m": m}


def adam(R, T, tensors, alpha=0.9, beta=0.999, epsilon=0.0, norm_coefficient=0.0,
         norm_coefficient_post=0.0):
    """Its eps is added to a moment that is not corrected yet."""
    ours.require(T > 0, "step 0")
    values, gradients, m, v = np.concatenate(tensors).reshape(4, -1)
    options = {"betas": (alpha, beta), "eps": epsilon / sqrt(1 - beta**T),
               "weight_decay": norm_coefficient}
    return ours.optimizer_step, {
        "kind": Adam, "options": options, "lr": float(R), "t": int(T),
        "values": values, "gradients": gradients, "m": m, "v": v}


# Operator -> function, limits that its cases meet.
NODES = {
    "Softmax": (partial(softmax, ours.softmax), set()),
    "LogSoftmax": (partial(softmax, ours.log_softmax), set()),
    "Gelu": (gelu, set()),
    "Erf": (erf, set()),
    "LayerNormalization": (layer_normalization, set()),
    "Gather": (gather, {"another axis", "table of another rank"}),
    "MatMul": (matmul, {"a matrix for each text"}),
    "Gemm": (gemm, {"a bias for each row"}),
    "SoftmaxCrossEntropyLoss": (cross_entropy, set()),
    "Dropout": (dropout, set()),
    "Attention": (attention, {"16 bits", "mask of scores", "window of keys", "bounded scores",
                              "values of another width", "queries before the first key"}),
    "Momentum": (momentum, {"Nesterov's momentum"}),
    "Adam": (adam, {"step 0"}),
}
LIKE_OURS = ("Softmax", "Gelu", "Erf", "LayerNorm", "RMSNorm", "Gather", "MatMul", "Gemm",
             "LogLikelihood", "CrossEntropy", "Dropout", "Attention", "Adam", "Momentum",
             "Embedding", "Linear")
NOT_OURS = {
    "GatherElements": "one number for each index",
    "GatherND": "indices of several axes",
    "MatMulInteger": "whole numbers",
    "QLinearMatMul": "quantized numbers",
    "QLinearConv": "quantized numbers",
    "DequantizeLinear": "quantized numbers",
    "QuantizeLinear": "quantized numbers",
    "DynamicQuantizeLinear": "quantized numbers",
    "NegativeLogLikelihoodLoss": "it begins with log-probabilities, cross_entropy with logits",
    "RMSNormalization": "no model of ours has it",
    "RotaryEmbedding": "positions of our models are learned",
    "FlexAttention": "attention whose scores a program changes",
    "LinearAttention": "attention without a softmax",
}
