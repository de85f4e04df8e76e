"""Products of float32 factors on AMX's tiles: as exact as BLAS's, the same bits in any company."""

import multiprocessing
from functools import partial
from importlib import import_module

import numpy as np
import products
import pytest
from products import layouts, normal

from minisft.backend import bfloat16
from minisft.backend.cpu import processor, row_blocks
from minisft.dispatch import linear, matmul, only
from minisft.dispatch.matmul import amx_in_float32

REASON = processor.why_not_bfloat16() or processor.why_not_amx()
here = pytest.mark.skipif(bool(REASON), reason=REASON)
SIZES = [(1, 1, 1), (2, 1, 7), (7, 31, 1), (16, 32, 32), (31, 97, 53), (50, 2, 96), (97, 256, 49),
         (260, 130, 67), (33, 1100, 40)]
require_near = partial(products.require_near, limit=4e-7)


@pytest.fixture
def loops():
    return import_module("minisft.backend.cpu.compiled.matmul_float32_amx")


@pytest.fixture
def any_size(monkeypatch):
    for name in ("NARROWEST", "SMALLEST"):
        monkeypatch.setitem(amx_in_float32.__globals__, name, 0)


@here
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_products_are_those_of_float64(rng, any_size, monkeypatch, m, k, n, threads):
    monkeypatch.setattr(row_blocks, "threads", lambda: threads)
    a, b = normal(rng, m, k), normal(rng, k, n)
    whole = matmul(a, b)
    require_near(whole, a, b)
    for left in layouts(a):
        for right in layouts(b):
            assert matmul.choose(left, right).name == "AMX x6"
            assert np.array_equal(matmul(left, right), whole)
            around = np.full((m + 2, n + 3), 7, np.float32)
            inner = around[1:-1, 1:-2]
            assert matmul(left, right, inner) is inner
            assert np.array_equal(inner, whole)
            inner[...] = 7
            assert (around == 7).all()


@here
def test_no_digit_of_a_factor_is_lost(rng, any_size):
    """Of one factor the other picks single numbers: what comes out is what went in."""
    x = (rng.standard_normal((96, 96)) * 10.0**rng.integers(-9, 9, (96, 96))).astype(np.float32)
    ones = np.eye(96, dtype=np.float32)
    assert np.array_equal(matmul(x, ones), x) and np.array_equal(matmul(ones, x), x)
    rounded = bfloat16.from_bfloat16(bfloat16.to_bfloat16(x))
    assert not np.array_equal(rounded, x)


@here
def test_errors_are_those_of_blas_at_most(rng):
    """Root mean square over all results; NumPy's product is the one it stands for."""
    a, b = normal(rng, 300, 1100), normal(rng, 1100, 500)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    ours, blas = (np.sqrt(((c - exact)**2).mean()) for c in (matmul(a, b), a @ b))
    assert matmul.choose(a, b).name == "AMX x6"
    assert ours <= 1.2 * blas


@here
def test_parts_of_deep_and_wide_factors_make_the_whole(rng, any_size, monkeypatch, loops):
    a, weight, bias = normal(rng, 70, 700), normal(rng, 700, 330), normal(rng, 330)
    for b in (weight, np.asfortranarray(weight)):
        whole = matmul(a, b, bias=bias)
        require_near(whole - bias, a, b)
        for name, value in (("PACKED", 1), ("DEEPEST", 64), ("DEPTH", 64)):
            monkeypatch.setattr(loops, name, value)
            if name != "DEPTH":     # which loops have compiled into them
                assert np.array_equal(matmul(a, b, bias=bias), whole)
        monkeypatch.undo()
        monkeypatch.setitem(amx_in_float32.__globals__, "NARROWEST", 0)
        monkeypatch.setitem(amx_in_float32.__globals__, "SMALLEST", 0)


@here
def test_company_threads_and_place_change_no_bit(rng, any_size, monkeypatch):
    for m, k, n in ((150, 333, 97), (97, 800, 150), (49, 64, 1000), (530, 40, 60)):
        for a in layouts(normal(rng, m, k)):
            for b in layouts(normal(rng, k, n)):
                whole = matmul(a, b)
                for threads in (1, 2, 5):
                    monkeypatch.setattr(row_blocks, "threads", lambda threads=threads: threads)
                    assert np.array_equal(matmul(a, b), whole)
                    for first, last in ((0, 1), (3, 20), (17, m), (m - 1, m)):
                        assert matmul.choose(a[first:last], b).name == "AMX x6"
                        assert np.array_equal(matmul(a[first:last], b), whole[first:last])
                        columns = slice(2 * first, 2 * last)
                        assert np.array_equal(matmul(a, b[:, columns]), whole[:, columns])


