"""Every operation with its implementations, in the order in which they are tried.

    name              what runs
    formula           minisft/ops, as it stands
    row blocks        the same formula on blocks of rows, on all cores
    groups            attention over texts of like length side by side; "compiled groups" with loops
                      between the products
    decode            attention of one query of each text to a cache on a CPU, read once
    key blocks        attention of long texts, block by block of their keys
    compiled          loops that Numba compiles, minisft/backend/cpu/compiled
    few rows          a linear map of a few rows on a CPU, whose weights are read once
    AMX x6            products of float32 as six of bfloat16 on AMX's tiles, with all of its digits
    MKL               products of float32 by Intel's library, where its wheel is installed
    naive kernel      the simple CUDA kernel of kernels/, where there are two
    fused kernel      the fast one
    tensor cores      a CUDA kernel for 16-bit numbers, or cuBLAS on 16-bit factors
    cuBLASLt          products of float32 on a card, the bias added in the same launch
    16 bits           a linear map of 16-bit factors, or its adapter; "widened" multiplies them on a
                      CPU that has no instruction for it

To see what a call gets: `layer_norm.choose(x, w, b).name`, or `minisft why layer_norm`.
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

from minisft import ops
from minisft.backend.cpu import mkl
from minisft.backend.gpu import launch
from minisft.backend.gpu import linear as gpu_linear
from minisft.dispatch import (
    attention_groups,
    attention_key_blocks,
    few_rows,
    mixed_precision,
    shapes,
)
from minisft.dispatch.conditions import (
    all_ask,
    at_most,
    compiled,
    compiled_in_16_bits,
    computes_in,
    has_axis,
    has_rows,
    in_float32,
    kernels,
    kernels_in_16_bits,
    labels_are_classes,
    longer_than,
    multiple,
    no_kernels,
    on_cpu,
    on_gpu,
    one_asks,
    own_score_words,
    own_words,
    packed_keys,
    widest,
)
from minisft.dispatch.matmul import (
    BFLOAT16,
    FLOAT16,
    TF32,
    amx,
    amx_in_float32,
    matmul,
    to_bfloat16,
    widened,
)
from minisft.dispatch.row_blocks import RowBlocks
from minisft.dispatch.selection import (
    FORMULA,
    Condition,
    Function,
    Implementation,
    Operation,
    Site,
    site_of,
)

KERNELS = kernels("fused", "naive")     # of an operation with one kernel only


def _loops(stem: str) -> Any:
    """-> a module of compiled loops; imported when it is asked for, since it imports Numba."""
    return import_module(f"minisft.backend.cpu.compiled.{stem}")


def _in_16_bits(name: str) -> Condition:
    def condition(site: Site, arguments: dict[str, Any]) -> str:
        low = arguments[name].dtype in (BFLOAT16, FLOAT16, TF32)
        return "" if low else f"{name} does not have 16 bits"
    return condition


def _not_by_mkl(site: Site, arguments: dict[str, Any]) -> str:
    return mkl.why_not_product(arguments["x"], arguments["w"])


linear = Operation("linear", ops.linear.forward, [
    Implementation("16 bits", (_in_16_bits("w"),), lambda: mixed_precision),
    Implementation("cuBLASLt", (on_gpu, in_float32), lambda: gpu_linear),
    Implementation("few rows", (compiled, few_rows.takes, few_rows.on_this_processor),
                   lambda: few_rows),
    # the same lines as 16 bits, which round nothing that is float32 already
    Implementation("AMX x6", (on_cpu, in_float32, amx_in_float32), lambda: mixed_precision),
    Implementation("MKL", (on_cpu, in_float32, _not_by_mkl), lambda: mixed_precision),
    Implementation(FORMULA, (), lambda: ops.linear),     # NumPy's or CuPy's BLAS
], shapes.linear)

lora = Operation("lora", ops.lora.forward, [
    Implementation("16 bits", (_in_16_bits("a"),), lambda: mixed_precision.lora),
    Implementation("cuBLASLt", (on_gpu, in_float32), lambda: gpu_linear.lora),
    Implementation(FORMULA, (), lambda: ops.lora),     # the same
], shapes.lora)

embedding = Operation("embedding", ops.embedding.forward, [
    Implementation("fused kernel", (KERNELS,), lambda: launch.embedding),
    Implementation("compiled", (compiled,), lambda: SimpleNamespace(
        forward=ops.embedding.forward, backward=_loops("embedding").backward)),
    Implementation(FORMULA, (), lambda: ops.embedding),
], shapes.embedding)

_layer_norm_rows = RowBlocks(ops.layer_norm, forward=("x",), backward=("dy",),
                             backward_sums=(1, 2))
layer_norm = Operation("layer_norm", ops.layer_norm.forward, [
    Implementation("fused kernel", (KERNELS, widest("x", launch.layer_norm.WIDEST)),
                   lambda: launch.layer_norm),
    Implementation("compiled", (compiled, has_rows("x")), lambda: _loops("layer_norm")),
    Implementation("row blocks", (_layer_norm_rows.too_few,), lambda: _layer_norm_rows),
    Implementation(FORMULA, (), lambda: ops.layer_norm),
], shapes.layer_norm)


def norm_for_product(x: Any, w: Any, b: Any, eps: float, dtype: Any) -> tuple[Any, Any]:
    """As `layer_norm.forward`; y is in 16 bits already where the product that takes it would round
    it to this format, and a loop does both."""
    low = dtype == BFLOAT16 and layer_norm.choose(x, w, b, eps).name == "compiled"
    return layer_norm.forward(x, w, b, eps, **({"round_y": True} if low else {}))


_gelu_rows = RowBlocks(ops.gelu, forward=("x",), backward=("dy",))
gelu = Operation("gelu", ops.gelu.forward, [
    Implementation("fused kernel", (kernels_in_16_bits("x", "fused", "naive"), has_axis("x")),
                   lambda: launch.gelu),
    Implementation("compiled", (compiled_in_16_bits("x"),), lambda: _loops("gelu")),
    Implementation("row blocks", (_gelu_rows.too_few,), lambda: _gelu_rows),
    Implementation(FORMULA, (), lambda: ops.gelu),
], shapes.gelu)


def stores_16_bits(x: Any, dtype: Any) -> bool:
    """Any float32 array of the model, the format of its products -> whether a product on this CPU
    rounds what it stores, and compiled loops read it so."""
    if dtype != BFLOAT16 or not (site := site_of({"x": x})).compiled or amx(site, {}):
        return False
    one = np.zeros((1, 1), BFLOAT16)
    return matmul.choose(one, one, one).name in ("AMX", "widened")


def gelu_adds_bias(bias: Any, dtype: Any) -> bool:
    """The bias, the format of the products before and after, None where one takes or gives float32
    -> whether `gelu.forward(x, form, bias)` adds the bias and its backward returns dx, db.

    x and dy may have 16 bits then, y and dx have as many; on a CPU they must.
    """
    return gelu.choose(bias).load() is launch.gelu or (
        gelu.choose(bias).name == "compiled" and stores_16_bits(bias, dtype))


def _norm_by(name):
    def condition(site, arguments):
        """A norm alone runs as this, too."""
        by = layer_norm.first(site, arguments).name
        return "" if by == name else f"layer_norm runs as {by}"
    return condition


_residual_layer_norm = Function("residual_layer_norm", launch.residual_layer_norm.forward, [
    Implementation("fused kernel", (_norm_by("fused kernel"),), lambda: launch.residual_layer_norm),
    Implementation("compiled", (_norm_by("compiled"),), lambda: _loops("residual_layer_norm")),
    Implementation(FORMULA, (), lambda: None),
])


def sums_before_norm(x: Any) -> Any:
    """-> what adds a residual and normalises the sum in one pass over x (N,C), forward and
    backward; None where a sum and `layer_norm` do.
    """
    return _residual_layer_norm.choose(x).load()


softmax = Operation("softmax", ops.softmax.forward, [
    Implementation("naive kernel", (kernels("naive"), has_axis("s")), lambda: launch.softmax.naive),
    Implementation("fused kernel", (kernels("fused"), has_axis("s")), lambda: launch.softmax.fused),
    Implementation("compiled", (compiled, has_rows("s")), lambda: _loops("softmax")),
    Implementation(FORMULA, (), lambda: ops.softmax),
])

dropout = Operation("dropout", ops.dropout.forward, [
    Implementation("fused kernel", (KERNELS, own_words), lambda: launch.dropout),
    Implementation("compiled", (compiled, own_words), lambda: _loops("dropout")),
    Implementation(FORMULA, (), lambda: ops.dropout),
], shapes.dropout)

_cross_entropy_rows = RowBlocks(ops.cross_entropy, forward=("z", "labels"), backward=("out",),
                                forward_sums=(0, 1))
cross_entropy = Operation("cross_entropy", ops.cross_entropy.forward, [
    Implementation("fused kernel", (KERNELS,), lambda: launch.cross_entropy),
    Implementation("compiled", (compiled, has_rows("z"), labels_are_classes),
                   lambda: _loops("cross_entropy")),
    Implementation("row blocks", (_cross_entropy_rows.too_few,), lambda: _cross_entropy_rows),
    Implementation(FORMULA, (), lambda: ops.cross_entropy),
], shapes.cross_entropy)


def loss_in_place(x: Any, dtype: Any) -> Any:
    """Any float32 matrix of the model, the format in which a product can store logits, None where
    that is float32 -> train(logits, labels, dloss), which gives the loss and the denominator and
    puts the gradient in the place of the logits; None where `cross_entropy` does it by two calls.
    """
    one = x[:1]
    # conditions read the labels, on a CPU alone
    runs = cross_entropy.choose(one, np.zeros(1, int) if isinstance(x, np.ndarray) else one)
    if runs.load() is launch.cross_entropy:
        return launch.cross_entropy.train
    low = runs.name == "compiled" and stores_16_bits(x, dtype)
    return _loops("cross_entropy").train if low else None


span_cross_entropy = Operation("span_cross_entropy", ops.span_cross_entropy.forward, [
    Implementation(FORMULA, (), lambda: ops.span_cross_entropy),
], shapes.span_cross_entropy)

def _attention_forward(q, *args, **options):
    """The formula runs one sequence after the other, with the softmax that applies to all."""
    return ops.attention.forward(q, *args, softmax=softmax.choose(q).load(), **options)


_attention = SimpleNamespace(forward=_attention_forward, backward=ops.attention.backward)
attention = Operation("attention", ops.attention.forward, [
    Implementation("tensor cores", (
        _in_16_bits("q"), kernels_in_16_bits("q", "fused"), packed_keys, own_score_words,
        multiple("q", 16), widest("q", launch.attention_tensor_cores.WIDEST)),
        lambda: launch.attention_tensor_cores),
    *(Implementation("tensor cores", (
        kernels("fused"), computes_in(dtype, precision), packed_keys, own_score_words,
        multiple("q", 16), widest("q", launch.attention_tensor_cores.WIDEST)), launcher)
      for dtype, precision, launcher in (
          (BFLOAT16, "bfloat16", lambda: launch.attention_tensor_cores.IN_BFLOAT16),
          (FLOAT16, "float16", lambda: launch.attention_tensor_cores.IN_FLOAT16))),
    Implementation("naive kernel", (kernels("naive"), own_score_words),
                   lambda: launch.attention_naive),
    Implementation("fused kernel", (
        kernels("fused"), own_score_words, widest("q", launch.attention.WIDEST)),
        lambda: launch.attention),
    Implementation("AMX", (
        no_kernels, on_cpu, compiled, computes_in(BFLOAT16, "bfloat16"), amx, all_ask,
        own_score_words, multiple("q", 32), widest("q", 128), at_most(1024)),
        lambda: _loops("attention_amx")),
    Implementation("decode", (no_kernels, compiled, one_asks), lambda: SimpleNamespace(
        forward=_loops("attention_decode").forward, backward=ops.attention.backward)),
    # the scores of long texts grow with the square of the length
    Implementation("key blocks", (no_kernels, longer_than(lambda: attention_key_blocks.SHORT)),
                   lambda: attention_key_blocks),
    Implementation("compiled groups", (no_kernels, compiled, all_ask, own_score_words),
                   lambda: attention_groups.Groups(_loops("attention_groups"))),
    Implementation("groups", (no_kernels, on_cpu, all_ask, own_score_words),
                   lambda: attention_groups.Groups()),
    Implementation(FORMULA, (), lambda: _attention),
], shapes.attention, options=("compute_dtype",))


def attention_in_16_bits(x: Any, width: int, dtype: Any) -> bool:
    """Any float32 vector of the model, a head's width, the format of its products -> whether
    `attention` of a packed batch takes q, k, v and dy in that format, and gives y in it; its
    backward then takes `out`, where the gradients go, in float32 or in that format.
    """
    if dtype is None:
        return False
    q = x[:width].reshape(1, 1, -1)     # one query that asks one key will do
    one = np.ones(1, dtype=np.int64)
    return attention.choose(q, q, q, np.arange(2), one - 1, one,
                            compute_dtype=dtype).name == "tensor cores"


def decoding_kernels(x: Any, width: int) -> Any:
    """Any float32 array of the model, a head's width -> what decodes one token a sequence on the
    card: `attention` over a cache, `next_token`, and `bits` of ids that it never chooses; None
    where attention does not run as a fused kernel.
    """
    q = x.ravel()[:width].reshape(1, 1, -1)
    one = np.ones(1, dtype=np.int64)
    if attention.choose(q, q, q, np.arange(2), one - 1, one).load() is not launch.attention:
        return None
    return SimpleNamespace(attention=launch.attention_decode.forward,
                           next_token=launch.next_token.choose, bits=launch.next_token.bits)


def _column_sums(x, out=None, add=False):
    """x (N,M), also in 16 bits -> its sums over the rows (M,), float32; `out` (M,): where they go,
    or are added."""
    sums = (widened(x) if x.dtype in (BFLOAT16, FLOAT16) else x).sum(axis=0)
    if out is None:
        return sums
    out[...] = out + sums if add else sums
    return out


column_sums = Function("column_sums", _column_sums, [
    Implementation("fused kernel", (kernels_in_16_bits("x", "fused", "naive"),),
                   lambda: launch.column_sums.column_sums),
    Implementation("compiled", (compiled, has_rows("x")),
                   lambda: _loops("column_sums").column_sums),
    Implementation(FORMULA, (), lambda: _column_sums),
])


def _factor_gradients(dy, x, factors):
    """dy (N, sum of M), x (N,C), of merged maps side by side [(A (r,C), B (M,r), scale)] -> [(dA
    (r,C), dB (M,r))]."""
    found, left = [], 0
    for a, b, scale in factors:
        columns = dy if len(b) == dy.shape[1] else dy[:, left:left + len(b)]
        found.append(ops.lora.factor_gradients(columns, x, a, b, scale))
        left += len(b)
    return found


factor_gradients = Function("factor_gradients", _factor_gradients, [
    Implementation("compiled", (compiled, has_rows("x")),
                   lambda: _loops("lora").factor_gradients),
    Implementation(FORMULA, (), lambda: _factor_gradients),
])


def rounded_and_summed(x: Any, dtype: Any, out: Any, add: bool = False) -> Any:
    """x (N,M), the format of the product that takes it -> x, in that format already where one pass
    does both; `out` (M,): where its sums over the rows go, or are added."""
    if dtype == BFLOAT16 and x.dtype == np.float32 and column_sums.choose(x).name == "compiled":
        return _loops("column_sums").rounded_and_summed(x, out, add)
    column_sums(x, out, add=add)
    return x


# Of the optimizer: None where training/optim.py's own formula runs, block by block.
adamw = Function("adamw", launch.adamw.step, [
    Implementation("fused kernel", (KERNELS,), lambda: launch.adamw.step),
    Implementation("compiled", (compiled,), lambda: _loops("adamw").step),
    Implementation(FORMULA, (), lambda: None),
])
squared_norm = Function("squared_norm", launch.adamw.squares, [
    Implementation("fused kernel", (KERNELS,), lambda: launch.adamw.squares),
    Implementation("compiled", (compiled,), lambda: _loops("adamw").squares),
    Implementation(FORMULA, (), lambda: None),
])

OPERATIONS = {operation.name: operation for operation in (
    linear, embedding, layer_norm, gelu, softmax, dropout, lora, cross_entropy, span_cross_entropy,
    attention, matmul, column_sums, factor_gradients, to_bfloat16, adamw, squared_norm)}
