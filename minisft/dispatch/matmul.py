"""Matrix products, those of 16-bit factors among them, and the rounding to them.

Factors are float32, bfloat16 or float16, sums and results float32. On a card cuBLASLt multiplies,
16 bits on tensor cores, or else cuBLAS: 16 bits by its `gemmEx`, since `cupy.matmul` would round
the result too and knows no bfloat16. NumPy has neither: on a CPU that multiplies bfloat16 numbers a
compiled loop does, elsewhere the factors are widened again. Products of two 16-bit numbers fit
float32, so that is the same arithmetic but for the order of the sums.
Large float32 factors a CPU with AMX multiplies as sums of three bfloat16 numbers, which have all of
their digits; others go to MKL on a CPU of Intel's, where its wheel is installed.
"""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minisft.backend import bfloat16, tf32
from minisft.backend.array import array_module
from minisft.backend.cpu import mkl, processor
from minisft.backend.gpu import gemm
from minisft.backend.gpu.launch import bfloat16 as bfloat16_kernel
from minisft.dispatch.conditions import compiled, in_float32, kernels, on_cpu, on_gpu
from minisft.dispatch.selection import FORMULA, Function, Implementation, Site

BFLOAT16, FLOAT16, TF32 = np.dtype(np.uint16), np.dtype(np.float16), np.dtype(np.uint32)
FORMATS = {"float32": None, "bfloat16": BFLOAT16, "float16": FLOAT16, "tf32": TF32}
PRECISIONS = (*FORMATS, "auto")
# of float32 products on AMX: rows, columns or k, and multiplications, at least
NARROWEST, SMALLEST = 128, 1 << 27


def _rounded(site: Site, arguments: dict[str, Any]) -> str:
    return "" if arguments["a"].dtype in (BFLOAT16, FLOAT16, TF32) else \
        "its factors are not rounded to 16 bits or TF32"


def _in_bfloat16(site: Site, arguments: dict[str, Any]) -> str:
    return "" if arguments["a"].dtype == BFLOAT16 else "its factors are not bfloat16"


def _into_float32(site: Site, arguments: dict[str, Any]) -> str:
    out = arguments.get("out")
    into_16_bits = out is not None and out.dtype in (BFLOAT16, FLOAT16)
    return "the result goes into 16 bits" if into_16_bits else ""


def _avx512_bf16(site: Site, arguments: dict[str, Any]) -> str:
    return processor.why_not_bfloat16() or processor.why_not_avx512_bf16()


def amx(site: Site, arguments: dict[str, Any]) -> str:
    """The processor multiplies tiles of bfloat16 numbers."""
    return processor.why_not_bfloat16() or processor.why_not_amx()


def _not_by_mkl(site: Site, arguments: dict[str, Any]) -> str:
    return mkl.why_not_product(arguments["a"], arguments["b"], arguments.get("out"))


def amx_in_float32(site: Site, arguments: dict[str, Any]) -> str:
    """A condition: matrices of float32, x and w or a and b, that are worth being split for AMX."""
    names = ("x", "w") if "w" in arguments else ("a", "b")
    a, b = (arguments[name] for name in names)
    if a.ndim != 2 or b.ndim != 2:
        return "its arguments are not matrices"
    (m, k), n = a.shape, b.shape[1]
    if min(m, k, n) < NARROWEST or m * k * n < SMALLEST:
        return f"{m} x {k} x {n} is small, and BLAS as fast"
    return amx(site, arguments) or \
        _loops("matmul_float32_amx").why_not(a, b, arguments.get("out"))


def _loops(name: str) -> Any:
    """-> compiled products; imported when they are asked for, since they import Numba."""
    return import_module(f"minisft.backend.cpu.compiled.{name}")


def _product(a, b, out=None, bias=None):
    """a (N,C), b (C,M) -> (N,M); `out` (N,M), contiguous: where it goes; bias (M,), of its type, is
    added before it is rounded."""
    return _plus(array_module(a).matmul(a, b, out=out), bias)


def _widened_product(a, b, out=None, bias=None):
    if out is None or out.dtype == np.float32:
        return _plus(np.matmul(widened(a), widened(b), out=out), bias)
    y = np.matmul(widened(a), widened(b))
    out[...] = rounded(y if bias is None else y + widened(bias), out.dtype)
    return out


