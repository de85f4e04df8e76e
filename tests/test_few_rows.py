"""The linear map of a few rows: right, the same bits in any company, refused where it must be."""

import shutil
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest

from minisft.backend.cpu import jit, processor, row_blocks
from minisft.data.batch import pack
from minisft.dispatch import few_rows, linear, only
from minisft.models.generate import KVCache
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel

pytestmark = pytest.mark.skipif(
    not jit.enabled() or bool(processor.why_not_avx512()),
    reason="its assembly needs the extra fast and AVX-512")


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setattr(few_rows, "SMALLEST", 0)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def layouts(w):
    """w (K,N) -> itself as it may lie, with numbers around it that must not be touched."""
    around = np.full((w.shape[0] + 2, w.shape[1] + 5), np.nan, np.float32)
    around[1:-1, 2:-3] = w
    turned = np.full((w.shape[1] + 2, w.shape[0] + 16), np.nan, np.float32)
    turned[1:-1, 16:] = w.T
    return {"rows": [w, around[1:-1, 2:-3]], "columns": [np.asfortranarray(w), turned[1:-1, 16:].T]}


def require_near(y, x, w, b=0.0):
    """The slow twin: sums in float64, beside the sums of absolute products."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    exact = np.einsum("ik,kj->ij", x, w) + b
    assert (np.abs(y - exact) <= 1e-6 * (np.einsum("ik,kj->ij", abs(x), abs(w)) + abs(exact))).all()


@pytest.mark.parametrize("m", range(2, 17))
@pytest.mark.parametrize("k", [1, 7, 31, 32, 33, 97, 301])
def test_matrices_in_rows(rng, m, k):
    for n in (384, 385, 401, 769, 1000):
        x, w, b = normal(rng, m, k), normal(rng, k, n), normal(rng, n)
        for laid in layouts(w)["rows"]:
            y, cache = linear.forward(x, laid, b)
            assert cache.implementation.name == "few rows"
            require_near(y, x, w, b)


@pytest.mark.parametrize("m", range(2, 17))
@pytest.mark.parametrize("k", [16, 48, 304])
def test_matrices_in_columns(rng, m, k):
    for n in (12, 13, 24, 37, 389):
        x, w = normal(rng, m, k), normal(rng, k, n)
        for laid in layouts(w)["columns"]:
            y, cache = linear.forward(x, laid)
            assert cache.implementation.name == "few rows"
            require_near(y, x, w)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_company_and_threads_change_no_bit(rng, monkeypatch, layout):
    loops = import_module("minisft.backend.cpu.compiled.matmul_few_rows")
    monkeypatch.setattr(loops, "THREADED", 0)
    x, w = normal(rng, 16, 208), layouts(normal(rng, 208, 1201))[layout][1]
    whole = linear.forward(x, w)[0]
    for threads in (1, 2, 5):
        monkeypatch.setattr(row_blocks, "threads", lambda threads=threads: threads)
        for first, last in ((0, 2), (3, 6), (5, 9), (1, 9), (2, 14), (0, 16)):
            assert np.array_equal(linear.forward(x[first:last], w)[0], whole[first:last])


def test_the_order_of_fetching_changes_no_bit(rng, monkeypatch, tmp_path):
    """As on AMD's processors and as on others."""
    own = import_module("minisft.backend.cpu.compiled.matmul_few_rows")
    monkeypatch.setattr(processor, "is_amd", lambda: own.BY_TILES)
    copy = shutil.copy(own.__file__, tmp_path)     # Numba's cache on the disk goes by the file
    spec = spec_from_file_location("matmul_few_rows_elsewhere", copy)
    other = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, other)
    spec.loader.exec_module(other)
    assert other.BY_TILES is not own.BY_TILES
    for m in (2, 3, 4, 5, 8, 9, 16):
        for k in (1, 15, 16, 33, 64, 304, 528):
            for n in (384, 401, 1201):
                x, w = normal(rng, m, k), normal(rng, k, n)
                y = other.matmul(x, w)
                require_near(y, x, w)
                assert np.array_equal(y, own.matmul(x, w))
        x, w = normal(rng, m, 48), np.asfortranarray(normal(rng, 48, 389))
        assert np.array_equal(other.matmul(x, w), own.matmul(x, w))


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_hostile_numbers_stay_in_their_row_and_column(rng, layout):
    for value in (np.nan, np.inf, -np.inf, 3e38):
        x, w = normal(rng, 5, 64), normal(rng, 64, 400)
        x[1, 3], w[7, 399] = value, value
        with np.errstate(all="ignore"):
            expected = x @ w
        y = linear.forward(x, layouts(w)[layout][1])[0]
        for kind in (np.isnan, np.isposinf, np.isneginf):
            assert np.array_equal(kind(y), kind(expected))
        assert np.isfinite(y[[0, 2, 3, 4], :399]).all()
    tiny = np.full((3, 64), 1e-39, np.float32)     # below the smallest normal number
    assert (linear.forward(tiny, np.ones((64, 400), np.float32))[0] > 6e-38).all()


