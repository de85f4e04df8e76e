"""The catalogue of compiled checks: each compiled loop of the CPU against its formula.

    from minisft.verify.compiled_checks import compiled_checks
    rows = compiled_checks()["compiled softmax"].results(size=77)

The same arrays and limits as those of the kernels (`kernel_checks.py`). `minisft check` runs them
where Numba is installed.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np

from minisft import ops
from minisft.backend import bfloat16
from minisft.backend.cpu import jit, processor
from minisft.backend.random import Scores
from minisft.dispatch.attention_groups import Groups
from minisft.verify.kernel_checks import (
    NOISE,
    NOISE_OF_BFLOAT16,
    RATE,
    STREAM,
    KernelCheck,
    compare,
    normal,
    of_adamw,
    of_bfloat16,
    of_cross_entropy,
    of_dropout,
    of_embedding,
    of_gelu,
    of_layer_norm,
    of_low_gelu,
    of_residual_layer_norm,
    of_softmax,
    of_train,
)


def compiled_checks() -> dict[str, KernelCheck]:
    """-> {name: KernelCheck} of the compiled loops; empty where they do not run."""
    if not jit.enabled():
        return {}
    # here, since they import Numba
    from minisft.backend.cpu.compiled import (
        adamw,
        attention_amx,
        attention_decode,
        attention_groups,
        column_sums,
        cross_entropy,
        dropout,
        embedding,
        gelu,
        layer_norm,
        lora,
        matmul_amx,
        matmul_bfloat16,
        matmul_few_rows,
        matmul_float32_amx,
        residual_layer_norm,
        softmax,
    )
    checks = [
        KernelCheck("compiled softmax", partial(of_softmax, softmax)),
        KernelCheck("compiled layer_norm", partial(of_layer_norm, layer_norm, 1)),
        KernelCheck("compiled layer_norm (wide)", partial(of_layer_norm, layer_norm, 7)),
        *(KernelCheck(f"compiled residual_layer_norm ({', '.join(parts) or 'x alone'}, {name})",
                      partial(of_residual_layer_norm, residual_layer_norm, parts, dtype), noise)
          for name, dtype, noise, parts in (
              ("float32", None, NOISE, ()), ("float32", None, NOISE, ("more", "bias", "dropout")),
              ("bfloat16", np.uint16, 2.0**-8, ("more", "bias")),
              ("bfloat16", np.uint16, 2.0**-8, ("more", "dropout")))),
        KernelCheck("compiled gelu (tanh)", partial(of_gelu, gelu, "tanh")),
        KernelCheck("compiled gelu (erf)", partial(of_gelu, gelu, "erf")),
        *(KernelCheck(f"compiled gelu ({form}, in bfloat16)",
                      partial(of_low_gelu, gelu, np.uint16, form), 2.0**-8)
          for form in ("tanh", "erf")),
        KernelCheck("compiled cross_entropy (in place, bfloat16)",
                    partial(of_train, cross_entropy, np.uint16), 2.0**-8),
        KernelCheck("compiled column_sums", partial(_column_sums, column_sums)),
        KernelCheck("compiled lora", partial(_factor_gradients, lora)),
        KernelCheck("compiled cross_entropy", partial(of_cross_entropy, cross_entropy, False)),
        KernelCheck("compiled cross_entropy (all options)",
                    partial(of_cross_entropy, cross_entropy, True)),
        KernelCheck("compiled embedding", partial(of_embedding, SimpleNamespace(
            forward=ops.embedding.forward, backward=embedding.backward))),
        KernelCheck("compiled dropout", partial(of_dropout, dropout)),
        KernelCheck("compiled adamw", partial(of_adamw, partial(_clipped_step, adamw))),
        *(KernelCheck(f"compiled attention ({'causal' if causal else 'all keys'}"
                      f"{', dropout' * drop})",
                      partial(_attention, Groups(attention_groups), 8, causal, drop))
          for causal in (True, False) for drop in (False, True)),
        KernelCheck("compiled attention_decode", partial(_decode, attention_decode)),
        KernelCheck("compiled bfloat16", partial(of_bfloat16, matmul_bfloat16)),
    ]
    for loops, reason in ((matmul_amx, processor.why_not_amx()),
                          (matmul_bfloat16, processor.why_not_avx512_bf16())):
        if not reason:
            checks += [KernelCheck(f"compiled {loops.__name__.split('.')[-1]} ({name})",
                                   partial(_products, loops, rows))
                       for name, rows in (("many rows", None), ("a row", 1), ("few rows", 5))]
    if not processor.why_not_amx():
        checks += [KernelCheck("compiled matmul_float32_amx",
                               partial(_products, matmul_float32_amx, None, rounds=False))]
        checks += [KernelCheck(f"compiled attention_amx ({width} channels, "
                               f"{'causal' if causal else 'all keys'}{', dropout' * drop})",
                               partial(_attention, attention_amx, width, causal, drop),
                               NOISE_OF_BFLOAT16)
                   for causal, width in ((True, 64), (False, 32)) for drop in (False, True)]
    if not processor.why_not_avx512():
        checks.append(KernelCheck("compiled matmul_few_rows", partial(_few_rows, matmul_few_rows)))
    return {check.name: check for check in checks}


def _column_sums(loops, size, put):
    """Of a part of rows and of several, given back, put and added."""
    found = {}
    for rows in (size, 10 * size):
        x, first = normal((rows, size), (size,))
        plain, exact = x.sum(axis=0), x.astype(np.float64).sum(axis=0)
        added, put_there, beside = first.copy(), np.empty_like(first), np.empty_like(first)
        low, nearest = loops.rounded_and_summed(put(x), beside), bfloat16.to_bfloat16(x)
        loops.column_sums(put(x), added, add=True)
        loops.column_sums(put(x), put_there)
        found |= {f"sums of {rows}": (loops.column_sums(put(x)), plain, exact),
                  f"put of {rows}": (put_there, plain, exact),
                  f"added of {rows}": (added, plain + first, exact + first),
                  f"beside {rows} rounded": (beside, plain, exact),
                  f"{rows} rounded": (low, nearest, nearest)}
    return found


def _factor_gradients(loops, size, put):
    """Of one map and of three of one x, of few rows and of several parts; the last two have
    assembly where the processor has AVX-512."""
    found = {}
    for rows, rank, inner, widths in ((size, 1, size, [size]), (3 * size, 5, size, [7]),
                                      (600, 8, size, [size, 3, 16]), (size, 3, 32, [64]),
                                      (577, 9, 64, [32, 96])):
        x, dy = normal((rows, inner), (rows, sum(widths)))
        factors = [(*normal((rank, inner), (width, rank)), 1.7) for width in widths]
        ours = loops.factor_gradients(put(dy), put(x), factors)
        for i, (a, b, scale) in enumerate(factors):
            columns = slice(sum(widths[:i]), sum(widths[:i + 1]))
            plain, exact = (ops.lora.factor_gradients(*[z.astype(kind) for z in (
                dy[:, columns], x, a, b)], scale) for kind in (np.float32, np.float64))
            found |= {f"{name} of {rows} rows, rank {rank}, map {i}": each for name, *each in zip(
                ("da", "db"), ours[i], plain, exact, strict=True)}
    return found


def _few_rows(loops, size, put):
    """Eight rows, and nine, with weights laid out both ways."""
    found = {}
    for rows in 8, 9:
        x, w = normal((rows, 16 * size), (16 * size, 400))
        wanted = x @ w, x.astype(np.float64) @ w.astype(np.float64)
        for name, laid in (("", w), (" by columns", np.asfortranarray(w))):
            found[f"y of {rows}{name}"] = loops.matmul(put(x), put(laid)), *wanted
    return found


def _products(loops, rows, size, put, rounds=True):
    """The three products of a linear map, with weights laid out both ways; `rounds`: of bfloat16
    factors."""
    x, w, dy = wide = normal((rows or size, 2 * size), (2 * size, 400), (rows or size, 400))
    if rounds:
        x, w, dy = map(bfloat16.to_bfloat16, wide)
        wide = [bfloat16.from_bfloat16(a) for a in (x, w, dy)]
    products = {"y": lambda x, w, dy: (x, w), "dx": lambda x, w, dy: (dy, w.T),
                "dw": lambda x, w, dy: (x.T, dy)}
    found = {name: (loops.matmul(*map(put, factors(x, w, dy))), np.matmul(*factors(*wide)),
                    np.matmul(*[a.astype(np.float64) for a in factors(*wide)]))
             for name, factors in products.items()}
    by_columns = loops.matmul(put(x), put(np.asfortranarray(w)))
    return found | {"y by columns": (by_columns, *found["y"][1:])}


def _clipped_step(adamw, values, grads, m, v, t, groups, scale, limit):
    norm = float(np.sqrt(adamw.squares(grads)[0])) * scale
    adamw.step(values, grads, m, v, t, groups, scale=scale * min(1, limit / norm))


def _decode(loops, size, put):
    """One query of each of three sequences, whose keys fill a part of a cache."""
    rest = np.arange(4), size * np.arange(3), np.array([1, size, size // 2 + 1])
    q, k, v, dy = normal((3, 2, 8), (3 * size, 2, 8), (3 * size, 2, 8), (3, 2, 8))

    def of(form):     # the formula's backward takes what the loop keeps
        return lambda *qkv: form.forward(*qkv, *rest), ops.attention.backward

    return compare(("y", "dq", "dk", "dv"), put, of(loops), of(ops.attention), [q, k, v], dy)


def _attention(loops, width, causal, drop, size, put):
    """Texts of unlike lengths."""
    cu_seqlens = np.cumsum([0, 1, size, size // 2 + 1, size])
    words = Scores(STREAM, 2, np.array([7, 2**31, 9, 3]), cu_seqlens, n_head=2)
    arrays = normal(*[(cu_seqlens[-1], 2, width)] * 4)
    rest = cu_seqlens, None, None, causal, (RATE, words) if drop else None

    def of(form):
        return lambda *qkv: form.forward(*qkv, *rest), form.backward

    return compare(("y", "dq", "dk", "dv"), put, of(loops), of(Groups()), arrays[:3],
                   arrays[3])