def _amx_product(a, b, out=None, bias=None):
    if bias is not None and bias.dtype != np.float32:
        bias = widened(bias)
    return _loops("matmul_amx").matmul(a, b, out, bias)


def _avx512_bf16_product(a, b, out=None, bias=None):
    return _plus(_loops("matmul_bfloat16").matmul(a, b, out), bias)


def _amx_product_of_float32(a, b, out=None, bias=None):
    return _loops("matmul_float32_amx").matmul(a, b, out, bias)


def _mkl_product(a, b, out=None, bias=None):
    return _plus(mkl.matmul(a, b, out), bias)


def _plus(y, bias):
    if bias is not None:
        y += bias
    return y


def widened(x):
    """x (...) in 16 bits or TF32 -> the same in float32."""
    if x.dtype == TF32:
        return tf32.from_tf32(x)
    return bfloat16.from_bfloat16(x) if x.dtype == BFLOAT16 else x.astype(np.float32)


def _to_bfloat16(x):
    """x (...) float32 -> the nearest bfloat16 (...) uint16."""
    return bfloat16.to_bfloat16(array_module(x).ascontiguousarray(x))


matmul = Function("matmul", _product, [
    Implementation("tensor cores", (_rounded, on_gpu), lambda: gemm.product),
    Implementation("cuBLASLt", (on_gpu, in_float32), lambda: gemm.product),
    Implementation("AMX", (_in_bfloat16, on_cpu, amx), lambda: _amx_product),
    Implementation("AVX512-BF16", (_in_bfloat16, on_cpu, _avx512_bf16, _into_float32),
                   lambda: _avx512_bf16_product),
    Implementation("widened", (_rounded,), lambda: _widened_product),
    Implementation("AMX x6", (on_cpu, in_float32, amx_in_float32),
                   lambda: _amx_product_of_float32),
    Implementation("MKL", (on_cpu, in_float32, _not_by_mkl), lambda: _mkl_product),
    Implementation(FORMULA, (), lambda: _product),
])
to_bfloat16 = Function("to_bfloat16", _to_bfloat16, [
    Implementation("fused kernel", (kernels("fused", "naive"),),
                   lambda: bfloat16_kernel.to_bfloat16),
    Implementation("compiled", (compiled,), lambda: _loops("matmul_bfloat16").to_bfloat16),
    Implementation(FORMULA, (), lambda: _to_bfloat16),
])


def split_bytes(m: int, k: int, n: int) -> int:
    """A float32 product (m,k) (k,n) on a CPU -> bytes of what its second factor is split into for
    AMX at a time; 0 where it is not."""
    a, b = (as_strided(np.zeros(1, np.float32), shape, (4 * shape[1], 4))
            for shape in ((m, k), (k, n)))     # nobody reads them
    if matmul.choose(a, b).name != "AMX x6":
        return 0
    return _loops("matmul_float32_amx").split_bytes(k, n)


def adds_to_out(a: Any, b: Any) -> bool:
    """-> whether `matmul(a, b, out, add=True)` adds to a float32 `out`, and needs no array more."""
    return matmul.choose(a, b).load() is gemm.product


def resolve_precision(precision: str, device: str) -> str:
    """A precision, cpu or cuda -> the same; of "auto" bfloat16 where that is the faster one.

    Elsewhere "auto" is float32.
    """
    if precision != "auto":
        return precision
    fast = gemm.multiplies_bfloat16() if device == "cuda" else processor.gains_by_bfloat16()
    return "bfloat16" if fast else "float32"


def rounded(x: Any, dtype: Any) -> Any:
    """x (...) float32, the dtype of a factor -> x in that format; unchanged unless it has 16 bits
    or is TF32, and where x is in it already.

    What is too large for float16 becomes infinite.
    """
    if x.dtype == dtype:
        return x
    if dtype == FLOAT16:
        return x.astype(FLOAT16)
    if dtype == TF32:
        return tf32.to_tf32(x)
    return to_bfloat16(x) if dtype == BFLOAT16 else x
