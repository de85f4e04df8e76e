"""Every compiled loop against its formula in float64; the random words bit for bit."""

import os
import platform
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from minisft import ops
from minisft.backend import random
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.gpu import cuda, emulator
from minisft.data.batch import pack
from minisft.dispatch import (
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    norm_for_product,
    rounded_and_summed,
    softmax,
    sums_before_norm,
)
from minisft.dispatch.attention_groups import Groups
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.nn.parameters import Parameter, Parameters
from minisft.training.optim import AdamW
from minisft.verify.compiled_checks import compiled_checks

pytest.importorskip("numba", reason="compiled loops need the extra fast")
CHECKS = compiled_checks()
LOOPS = "minisft.backend.cpu.compiled"
STREAM = random.Stream(7, 2**31 + 5)


@pytest.fixture(params=[1, 2, 5])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK", 64)
    monkeypatch.setattr(row_blocks, "threads", lambda: request.param)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 77, 257])
@pytest.mark.parametrize("name", CHECKS)
def test_loop_matches_formula(name, size):
    for row in CHECKS[name].results(size):
        assert row.error <= row.limit, row


@pytest.mark.parametrize("name", CHECKS)
def test_loop_in_blocks_matches_formula(name, small_blocks):
    for row in CHECKS[name].results(33):
        assert row.error <= row.limit, row


def test_every_loop_has_a_check():
    stems = {"softmax", "layer_norm", "gelu", "cross_entropy", "dropout", "adamw", "embedding",
             "attention_amx", "attention_decode", "attention_groups", "column_sums", "lora",
             "matmul_amx", "matmul_bfloat16", "matmul_few_rows", "matmul_float32_amx",
             "residual_layer_norm"}
    found = {path.stem for path in Path(jit.__file__).with_name("compiled").glob("[a-z]*.py")}
    assert found == stems | {"bits", "exp", "philox", "pack_bfloat16"}     # parts of the others
    here = stems - ({"matmul_bfloat16"} if processor.why_not_avx512_bf16() else set())
    if processor.why_not_amx():
        here -= {"attention_amx", "matmul_amx", "matmul_float32_amx"}
    here -= {"matmul_few_rows"} if processor.why_not_avx512() else set()
    assert all(any(stem.removesuffix("_groups") in name for name in CHECKS) for stem in here)


