"""Operations as layers call them: which implementation runs is decided here and nowhere else.

    from minisft.dispatch import layer_norm
    y, cache = layer_norm.forward(x, w, b)          # the first implementation that applies
    dx, dw, db = layer_norm.backward(dy, cache)     # by the implementation that made the cache

`operations.py` lists the implementations of each operation, `selection.py` takes the first whose
conditions hold, `shapes.py` checks the arguments before any of them runs. Calling an operation of
`minisft/ops` runs its formula and nothing else.
"""

from minisft.dispatch.matmul import (
    BFLOAT16,
    FLOAT16,
    FORMATS,
    PRECISIONS,
    TF32,
    adds_to_out,
    matmul,
    resolve_precision,
    rounded,
    to_bfloat16,
)
from minisft.dispatch.operations import (
    OPERATIONS,
    adamw,
    attention,
    attention_in_16_bits,
    column_sums,
    cross_entropy,
    decoding_kernels,
    dropout,
    embedding,
    factor_gradients,
    gelu,
    gelu_adds_bias,
    layer_norm,
    linear,
    lora,
    loss_in_place,
    norm_for_product,
    rounded_and_summed,
    softmax,
    span_cross_entropy,
    squared_norm,
    sums_before_norm,
)
from minisft.dispatch.random_words import dispatched
from minisft.dispatch.selection import Site, only, watched

__all__ = ["BFLOAT16", "FLOAT16", "FORMATS", "OPERATIONS", "PRECISIONS", "TF32", "Site", "adamw",
           "adds_to_out", "attention", "attention_in_16_bits", "column_sums", "cross_entropy",
           "decoding_kernels", "dispatched", "dropout", "embedding", "factor_gradients", "gelu",
           "gelu_adds_bias", "layer_norm", "linear", "lora", "loss_in_place", "matmul",
           "norm_for_product", "only", "resolve_precision", "rounded", "rounded_and_summed",
           "softmax", "span_cross_entropy", "squared_norm", "sums_before_norm", "to_bfloat16",
           "watched"]
