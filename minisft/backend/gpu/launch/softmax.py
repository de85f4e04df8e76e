"""Launches kernels/softmax.cu; the same calls as minisft/ops/softmax.py, in float32."""

from minisft.backend.array import array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch

WARPS = 4     # rows of a block


def forward(s):
    """s (...,M) -> p (...,M), cache."""
    xp = array_module(s)
    s = xp.ascontiguousarray(s)
    p = xp.empty_like(s)
    n, m = s.size // s.shape[-1], s.shape[-1]
    launch("softmax", "softmax_forward", (ceil_div(n, WARPS),), (32 * WARPS,), s, p, n, m)
    return p, (p,)


def backward(dp, cache):
    """dp (...,M) -> ds (...,M)."""
    (p,) = cache
    xp = array_module(dp)
    dp = xp.ascontiguousarray(dp)
    ds = xp.empty_like(dp)
    n, m = dp.size // dp.shape[-1], dp.shape[-1]
    launch("softmax", "softmax_backward", (ceil_div(n, WARPS),), (32 * WARPS,), dp, p, ds, n, m)
    return ds
