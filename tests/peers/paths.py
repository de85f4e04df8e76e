"""Every implementation of an operation, run on a peer's case and compared with its numbers."""

from contextlib import contextmanager

import numpy as np
import pytest

from minisft.backend.cpu import jit, row_blocks
from minisft.backend.gpu import cuda, emulator
from minisft.dispatch import OPERATIONS, attention_key_blocks, only

# The implementations of dispatch/operations.py, each in the widest type that it takes.
PATHS = {"formula": np.float64, "row blocks": np.float64, "groups": np.float64,
         "key blocks": np.float64, "compiled": np.float32, "compiled groups": np.float32,
         "naive kernel": np.float32, "fused kernel": np.float32}
# The error allowed, in units of the largest value of an array. In float32 it is twice that of the
# formula in float32 and this, as in verify/kernel_checks.py: the inputs decide how much is lost.
# Scores of a hundred, which PyTorch's samples have, are 1e-5 apart in float32.
EXACT, NOISE = 1e-12, 1e-5

# {id of an implementation: (operation, name)}
OF = {id(i): (operation.name, i.name) for operation in OPERATIONS.values()
      for i in operation.implementations}


def available():
    """-> names of the paths that this machine has."""
    return [name for name in PATHS if
            (jit.numba() is not None or not name.startswith("compiled")) and
            (emulator.compiler() is not None or not name.endswith("kernel"))]


@contextmanager
def running(path):
    """Within it operations run as this implementation, however small the arrays, or as formulas."""
    with pytest.MonkeyPatch.context() as patch, only(path), \
            jit.compiled(path.startswith("compiled")), \
            cuda.kernels(path.split()[0] if path.endswith("kernel") else "off"):
        patch.setenv("MINISFT_CUDA", "emulate" if path.endswith("kernel") else "")
        patch.setenv("MINISFT_COMPILED", "")
        patch.setattr(row_blocks, "BLOCK", 64)
        patch.setattr(attention_key_blocks, "SHORT", 0)
        patch.setattr(attention_key_blocks, "KEYS", 4)
        yield


def in_dtype(arguments, dtype):
    """Arguments by name -> the same, arrays of floats in this type."""
    return {name: a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
            for name, a in arguments.items()}


def compare(express, arguments, y, dy=None, gradients=None, ran=None, exact=EXACT):
    """A case of a peer: arguments by name, its y, and for a dy its gradients by name, which are
    right to `exact`.

    -> differences, one line each. `ran` counts (operation, implementation).
    """
    expected = {"y": y} | {f"gradient of {name}": g for name, g in (gradients or {}).items()}
    # what is zero in theory is compared with what it came from
    least = np.abs(y if dy is None else dy).max(initial=0)
    differences, plain = [], {}
    for path in available():
        results, caches = _results(express, arguments, dy, gradients, path)
        kinds = None if caches is None else {OF[id(cache.implementation)] for cache in caches}
        if path != "formula" and kinds is not None and path not in {name for _, name in kinds}:
            continue
        if ran is not None:
            ran.update(kinds or ())
        limits = dict.fromkeys(results, exact)
        if PATHS[path] == np.float32:
            plain = plain or _results(express, arguments, dy, gradients, "formula", np.float32)[0]
            limits = {name: 2 * error(plain[name], expected[name], least) + max(NOISE, exact)
                      for name in results}
        for name, found in results.items():
            if not (off := error(found, expected[name], least)) <= limits[name]:
                differences.append(f"{path}: {name}: off by {off:.1e} of the largest value, "
                                   f"at most {limits[name]:.1e} expected")
    return differences


def _results(express, arguments, dy, gradients, path, dtype=None):
    """-> {name: array} of y and the gradients that the peer has, and the caches."""
    dtype = dtype or PATHS[path]
    with running(path), np.errstate(all="ignore"):
        found = express(**in_dtype(arguments, dtype))
        results = {"y": found.y}
        if dy is not None and found.backward is not None:
            ours = found.backward(dy.astype(dtype))
            results |= {f"gradient of {name}": ours[name] for name in gradients}
    return results, found.caches


def error(found, expected, least=0.0):
    """-> the largest difference, by the largest value expected (at least `least`).

    Infinite for another shape, or where other values are infinite or no number.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(expected)
    if found.shape != expected.shape or not np.array_equal(
            found[~finite], expected[~finite], equal_nan=True):
        return np.inf
    size = max(np.abs(expected[finite]).max(initial=0), least, 1e-30)
    off = np.abs(found - expected)[finite].max(initial=0) / size
    return off if off == off else np.inf
