"""What tests of float32 products share: factors laid out in every way, and the slow twin."""

import numpy as np


def normal(rng, *shape):
    """-> standard normal numbers (shape) float32."""
    return rng.standard_normal(shape, dtype=np.float32)


def layouts(x):
    """x (m,n) -> itself in rows and in columns, and with numbers around it that nobody may use."""
    for turned in (False, True):
        source = x.T if turned else x
        around = np.full((source.shape[0] + 2, source.shape[1] + 5), np.nan, np.float32)
        around[1:-1, 2:-3] = source
        for laid in (source.copy(), around[1:-1, 2:-3]):
            yield laid.T if turned else laid


def require_near(c, a, b, limit=1e-6):
    """The slow twin: sums in float64, beside the sums of absolute products."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    exact = np.einsum("ik,kj->ij", a, b)
    assert c.shape == exact.shape and c.dtype == np.float32
    assert (np.abs(c - exact) <= limit * np.einsum("ik,kj->ij", abs(a), abs(b))).all()
