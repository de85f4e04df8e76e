"""Products by MKL: right, the same bits in any company, refused where they must be."""

import multiprocessing
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from products import layouts, normal, require_near

from minisft.backend.cpu import mkl, row_blocks
from minisft.dispatch import linear, matmul, only
from minisft.errors import UserError
from minisft.io import provenance

ROOT = Path(__file__).resolve().parents[1]
here = pytest.mark.skipif(bool(mkl.why_not()), reason=f"MKL: {mkl.why_not()}")
SIZES = [(1, 1, 1), (2, 1, 7), (7, 31, 1), (16, 16, 16), (31, 97, 53), (50, 2, 96), (97, 256, 49)]


@pytest.fixture
def any_size(monkeypatch):
    for name in ("NARROWEST", "SMALLEST", "THREADED"):
        monkeypatch.setattr(mkl, name, 0)


@here
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_products_are_those_of_float64(rng, any_size, monkeypatch, m, k, n, threads):
    monkeypatch.setattr(row_blocks, "threads", lambda: threads)
    a, b = normal(rng, m, k), normal(rng, k, n)
    for left in layouts(a):
        for right in layouts(b):
            assert matmul.choose(left, right).name == "MKL"
            require_near(matmul(left, right), a, b)
            around = np.full((m + 2, n + 3), 7, np.float32)
            inner = around[1:-1, 1:-2]
            assert matmul(left, right, inner) is inner
            require_near(inner, a, b)
            inner[...] = 7
            assert (around == 7).all()


@here
def test_a_bias_is_added(rng, any_size):
    a, b, bias = normal(rng, 20, 30), normal(rng, 30, 40), normal(rng, 40)
    assert np.array_equal(matmul(a, b, bias=bias), matmul(a, b) + bias)


@here
def test_company_threads_and_place_change_no_bit(rng, any_size, monkeypatch):
    for m, k, n in ((150, 333, 97), (97, 800, 150), (49, 64, 1000)):
        for a in layouts(normal(rng, m, k)):
            for b in layouts(normal(rng, k, n)):
                whole = matmul(a, b)
                for threads in (1, 2, 5):
                    monkeypatch.setattr(row_blocks, "threads", lambda threads=threads: threads)
                    assert np.array_equal(matmul(a, b), whole)
                    for first, last in ((0, 1), (3, 20), (17, m), (m - 1, m)):
                        assert matmul.choose(a[first:last], b).name == "MKL"
                        assert np.array_equal(matmul(a[first:last], b), whole[first:last])
                        columns = slice(2 * first, 2 * last)
                        assert np.array_equal(matmul(a, b[:, columns]), whole[:, columns])


@here
def test_hostile_numbers_stay_in_their_row_and_column(rng, any_size):
    for value in (np.nan, np.inf, -np.inf, 3e38):
        a, b = normal(rng, 50, 64), normal(rng, 64, 70)
        a[1, 3], b[7, 69], b[3, 5] = value, value, 0     # zero times infinity
        with np.errstate(all="ignore"):
            expected = a @ b
        for left in layouts(a):
            c = matmul(left, b)
            for kind in (np.isnan, np.isposinf, np.isneginf):
                assert np.array_equal(kind(c), kind(expected))
            assert np.isfinite(np.delete(c, 1, axis=0)[:, :69]).all()
    out = np.full((50, 70), np.nan, np.float32)     # what was there before does not count
    assert np.isfinite(matmul(normal(rng, 50, 64), normal(rng, 64, 70), out)).all()
    tiny = np.full((50, 64), 1e-39, np.float32)     # below the smallest normal number
    assert (matmul(tiny, np.ones((64, 70), np.float32)) > 6e-38).all()


@here
def test_a_linear_map_and_its_gradients(rng):
    x, w, b, dy = (normal(rng, *s) for s in ((300, 160), (160, 200), (200,), (300, 200)))
    y, cache = linear.forward(x, w, b)
    out = np.full_like(w, np.nan)
    dx, dw, db = linear.backward(dy, cache, out=out)
    assert cache.implementation.name == matmul.choose(dy, w.T).name == "MKL"
    require_near(y - b, x, w)
    require_near(dx, dy, w.T)
    require_near(dw, x.T, dy)
    assert dw is out and np.array_equal(db, dy.sum(axis=0))
    assert linear.backward(dy, cache, bias=False)[2] is None
    with only("formula"):
        plain = linear.forward(x, w, b)
        assert plain[1].implementation.name == "formula"
        np.testing.assert_allclose(y, plain[0], rtol=0, atol=1e-4)


