"""How good the answers are, with the interval that the number of texts allows.

Precision, recall and F1: van Rijsbergen, Information Retrieval (1979), ch. 7. Macro values are
plain means over all K classes, weighted ones are weighted by support. 0/0 counts as 0, as in
scikit-learn with `labels=range(K), zero_division=0`. All dicts hold plain Python numbers.
"""

import numpy as np


def wilson(successes, n, z=1.959963984540054):
    """successes of n -> (low, high), the score interval of Wilson 1927 (JASA 22, 209-212).

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = successes/n; z: 95 % two-sided.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    # At both ends the formula is exact in theory and off by a rounding in floats.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return float(low), float(high)


def confusion(labels, predictions, n_labels):
    """labels (M,), predictions (M,) -> counts (K,K): rows are the truth, columns the answers."""
    labels = _class_numbers(labels, n_labels, "labels")
    predictions = _class_numbers(predictions, n_labels, "predictions")
    if labels.shape != predictions.shape:
        raise ValueError(f"confusion: labels {labels.shape}, predictions {predictions.shape}")
    cells = np.bincount(labels * n_labels + predictions, minlength=n_labels**2)
    return cells.reshape(n_labels, n_labels)                        # (K,K)


def classification(labels, log_probabilities, names):
    """labels (M,), log_probabilities (M,K), names (K,) -> dict of every figure of a report."""
    logp = np.asarray(log_probabilities, dtype=np.float64)
    labels = _class_numbers(labels, len(names), "labels")
    if len(labels) == 0:
        raise ValueError("classification: no texts to score")
    if logp.shape != (len(labels), len(names)):
        raise ValueError(f"classification: log_probabilities {logp.shape}, "
                         f"expected {(len(labels), len(names))}")
    if not (logp.max() <= 1e-2 and np.allclose(np.exp(logp).sum(axis=1), 1, rtol=0, atol=1e-2)):
        raise ValueError("classification: the rows of log_probabilities are no distributions "
                         "(logits, probabilities or NaN given?)")

    n = len(labels)
    counts = confusion(labels, logp.argmax(axis=1), len(names))     # (K,K)
    right = counts.diagonal()                                       # (K,)
    support = counts.sum(axis=1)                                    # (K,)
    precision = _ratio(right, counts.sum(axis=0))                   # (K,)
    recall = _ratio(right, support)                                 # (K,)
    f1 = _ratio(2 * right, support + counts.sum(axis=0))            # (K,)
    low, high = wilson(int(right.sum()), n)
    per_class = zip(names, precision, recall, f1, support, strict=True)
    return {
        "accuracy": float(right.sum() / n),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "weighted_f1": float(f1 @ support / n),
        "loss": float(-logp[np.arange(n), labels].mean()),
        "n": n,
        "majority": float(support.max() / n),
        "confusion": counts.tolist(),
        "per_class": [
            {"name": str(name), "precision": float(p), "recall": float(r), "f1": float(f),
             "support": int(s)}
            for name, p, r, f, s in per_class
        ],
    }


def exact_match(truths, answers):
    """M expected and M generated strings -> dict; white space at both ends does not count."""
    if len(truths) != len(answers):
        raise ValueError(f"exact_match: {len(truths)} truths, {len(answers)} answers")
    if len(truths) == 0:
        raise ValueError("exact_match: no texts to score")
    n = len(truths)
    pairs = zip(truths, answers, strict=True)
    right = sum(truth.strip() == answer.strip() for truth, answer in pairs)
    low, high = wilson(right, n)
    return {"exact_match": right / n, "exact_match_low": low, "exact_match_high": high, "n": n}


def _ratio(a, b):
    """a (K,), b (K,) -> a / b (K,), with 0/0 = 0."""
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def _class_numbers(values, n_labels, what):
    """values (M,) -> the same as int64, checked to lie in 0..n_labels-1."""
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{what}: {values.dtype} {values.shape}, expected integers (M,)")
    if values.size and not (values.min() >= 0 and values.max() < n_labels):
        raise ValueError(f"{what}: {values.min()}..{values.max()}, expected 0..{n_labels - 1}")
    return values.astype(np.int64)