OLDER = """
from minisft.backend.cpu import processor
processor._features = dict
from minisft.verify.compiled_checks import compiled_checks
for check in compiled_checks().values():
    assert all(row.error <= row.limit for row in check.results(33)), check.name
print(len(compiled_checks()))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
def test_a_processor_without_avx512_compiles_every_loop_that_it_runs(tmp_path):
    """Assembly in a loop, even where it is not come to, would end the process there."""
    run = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True,
                         env=os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES":
                                           "+avx2,+fma", "NUMBA_CACHE_DIR": str(tmp_path)})
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 15


def operations(rng, n):
    """-> each operation's forward and backward, with arguments and the upstream gradient."""
    x, words = normal(rng, n, 24), random.Tokens(STREAM, 2, 1, np.arange(n) // 7, np.arange(n) % 7)
    return [(layer_norm, (x, x[0], x[1]), x[::-1]), (gelu, (x,), x[::-1]),
            (gelu, (x, "erf"), x[::-1]), (softmax, (x,), x[::-1]),
            (dropout, (x, words, 0.3), x[::-1]),
            (cross_entropy, (x, rng.integers(0, 24, n)), np.float32(0.3))]


def leaves(result):
    return [a for part in result for a in leaves(part)] if isinstance(result, tuple) else [result]


def test_threads_change_no_bit(rng, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK", 1000)
    cases, found = operations(rng, 509), []
    for n in (1, 2, 3):
        monkeypatch.setattr(row_blocks, "threads", lambda n=n: n)
        made = []
        for operation, args, dy in cases:
            y, cache = operation.forward(*args)
            assert cache.implementation.name == "compiled"
            made += leaves((y, operation.backward(dy, cache)))
        found.append(made)
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_inputs_are_left_alone_and_may_be_read_only(rng):
    for operation, args, dy in operations(rng, 5):
        kept = [np.array(a) for a in args if isinstance(a, np.ndarray)]
        for a in (*args, dy):
            if isinstance(a, np.ndarray):
                a.flags.writeable = False
        y, cache = operation.forward(*args)
        first, second = (leaves((operation.backward(dy, cache),)) for _ in range(2))
        assert all(np.array_equal(a, b) and not np.shares_memory(a, b)
                   for a, b in zip(first, second, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(
            kept, [a for a in args if isinstance(a, np.ndarray)], strict=True))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [None, np.dtype(np.uint16)])
def test_a_sum_and_its_norm_have_the_bits_of_each_alone(rng, monkeypatch, rate, dtype):
    """In one pass as one after the other: a block that runs again takes the second way."""
    monkeypatch.setattr(row_blocks, "BLOCK", 9000)
    x, more, dy, residual = (normal(rng, 509, 24) for _ in range(4))
    w, b, bias = normal(rng, 3, 24)
    words = random.Tokens(STREAM, 2, 1, np.arange(509) // 7, np.arange(509) % 7)
    kernel = sums_before_norm(x)
    u, y, cache = kernel.forward(x, w, b, more=more, bias=bias, drop=(rate, words) if rate else
                                 None, dtype=dtype)
    term, kept = dropout.forward(more + bias, words, rate) if rate else (more + bias, None)
    sums = x + term
    expected, _ = norm_for_product(sums, w, b, 1e-5, dtype)
    assert np.array_equal(u, sums) and np.array_equal(y, expected) and y.dtype == expected.dtype
    outs = [np.ones(24, np.float32) for _ in range(3)]
    dx, dmore = kernel.backward(dy, cache, residual, dtype, outs, True, more=True)
    dx_alone, none = kernel.backward(dy, kernel.forward(sums, w, b)[2], residual)
    behind = dropout.backward(dx, kept) if rate else dx
    db = np.ones(24, np.float32)
    expected = rounded_and_summed(behind, dtype, db, add=True)
    assert none is None and np.array_equal(dx, dx_alone)
    assert np.array_equal(dmore, expected) and np.array_equal(outs[2], db)
    frozen = kernel.backward(dy, cache, residual, dtype, (None, None, None), more=True)
    assert np.array_equal(frozen[0], dx) and np.array_equal(frozen[1], dmore)


def test_what_no_loop_takes_runs_as_the_formula(rng):
    for x in (normal(rng, 0, 3), rng.standard_normal((2, 3))):     # no rows; float64
        _, cache = layer_norm.forward(x, x.sum(axis=0), x.sum(axis=0))
        assert cache.implementation.name != "compiled"
    x = normal(rng, 3, 4)
    _, cache = dropout.forward(x, rng.integers(0, 2**32, (3, 4), dtype=np.uint32), 0.5)
    assert cache.implementation.name == "formula"
    with pytest.raises(IndexError):
        cross_entropy.forward(x, np.array([0, 4, 1]))
    strided = normal(rng, 4, 6)[:, ::2]
    np.testing.assert_allclose(gelu.forward(strided)[0], ops.gelu.forward(strided)[0],
                               rtol=1e-5, atol=1e-6)


def test_hostile_inputs(rng):
    s = np.array([[-np.inf, 0, -np.inf], [1e4, -1e4, 1e4], [-3e38, 3e38, 0], [1, np.nan, 2],
                  [-200, -90, 0]], dtype=np.float32)
    p, cache = softmax.forward(s)
    assert p[0].tolist() == [0, 1, 0] and p[1].tolist() == [0.5, 0, 0.5]
    assert p[2].tolist() == [0, 1, 0] and np.isnan(p[3]).all()
    assert p[4, 0] == 0 and p[4, 1] == pytest.approx(0, abs=1e-38) and p[4, 2] == 1
    assert softmax.backward(np.ones_like(s), cache)[0].tolist() == [0, 0, 0]
    x = np.array([0, -0.0, 6, -6, 50, -50, 1e4, -1e4, 1e10, -1e10], dtype=np.float32)
    for form in ("tanh", "erf"):
        y, cache = gelu.forward(x, form)
        dx = gelu.backward(np.ones_like(x), cache)
        expected, kept = ops.gelu.forward(x.astype(np.float64), form)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dx, ops.gelu.backward(np.ones(len(x)), kept), atol=1e-6)
        assert np.isnan(gelu.forward(np.full(3, np.nan, np.float32), form)[0]).all()
    y, _ = layer_norm.forward(np.full((1, 768), 1000.1, np.float32), np.ones(768, np.float32),
                              np.zeros(768, np.float32))
    # the mean is off by some roundings, by how many the order of its sum decides (the processor's
    # vectors), and what is left is divided by the square root of epsilon at least
    assert np.abs(y).max() < 8 * np.spacing(np.float32(1000.1)) / 1e-5**0.5
    z = np.array([[np.nan, 0], [0, 0]], dtype=np.float32)
    assert np.isnan(cross_entropy.forward(z, np.array([0, 1]))[0][0])
    z = np.array([[-np.inf, 0], [1e4, -1e4]], dtype=np.float32)
    (loss, _), cache = cross_entropy.forward(z, np.array([1, 0]))
    assert loss == 0 and not cross_entropy.backward(1.0, cache).any()


def test_the_gradient_takes_the_place_of_the_logits_only_when_asked(rng):
    z, labels = normal(rng, 9, 5), rng.integers(0, 5, 9)
    kept = z.copy()
    _, cache = cross_entropy.forward(z, labels)
    expected = cross_entropy.backward(2.0, cache)
    assert np.array_equal(z, kept)
    other = np.full_like(z, np.nan)
    assert cross_entropy.backward(2.0, cache, out=other) is other
    assert np.array_equal(other, expected) and np.array_equal(z, kept)
    assert cross_entropy.backward(2.0, cache, out=z) is z and np.array_equal(z, expected)


@pytest.mark.parametrize("width", [1, 3, 4, 7, 64, 130])
def test_words_are_those_of_philox(width):
    texts, positions = np.array([0, 2**31 + 3, 7, 7]), np.array([0, 9, 1, 2])
    calls = [lambda: STREAM.tokens(3, random.MLP_OUT, texts, positions, width),
             lambda: STREAM.scores(65535, np.int64(9), np.arange(5), 3, width),
             lambda: STREAM.scores(1, 9, np.arange(2), 2, 8 + width, first=8),
             lambda: STREAM.scores(1, texts[:, None, None, None], np.arange(3), 2, width)]
    for call in calls:
        ours = call()
        with jit.compiled(False):
            expected = call()
        assert ours.dtype == np.uint32 and np.array_equal(ours, expected)


@pytest.mark.parametrize("n, width", [(1, 1), (5, 3), (9, 64), (3, 130)])
def test_dropout_drops_what_the_formula_drops(rng, n, width):
    x = 1 + np.abs(normal(rng, n, width))
    words = random.Tokens(STREAM, 2, 1, np.arange(n) + 2**31, np.arange(n))
    for rate in (0.1, 0.5, 0.9):
        y, cache = dropout.forward(x, words, rate)
        assert np.array_equal(y != 0, words(width) >= np.uint32(int(rate * 2**32)))
        assert np.array_equal(dropout.backward(x, cache), y)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_drops_what_the_formula_drops(rng, causal):
    cu_seqlens = np.cumsum([0, 5, 1, 33, 30])
    q, k, v = (normal(rng, cu_seqlens[-1], 2, 8) for _ in range(3))
    drop = 0.3, random.Scores(STREAM, 2, np.array([7, 2**31, 9, 1]), cu_seqlens, 2)
    kept, expected = (Groups(parts).forward(q, k, v, cu_seqlens, causal=causal, drop=drop)[1][-1]
                      for parts in (import_module(f"{LOOPS}.attention_groups"), None))
    for (p, keep), (plain, plain_keep) in zip(kept, expected, strict=True):
        assert np.array_equal(keep[p > 0], plain_keep[p > 0]) and (p > 0).any()
        assert not p[plain == 0].any()


def test_embedding_adds_where_it_is_told(rng):
    w, dy, grad = normal(rng, 5, 3), normal(rng, 6, 3), normal(rng, 5, 3)
    _, cache = embedding.forward(np.array([4, 0, 4, 4, 1, 0]), w)
    assert cache.implementation.name == "compiled"
    expected, plain = grad + embedding.backward(dy, cache), grad.copy()
    assert embedding.backward(dy, cache, grad) is grad
    assert np.array_equal(grad, expected)
    assert np.array_equal(grad, ops.embedding.backward(dy, cache.entries, plain))
    _, cache = embedding.forward(np.array([], int), w)
    assert not embedding.backward(dy[:0], cache).any()


def test_the_optimizer_takes_the_step_of_the_formula(rng):
    """Runs of the buffer with and without decay; a state that one side began, the other ends."""
    found = []
    for order in ((True, True, True), (False, False, False), (True, False, True)):
        store = Parameters([Parameter("w", (700,), 0, decays=True),
                            Parameter("b", (3,), 0, decays=False)])
        store.values[...] = np.linspace(-1, 1, 703)
        optimizer = AdamW(store, weight_decay=0.1)
        for compiled in order:
            store.grads[...] = np.cos(np.arange(703) * (1 + optimizer.t))
            with jit.compiled(compiled):
                optimizer.step(0.01, 0.5)
        found.append(store.values.copy())
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=3e-7)
    assert not np.array_equal(found[0], np.linspace(-1, 1, 703, dtype=np.float32))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_whole_step_is_that_of_the_formulas(rng, rate):
    config = GPT2Config(vocab_size=50, n_positions=300, n_embd=24, n_layer=2, n_head=3)
    batch = pack([rng.integers(0, 50, n) for n in (1, 7, 270, 30)], [0, 1, 1, 0])
    found = []
    for compiled in (True, False):
        model = Classifier(config.with_dropout(rate), ("a", "b"), seed=3)
        with jit.compiled(compiled):
            loss, _, _ = model.loss(batch, STREAM)
            model.loss_backward()
        found.append((float(loss), model.store.grads))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0,
                               atol=1e-5 * np.abs(found[1][1]).max())


def test_a_bug_in_a_loop_is_found(monkeypatch):
    module = import_module(f"{LOOPS}.layer_norm")
    whole = module.backward
    monkeypatch.setattr(module, "backward", lambda dy, cache: (
        whole(dy, cache)[0] * np.float32(1 + 1e-5), *whole(dy, cache)[1:]))
    found = {row.name: row for row in compiled_checks()["compiled layer_norm"].results(33)}
    assert found["dx"].error > found["dx"].limit and found["dw"].error <= found["dw"].limit


def test_kernels_come_first(rng, monkeypatch):
    if emulator.compiler() is None:
        pytest.skip("no C++ compiler to emulate CUDA kernels")
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    x = normal(rng, 3, 40)
    assert softmax.choose(x).name == "fused kernel"
    with cuda.kernels("off"):
        assert softmax.choose(x).name == "compiled"
