"""Products by cuBLASLt: what it is told, against the library itself and a stand-in for it."""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from minisft import ops
from minisft.backend import array
from minisft.backend.gpu import cublaslt, gemm
from minisft.dispatch import linear, lora, mixed_precision
from minisft.dispatch.matmul import FORMATS, matmul, rounded, widened
from minisft.models.heads import tied_logits, tied_logits_backward
from minisft.nn.parameters import Parameter, Parameters
from tests import standin_cublaslt, standin_cupy


@pytest.fixture
def lt():
    with standin_cublaslt.card() as made:
        yield made


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n, k, m", [(1, 1, 1), (1, 5, 3), (7, 16, 13), (3, 1, 2)])
def test_a_linear_map_is_that_of_the_formula(lt, rng, name, n, k, m):
    x, w, b, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((n, k), (k, m), (m,), (n, m)))
    low = rounded(array.to_gpu(w), FORMATS[name])
    y, cache = mixed_precision.forward(array.to_gpu(x), low, array.to_gpu(b))
    tried = lt.calls
    dx, dw, _ = mixed_precision.backward(array.to_gpu(dy), cache)
    assert tried == 33 and lt.calls == 35     # 32 of them to see if it can be trusted
    has_16_bits = name in ("bfloat16", "float16")
    if has_16_bits:
        low_b = rounded(array.to_gpu(b), FORMATS[name])
        y16, _ = mixed_precision.forward(array.to_gpu(x), low, low_b, round_y=True)
        assert y16.dtype == FORMATS[name] and lt.calls == 36
        wide, b16 = widened(y16), array.to_cpu(widened(low_b))
    x, w, dy = (widened(rounded(a, FORMATS[name])).astype(np.float64) for a in (x, w, dy))
    for found, expected in ((y, x @ w + b), (dx, dy @ w.T), (dw, x.T @ dy)):
        np.testing.assert_allclose(array.to_cpu(found), expected, rtol=0, atol=1e-4)
    if has_16_bits:
        np.testing.assert_allclose(array.to_cpu(wide), x @ w + b16, rtol=2.0**-8, atol=1e-4)


def test_float32_goes_to_it_exactly(lt, rng):
    """All 24 bits count, and the bias needs no launch of its own."""
    x, w, b = (array.to_gpu(rng.standard_normal(shape, dtype=np.float32))
               for shape in ((5, 7), (7, 3), (3,)))
    assert linear.choose(x, w, b).name == "cuBLASLt" == lora.choose(x, w.T, w, 1.0).name
    assert matmul.choose(x, w).load() is gemm.product
    linear.forward(x, w, b)     # whether it can be trusted is seen
    with standin_cupy.counted() as launches:
        y, cache = linear.forward(x, w, b)
        dx, dw, _ = linear.backward(y, cache, bias=False)
    assert not launches
    x, w, b, y = map(array.to_cpu, (x, w, b, y))
    for found, expected in ((y, x @ w + b), (dx, y @ w.T), (dw, x.T @ y)):
        np.testing.assert_allclose(array.to_cpu(found), expected, rtol=1e-6, atol=1e-6)
    wide = array.to_gpu(np.ones((2, 2)))     # gradients are checked in float64
    assert linear.choose(wide, wide).name == "formula"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_later_gradient_of_the_token_table_is_added_by_its_product(lt, rng, precision):
    table = Parameter("wte.weight", (10, 4), 0, True, padded_rows=True)
    store = Parameters([table])
    store.values[...] = rng.standard_normal(store.values.shape, dtype=np.float32)
    store.to_gpu()
    store.set_compute_dtype(FORMATS[precision])
    hidden, dlogits = (array.to_gpu(rng.standard_normal(shape, dtype=np.float32))
                       for shape in ((3, 4), (3, 10)))
    sums = []
    for times in (1, 2):
        store.zero_grad()
        for _ in range(times):
            _, cache = tied_logits(hidden, table)
            with standin_cupy.counted() as launches:
                tied_logits_backward(dlogits, cache, table)
        assert not {"add", "iadd"} & launches.keys()
        sums.append(array.to_cpu(table.grad))
    assert sums[0].any()
    np.testing.assert_array_equal(sums[1], 2 * sums[0])


def test_adapters_in_float32_are_those_of_the_formula(lt, rng):
    x, a, b, dy = (rng.standard_normal(shape, dtype=np.float32)
                   for shape in ((5, 7), (2, 7), (3, 2), (5, 3)))
    y, cache = lora.forward(*map(array.to_gpu, (x, a, b)), 0.5)
    calls = lt.calls
    gradients = lora.backward(array.to_gpu(dy), cache)
    assert lt.calls == calls + 4
    plain_y, cache = ops.lora.forward(x, a, b, 0.5)
    plain = plain_y, *ops.lora.backward(dy, cache)
    for found, expected in zip((y, *gradients), plain, strict=True):
        np.testing.assert_allclose(array.to_cpu(found), expected, rtol=1e-5, atol=1e-5)


def test_columns_of_a_matrix_are_told_as_aligned_as_they_are(lt, rng):
    wide = array.to_gpu(rng.standard_normal((8, 40)).astype(np.float16))
    x = array.to_gpu(rng.standard_normal((3, 8)).astype(np.float16))
    part, whole = wide[:, 13:20], wide + 0
    out = standin_cupy.zeros((3, 7), dtype=np.float32)
    assert gemm.product(x, part, out) is out
    np.testing.assert_array_equal(array.to_cpu(out), array.to_cpu(gemm.gemm_ex(x, part)))
    assert lt.aligned[0] == part.data.ptr & -part.data.ptr < 32     # 26 bytes into a row
    gemm.product(x, whole)
    plans = cublaslt._plan.cache_info().currsize
    gemm.product(x, whole, standin_cupy.zeros((3, 40), dtype=np.float32) + 0)
    assert cublaslt._plan.cache_info().currsize <= plans + 1     # planned once, if aligned alike
    both = wide[::2, ::2]     # neither rows nor columns are contiguous
    np.testing.assert_array_equal(array.to_cpu(gemm.product(x[:, :4], both)),
                                  array.to_cpu(gemm.gemm_ex(x[:, :4], both)))


