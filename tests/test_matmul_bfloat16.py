"""Products of bfloat16 factors by the processor's own instructions: right, and the same bits.

Each of the two that this processor has, AVX512-BF16 and AMX, is tested. What needs no such
processor, the choice of precision and its refusals, is tested everywhere.
"""

import multiprocessing
from importlib import import_module

import numpy as np
import pytest

from minisft.backend import bfloat16
from minisft.backend.constants import IGNORE
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.cli import main
from minisft.data.batch import pack
from minisft.dispatch import matmul, only, resolve_precision, to_bfloat16, watched
from minisft.io import provenance
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.training.optim import AdamW

REASONS = {"AMX": processor.why_not_bfloat16() or processor.why_not_amx(),
           "AVX512-BF16": processor.why_not_bfloat16() or processor.why_not_avx512_bf16()}
needs_processor = pytest.mark.skipif(
    bool(processor.why_not_bfloat16()), reason=f"{processor.why_not_bfloat16()}")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason))
                        for name, reason in REASONS.items()])
def by(request, monkeypatch):
    """The name of an implementation, which alone multiplies within the test."""
    if request.param != "AMX":
        monkeypatch.setattr(processor, "why_not_amx", lambda: "not in this test")
    with only(request.param, operations=("matmul",)):
        yield request.param


SIZES = [1, 2, 3, 11, 12, 13, 16, 17, 31, 33, 97]


def factors(rng, m, k, n):
    return [bfloat16.to_bfloat16(rng.standard_normal(shape, dtype=np.float32))
            for shape in ((m, k), (k, n))]


def one_by_one(a, b):
    """The slow twin: each sum in float64, and the sum of absolute products."""
    a, b = (bfloat16.from_bfloat16(x).astype(np.float64) for x in (a, b))
    return np.einsum("ik,kj->ij", a, b), np.einsum("ik,kj->ij", abs(a), abs(b))


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("k", [1, 2, 7, 64, 771, 1120, 1700])
def test_products_of_every_size_and_layout(by, rng, m, k):
    for n in (1, 12, 31, 32, 95, 401):
        a, b = factors(rng, m, k, n)
        exact, size = one_by_one(a, b)
        wide = np.zeros((k, n + 5), np.uint16)
        wide[:, 2:2 + n] = b
        lined = to_bfloat16(bfloat16.from_bfloat16(a))     # from a line of the cache on
        results = [matmul(x, y) for x in (a, np.asfortranarray(a), lined)
                   for y in (b, np.asfortranarray(b), wide[:, 2:-3], wide.T[2:-3].T)]
        assert matmul.choose(a, b).name == by
        assert (np.abs(results[0] - exact) <= 1e-6 * size).all()
        assert all(np.array_equal(y, results[0]) for y in results)
        out = np.full((m, n), np.nan, np.float32)
        assert matmul(a, b, out) is out and np.array_equal(out, results[0])


@needs_processor
@pytest.mark.parametrize("width", [1, 12, 16, 32])
@pytest.mark.parametrize("n, k", [(1, 1), (12, 32), (31, 33), (70, 67)])
def test_panels_are_pairs_side_by_side_and_zeros_at_the_edges(rng, width, n, k):
    pack = import_module("minisft.backend.cpu.compiled.pack_bfloat16").pack
    x = rng.integers(1, 1 << 16, (n, k)).astype(np.uint16)
    panels, pairs = -(-n // width), -(-k // 2)
    whole = np.zeros((panels * width, 2 * pairs), np.uint32)
    whole[:n, :k] = x
    expected = (whole[:, ::2] | whole[:, 1::2] << 16).reshape(panels, width, pairs).swapaxes(1, 2)
    for layout in (x, np.asfortranarray(x)):
        assert np.array_equal(pack(layout, width), expected)
        padded = pack(layout, width, 16)
        assert np.array_equal(padded[:, :pairs], expected) and not padded[:, pairs:].any()
        assert padded.shape[1] == -(-pairs // 16) * 16 and padded.ctypes.data % 64 == 0


@pytest.mark.parametrize("k, n", [(64, 384), (768, 1000), (1700, 768)])
def test_the_bits_of_a_row_do_not_depend_on_the_others(by, rng, k, n):
    a, b = factors(rng, 40, k, n)
    whole = matmul(a, b)
    for table in (b, np.asfortranarray(b)):
        for rows in (1, 2, 4, 5, 12, 13, 16, 17, 27):
            assert np.array_equal(matmul(a[3:3 + rows], table), whole[3:3 + rows])


@pytest.mark.parametrize("m", [1, 7, 50])
def test_threads_change_no_bit(by, rng, monkeypatch, m):
    a, b = factors(rng, m, 130, 500)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(row_blocks, "threads", lambda threads=threads: threads)
        results.append([matmul(a, b), matmul(a, np.asfortranarray(b))])
    assert all(np.array_equal(x, y) for found in results for x, y in zip(found, results[0],
                                                                         strict=True))


@pytest.mark.parametrize("m", [1, 12, 13])
def test_hostile_numbers(by, rng, m):
    a, b = factors(rng, m, 6, 400)
    wide_a, wide_b = (bfloat16.from_bfloat16(x) for x in (a, b))
    for value in (np.nan, np.inf, -np.inf, 3e38):
        wide_a[0, 3] = value
        with np.errstate(invalid="ignore", over="ignore"):
            expected = bfloat16.from_bfloat16(to_bfloat16(wide_a)) @ wide_b
        found = matmul(to_bfloat16(wide_a), b)
        for kind in (np.isnan, np.isposinf, np.isneginf):
            assert np.array_equal(kind(found), kind(expected))
        assert np.isfinite(found[1:]).all()
    # numbers below the smallest normal one count as zeros, as the instruction has it
    assert not matmul(to_bfloat16(np.full((m, 6), 1e-39, np.float32)), b).any()


@pytest.mark.parametrize("m, k, n", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)])
def test_empty_factors(by, m, k, n):
    y = matmul(np.zeros((m, k), np.uint16), np.zeros((k, n), np.uint16))
    assert y.shape == (m, n) and not y.any()


