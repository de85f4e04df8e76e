"""What the processor can do beyond what NumPy asks of it."""

import platform
from functools import cache

from minisft.backend.cpu import jit

INSTALL = "install minisft[fast]"


@cache
def _features() -> dict[str, bool]:
    """-> {LLVM's name of a feature: whether this processor and system have it}; {} if unknown."""
    if jit.numba() is None:
        return {}
    from llvmlite import binding
    try:
        return dict(binding.get_host_cpu_features())
    except RuntimeError:     # LLVM knows no such processor
        return {}


def why_not_bfloat16() -> str:
    """-> why the compiled products of bfloat16 factors do not run here; "" where they do."""
    if not jit.enabled():
        return f"its products are compiled by Numba, which is not in use here ({INSTALL})"
    if not _features().get("avx512bf16"):
        return f"this processor ({platform.machine()}) has no AVX512-BF16"
    return ""


def why_not_avx512() -> str:
    """-> why assembly of AVX-512 does not run here; "" where it does."""
    return "" if _features().get("avx512f") else \
        f"this processor ({platform.machine()}) has no AVX-512"


def gains_by_bfloat16() -> bool:
    """-> whether those products are faster than float32's.

    Intel's processors with AMX have the instruction too, but on half as many units as float32's:
    their speed is in AMX, for which there is no product here.
    """
    return not why_not_bfloat16() and not _features().get("amx-bf16")