def test_a_plan_leaves_nothing_behind(lt, rng):
    w = array.to_gpu(rng.standard_normal((4, 4)).astype(np.float16))
    for n in range(1, 4):
        gemm.product(array.to_gpu(np.ones((n, 4), np.float16)), w)
    plans = cublaslt._plan.cache_info().currsize
    assert len(lt.made) == 4 * plans + 1     # a description, three layouts each; the handle
    cublaslt._plan.cache_clear()
    assert len(lt.made) == 1


def test_where_there_is_no_algorithm_cublas_multiplies(lt, rng):
    x, w = (array.to_gpu(rng.standard_normal((4, 4)).astype(np.float16)) for _ in range(2))
    gemm.planned(standin_cupy)
    lt.algorithms, calls = 0, lt.calls
    bias = array.to_gpu(np.ones(4, np.float32))
    y = gemm.product(x, w, bias=bias)
    assert lt.calls == calls
    np.testing.assert_array_equal(array.to_cpu(y), array.to_cpu(gemm.gemm_ex(x, w) + bias))
    for dtype in (np.uint16, np.float16):
        x, w, bias = (rounded(array.to_gpu(a), np.dtype(dtype)) for a in (
            *rng.standard_normal((2, 4, 4), dtype=np.float32), np.ones(4, np.float32)))
        out = standin_cupy.zeros((4, 4), dtype=dtype)
        assert gemm.product(x, w, out, bias) is out and lt.calls == calls
        np.testing.assert_array_equal(array.to_cpu(out), array.to_cpu(
            rounded(gemm.gemm_ex(x, w) + 1, out.dtype)))


def test_what_multiplies_wrongly_is_not_trusted(lt, rng):
    lt.scale = 2.0
    x, w = (array.to_gpu(rng.standard_normal((4, 4)).astype(np.float16)) for _ in range(2))
    with pytest.warns(RuntimeWarning, match="differs from cuBLAS's; products go to cuBLAS"):
        y = gemm.product(x, w)
    np.testing.assert_array_equal(array.to_cpu(y), array.to_cpu(gemm.gemm_ex(x, w)))
    calls = lt.calls
    gemm.product(x, w)
    assert lt.calls == calls     # asked once


def test_a_refusal_is_told(lt, rng):
    x = array.to_gpu(rng.standard_normal((4, 4)).astype(np.float16))
    gemm.planned(standin_cupy)
    lt.cublasLtMatmul = lambda *arguments: 15
    with pytest.raises(RuntimeError, match="cuBLASLt: status 15, expected 0"):
        gemm.product(x, x)


def test_without_the_library_there_is_none(monkeypatch):
    assert cublaslt.library(standin_cupy) is None     # it has no runtimeGetVersion


def installed():
    """-> libcublasLt of the wheel nvidia-cublas, or None."""
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(root).glob("*/lib/libcublasLt.so.1[23]"):
            return str(found)
    return None


@pytest.mark.skipif(installed() is None, reason="no cuBLASLt (wheel nvidia-cublas)")
def test_the_library_understands_it():
    """Descriptions are made without a card; what was set is read back."""
    lt = cublaslt.with_types(ctypes.CDLL(installed()))

    class NoCard:
        """The library, but that it always has an algorithm: to choose one it asks the card."""

        def __getattr__(self, name):
            return getattr(lt, name)

        def cublasLtMatmulAlgoGetHeuristic(self, *arguments):     # noqa: N802
            get = lt.cublasLtMatmulPreferenceGetAttribute
            self.told = [read(get, arguments[6], 1, ctypes.c_size_t), *(
                read(get, arguments[6], name, ctypes.c_uint32) for name in (5, 6, 7, 8))]
            arguments[9]._obj.value = 1
            return 0

    def read(get, made, name, kind):
        value, written = kind(), ctypes.c_size_t()
        get.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t,
                        ctypes.c_void_p]
        assert get(made, name, ctypes.byref(value), ctypes.sizeof(value),
                   ctypes.byref(written)) == 0 and written.value == ctypes.sizeof(value)
        return value.value

    library = NoCard()
    plan = cublaslt.Plan(library, 0, 5, 3, 7, 77, 0, 0, True, False, 6, 4, True, (16, 32, 256))
    assert ctypes.sizeof(plan.algorithm) == 96
    told = [read(lt.cublasLtMatmulDescGetAttribute, plan.description, name, ctypes.c_int32)
            for name in (0, 1, 3, 4, 7)]
    assert told == [77, 0, 0, 1, 4]     # compute and scale type, our b, our a turned, BIAS
    for made, expected in zip(plan.layouts, ((0, 3, 7, 4), (0, 5, 7, 6), (0, 3, 5, 3)),
                              strict=True):
        assert tuple(read(lt.cublasLtMatrixLayoutGetAttribute, made, name, kind)
                     for name, kind in ((0, ctypes.c_int32), (2, ctypes.c_uint64),
                                        (3, ctypes.c_uint64), (4, ctypes.c_int64))) == expected
    assert library.told == [32 << 20, 16, 32, 256, 256]
