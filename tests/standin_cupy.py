"""Stands in for CuPy where there is no card: arrays of its own kind that must be brought over.

As CuPy's, its arrays refuse to become NumPy's without `asnumpy`, and refuse to work with them. It
is stricter: CuPy lets `np.exp(x)` and `x[numpy_array]` pass with a transfer that nobody sees; here
both are errors. It computes with NumPy, so results have the CPU's bits, and runs kernels on the
emulator. Only functions that CuPy has are here (`FUNCTIONS`, compared with it where it is
installed).

`counted()` tells what a card would be asked to do. CUDA graphs: standin_graphs.py.
"""

import ctypes
import operator
from collections import Counter
from contextlib import contextmanager

import numpy as np

from minisft.backend import bfloat16
from minisft.backend.gpu import cuda as product
from minisft.backend.gpu import emulator
from tests import standin_graphs as graphs

TYPES = ("bool_", "float16", "float32", "float64", "int32", "int64", "uint8", "uint16", "uint32",
         "uint64")
FUNCTIONS = (
    "abs", "add", "arange", "argsort", "array", "ascontiguousarray", "broadcast_shapes",
    "broadcast_to", "concatenate", "copysign", "divide", "empty", "empty_like", "exp",
    "flatnonzero", "full", "isfinite", "log", "matmul", "maximum", "minimum", "multiply", "ones",
    "repeat", "shape", "sqrt", "stack", "subtract", "sum", "take_along_axis", "tanh", "where",
    "zeros", "zeros_like")
METHODS = ("all", "any", "argmax", "astype", "copy", "max", "mean", "min", "ravel", "repeat",
           "reshape", "sum", "swapaxes", "tolist", "transpose", "view")
ATTRIBUTES = ("dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides")
NO_LAUNCH = {"broadcast_shapes", "broadcast_to", "empty", "empty_like", "shape", "swapaxes",
             "transpose", "view"}
MAY_COPY = {"ascontiguousarray", "astype", "ravel", "reshape"}     # and then it is a launch
OF_NUMPY = np.ndarray, np.generic
inf = np.inf

_count = None     # Counter of `counted`


@contextmanager
def counted():
    """Within it launches are counted: -> Counter of kernels' names, "gemmEx", names of CuPy's
    functions, "to card" and "to CPU"."""
    global _count
    _count = Counter()
    try:
        yield _count
    finally:
        _count = None


def launched(name):
    """Counts it, within `counted`; what is recorded counts as one, when it is replayed."""
    if _count is not None and graphs.recording is None:
        _count[name] += 1


class ndarray:     # noqa: N801  CuPy's name
    """An array "on the card"; `_here` is where its numbers really lie."""

    __array_ufunc__ = None     # NumPy's operators hand over to ours

    def __init__(self, here):
        self._here = here

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    @property
    def T(self):     # noqa: N802  CuPy's name
        return ndarray(self._here.T)

    @property
    def data(self):
        return _Pointer(self._here.ctypes.data)

    @property
    def base(self):
        return None if self._here.base is None else ndarray(self._here.base)

    def __getitem__(self, index):
        _refuse_masks(index)
        taken = _taken(index)
        found = self._here[taken]
        if isinstance(index, ndarray):
            launched("take")
            found = graphs.made(lambda: self._here[taken], found)
        elif isinstance(found, np.generic):     # a view, too
            found = self._here[(*taken, ...) if isinstance(taken, tuple) else (taken, ...)]
        return _over(found)

    def __setitem__(self, index, value):
        launched("copy")
        _refuse_masks(index)
        index, value = _taken(index), _taken(value)

        def put():
            self._here[index] = value

        if not graphs.later(put):
            put()

    def set(self, a, stream=None):
        """a of NumPy -> copied here."""
        graphs.refuse("an array is brought over")
        launched("to card")
        assert type(a) is np.ndarray and (a.shape, a.dtype) == (self.shape, self.dtype)
        self._here[...] = a

    def get(self, out, blocking):
        """Numbers on their way to pinned memory, which holds rubbish until then."""
        graphs.refuse("an array is fetched")
        launched("to CPU")
        assert not blocking
        out.view(np.uint8)[...] = 0xff
        graphs.Event.coming.append((out, self._here.copy()))

    def __len__(self):
        return len(self._here)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __float__(self):
        graphs.refuse("a number is fetched")
        launched("to CPU")
        return float(self._here)

    def __int__(self):
        graphs.refuse("a number is fetched")
        launched("to CPU")
        return int(self._here)

    def __bool__(self):
        graphs.refuse("a number is fetched")
        launched("to CPU")
        return bool(self._here)

    __hash__ = None


