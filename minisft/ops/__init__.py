"""The operations: numbered equations, `forward(...) -> (y, cache)`, `backward(dy, cache)`.

All are pure: they write only into arrays that they made themselves and keep nothing.
"""

from minisft.ops import (
    attention,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    linear,
    lora,
    softmax,
    span_cross_entropy,
)

__all__ = ["attention", "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear",
           "lora", "softmax", "span_cross_entropy"]