def test_what_does_not_fit_is_refused(by, rng):
    a, b = factors(rng, 3, 4, 5)
    with pytest.raises(ValueError, match="4 and 5 should be equal"):
        matmul(a, b.T)
    for out in (np.empty((3, 6), np.float32), np.empty((3, 5)),
                np.empty((5, 3), np.float32).T):
        with pytest.raises(ValueError, match="out is"):
            matmul(a, b, out)


def multiply(by, a, b):
    with only(by, operations=("matmul",)):
        return matmul(a, b)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_multiply_too(by, rng, method):
    a, b = factors(rng, 30, 64, 100)
    here = matmul(a, b)     # the pool of threads is there before the fork
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert np.array_equal(pool.apply_async(multiply, (by, a, b)).get(60), here)


def sequences(rng):
    return [rng.integers(0, 50, length) for length in (3, 17, 1, 9, 30)]


CONFIG = GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4)


def gradients(model, batch):
    model.store.zero_grad()
    loss, *_ = model.loss(batch)
    model.loss_backward()
    return float(loss), {p.name: p.grad.astype(np.float64).ravel() for p in model.store.trainable}


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_whole_step_is_that_of_widened_factors(by, rng, kind):
    if kind == "classifier":
        batch = pack(sequences(rng), np.array([0, 1, 2, 1, 0]))
        model = Classifier(CONFIG, "abc", seed=3)
    else:
        texts = sequences(rng)
        batch = pack(texts, [np.append(ids[1:], IGNORE) for ids in texts])
        model = LanguageModel(CONFIG, seed=3)
    model.to("cpu", "bfloat16")
    loss, found = gradients(model, batch)
    with only("widened", operations=("matmul",)):
        expected_loss, expected = gradients(model, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in expected.items():
        # a sum in another order may round to the neighbouring bfloat16
        assert np.abs(found[name] - gradient).max() <= 1e-2 * np.abs(gradient).max(), name


@pytest.mark.parametrize("m", [1, 5, 17, 64, 97])
@pytest.mark.parametrize("k", [0, 1, 64, 771, 1700])
def test_a_bias_is_added_in_every_layout(by, rng, m, k):
    for n in (1, 12, 95, 401, 800):
        a, b = factors(rng, m, k, n)
        bias = rng.standard_normal(n, dtype=np.float32)
        exact, size = one_by_one(a, b)
        for x, y in ((a, b), (np.asfortranarray(a), np.asfortranarray(b))):
            found = matmul(x, y, bias=bias)
            assert (np.abs(found - exact - bias) <= 1e-6 * (size + np.abs(bias))).all()
            assert np.array_equal(matmul(x[:1], y, bias=bias), found[:1])


@pytest.mark.skipif(bool(REASONS["AMX"]), reason=REASONS["AMX"])
@pytest.mark.parametrize("m", [1, 17, 32, 33, 289])
@pytest.mark.parametrize("k", [1, 64, 771, 1025])
def test_each_sum_is_rounded_once_into_16_bits(rng, m, k):
    for n in (1, 32, 95, 545):
        a, b = factors(rng, m, k, n)
        bias = bfloat16.to_bfloat16(rng.standard_normal(n, dtype=np.float32))
        exact = matmul(a, b)
        for x, y in ((a, b), (np.asfortranarray(a), np.asfortranarray(b))):
            out = np.full((m, n), 0x7FFF, np.uint16)
            assert matmul(x, y, out) is out and matmul.choose(x, y, out).name == "AMX"
            assert np.array_equal(out, bfloat16.to_bfloat16(exact))
            matmul(x, y, out, bias)
            assert np.array_equal(out, bfloat16.to_bfloat16(
                matmul(x, y, bias=bfloat16.from_bfloat16(bias))))


@pytest.mark.skipif(bool(REASONS["AMX"]), reason=REASONS["AMX"])
def test_what_lies_between_the_products_of_a_step_has_16_bits(rng, monkeypatch):
    texts, seen = sequences(rng), {}
    batch = pack(texts, [np.append(ids[1:], IGNORE) for ids in texts])
    model = LanguageModel(CONFIG, seed=3).to("cpu", "bfloat16")

    def see(operation, direction, given):
        first = given[0] if isinstance(given, tuple) else given
        seen.setdefault((operation, direction), set()).add(str(getattr(first, "dtype", None)))

    with watched(see):
        model.loss_and_gradients(batch)
    assert seen.pop(("gelu", "forward")) == seen.pop(("gelu", "backward")) == {"uint16"}
    assert "cross_entropy" not in {operation for operation, _ in seen}     # in the logits' place
    monkeypatch.setattr(processor, "why_not_amx", lambda: "not in this test")
    with watched(see):
        model.loss_and_gradients(batch)
    assert seen["gelu", "forward"] == {"float32"} and ("cross_entropy", "forward") in seen


@needs_processor
@pytest.mark.parametrize("train_layers", ["all", "last:1", "bias"])
def test_a_step_leaves_the_weights_rounded(rng, train_layers):
    model = LanguageModel(CONFIG, seed=3).to("cpu", "bfloat16")
    model.train_layers(train_layers)
    optimizer, texts = AdamW(model.store), sequences(rng)
    batch = pack(texts, [np.append(ids[1:], IGNORE) for ids in texts])
    frozen = {p.name: p.product_value for p in model.store if not p.trainable}
    for _ in range(2):
        before = {p.name: p.value.copy() for p in model.store.trainable}
        gradients(model, batch)
        optimizer.step(0.1)
        for p in model.store:
            assert np.array_equal(p.product_value, bfloat16.to_bfloat16(p.value)), p.name
            assert p.trainable == (p.name in before and (p.value != before[p.name]).any())
    assert all(model.store[name].product_value is value for name, value in frozen.items())
    model.store.values += 1     # by somebody who says so
    model.store.refresh()
    for p in model.store:
        assert np.array_equal(p.product_value, bfloat16.to_bfloat16(p.value)), p.name


def test_without_numba_or_the_instruction_it_is_refused(monkeypatch, capsys):
    with jit.compiled(False):
        assert "install minisft[fast]" in processor.why_not_bfloat16()
        assert main(["finetune", "--precision", "bfloat16"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("minisft: --precision bfloat16: ") and error.count("\n") == 1
        assert resolve_precision("auto", "cpu") == "float32"
        assert provenance.environment()["bfloat16_products"] is False
    if jit.numba() is None:
        return
    monkeypatch.setattr(processor, "_features", lambda: {"avx512f": True})
    assert "has no AVX512-BF16" in processor.why_not_bfloat16()
    assert main(["predict", "--model", "nowhere", "--precision", "bfloat16", "text"]) == 2
    assert "has no AVX512-BF16" in capsys.readouterr().err
    assert matmul.choose(*[np.zeros((2, 2), np.uint16)] * 2).name == "widened"


def test_auto_is_bfloat16_where_that_is_faster(monkeypatch):
    if jit.numba() is None:
        pytest.skip("compiled products need the extra fast")
    monkeypatch.setattr(processor, "_features", lambda: {"avx512bf16": True})
    assert resolve_precision("auto", "cpu") == "bfloat16"
    assert [resolve_precision(name, "cpu") for name in ("float32", "float16")] == [
        "float32", "float16"]
    model = Classifier(CONFIG, "ab", seed=1).to("cpu", "auto")
    assert model.store.compute_dtype == np.uint16
    monkeypatch.setattr(processor, "_features", lambda: {"avx512bf16": True, "amx-bf16": True})
    for lends, precision, by in ((True, "bfloat16", "AMX"), (False, "float32", "AVX512-BF16")):
        monkeypatch.setattr(processor, "_lends_tiles", lambda lends=lends: lends)
        assert resolve_precision("auto", "cpu") == precision and not processor.why_not_bfloat16()
        assert provenance.environment()["bfloat16_products"] == by
        assert matmul.choose(*[np.zeros((2, 2), np.uint16)] * 2).name == by


def test_no_tile_is_touched_where_the_system_lends_none(rng, monkeypatch):
    if jit.numba() is None:
        pytest.skip("compiled products need the extra fast")
    monkeypatch.setattr(processor, "_lends_tiles", lambda: False)
    tiles = import_module("minisft.backend.cpu.compiled.matmul_amx")
    with pytest.raises(RuntimeError, match="tiles: "):     # the instruction would end the process
        tiles.matmul(*factors(rng, 3, 4, 5))


@pytest.mark.parity
def test_peers_products_in_between_stay_right(by, rng):
    torch = pytest.importorskip("torch")
    a, b = factors(rng, 40, 64, 100)
    theirs = [torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) for x in (a, b)]
    ours, expected = matmul(a, b), (theirs[0] @ theirs[1]).float()
    for _ in range(20):     # PyTorch configures the tiles its own way
        assert np.array_equal(matmul(a, b), ours)
        assert torch.equal((theirs[0] @ theirs[1]).float(), expected)