class _Pointer:
    def __init__(self, ptr):
        self.ptr = ptr


def _taken(a):
    """An argument -> what NumPy computes with; raises TypeError for an array of NumPy."""
    kind = type(a)
    if kind is ndarray:
        return a._here
    if kind is list or kind is tuple:
        return kind(map(_taken, a))
    if isinstance(a, np.ndarray):
        raise TypeError(f"Unsupported type {kind}: a NumPy array of shape {a.shape}")
    return a


def _refuse_masks(index):
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, ndarray) and part.dtype == bool:
            graphs.refuse("how much a mask takes, the card must say")


def _over(result):
    if isinstance(result, OF_NUMPY):     # a sum, too, stays on the card
        return ndarray(np.asarray(result))
    return tuple(map(_over, result)) if isinstance(result, tuple) else result


def _wrapped(function, name):
    def call(*args, **options):
        if name in graphs.REFUSED:
            graphs.refuse(name)
        args, given = [_taken(a) for a in args], {k: _taken(v) for k, v in options.items()}
        out = given.get("out")
        if out is not None and graphs.later(lambda: function(*args, **given), out):
            return options["out"]
        result = function(*args, **given)
        if out is None and not any(isinstance(a, np.ndarray) and isinstance(result, np.ndarray)
                                   and np.may_share_memory(result, a) for a in args):
            result = graphs.made(lambda: function(*args, **given), result)
        if _count is not None and name not in NO_LAUNCH and not (
                name in MAY_COPY and np.may_share_memory(result, args[0])):
            _count["to CPU" if name == "tolist" else name] += 1
        return options["out"] if out is not None else _over(result)

    if hasattr(function, "reduceat"):
        call.reduceat = _wrapped(function.reduceat, name)
    return call


def _operators():
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or",
                 "xor", "lshift", "rshift"):
        plain, in_place = (getattr(operator, f"__{i}{name}__") for i in ("", "i"))

        def forward(self, other, plain=plain, name=name):
            return _calculated(plain, name, self._here, _taken(other))

        def backward(self, other, plain=plain, name=name):
            return _calculated(plain, name, _taken(other), self._here)

        def inplace(self, other, plain=in_place, name=name):
            launched(name)
            other = _taken(other)
            if not graphs.later(lambda: plain(self._here, other)):
                here = plain(self._here, other)
                assert here is self._here
            return self

        yield f"__{name}__", forward
        yield f"__r{name}__", backward
        yield f"__i{name}__", inplace
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        plain = getattr(operator, f"__{name}__")
        yield f"__{name}__", lambda self, other, plain=plain: _calculated(
            plain, None, self._here, _taken(other))
    for name in ("neg", "invert", "abs"):
        plain = getattr(operator, f"__{name}__")
        yield f"__{name}__", lambda self, plain=plain: _calculated(plain, None, self._here)


def _calculated(plain, name, *sides):
    """What an operator gives; None: it is not counted."""
    if name in graphs.REFUSED:
        graphs.refuse(name)
    if name is not None:
        launched(name)
    return _over(graphs.made(lambda: plain(*sides), plain(*sides)))


for _name, _function in _operators():
    setattr(ndarray, _name, _function)
for _name in ATTRIBUTES:
    setattr(ndarray, _name, property(operator.attrgetter(f"_here.{_name}")))
for _name in METHODS:
    setattr(ndarray, _name, _wrapped(getattr(np.ndarray, _name), _name))
for _name in FUNCTIONS:
    globals()[_name] = _wrapped(getattr(np, _name), _name)
for _name in TYPES:
    globals()[_name] = getattr(np, _name)


def asarray(a, dtype=None):
    """-> the array on the card: a copy of one of NumPy's."""
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    graphs.refuse("an array is brought over")
    launched("to card")
    return ndarray(np.array(a, dtype=dtype))


def asnumpy(a):
    """-> the array on the CPU, a copy."""
    if isinstance(a, ndarray):
        graphs.refuse("an array is fetched")
        launched("to CPU")
    return a._here.copy() if isinstance(a, ndarray) else np.asarray(a)


