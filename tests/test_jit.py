"""Whether compiled loops run is asked in one place; without Numba nothing is missing."""

import json
import subprocess
import sys

import numpy as np
import pytest

from minisft import ops
from minisft.backend.cpu import jit
from minisft.dispatch import layer_norm, softmax
from minisft.errors import UserError
from minisft.io import provenance


@pytest.fixture
def no_numba(monkeypatch):
    monkeypatch.setattr(jit, "find_spec", lambda name: None)
    jit.numba.cache_clear()
    yield
    jit.numba.cache_clear()


def test_without_numba_the_formula_runs(rng, no_numba):
    assert not jit.enabled() and provenance.environment()["compiled"] is False
    assert "numba" not in provenance.environment()["versions"]
    s = rng.standard_normal((3, 4), dtype=np.float32)
    p, cache = softmax.forward(s)
    assert np.array_equal(p, ops.softmax.forward(s)[0])
    assert cache.implementation.name == "formula"


def test_a_numba_that_refuses_this_numpy_is_none(monkeypatch):
    def refuse(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(jit, "find_spec", lambda name: True)
    monkeypatch.setattr(jit, "import_module", refuse)
    jit.numba.cache_clear()
    try:
        assert jit.numba() is None and not jit.enabled()
    finally:
        jit.numba.cache_clear()


def test_a_wish_that_is_none_is_told(rng, monkeypatch):
    monkeypatch.setenv("MINISFT_COMPILED", "yes")
    with pytest.raises(UserError, match="MINISFT_COMPILED is 'yes', expected off or nothing"):
        softmax.forward(rng.standard_normal((3, 4), dtype=np.float32))


def test_the_switches_switch(monkeypatch):
    pytest.importorskip("numba", reason="compiled loops need the extra fast")
    machine = provenance.environment()
    assert jit.enabled() and machine["compiled"] and machine["versions"]["numba"]
    with jit.compiled(False):
        assert not jit.enabled()
        with jit.compiled(True):
            assert jit.enabled()
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    assert not jit.enabled() and provenance.environment()["compiled"] is False


def test_numba_is_imported_when_the_first_operation_runs():
    pytest.importorskip("numba", reason="compiled loops need the extra fast")
    code = ("import sys, json, numpy as np\nimport minisft.cli\n"
            "from minisft.dispatch import softmax\n"
            "first = 'numba' in sys.modules\nx = np.ones((2, 3))\n"
            "{}softmax.forward(x.astype(np.float32))\n"
            "print(json.dumps([first, 'numba' in sys.modules]))")
    for before, expected in (("", [False, True]),
                             ("import os; os.environ['MINISFT_COMPILED'] = 'off'; ",
                              [False, False])):
        done = subprocess.run([sys.executable, "-c", code.format(before)], capture_output=True,
                              text=True, check=True)
        assert json.loads(done.stdout) == expected


def test_a_loop_that_cannot_be_kept_is_compiled_all_the_same(monkeypatch):
    numba = pytest.importorskip("numba", reason="compiled loops need the extra fast")

    class Refusing:
        @staticmethod
        def njit(cache=False, **options):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return numba.njit(**options)

    monkeypatch.setattr(jit, "numba", lambda: Refusing)

    @jit.loop()
    def double(x):
        for i in range(x.size):
            x[i] *= 2

    x = np.arange(3.0)
    double(x)
    assert x.tolist() == [0, 2, 4] and double.signatures


def test_blocks_follow_from_the_sizes_and_results_from_their_order(monkeypatch):
    monkeypatch.setattr(jit.row_blocks, "BLOCK", 10)
    for threads in (1, 2, 5):
        monkeypatch.setattr(jit.row_blocks, "threads", lambda threads=threads: threads)
        assert jit.each(lambda start, stop: (start, stop), 7, 12) == [(0, 3), (3, 6), (6, 7)]


def test_a_cache_of_the_formula_is_for_the_formula(rng):
    pytest.importorskip("numba", reason="compiled loops need the extra fast")
    x = rng.standard_normal((5, 8), dtype=np.float32)
    with jit.compiled(False):
        _, cache = layer_norm.forward(x, x[0], x[1])
    expected = ops.layer_norm.backward(x, cache)
    assert all(np.array_equal(a, b) for a, b in zip(layer_norm.backward(x, cache), expected,
                                                    strict=True))
    _, cache = layer_norm.forward(x, x[0], x[1])
    assert cache.implementation.name == "compiled"
    with jit.compiled(False):     # what a loop began, its backward ends
        assert all(np.isfinite(a).all() for a in layer_norm.backward(x, cache))
