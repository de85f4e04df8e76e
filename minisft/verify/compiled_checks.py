"""The catalogue of compiled checks: each compiled loop of the CPU against its formula.

    from minisft.verify.compiled_checks import compiled_checks
    rows = compiled_checks()["compiled softmax"].results(size=77)

The same arrays and limits as those of the kernels (`kernel_checks.py`). `minisft check` runs them
where Numba is installed.
"""

from functools import partial

import numpy as np

from minisft.backend.cpu import jit
from minisft.backend.random import Scores
from minisft.dispatch.attention_groups import Groups
from minisft.verify.kernel_checks import (
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


def compiled_checks() -> dict[str, KernelCheck]:
    """-> {name: KernelCheck} of the compiled loops; empty where they do not run."""
    if not jit.enabled():
        return {}
    # here, since they import Numba
    from minisft.backend.cpu.compiled import (
        adamw,
        attention_groups,
        cross_entropy,
        dropout,
        gelu,
        layer_norm,
        softmax,
    )
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
                      f"{', dropout' * drop})", partial(_attention, attention_groups, causal, drop))
          for causal in (True, False) for drop in (False, True)),
    ]
    return {check.name: check for check in checks}


def _clipped_step(adamw, values, grads, m, v, t, lr, decay, scale, limit):
    norm = float(np.sqrt(np.square(grads).sum())) * scale
    adamw.step(values, grads, m, v, t, lr, decay, scale=scale * min(1, limit / norm))


def _attention(parts, causal, drop, size, put):
    """Texts of unlike lengths, in groups."""
    cu_seqlens = np.cumsum([0, 1, size, size // 2 + 1, size])
    words = Scores(STREAM, 2, np.array([7, 2**31, 9, 3]), cu_seqlens, n_head=2)
    arrays = normal(*[(cu_seqlens[-1], 2, 8)] * 4)
    rest = cu_seqlens, None, None, causal, (RATE, words) if drop else None

    def of(groups):
        return lambda *qkv: groups.forward(*qkv, *rest), groups.backward

    return compare(("y", "dq", "dk", "dv"), put, of(Groups(parts)), of(Groups()), arrays[:3],
                   arrays[3])
