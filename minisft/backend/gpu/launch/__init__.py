"""What stands between an operation and its kernel: sizes, blocks, buffers; one file a kernel."""

from minisft.backend.gpu.launch import (
    adamw,
    attention,
    attention_bfloat16,
    attention_naive,
    bfloat16,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    softmax,
    softmax_naive,
)

__all__ = ["adamw", "attention", "attention_bfloat16", "attention_naive", "bfloat16",
           "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "softmax",
           "softmax_naive"]
