"""The catalogue of kernel checks: each CUDA kernel, forward and backward, against its formula.

    from minisft.verify.kernel_checks import KERNEL_CHECKS
    rows = KERNEL_CHECKS["softmax"].results(size=77)

A kernel works in float32, so its error is measured against the formula in float64, and may be at
most twice the error of the same formula in float32, plus 1e-6 (bfloat16: plus 2e-2, float16: plus
2.5e-3, of inputs that were rounded before). Without a GPU the emulator runs it.
`minisft check` runs them with MINISFT_CUDA=emulate, and where there is a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from minisft.backend import bfloat16
from minisft.backend.array import Array, to_cpu
from minisft.backend.gpu.launch import adamw as adamw_launch
from minisft.backend.gpu.launch import attention as attention_launch
from minisft.backend.gpu.launch import attention_decode as attention_decode_launch
from minisft.backend.gpu.launch import attention_naive as attention_naive_launch
from minisft.backend.gpu.launch import attention_tensor_cores as tensor_cores_launch
from minisft.backend.gpu.launch import bfloat16 as bfloat16_launch
from minisft.backend.gpu.launch import column_sums as column_sums_launch
from minisft.backend.gpu.launch import cross_entropy as cross_entropy_launch
from minisft.backend.gpu.launch import dropout as dropout_launch
from minisft.backend.gpu.launch import embedding as embedding_launch
from minisft.backend.gpu.launch import gelu as gelu_launch
from minisft.backend.gpu.launch import layer_norm as layer_norm_launch
from minisft.backend.gpu.launch import next_token as next_token_launch
from minisft.backend.gpu.launch import residual_layer_norm as residual_layer_norm_launch
from minisft.backend.gpu.launch import softmax as softmax_launch
from minisft.backend.random import Scores, Stream, Tokens
from minisft.dispatch import only
from minisft.dispatch.matmul import BFLOAT16, FLOAT16, rounded, widened
from minisft.nn.parameters import Parameter, Parameters
from minisft.ops import attention, cross_entropy, dropout, embedding, gelu, layer_norm, softmax
from minisft.training.optim import AdamW

NOISE, NOISE_OF_BFLOAT16, NOISE_OF_FLOAT16 = 1e-6, 2e-2, 2.5e-3
SIZE = 33
STREAM = Stream(seed=5, step=3)
RATE = 0.3


@dataclass(frozen=True)
class KernelResult:
    """The error of one array that a kernel makes, and what it may be."""

    name: str
    error: float
    limit: float


@dataclass(frozen=True)
class KernelCheck:
    """run(size, put) -> {array: (the kernel's, the formula's in float32, and in float64)}."""

    name: str
    run: Callable
    noise: float = NOISE

    def results(self, size: int = SIZE, put: Callable = np.asarray) -> list[KernelResult]:
        """-> a KernelResult for each array; `put` brings an input to where the kernel runs."""
        arrays = {name: [np.asarray(to_cpu(a), dtype=np.float64) for a in three]
                 for name, three in self.run(size, put).items()}
        largest = max((np.abs(exact).max(initial=0) for name, (_, _, exact) in arrays.items()
                       if name.startswith("d")), default=0)
        return [KernelResult(name, _error(ours, exact, largest),
                          2 * _error(plain, exact, largest) + self.noise)
                for name, (ours, plain, exact) in arrays.items()]


def _error(result, exact, largest):
    """Relative to the array, or to `largest` of all gradients where it is zero in theory."""
    if result.shape != exact.shape:
        return np.inf
    size = max(np.abs(exact).max(initial=0), 1e-3 * largest) if exact.any() else largest
    error = np.abs(result - exact).max(initial=0) / max(size, 1e-30)
    return float(error) if error == error else np.inf


def compare(names: tuple[str, ...], put: Callable, kernel: tuple[Callable, Callable],
            formula: tuple[Callable, Callable], arrays: list[np.ndarray],
            dy: Array) -> dict[str, tuple[Array, Array, Array]]:
    """-> {name: (the kernel's, the formula's in float32, and in float64)} of y and the gradients.

    kernel and formula: (forward(*arrays), backward(dy, cache)); arrays, dy in float32."""
    def run(forward, backward, convert):
        y, cache = forward(*map(convert, arrays))
        gradients = backward(convert(dy), cache)
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        return y, *gradients

    def wide(a):
        return a.astype(np.float64) if a.dtype == np.float32 else a

    plain, exact = (run(*formula, convert) for convert in (np.asarray, wide))
    ours = run(*kernel, put)
    return dict(zip(names, zip(ours, plain, exact, strict=True), strict=True))


def normal(*shapes: tuple[int, ...], seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def of_softmax(launcher: Any, size: int, put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    s, dp = normal((7, size), (7, size))
    s *= 4
    s[2, 1:] = -np.inf     # a masked row but for one score
    s[3, :-1] = -np.inf
    s[4] = 1000
    return compare(("p", "ds"), put, (launcher.forward, launcher.backward),
                    (softmax.forward, softmax.backward), [s], dp)


def of_layer_norm(launcher: Any, times: int, size: int,
                  put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    """`times` as many channels as rows; more than 128 take more than one warp."""
    width = times * size
    x, w, b, dy = normal((size, width), (width,), (width,), (size, width))
    return compare(("y", "dx", "dw", "db"), put,
                    (launcher.forward, launcher.backward),
                    (layer_norm.forward, layer_norm.backward), [3 + x, 1 + w, b], dy)


def of_residual_layer_norm(launcher: Any, parts: tuple[str, ...], dtype: Any, size: int,
                           put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    """`parts`: of "more", "bias" and "dropout" those that are there; dtype: y's and the gradient's
    of `more`, rounded in the formula as well."""
    rows, width = 2 * size, 4 * size + (size % 2)     # whole fours of channels, or not
    x, more, dy, residual, w, b, bias = normal(*[(rows, width)] * 4, *[(width,)] * 3)
    words = Tokens(STREAM, 2, 1, np.arange(rows) // 7 + 2**31, np.arange(rows) % 7)
    bias = bias if "bias" in parts else np.zeros_like(bias)

    def formula(kind):
        m = dropout.mask(words(width), RATE, kind) if "dropout" in parts else 1
        arrays = [a.astype(kind) for a in (x, more, dy, residual, w, b, bias)]
        total, term, d, above, scale, shift, more_bias = arrays
        u = total + m * (term + more_bias) if "more" in parts else total
        y, cache = layer_norm.forward(u, scale, shift)
        dx, dw, db = layer_norm.backward(d, cache)
        dx = dx + above
        return u, y, dx, m * dx, dw, db, (m * dx).sum(axis=0)

    u, y, cache = launcher.forward(
        *map(put, (x, w, b)), more=put(more) if "more" in parts else None,
        bias=put(bias) if "bias" in parts else None,
        drop=(RATE, words) if "dropout" in parts else None, dtype=dtype)
    outs = [put(np.zeros(width, np.float32)) for _ in range(2 + ("more" in parts))]
    dx, dmore = launcher.backward(
        put(dy), cache, put(residual), dtype, outs, more="more" in parts)
    ours = [to_cpu(a) for a in (u, y, dx, dx if dmore is None else dmore, *outs)]
    ours = [widened(a) if a.dtype in (np.uint16, np.float16) else a for a in ours]
    names = "u", "y", "dx", "dmore", "dw", "db", "dbias"
    return {name: three for name, *three in zip(names, ours, formula(np.float32),
                                                formula(np.float64), strict=False)}


def of_gelu(launcher: Any, form: str, size: int,
            put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    x, dy = normal((2 * size, size), (2 * size, size))
    return compare(("y", "dx"), put, (partial(launcher.forward, form=form), launcher.backward),
                    (partial(gelu.forward, form=form), gelu.backward), [3 * x], dy)


def _gelu_of_sum(form, size, put):
    x, b, dy = normal((2 * size, size), (size,), (2 * size, size))

    def backward(dy, cache):
        dx = gelu.backward(dy, cache)
        return dx, dx.sum(axis=0)

    return compare(("y", "dx", "db"), put, (lambda x, b: gelu_launch.forward(x, form, b),
                                             gelu_launch.backward),
                    (lambda x, b: gelu.forward(x + b, form), backward), [x, b], dy)


def of_low_gelu(launcher: Any, dtype: Any, form: str, size: int,
                put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    """x and dy are rounded before, so are they in the formula; sums are those before rounding."""
    width = 8 * size if size % 2 else size     # whole eights of columns, or not
    x, b, dy = normal((2 * size, width), (width,), (2 * size, width))
    x, dy = (rounded(a, np.dtype(dtype)) for a in (3 * x, dy))
    y, cache = launcher.forward(put(x), form, put(b))
    dx, db = launcher.backward(put(dy), cache)
    ours = *(widened(to_cpu(a)) for a in (y, dx)), db

    def formula(kind):
        y, cache = gelu.forward(widened(x).astype(kind) + b.astype(kind), form)
        dx = gelu.backward(widened(dy).astype(kind), cache)
        return y, dx, dx.sum(axis=0)

    return dict(zip(("y", "dx", "db"), zip(ours, formula(np.float32), formula(np.float64),
                                           strict=True), strict=True))


def of_cross_entropy(launcher: Any, options: bool, size: int,
                     put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    z, drawn = normal((size, size), (size,))
    labels = np.random.default_rng(2).integers(0, size, size)
    smoothing, weights = 0.0, None
    if options:
        smoothing, weights = 0.2, np.abs(drawn)
        labels[::3] = cross_entropy.IGNORE
        weights[-1] = 0

    def forward_of(module, z):
        bring = put if module is launcher else np.asarray
        (loss, denominator), cache = module.forward(
            z, bring(labels), None if weights is None else bring(weights), smoothing)
        return loss, (denominator, cache)

    def backward_of(module, dloss, cache):
        denominator, cache = cache
        return module.backward(0.7, cache), denominator

    kernel, formula = ((partial(forward_of, module), partial(backward_of, module))
                       for module in (launcher, cross_entropy))
    return compare(("loss", "dz", "mass"), put, kernel, formula, [4 * z], np.float32(0.7))


def of_train(launcher: Any, dtype: Any, size: int,
             put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    """Rows within a wider array, as a padded table gives them, at 16 bytes or not, and long ones,
    of which a thread keeps several pieces. z is rounded before, in the formula too; so is the
    gradient, but for its float32 sums."""
    found = {}
    for k, width in ((size, size + 5), (size, 8 * size), (60 * size, 64 * size)):
        (z,) = normal((7, k))
        z = widened(rounded(4 * z, dtype)) if dtype is not None else 4 * z
        z[1, :k // 2] = -np.inf
        labels = np.random.default_rng(2).integers(k // 2, k, 7)
        labels[::3] = cross_entropy.IGNORE
        whole = np.zeros((7, width), np.float32)
        whole[:, :k] = z
        whole = put(whole if dtype is None else rounded(whole, dtype))
        loss, mass = launcher.train(whole[:, :k], put(labels), 0.7)
        dz = to_cpu(whole)
        dz = dz if dtype is None else widened(dz)
        arrays = [loss, mass, dz[:, :k], dz[:, k:]]

        def formula(kind, arrays=arrays, z=z, labels=labels):
            (loss, mass), cache = cross_entropy.forward(z.astype(kind), labels)
            return loss, mass, cross_entropy.backward(0.7, cache), np.zeros(arrays[3].shape, kind)

        found |= {f"{name} of {k} in {width}": three for name, *three in zip(
            ("loss", "mass", "dz", "behind"), arrays, formula(np.float32), formula(np.float64),
            strict=True)}
    return found


def _column_sums(dtype, size, put):
    """By one launch and by two, and where the columns go to three arrays, one of them unwanted."""
    found = {}
    size += size % 2 * (dtype is not None)
    for rows in (size, 70 * size):
        (x,) = normal((rows, 3 * size))
        given = put(x if dtype is None else rounded(x, dtype))
        x = x if dtype is None else widened(rounded(x, dtype))
        plain, exact = (x.astype(kind).sum(axis=0) for kind in (np.float32, np.float64))
        found[f"sums of {rows} rows"] = column_sums_launch.column_sums(given), plain, exact
        first, third = (put(x[0, :size].copy()) for _ in range(2))
        column_sums_launch.into(given, [first, None, third], add=True)
        for name, ours, part in (("first", first, slice(size)),
                                 ("third", third, slice(-size, None))):
            found[f"{name} of {rows} rows"] = (ours, plain[part] + x[0, :size],
                                               exact[part] + x[0, :size].astype(np.float64))
    return found


def of_embedding(launcher: Any, size: int, put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    """A few tokens, and many of which half are one word."""
    found, rng = {}, np.random.default_rng(2)
    for n in (size, 10 * size):
        (dy,) = normal((n, size))
        ids, shape = rng.integers(0, 5, n) ** 2, (20, size)
        if n > size:
            ids[rng.random(n) < 0.5] = 4
        ours = launcher.backward(put(dy), (put(ids), shape))
        plain, exact = (embedding.backward(dy.astype(kind), (ids, shape))
                        for kind in (np.float32, np.float64))
        w = dy[rng.permutation(n)[:20]]
        y, copied = launcher.forward(put(ids % len(w)), put(w))[0], w[ids % len(w)]
        found |= {f"y of {n} tokens": (y, copied, copied),
                  f"dw of {n} tokens": (ours, plain, exact)}
        if launcher is embedding_launch:
            given = launcher.backward(put(dy), (put(ids), shape),
                                      order=put(np.argsort(ids, kind="stable")))
            found[f"dw of {n} tokens, in an order"] = given, plain, exact
    return found


def of_dropout(launcher: Any, size: int, put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    x, dy = normal((size, size), (size, size))
    words = Tokens(STREAM, 2, 1, np.arange(size) // 7 + 2**31, np.arange(size) % 7)
    return compare(("y", "dx"), put,
                    (lambda x: launcher.forward(x, words, RATE), launcher.backward),
                    (lambda x: dropout.forward(x, words, RATE), dropout.backward), [x], dy)


def _attention(launcher, width, causal, kind, drop, size, put):
    """kind: "", "few queries" (the last of each sequence, or two; without a mask the first),
    "sharp" (large scores, so that few keys have all the weight), or "foreign keys" (sequences of
    their own, which share some, leave some out, and may be shorter)."""
    heads, keys = 2, [1, size // 2 + 1, size]
    queries = {"few queries": [min(2, n) for n in keys],
               "foreign keys": [1, 1, size] if causal else [2, size, size // 2 + 1]}.get(kind, keys)
    starts, n_keys = np.cumsum([0, *keys])[:-1], sum(keys)
    if kind == "foreign keys":
        starts, n_keys = np.array([3, 0, 5]), size + 9
    cu_seqlens = np.cumsum([0, *queries])
    q, k, v, dy = map(_rounded, normal(*[(n, heads, width) for n in
                                         (sum(queries), n_keys, n_keys, sum(queries))]))
    words = Scores(STREAM, 2, np.array([7, 2**31, 9]), cu_seqlens, heads,
                   from_start=kind == "few queries" and not causal)
    rest = cu_seqlens, starts, np.array(keys), causal, (RATE, words) if drop else None
    return compare(("y", "dq", "dk", "dv"), put,
                    (lambda *qkv: launcher.forward(*qkv, *rest), launcher.backward),
                    (lambda *qkv: attention.forward(*qkv, *rest), attention.backward),
                    [(32 if kind == "sharp" else 2) * q, k, v], dy)


def _attention_decode(dtype, width, chunk, size, put):
    """A new token of each of three sequences; the first has no key yet, the last fills its place in
    the cache. What lies behind their keys is no number. All is rounded before. `chunk`: keys of a
    block."""
    heads, capacity = 2, size + 3
    lengths = np.array([0, size // 2, capacity - 1])
    there = np.repeat(capacity * np.arange(3), lengths) + np.concatenate(
        [np.arange(n) for n in lengths])
    new = capacity * np.arange(3) + lengths     # rows of the cache
    both = np.sort(np.concatenate([there, new]))

    def store(a):
        return a if dtype is None else rounded(a, dtype)

    qkv, *old = normal((3, 3, heads, width), *[(3 * capacity, heads, width)] * 2)
    qkv = qkv if dtype is None else widened(store(qkv))
    caches, expected = [], []
    for a, own in zip(old, qkv[:, 1:].swapaxes(0, 1), strict=True):
        a = a if dtype is None else widened(store(a))
        cache = np.full_like(a, np.nan)
        cache[there] = a[there]
        caches.append(put(store(cache)))
        a[new] = own
        expected.append(a[both])
    y = attention_decode_launch.forward(put(qkv.reshape(3, -1)), *caches,
                                        put(lengths.astype(np.int32)), dtype, chunk)
    ours = [to_cpu(a) for a in (y, *caches)]
    ours = ours if dtype is None else [widened(a) for a in ours]

    def formula(kind):
        starts = np.cumsum([0, *(lengths + 1)])[:-1]
        q, k, v = (a.astype(kind) for a in (qkv[:, 0], *expected))
        y, _ = attention.forward(q, k, v, np.arange(4), starts, lengths + 1)
        return y.reshape(3, -1), k, v

    return {name: three for name, *three in zip(
        ("y", "keys", "values"), (ours[0], ours[1][both], ours[2][both]), formula(np.float32),
        formula(np.float64), strict=True)}


def _next_token(size, put):
    """Rows within a wider array, at 16 bytes or not: drawn ones, with the largest twice, all equal,
    with what is not finite, and with ids that no token has."""
    (z,) = normal((6, size))
    z[1, [size // 3, size - 1]] = 9
    z[2] = 0.5
    z[3, size // 2], z[4, -1] = np.nan, -np.inf
    lengths = np.arange(6)
    found = {}
    for width in (size + 5, 8 * size):
        for unused in ((), [size // 3] if size > 1 else ()):
            whole = np.full((6, width), 100, np.float32)
            whole[:, :size] = z
            ids, chosen = (put(np.full(6, 7, np.int32)) for _ in range(2))
            grown = put(lengths.astype(np.int32))
            next_token_launch.choose(
                put(whole)[:, :size], ids, chosen, grown, 5,
                put(next_token_launch.bits(unused, size)) if len(unused) else None)
            kept = z.copy()
            kept[:, unused] = -np.inf
            best = np.where(np.isnan(kept), -np.inf, kept).argmax(axis=1)
            told = np.where(np.isfinite(z).all(axis=1), best, -1)
            for name, ours, exact in (("ids", ids, best), ("chosen", chosen, told),
                                      ("lengths", grown, np.minimum(lengths + 1, 4))):
                found[f"{name} of {width}, {len(unused)} unused"] = ours, exact, exact
    return found


def _rounded(a):
    return bfloat16.from_bfloat16(bfloat16.to_bfloat16(a))


def of_bfloat16(launcher: Any, size: int,
                put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    (x,) = normal((3, size, size))
    x[0, 0, 0] = np.nan
    x.view(np.uint32)[1] |= 0x8000     # ties and nearly ties
    ours, plain = launcher.to_bfloat16(put(x)), bfloat16.to_bfloat16(x)
    return {"y": (ours, plain, plain)}


def of_adamw(step: Callable, size: int, put: Callable) -> dict[str, tuple[Array, Array, Array]]:
    """Three steps, the gradients clipped, against minisft/training/optim.py.

    step(values, grads, m, v, t, groups, scale, limit) changes values, m and v.
    """
    n, lr, limit = size * size, 0.01, 0.5
    ends = n // 3, n // 3 + (n > 2), n     # of three groups, one of them a single number
    rates = 1.0, 0.5, 2.0
    values, *grads = normal((n,), (n,), (n,), (n,))

    def formula(dtype):
        store = Parameters([Parameter(name, (stop - start,), layer, decays=layer != 1)
                            for layer, (name, start, stop) in enumerate(
                                zip("abc", (0, *ends), ends, strict=False))], dtype)
        optimizer = AdamW(store, weight_decay=0.1, rates=rates)
        store.values[...] = values
        for g in grads:
            store.grads[...] = g
            norm = np.sqrt(np.square(store.grads, dtype=dtype).sum()) * 2
            optimizer.step(lr, 2 * min(1, limit / float(norm)))
        return store.values, optimizer.m, optimizer.v

    ours = [put(a.copy()) for a in (values, 0 * values, 0 * values)]
    for t, g in enumerate(map(put, grads), start=1):
        step(ours[0], g, *ours[1:], t,
             [(end, rate * lr, decay) for end, rate, decay in zip(ends, rates, (0.1, 0.0, 0.1),
                                                                 strict=True)], 2.0, limit)
    with only("formula"):
        plain, exact = formula(np.float32), formula(np.float64)
    return dict(zip(("values", "m", "v"), zip(ours, plain, exact, strict=True), strict=True))


def _clipped_step(values, grads, m, v, t, groups, scale, limit):
    adamw_launch.step(values, grads, m, v, t, groups, scale=scale,
                      squares=adamw_launch.squares(grads), limit=limit)


def _attention_checks(launcher, name, widths, noise=NOISE):
    kinds = [(width, number % 2 == 1, "few queries" if number % 3 == 2 else "")
             for number, width in enumerate(widths)]
    for width, drop, kind in [*kinds, (widths[0], True, "few queries"),
                              (widths[0], True, "foreign keys")]:
        what = f"{name}, {width} channels{', dropout' * drop}{f', {kind}' if kind else ''}"
        for causal in (True, False):
            yield KernelCheck(f"attention ({what}, {'causal' if causal else 'all keys'})",
                              partial(_attention, launcher, width, causal, kind, drop), noise)


def _gradients_in_16_bits(launcher):
    def backward(dy, cache):
        q, *_, at = cache
        return tuple(map(widened, tensor_cores_launch.backward(
            rounded(dy, q.dtype), cache, at.gradients(q.dtype))))
    return SimpleNamespace(forward=launcher.forward, backward=backward)


KERNEL_CHECKS = {check.name: check for check in [
    KernelCheck("softmax (naive)", partial(of_softmax, softmax_launch.naive)),
    KernelCheck("softmax (fused)", partial(of_softmax, softmax_launch.fused)),
    KernelCheck("layer_norm", partial(of_layer_norm, layer_norm_launch, 1)),
    KernelCheck("layer_norm (wide)", partial(of_layer_norm, layer_norm_launch, 7)),
    *(KernelCheck(f"residual_layer_norm ({', '.join(parts) or 'x alone'}, {name})",
                  partial(of_residual_layer_norm, residual_layer_norm_launch, parts, dtype),
                  noise)
      for name, dtype, noise, parts in (
          ("float32", None, NOISE, ()), ("float32", None, NOISE, ("more", "bias", "dropout")),
          ("bfloat16", np.uint16, 2.0**-8, ("more", "bias")),
          ("float16", np.float16, 2.0**-11, ("more", "dropout")))),
    KernelCheck("gelu (tanh)", partial(of_gelu, gelu_launch, "tanh")),
    KernelCheck("gelu (erf)", partial(of_gelu, gelu_launch, "erf")),
    KernelCheck("gelu (tanh, with its bias)", partial(_gelu_of_sum, "tanh")),
    KernelCheck("gelu (erf, with its bias)", partial(_gelu_of_sum, "erf")),
    *(KernelCheck(f"gelu ({form}, in {name})", partial(of_low_gelu, gelu_launch, dtype, form),
                  noise)
      for name, dtype, form, noise in (("bfloat16", np.uint16, "tanh", 2.0**-8),
                                       ("float16", np.float16, "erf", 2.0**-11))),
    KernelCheck("cross_entropy", partial(of_cross_entropy, cross_entropy_launch, False)),
    KernelCheck("cross_entropy (all options)",
                partial(of_cross_entropy, cross_entropy_launch, True)),
    *(KernelCheck(f"cross_entropy (in place, {name})",
                  partial(of_train, cross_entropy_launch, dtype), noise)
      for name, dtype, noise in (("float32", None, NOISE),
                                 ("bfloat16", BFLOAT16, 2.0**-8),
                                 ("float16", FLOAT16, 2.0**-10))),
    KernelCheck("column_sums", partial(_column_sums, None)),
    KernelCheck("column_sums (bfloat16)", partial(_column_sums, BFLOAT16)),
    KernelCheck("column_sums (float16)", partial(_column_sums, FLOAT16)),
    KernelCheck("embedding", partial(of_embedding, embedding_launch)),
    KernelCheck("dropout", partial(of_dropout, dropout_launch)),
    KernelCheck("adamw", partial(of_adamw, _clipped_step)),
    KernelCheck("bfloat16", partial(of_bfloat16, bfloat16_launch)),
    *_attention_checks(attention_naive_launch, "naive", (16, 33, 64)),
    *_attention_checks(attention_launch, "fused", (16, 64, 32, 80, 128, 33)),
    *_attention_checks(tensor_cores_launch.IN_BFLOAT16, "bfloat16", (16, 64, 128),
                       NOISE_OF_BFLOAT16),
    *_attention_checks(tensor_cores_launch.IN_FLOAT16, "float16", (32, 64, 80), NOISE_OF_FLOAT16),
    *(KernelCheck(f"attention ({name} gradients too, {kind})",
                  partial(_attention, _gradients_in_16_bits(launcher), 64, True, kind, False),
                  noise)
      for name, launcher, kind, noise in (
          ("bfloat16", tensor_cores_launch.IN_BFLOAT16, "sharp", NOISE_OF_BFLOAT16),
          ("float16", tensor_cores_launch.IN_FLOAT16, "few queries", NOISE_OF_FLOAT16))),
    *(KernelCheck(f"attention_decode ({name}, {width} channels{', joined' * bool(chunk)})",
                  partial(_attention_decode, dtype, width, chunk), noise)
      for name, dtype, noise, width, chunk in (
          ("float32", None, NOISE, 64, None), ("float32", None, NOISE, 33, 32),
          ("float32", None, NOISE, 128, None),
          ("bfloat16", np.dtype(np.uint16), 2.0**-8, 64, 32),
          ("bfloat16", np.dtype(np.uint16), 2.0**-8, 20, None),
          ("float16", np.dtype(np.float16), 2.0**-10, 80, None))),
    KernelCheck("next_token", _next_token),
]}
