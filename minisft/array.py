"""NumPy or CuPy: which module an array belongs to. The only `import cupy` of the package."""

import numpy as np

try:
    import cupy
except ImportError:
    cupy = None


def array_module(*arrays):
    """arrays -> cupy when one of them lives on the GPU, else numpy."""
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def gpu_available():
    """-> whether CuPy is installed and one element can really be allocated on a card."""
    if cupy is None or not cupy.cuda.is_available():
        return False
    try:
        cupy.zeros(1)     # a driver too old for the runtime shows only here
    except cupy.cuda.runtime.CUDARuntimeError:
        return False
    return True


def to_gpu(x):
    """array on either side -> the same array on the GPU."""
    return cupy.asarray(x)


def to_cpu(x):
    """array on either side -> the same array as numpy."""
    return x if cupy is None else cupy.asnumpy(x)
