"""Attention on a card beside PyTorch's scaled_dot_product_attention: equal lengths, and packed.

Of equal lengths both do the same work. Packed, ours computes real tokens only, and the peer pads
each text to the longest, as it must. Operations are counted for real tokens: 4 T^2 D forward, half
of it under a causal mask, two and a half times that backward.
"""

from functools import partial

import numpy as np

from benchmarks.gpu_step import ag_news_lengths
from minisft.backend.gpu.launch import attention, attention_naive, attention_tensor_cores
from minisft.backend.gpu.launch.bfloat16 import to_bfloat16

try:
    import torch
except ImportError:
    torch = None

HEADS, WIDTH = 12, 64     # of GPT-2
NAIVE_MOST = 1024         # its scores of longer texts fill the card


def record_attention(bench, lengths, tokens):
    """Measures every length and format, and texts of AG News' lengths."""
    for t in lengths:
        _case(bench, f"{max(1, tokens // t)}x{t}", [t] * max(1, tokens // t))
    mixed = ag_news_lengths(np.random.default_rng(0), max(2, tokens // 48))
    _case(bench, f"{len(mixed)} of AG News", mixed if bench.card else [3, 9])


def _case(bench, name, lengths):
    n, lengths = sum(lengths), np.array(lengths)
    qkv, dy = bench.normal(n, 3, HEADS, WIDTH), bench.normal(n, HEADS, WIDTH)
    starts = np.cumsum(lengths) - lengths
    where = np.append(starts, n), starts, lengths
    operations = 2 * HEADS * WIDTH * int((lengths**2).sum())
    for module, low in ((attention_naive, False), (attention, False),
                        (attention_tensor_cores, True)):
        if module is attention_naive and lengths.max() > NAIVE_MOST:
            continue
        kind = module.__name__.rpartition(".")[2]
        inputs, up = (to_bfloat16(qkv), to_bfloat16(dy)) if low else (qkv, dy)
        inputs = (*inputs.swapaxes(0, 1), *where)
        _, cache = module.forward(*inputs)
        forward, backward = _peers(bench, qkv, dy, lengths, low)
        bench.record(f"{kind} {name} forward", partial(module.forward, *inputs), operations,
                     "GFLOP/s", forward)
        # in 16 bits gradients are stored so, as in a step, and as the peer's
        out = (cache[-1].gradients(inputs[0].dtype),) if low else ()
        bench.record(f"{kind} {name} backward", partial(module.backward, up, cache, *out),
                     2.5 * operations, "GFLOP/s", backward)


def _peers(bench, qkv, dy, lengths, low):
    """-> PyTorch's forward and backward of the same texts, padded to the longest; None without."""
    if not torch:
        return None, None
    kind = torch.bfloat16 if low else torch.float32

    def padded(a):      # (N,...) -> (B,T,...)
        parts = torch.split(bench.peer(a), lengths.tolist())
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(kind)

    q, k, v = (a.contiguous().requires_grad_() for a in padded(qkv).permute(2, 0, 3, 1, 4))
    up = padded(dy).transpose(1, 2)
    # padding stands behind the last token, which a causal mask keeps from seeing it
    forward = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True)
    return forward, partial(torch.autograd.grad, forward(), (q, k, v), up, retain_graph=True)