@here
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, 3e38, 1e-39])
def test_hostile_numbers_give_what_numpy_gives(rng, any_size, value):
    a, b = normal(rng, 50, 64), normal(rng, 64, 70)
    a[1, 3], b[7, 69], b[3, 5] = value, value, 0     # zero times infinity
    with np.errstate(all="ignore"):
        for left in layouts(a):
            for right in layouts(b):
                c, expected = matmul(left, right), left @ right
                for kind in (np.isnan, np.isposinf, np.isneginf):
                    assert np.array_equal(kind(c), kind(expected))
    assert np.isfinite(np.delete(c, 1, axis=0)[:, :69]).all()
    out = np.full((50, 70), np.nan, np.float32)     # what was there before does not count
    assert np.isfinite(matmul(normal(rng, 50, 64), normal(rng, 64, 70), out)).all()


@here
@pytest.mark.parametrize("scale", [1e-42, 1e-37, 1e-26, 1e-22, 1e20, 1e32, 1e36])
def test_tiny_and_huge_factors_keep_their_digits(rng, any_size, scale):
    a, b = normal(rng, 40, 64) * np.float32(scale), normal(rng, 64, 50)
    bias = np.full(50, scale, np.float32)
    if 1e-25 < scale < 1e33:
        require_near(matmul(a, b), a, b)
        require_near(matmul(a, b, bias=bias), np.c_[a, bias[:40]], np.r_[b, np.ones_like(b[:1])])
    else:
        assert np.array_equal(matmul(a, b), a @ b)
        assert np.array_equal(matmul(a, b, bias=bias), a @ b + bias)


@here
def test_zeros_are_multiplied_too(rng, any_size, monkeypatch):
    monkeypatch.setattr(np, "matmul", None)
    assert not matmul(np.zeros((40, 50), np.float32), normal(rng, 50, 60)).any()
    assert not matmul(normal(rng, 40, 50), np.zeros((50, 60), np.float32)).any()


@here
def test_a_linear_map_and_its_gradients(rng):
    x, w, b, dy = (normal(rng, *s) for s in ((700, 512), (512, 400), (400,), (700, 400)))
    y, cache = linear.forward(x, w, b)
    out = np.full_like(w, np.nan)
    dx, dw, db = linear.backward(dy, cache, out=out)
    assert cache.implementation.name == matmul.choose(dy, w.T).name == "AMX x6"
    require_near(y - b, x, w)
    require_near(dx, dy, w.T)
    require_near(dw, x.T, dy)
    assert dw is out and np.array_equal(db, dy.sum(axis=0))
    assert linear.backward(dy, cache, bias=False)[2] is None


def test_what_is_small_or_lies_elsewhere_is_left_to_others(rng):
    a, b = normal(rng, 700, 512), normal(rng, 512, 400)
    for left, right, out in ((a[:127], b, None), (a[:130], b, None), (a[:, ::2], b[::2], None),
                             (a.astype(float), b, None), (a[None], b, None), (a, b[:9], None),
                             (a, b, np.empty((700, 401), np.float32)),
                             (a, b, np.empty((400, 700), np.float32).T),
                             (a, b, a[:, :400])):
        assert matmul.choose(left, right, out).name != "AMX x6"
    with pytest.raises(ValueError, match="mismatch|size"):
        matmul(a, b[:9])


@pytest.mark.parametrize("m, k, n", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)])
@here
def test_empty_factors(loops, m, k, n):
    bias = np.ones(n, np.float32)
    y = loops.matmul(np.zeros((m, k), np.float32), np.zeros((k, n), np.float32), bias=bias)
    assert y.shape == (m, n) and (y == 1).all()


@here
def test_without_tiles_it_says_why(rng, monkeypatch, loops):
    monkeypatch.setattr(processor, "why_not_amx", lambda: "there is no AMX")
    a, b = normal(rng, 700, 512), normal(rng, 512, 400)
    assert matmul.choose(a, b).name != "AMX x6"
    with pytest.raises(RuntimeError, match="there is no AMX"):
        loops.matmul(a, b)


def _product(a, b, queue):
    queue.put(matmul(a, b))


@here
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_multiplies_as_this_one(rng, method):
    a, b = normal(rng, 700, 512), normal(rng, 512, 400)
    expected = matmul(a, b)     # so that a fork has a pool whose threads are not there
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_product, args=(a, b, queue))
    process.start()
    found = queue.get(timeout=120)
    process.join()
    assert process.exitcode == 0 and np.array_equal(found, expected)


@here
def test_the_formula_can_be_asked_for(rng):
    a, b = normal(rng, 700, 512), normal(rng, 512, 400)
    with only("formula", operations=("matmul",)):
        assert np.array_equal(matmul(a, b), a @ b)
