"""Launches softmax.cu and softmax_naive.cu of kernels/; as minisft/ops/softmax.py, in float32."""

from minisft.backend.array import Array, array_module
from minisft.backend.constants import ceil_div
from minisft.backend.gpu.cuda import launch


class Softmax:
    """The operation by the two kernels of one file, whose blocks take `rows` rows."""

    def __init__(self, file: str, threads: int, rows: int):
        self.file, self.threads, self.rows = file, threads, rows

    def forward(self, s: Array) -> tuple[Array, tuple]:
        """s (...,M) -> p (...,M), cache."""
        xp = array_module(s)
        s = xp.ascontiguousarray(s)
        p = xp.empty_like(s)
        self._launch("forward", p, s=s, p=p)
        return p, (p,)

    def backward(self, dp: Array, cache: tuple) -> Array:
        """dp (...,M) -> ds (...,M)."""
        (p,) = cache
        xp = array_module(dp)
        dp = xp.ascontiguousarray(dp)
        ds = xp.empty_like(dp)
        self._launch("backward", ds, dp=dp, p=p, ds=ds)
        return ds

    def _launch(self, direction, like, **arrays):
        n, m = like.size // like.shape[-1], like.shape[-1]
        launch(self.file, f"{self.file}_{direction}", (ceil_div(n, self.rows),), (self.threads,),
               **arrays, n=n, m=m)


fused = Softmax("softmax", threads=128, rows=4)             # a warp computes a row
naive = Softmax("softmax_naive", threads=128, rows=128)     # a thread computes a row
