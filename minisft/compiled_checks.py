"""The catalogue of compiled checks: each compiled twin for the CPU against its formula.

    from minisft.compiled_checks import compiled_checks
    rows = compiled_checks()["compiled softmax"].rows(size=77)

The same arrays and limits as those of the kernels (`kernel_checks.py`). `minisft check` runs them
where Numba is installed.
"""

from functools import partial

import numpy as np

from minisft import attention_groups, jit
from minisft.kernel_checks import (
    RATE,
    STREAM,
    KernelCheck,
    compare,
    normal,
    of_adamw,
    of_cross_entropy,
    of_dropout,
    of_gelu,
    of_layer_norm,
    of_softmax,
)
from minisft.random import GroupScores
from minisft.schedule import compiled_module


def compiled_checks():
    """-> {name: KernelCheck} of the twins, nothing where they do not run."""
    if not jit.chosen():
        return {}
    softmax, layer_norm, gelu, cross_entropy, dropout, adamw = map(compiled_module, (
        "softmax", "layer_norm", "gelu", "cross_entropy", "dropout", "adamw"))
    checks = [
        KernelCheck("compiled softmax", partial(of_softmax, softmax)),
        KernelCheck("compiled layer_norm", partial(of_layer_norm, layer_norm, 1)),
        KernelCheck("compiled layer_norm (wide)", partial(of_layer_norm, layer_norm, 7)),
        KernelCheck("compiled gelu (tanh)", partial(of_gelu, gelu, "tanh")),
        KernelCheck("compiled gelu (erf)", partial(of_gelu, gelu, "erf")),
        KernelCheck("compiled cross_entropy", partial(of_cross_entropy, cross_entropy, False)),
        KernelCheck("compiled cross_entropy (all options)",
                    partial(of_cross_entropy, cross_entropy, True)),
        KernelCheck("compiled dropout", partial(of_dropout, dropout)),
        KernelCheck("compiled adamw", partial(of_adamw, partial(_clipped_step, adamw))),
        *(KernelCheck(f"compiled attention ({'causal' if causal else 'all keys'}"
                      f"{', dropout' * drop})", partial(_attention, causal, drop))
          for causal in (True, False) for drop in (False, True)),
    ]
    return {check.name: check for check in checks}


def _clipped_step(adamw, values, grads, m, v, t, lr, decay, scale, limit):
    norm = float(np.sqrt(np.square(grads).sum())) * scale
    adamw.step(values, grads, m, v, t, lr, decay, scale=scale * min(1, limit / norm))


def _attention(causal, drop, size, put):
    """Texts of unlike lengths, in groups."""
    cu_seqlens = np.cumsum([0, 1, size, size // 2 + 1, size])
    words = GroupScores(STREAM, 2, np.array([7, 2**31, 9, 3]), n_head=2)
    arrays = normal(*[(cu_seqlens[-1], 2, 8)] * 4)

    def forward(*qkv):
        return attention_groups.forward(*qkv, cu_seqlens, causal, (RATE, words) if drop else None)

    def backward(dy, cache):     # of a forward that ran as it does now
        return attention_groups.backward(dy, cache)

    return compare(("y", "dq", "dk", "dv"), put, (forward, backward), (forward, backward),
                   arrays[:3], arrays[3])
