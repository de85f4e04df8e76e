"""What the processor can do beyond what NumPy asks of it."""

import ctypes
import platform
import sys
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
    """-> why no compiled product of bfloat16 factors runs here; "" where one does."""
    if not jit.enabled():
        return f"its products are compiled by Numba, which is not in use here ({INSTALL})"
    if not bfloat16_by():
        return f"this processor ({platform.machine()}) has no AVX512-BF16 and no AMX"
    return ""


def bfloat16_by() -> str:
    """-> by what compiled products multiply bfloat16 numbers here: "AMX", "AVX512-BF16" or ""."""
    return "" if not jit.enabled() else "AMX" if not why_not_amx() else \
        "AVX512-BF16" if not why_not_avx512_bf16() else ""


def why_not_amx() -> str:
    """-> why assembly on AMX's tiles does not run here; "" where it does."""
    if not _features().get("amx-bf16"):
        return f"this processor ({platform.machine()}) has no AMX"
    return "" if _lends_tiles() else "the system lends this process no AMX tiles"


@cache
def _lends_tiles() -> bool:
    """-> whether Linux lends the tiles to this process, its threads and its forks.

    It has to be asked, once a process: without that the first instruction ends it.
    """
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18     # on x86-64
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def why_not_avx512_bf16() -> str:
    """-> why assembly of AVX512-BF16 does not run here; "" where it does."""
    return "" if _features().get("avx512bf16") else \
        f"this processor ({platform.machine()}) has no AVX512-BF16"


def why_not_avx512() -> str:
    """-> why assembly of AVX-512 does not run here; "" where it does."""
    return "" if _features().get("avx512f") else \
        f"this processor ({platform.machine()}) has no AVX-512"


def is_amd() -> bool:
    """-> whether AMD made it."""
    return bool(_features().get("sse4a"))     # nobody else has these instructions


def gains_by_bfloat16() -> bool:
    """-> whether those products are faster than float32's.

    Intel's processors with AMX have AVX512-BF16 too, but on half as many units as float32's: where
    the system lends no tiles, float32 is faster.
    """
    return bfloat16_by() == "AMX" or \
        bfloat16_by() == "AVX512-BF16" and not _features().get("amx-bf16")
