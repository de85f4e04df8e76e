"""Which module an array belongs to, NumPy or CuPy. The only `import cupy` of the package."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from minisft.errors import UserError, setting

try:
    import cupy
except ImportError:
    cupy = None

DEVICES = ("cpu", "cuda")
Array = Any     # a numpy.ndarray or a cupy.ndarray; CuPy need not be installed


def array_module(*arrays: Any) -> ModuleType:
    """arrays -> cupy if one of them is on the GPU, else numpy."""
    if cupy is not None:
        for a in arrays:     # a loop: hundreds of times a step
            if isinstance(a, cupy.ndarray):
                return cupy
    return np


def device_name(name: str) -> str:
    """-> its name in DEVICES: `gpu` is another word for `cuda`; other names stay as they are."""
    return "cuda" if name == "gpu" else name


def gpu_available() -> bool:
    """-> whether CuPy is installed and can allocate an array on a card."""
    if cupy is None or not cupy.cuda.is_available():
        return False
    try:
        cupy.zeros(1)     # only this fails when the driver is too old for the runtime
    except cupy.cuda.runtime.CUDARuntimeError:
        return False
    return True


def require_gpu() -> None:
    """Raises UserError, saying what is missing, unless a GPU can be used."""
    if cupy is None:
        raise UserError(f"{setting('device', 'cuda')}: CuPy is not installed, expected the extra "
                        "cuda13 or cuda12, whichever fits the driver: pip install "
                        "'minisft[cuda13]'")
    if not cupy.cuda.is_available():
        raise UserError(f"{setting('device', 'cuda')}: CuPy finds no CUDA card or no driver, "
                        f"expected both, or {setting('device', 'cpu')}")
    if not gpu_available():
        raise UserError(f"{setting('device', 'cuda')}: the card takes no array, expected a driver "
                        "as new as the CUDA of the installed CuPy (the extras cuda12 and cuda13)")


def to_gpu(x: Array) -> Array:
    """array on either side -> the same array on the GPU."""
    return cupy.asarray(x)


def to_cpu(x: Array) -> np.ndarray:
    """array on either side -> the same array as numpy."""
    return x if cupy is None else cupy.asnumpy(x)


def fetched(x: Array) -> Callable[[], np.ndarray]:
    """array on either side -> what waits until the card comes to this, and gives what the array
    held then as numpy: meanwhile the CPU may ask for more."""
    if isinstance(x, np.ndarray):
        copy = x.copy()
        return lambda: copy
    pinned = cupy.cuda.alloc_pinned_memory(x.nbytes)     # else the copy would be waited for
    here = np.frombuffer(pinned, dtype=x.dtype, count=x.size).reshape(x.shape)
    x.get(out=here, blocking=False)
    event = cupy.cuda.Event(disable_timing=True)
    event.record()

    def wait() -> np.ndarray:
        event.synchronize()
        return here

    return wait


def address(x: Array) -> int:
    """array on either side -> where its numbers begin in memory."""
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr


def side_by_side(*parts: Array) -> Array:
    """k parts (N,...) -> (N,k,...): a view where they lie so in memory already, else a copy."""
    whole = getattr(parts[0], "base", None)
    if whole is not None and whole.shape == (len(parts[0]), len(parts), *parts[0].shape[1:]) and \
            all((address(p), p.strides, p.dtype) == (address(own), own.strides, own.dtype)
                for p, own in zip(parts, whole.swapaxes(0, 1), strict=True)):
        return whole
    return array_module(*parts).stack(parts, axis=1)