@here
def test_what_it_does_not_take_runs_as_before(rng):
    a, b, out = normal(rng, 256, 160), normal(rng, 160, 200), np.empty((256, 200), np.float32)
    assert matmul.choose(a, b, out).name == "MKL" and linear.choose(a, b).name == "MKL"
    readonly = out.copy()
    readonly.flags.writeable = False
    for left, right, to in (
            (a[:15], b, None), (a[:, :15], b[:15], None), (a, b[:, :15], None), (a[:99], b, None),
            (a, b[::-1], None), (np.repeat(a, 2, axis=0)[:, ::2], b[:80], None),
            (a.astype(np.float64), b.astype(np.float64), None), (a, b.astype(np.float64), None),
            (a, b, np.empty((200, 256), np.float32).T), (a, b, np.empty((256, 200)))):
        assert matmul.choose(left, right, to).name == "formula"
        c = matmul(left, right, to)
        np.testing.assert_allclose(c, np.einsum("ik,kj->ij", left, right), rtol=0, atol=1e-3)
    for left, right, to in ((a, b, out[:-1]), (a, b[:-1], None), (a, b, readonly), (a, b[0], None)):
        assert matmul.choose(left, right, to).name == "formula"
        if right.ndim > 1:
            with pytest.raises(ValueError):
                matmul(left, right, to)
    square = normal(rng, 200, 200)
    expected = square @ square
    assert matmul.choose(square, square, square).name == "formula"
    np.testing.assert_allclose(matmul(square, square, square), expected, rtol=0, atol=1e-3)
    with only("formula"):
        assert matmul.choose(a, b).name == linear.choose(a, b).name == "formula"


def _bits(a, b, to):
    to.send_bytes(matmul(a, b).tobytes())


@here
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_give_the_same_bits(rng, monkeypatch, method):
    """With a pool of threads that has worked before, which a fork has not."""
    monkeypatch.setattr(row_blocks, "threads", lambda: 3)
    a, b = normal(rng, 400, 300), normal(rng, 300, 500)
    mine = matmul(a, b).tobytes()
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_bits, args=(a, b, sender))
    process.start()
    try:
        assert receiver.poll(60) and receiver.recv_bytes() == mine
    finally:
        process.kill()
        process.join()


@here
def test_a_run_says_that_it_multiplied(monkeypatch):
    before = provenance.environment()
    assert before["versions"]["mkl"]
    assert provenance.environment_changes(before) == []
    monkeypatch.setenv("MINISFT_MKL", "off")
    assert "mkl" not in provenance.environment()["versions"]
    (change,) = provenance.environment_changes(before)
    assert change == f"mkl {before['versions']['mkl']}, now None"


def test_the_switch(rng, monkeypatch):
    a, b = normal(rng, 256, 160), normal(rng, 160, 200)
    monkeypatch.setenv("MINISFT_MKL", "off")
    assert mkl.why_not() == "MINISFT_MKL is off"
    assert matmul.choose(a, b).name == linear.choose(a, b).name == "formula"
    monkeypatch.setenv("MINISFT_MKL", "yes")
    with pytest.raises(UserError, match="MINISFT_MKL is 'yes', expected off or nothing"):
        matmul(a, b)


@pytest.fixture
def asked_anew(monkeypatch):
    monkeypatch.setattr(mkl, "_before_torch", lambda: "")
    mkl._why_not_here.cache_clear()
    yield
    mkl._why_not_here.cache_clear()


def test_without_it_numpy_multiplies(rng, monkeypatch, asked_anew):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(mkl, "distribution", missing)
    words = "vendor_id : GenuineIntel flags : avx512f"
    monkeypatch.setattr(Path, "read_text", lambda *args, **options: words)
    assert mkl.why_not() == "it is not installed (install minisft[mkl])"
    assert "mkl" not in provenance.environment()["versions"]
    assert matmul.choose(normal(rng, 256, 160), normal(rng, 160, 200)).name == "formula"


@pytest.mark.parametrize("words", ["vendor_id : AuthenticAMD flags : avx512f", "GenuineIntel avx2"])
def test_other_processors_do_without(monkeypatch, asked_anew, words):
    monkeypatch.setattr(Path, "read_text", lambda *args, **options: words)
    assert mkl.why_not() == "it gains on Intel's processors with AVX-512"


def run(code):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=120)


PRODUCT = """
import numpy as np
from minisft.dispatch import matmul
from minisft.backend.cpu import mkl
a = np.ones((300, 300), np.float32)
"""


@here
def test_a_library_that_somebody_else_has_set_up_is_left_alone():
    ran = run(PRODUCT + """
import ctypes
gemm, _ = mkl._library()
matmul(a, a)
mkl._library.cache_clear()
mkl._STRICT = 0
print(matmul.choose(a, a).name, "|", mkl.why_not())
""")
    assert ran.stdout == "formula | somebody else has set it up in this process\n", ran.stderr


@pytest.mark.skipif(bool(mkl._why_not_here()), reason=f"MKL: {mkl._why_not_here()}")
def test_pytorch_keeps_its_own():
    """One that is imported after MKL is loaded would run on one thread, with other bits."""
    pytest.importorskip("torch", reason="needs PyTorch")
    ran = run(PRODUCT + """
print(matmul.choose(a, a).name, "|", mkl.why_not(), "|", mkl._loaded())
import torch
print(matmul.choose(a, a).name, "|", mkl.why_not())
""")
    assert ran.stdout == ("formula | PyTorch is installed and not yet imported, which MKL would "
                          "get into | False\nMKL | \n"), ran.stderr