class RawModule:
    """Compiles for the emulator; as strict as a card about the arguments of a kernel."""

    def __init__(self, code, options=()):
        defines = dict(o[2:].split("=") for o in options if o.startswith("-D"))
        self.library = emulator.build(code, product.signatures(code),
                                      product.kernel_folder() / "emulator", defines)

    def get_function(self, name):
        """-> what launches the kernel of that name."""
        def launch(grid, block, args):
            launched(name)
            values = [_c_value(a) for a in args]

            def run():
                emulator.run(self.library, name, grid, block, values)

            if not graphs.later(run, *args):
                run()
        return launch


def _c_value(a):
    if isinstance(a, ndarray):
        return ctypes.c_void_p(a._here.ctypes.data)
    if isinstance(a, np.uintp):
        return ctypes.c_void_p(int(a) or None)
    if type(a) not in product.C_TYPES:
        raise TypeError(f"a kernel cannot take {type(a)}")
    return product.C_TYPES[type(a)](a)


class cuda:     # noqa: N801
    """What the package asks of cupy.cuda."""

    is_available = staticmethod(lambda: True)

    get_cublas_handle = staticmethod(lambda: 0)
    alloc_pinned_memory = bytearray
    MemoryPool, using_allocator = graphs.MemoryPool, graphs.using_allocator
    get_current_stream = staticmethod(lambda: graphs.Stream.stack[-1])
    Event = graphs.Event

    class Stream(graphs.Stream):
        """Whose replays are counted."""

        launched = staticmethod(launched)

    class Device:
        """An H100 says so."""

        compute_capability = "90"

    class runtime:     # noqa: N801
        CUDARuntimeError = RuntimeError
        CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF = 0, 2, 14

    class cublas:     # noqa: N801
        CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 0, 1, 68, -1

        @staticmethod
        def gemmEx(handle, turn_a, turn_b, m, n, k, alpha, a, kind_a, rows_a, b, kind_b, rows_b,     # noqa: N802
                   beta, c, kind_c, rows_c, compute, algorithm):
            """C (m,n) = alpha * op(A) (m,k) op(B) (k,n) + beta * C, all stored by columns."""
            if graphs.recording is not None:
                raise NotImplementedError("cuBLAS during stream capture")
            launched("gemmEx")
            assert algorithm == -1 and kind_a == kind_b in (0, 2, 14)
            assert compute == (68 if kind_a else 77)     # float32 only as TF32
            assert kind_c in (0, kind_a)
            sides = []
            for pointer, kind, turn, shape, rows in ((a, kind_a, turn_a, (m, k), rows_a),
                                                     (b, kind_b, turn_b, (k, n), rows_b)):
                shape = shape[::-1] if turn else shape
                stored = widened(_columns(pointer, ctypes.c_uint16 if kind else ctypes.c_uint32,
                                          shape, rows), kind)
                sides.append(stored.T if turn else stored)
            out = _columns(c, ctypes.c_uint16 if kind_c else ctypes.c_float, (m, n), rows_c)
            factor, kept = (_columns(p, ctypes.c_float, (1, 1), 1)[0, 0] for p in (alpha, beta))
            assert not (kind_c and kept), "the stand-in adds to float32 only"
            y = factor * (sides[0] @ sides[1]) + (kept * out if kept else 0)
            out[...] = (y if not kind_c else bfloat16.to_bfloat16(np.ascontiguousarray(y))
                        if kind_c == 14 else y.astype(np.float16).view(np.uint16))


def _columns(pointer, kind, shape, rows):
    """-> the matrix at an address, its columns `rows` numbers apart."""
    assert rows >= shape[0], "cuBLAS refuses a leading dimension that is too small"
    size = rows * (shape[1] - 1) + shape[0]
    flat = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), (size,))
    return np.lib.stride_tricks.as_strided(flat, shape, (flat.itemsize, rows * flat.itemsize))


def widened(stored, kind):
    """Factors of one of cuBLAS's types -> what its tensor cores make of them, in float32."""
    stored = np.ascontiguousarray(stored)
    if kind == 0:
        from minisft.backend import tf32  # here, since older checkouts, which are timed, have none
        return tf32.from_tf32(tf32.to_tf32(stored.view(np.float32)))
    return bfloat16.from_bfloat16(stored) if kind == 14 else stored.view(np.float16).astype("f4")
