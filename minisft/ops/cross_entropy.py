"""Cross-entropy of labels from logits, as PyTorch defines weights, smoothing and ignored labels.

For row n with label y, class weights w (1 without), smoothing a over K classes:
    (1) logp[k] = z[k] - log sum_j exp(z[j])                           log-sum-exp, shifted by max
    (2) t[k] = (1 - a) * w[y] * [k = y] + a / K * w[k]                 the target's mass on class k
    (3) loss = - sum over n, k of t[k] * logp[k],   denominator = sum over n of w[y]
    (4) dz[k] = softmax(z)[k] * sum_j t[j] - t[k]

Without weights and smoothing (4) is the well-known p - onehot(y). A row whose label is `ignore`
adds nothing to either sum. The caller divides, once, over all micro-batches: that makes
accumulation equal to the large batch. Smoothing: Szegedy et al. 2016, section 7.
"""

from minisft.array import array_module

IGNORE = -100


def forward(z, labels, weights=None, smoothing=0.0, ignore=IGNORE):
    """z (N,K), labels (N,), weights (K,) or None -> (loss, denominator), cache."""
    xp = array_module(z)
    t, counted = _targets(z, labels, weights, smoothing, ignore)
    logp = log_softmax(z)                                              # (1)
    # 0 * -inf is no number, and a class without mass adds nothing
    loss = -xp.sum(t * xp.where(t > 0, logp, 0))                       # (3)
    denominator = counted.sum() if weights is None else xp.where(
        counted, weights[xp.where(counted, labels, 0)], 0).sum()
    return (loss, denominator), (logp, t)


def backward(dloss, cache):
    """dloss () -> dz (N,K)."""
    logp, t = cache
    xp = array_module(logp)
    dloss = xp.asarray(dloss, dtype=logp.dtype)     # a float64 scalar would widen the result
    return dloss * (xp.exp(logp) * t.sum(axis=-1, keepdims=True) - t)     # (4)


def log_softmax(z):
    """z (N,K) -> logp (N,K), equation (1)."""
    xp = array_module(z)
    shifted = z - z.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


def _targets(z, labels, weights, smoothing, ignore):
    """-> t (N,K) of equation (2), zero in ignored rows, and which rows count (N,)."""
    xp = array_module(z)
    counted = labels != ignore
    w = xp.ones(z.shape[-1], dtype=z.dtype) if weights is None else weights.astype(z.dtype)
    t = xp.zeros(z.shape, dtype=z.dtype)
    if smoothing:
        t[counted] = smoothing / z.shape[-1] * w
    rows = xp.flatnonzero(counted)
    t[rows, labels[rows]] += (1 - smoothing) * w[labels[rows]]         # (2)
    return t, counted