def test_gradients_are_the_formula_s(rng):
    x, w, dy = normal(rng, 6, 32), normal(rng, 32, 400), normal(rng, 6, 400)
    cache = linear.forward(x, w)[1]
    with only("formula"):
        plain = linear.forward(x, w)[1]
    assert cache.implementation.name == "few rows" and plain.implementation.name == "formula"
    assert all(map(np.array_equal, linear.backward(dy, cache), linear.backward(dy, plain)))


def test_what_it_does_not_take_runs_as_before(rng, monkeypatch):
    x, w = normal(rng, 8, 32), normal(rng, 32, 400)
    assert linear.choose(x, w).name == "few rows"
    for a, b in ((x[:1], w), (normal(rng, 17, 32), w), (x[:0], w), (x, w[:, :383]), (x, w[:, ::2]),
                 (x[:, :31], np.asfortranarray(w)[:31]), (x, np.asfortranarray(w)[:, :11]),
                 (x, w[::-1]), (x.astype(np.float64), w.astype(np.float64))):
        assert linear.choose(a, b).name == "formula"
        require_near(linear.forward(a, b)[0], a, b)
    with jit.compiled(False):
        assert linear.choose(x, w).name == "formula"
    monkeypatch.setattr(processor, "_features", lambda: {"avx2": True})
    assert linear.choose(x, w).name == "formula"
    monkeypatch.undo()
    assert linear.choose(x, w).name == "formula"     # a core's cache holds it


def test_what_the_loops_read_is_there():
    """What the loops demand of a matrix, and what the choice demands."""
    loops = import_module("minisft.backend.cpu.compiled.matmul_few_rows")
    assert few_rows.NARROWEST == loops.WIDE and few_rows.LANES == loops.LANES
    assert few_rows.FEWEST_COLUMNS == loops.SUMS // min(loops.TILES)


def test_a_prompt_gets_the_same_bits_in_any_company(rng):
    model = LanguageModel(GPT2Config(vocab_size=400, n_positions=16, n_embd=384, n_layer=2,
                                     n_head=6), seed=1)
    prompts = [rng.integers(0, 400, 4) for _ in range(5)]

    def logits(texts):
        kv_cache = KVCache(model.trunk.config, len(texts), 8, model.store.values)
        found = []
        for step in range(4):     # a token of each text at a time
            batch = pack([x[step:step + 1] for x in texts])
            batch.positions[:] = step
            found.append(model.forward(batch, last_only=True, kv_cache=kv_cache))
        return np.stack(found)

    together = logits(prompts)
    assert np.array_equal(together[:, 1:3], logits(prompts[1:3]))
    with only("formula", operations=("linear",)):
        np.testing.assert_allclose(logits(prompts), together, rtol=0, atol=1e-5)
