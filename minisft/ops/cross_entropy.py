"""Cross-entropy of labels from logits, as PyTorch defines weights, smoothing and ignored labels.

For row n with label y, class weights w (1 without), smoothing a over K classes:
    (1) logp[k] = z[k] - m - log(e),   m = max(z),   e = sum_j exp(z[j] - m)
    (2) t[k] = (1 - a) * w[y] * [k = y] + a / K * w[k]                 the target's mass on class k
    (3) loss = - sum over n, k of t[k] * logp[k],   denominator = sum over n of w[y]
    (4) dz[k] = softmax(z)[k] * sum_j t[j] - t[k]

Without weights and smoothing (4) is the well-known p - onehot(y). A row whose label is `ignore`
adds nothing to either sum. The caller divides, once, over all micro-batches: that makes
accumulation equal to the large batch. Smoothing: Szegedy et al. 2016, section 7.
"""

from minisft.backend.array import array_module
from minisft.backend.constants import IGNORE


def forward(z, labels, weights=None, smoothing=0.0, ignore=IGNORE):
    """z (N,K), labels (N,), weights (K,) or None -> (loss, denominator), cache."""
    xp = array_module(z)
    w = _class_weights(z, weights)
    counted = labels != ignore
    y = xp.where(counted, labels, 0)                                   # any class: its mass is 0
    mass = xp.where(counted, w[y], 0)                                  # (N,)
    m, e = _shifted_sum(z)                                             # (N,1)
    on_label = (1 - smoothing) * mass                                  # (2)
    # 0 * -inf is no number, and a class without mass adds nothing
    logp = xp.where(on_label > 0, z[xp.arange(len(z)), y] - m[:, 0], 0) - xp.log(e[:, 0])     # (1)
    loss = -xp.sum(on_label * logp)                                    # (3)
    if smoothing:
        spread = counted[:, None] * _spread(w, smoothing)              # (N,K)
        loss -= xp.sum(spread * (xp.where(spread > 0, z - m, 0) - xp.log(e)))
    return (loss, mass.sum()), (z, m, e, y, counted, on_label, weights, smoothing)


def backward(dloss, cache, out=None):
    """dloss () -> dz (N,K); `out` may be z itself, which nobody must need any more."""
    z, m, e, y, counted, on_label, weights, smoothing = cache
    xp = array_module(z)
    dloss = xp.asarray(dloss, dtype=z.dtype)     # a float64 scalar would widen the result
    spread = _spread(_class_weights(z, weights), smoothing)            # (K,)
    mass = on_label + counted * spread.sum()
    dz = xp.exp(xp.subtract(z, m, out=out), out=out)
    dz *= dloss * mass[:, None] / e
    if smoothing:
        dz -= dloss * counted[:, None] * spread
    dz[xp.arange(len(z)), y] -= dloss * on_label                       # (4)
    return dz


def log_softmax(z):
    """z (N,K) -> logp (N,K), equation (1)."""
    m, e = _shifted_sum(z)
    return z - m - array_module(z).log(e)


def _shifted_sum(z):
    """z (N,K) -> m (N,1), e (N,1)."""
    xp = array_module(z)
    m = z.max(axis=-1, keepdims=True)
    return m, xp.exp(z - m).sum(axis=-1, keepdims=True)


def _class_weights(z, weights):
    """z (N,K), weights (K,) or None -> w (K,)."""
    if weights is None:
        return array_module(z).ones(z.shape[-1], dtype=z.dtype)
    return weights.astype(z.dtype)


def _spread(w, smoothing):
    """w (K,) -> the mass that smoothing gives to each class (K,)."""
    return smoothing / len(w) * w
