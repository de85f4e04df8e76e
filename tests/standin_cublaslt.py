"""Stands in for cuBLASLt: its functions over memory of the CPU, as the header describes them."""

import copy
import ctypes
from contextlib import contextmanager

import numpy as np
import pytest

from minisft.backend import array, bfloat16
from minisft.backend.gpu import cublaslt, gemm
from tests import standin_cupy, standin_graphs


def address(a):
    """A pointer, byref or number as ctypes takes it -> where it points."""
    return a if isinstance(a, int) else ctypes.cast(a, ctypes.c_void_p).value


class CublasLt:
    """cuBLASLt's functions over memory of the CPU, as the header describes them."""

    def __init__(self):
        self.made, self.calls, self.algorithms, self.scale = {}, 0, 1, 1.0
        self.n_made, self.promised = 0, []     # for each algorithm, how its arrays are aligned

    def _make(self, place, **fields):
        self.n_made += 1
        self.made[self.n_made] = fields
        ctypes.c_uint64.from_address(address(place)).value = self.n_made
        return 0

    def _destroy(self, made):
        del self.made[made]
        return 0

    cublasLtMatmulDescDestroy = cublasLtMatrixLayoutDestroy = _destroy     # noqa: N815
    cublasLtMatmulPreferenceDestroy = _destroy     # noqa: N815

    def cublasLtCreate(self, handle):     # noqa: N802
        return self._make(handle)

    def cublasLtMatmulDescCreate(self, place, compute, scale):     # noqa: N802
        assert compute in (68, 77) and scale == 0
        return self._make(place, attributes={}, compute=compute)

    def cublasLtMatmulPreferenceCreate(self, place):     # noqa: N802
        return self._make(place, attributes={})

    def cublasLtMatrixLayoutCreate(self, place, kind, rows, columns, ld):     # noqa: N802
        assert ld >= rows, "cuBLASLt refuses a leading dimension that is too small"
        return self._make(place, kind=kind, rows=rows, columns=columns, ld=ld)

    def cublasLtMatmulDescSetAttribute(self, made, name, value, size):     # noqa: N802
        self.made[made]["attributes"][name] = int.from_bytes(
            ctypes.string_at(address(value), size), "little")
        return 0

    cublasLtMatmulPreferenceSetAttribute = cublasLtMatmulDescSetAttribute     # noqa: N815

    def cublasLtMatmulAlgoGetHeuristic(self, handle, desc, a, b, c, d, preference, asked,     # noqa: N802
                                       found, count):
        told = self.made[preference]["attributes"]
        assert told[1] == 32 << 20 and asked == 1 and c == d
        self.aligned = [told[name] for name in (5, 6, 7, 8)]
        ctypes.c_int.from_address(address(count)).value = self.algorithms
        ctypes.c_uint64.from_address(address(found)).value = len(self.promised)
        self.promised.append(self.aligned)
        return 0

    def cublasLtMatmul(self, handle, desc, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d,     # noqa: N802
                       algorithm, workspace, size, stream):
        assert stream == standin_cupy.cuda.get_current_stream().ptr and size == 32 << 20
        assert (c, of_c) == (d, of_d)
        for pointer, limit in zip((a, b, c, d),
                                  self.promised[ctypes.c_uint64.from_address(algorithm).value],
                                  strict=True):
            assert pointer % limit == 0
        factors = [ctypes.c_float.from_address(p).value for p in (alpha, beta)]
        # a recorded product keeps what it was told, whatever its description is told afterwards
        told, *sides, out = (copy.deepcopy(self.made[m]) for m in (desc, of_a, of_b, of_d))
        compute, told = told["compute"], told["attributes"]
        assert factors in ([1, 0], [1, 1]) and told[7] in (1, 4)
        assert out["kind"] in (0, sides[0]["kind"]) and not (out["kind"] and factors[1])
        assert compute == 68 or not sides[0]["kind"]

        def multiply():
            left, right = (self._read(p, made, told[turn], compute)
                           for p, made, turn in zip((a, b), sides, (3, 4), strict=True))
            y = np.ascontiguousarray(self.scale * (left @ right))
            kind = out["kind"]
            if told[7] == 4:     # of the type of the result
                bias = np.ctypeslib.as_array(ctypes.cast(told[8], ctypes.POINTER(
                    ctypes.c_uint16 if kind else ctypes.c_float)), (len(y),))
                y += (standin_cupy.widened(bias, kind) if kind else bias)[:, None]
            place = self._stored(d, out, ctypes.c_uint16 if kind else ctypes.c_float)
            if factors[1]:
                y += place
            place[...] = (y if not kind else bfloat16.to_bfloat16(y) if kind == 14 else
                          y.astype(np.float16).view(np.uint16))

        self.calls += 1
        if not standin_graphs.later(multiply):
            multiply()
        return 0

    @staticmethod
    def _stored(pointer, made, kind):
        return standin_cupy._columns(pointer, kind, (made["rows"], made["columns"]), made["ld"])

    def _read(self, pointer, made, transposed, compute):
        stored = self._stored(pointer, made, ctypes.c_uint16 if made["kind"] else ctypes.c_uint32)
        if not made["kind"] and compute == 68:     # float32, every bit of it
            wide = np.ascontiguousarray(stored).view(np.float32)
        else:
            wide = standin_cupy.widened(stored, made["kind"])
        return wide.T if transposed else wide


@contextmanager
def card():
    """Within it there is a card, as far as the package can tell: -> its CublasLt."""
    made, kept = CublasLt(), (gemm.planned, cublaslt._plan, cublaslt._handle, cublaslt._workspace)
    runtime, before = standin_cupy.cuda.runtime, (array.cupy, cublaslt.library)
    for function in kept:
        function.cache_clear()
    array.cupy, cublaslt.library, runtime.getDevice = standin_cupy, lambda cupy: made, lambda: 0
    try:
        yield made
    finally:
        array.cupy, cublaslt.library = before
        del runtime.getDevice
        for function in kept:
            function.cache_clear()


@contextmanager
def card_or_stand_in(which):
    """Within it there is what "card" or "stand-in" says; a test is skipped where no card is."""
    if which == "stand-in":
        with card():
            yield
    elif array.gpu_available():
        yield
    else:
        pytest.skip("no CUDA card")
