"""Launchers: the grid, block and buffers with which each operation calls its kernels."""

from minisft.backend.gpu.launch import (
    adamw,
    attention,
    attention_decode,
    attention_naive,
    attention_tensor_cores,
    bfloat16,
    column_sums,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    next_token,
    residual_layer_norm,
    softmax,
)

__all__ = ["adamw", "attention", "attention_decode", "attention_naive", "attention_tensor_cores",
           "bfloat16", "column_sums", "cross_entropy", "dropout", "embedding", "gelu", "layer_norm",
           "next_token", "residual_layer_norm", "softmax"]
