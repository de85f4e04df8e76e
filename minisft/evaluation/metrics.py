"""Metrics of classifiers and of completions, with confidence intervals and tests.

Precision, recall and F1: van Rijsbergen, Information Retrieval (1979), ch. 7. Macro values are
plain means over all K classes, weighted ones are weighted by support. 0/0 counts as 0, as in
scikit-learn with `labels=range(K), zero_division=0`. All dicts hold plain Python numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

SEEDS_OF_AN_INTERVAL = 5     # fewer have a mean, and no interval of it


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """successes of n -> (low, high), the score interval of Wilson 1927 (JASA 22, 209-212).

    (1) (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = successes/n

    z: 95 % two-sided.
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


def mcnemar(labels: ArrayLike, predictions: ArrayLike,
            baseline_predictions: ArrayLike) -> dict[str, Any]:
    """labels, predictions of the model and of a baseline (M,) -> dict: on how many texts only one
    of them is right, and p.

    McNemar 1947 (Psychometrika 12, 153-157), exact: were both equally good, each of the n texts on
    which one alone is right would be a fair coin, so with k the smaller count, two-sided,
    (2) p = min(1, 2 * sum over i = 0..k of C(n, i) / 2^n)
    """
    truth, model, baseline = map(np.asarray, (labels, predictions, baseline_predictions))
    if truth.ndim != 1 or not truth.shape == model.shape == baseline.shape:
        raise ValueError(f"mcnemar: labels {truth.shape}, predictions {model.shape}, "
                         f"baseline_predictions {baseline.shape}")
    a, b = model == truth, baseline == truth
    only_model, only_baseline = int((a & ~b).sum()), int((b & ~a).sum())
    n, k = only_model + only_baseline, min(only_model, only_baseline)
    tail, term = 0, 1                              # whole numbers: no rounding however large n
    for i in range(k + 1):
        tail, term = tail + term, term * (n - i) // (i + 1)     # (2)
    return {"only_model": only_model, "only_baseline": only_baseline,
            "p": min(1.0, 2 * tail / 2**n)}


def t_critical(n: int, level: float = 0.95) -> float:
    """n degrees of freedom, level -> t with P(|T| <= t) = level.

    Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, inverted by halving the angle atan(t / sqrt(n)).
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"t_critical: {n} degrees of freedom, level {level}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, n) < level else (low, middle)
    return math.sqrt(n) * math.tan((low + high) / 2)


def _within(angle, n):
    """P(|T| <= sqrt(n) * tan(angle)), n degrees of freedom."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, 0.0) if n % 2 else (1.0, 0.0)
    for i in range(2 + n % 2, n + 1, 2):
        total, term = total + term, term * cosine * cosine * (i - 1) / i
    return (angle + sine * total) * 2 / math.pi if n % 2 else sine * total


def mean_interval(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """n values, one for each seed -> mean, sample sd (n - 1), 95% interval of the mean, n.

    (3) mean -+ t * sd / sqrt(n), t of n - 1 degrees of freedom (Student 1908)

    sd and interval are None where n is 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"mean_interval: values {values.shape}, expected (n,)")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return {"mean": mean, "sd": None, "low": None, "high": None, "n": 1}
    sd = float(values.std(ddof=1))
    half = t_critical(n - 1) * sd / math.sqrt(n)                           # (3)
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "n": n}


def over_seeds(values: Sequence[float], bounded: bool = True) -> dict[str, Any]:
    """n values, one for each seed -> as `mean_interval`, and the values themselves.

    The interval is None below SEEDS_OF_AN_INTERVAL values: t is so large there that it says
    nothing. `bounded`: the figure is a share, so the interval ends at 0 and 1.
    """
    found = mean_interval(values)
    if found["n"] < SEEDS_OF_AN_INTERVAL:
        found["low"] = found["high"] = None
    elif bounded:
        found["low"], found["high"] = max(0.0, found["low"]), min(1.0, found["high"])
    return found | {"values": [float(value) for value in values]}


def confusion(labels: ArrayLike, predictions: ArrayLike, n_labels: int) -> np.ndarray:
    """labels (M,), predictions (M,) -> counts (K,K): rows are the truth, columns the predictions.
    """
    truth = _class_indices(labels, n_labels, "labels")
    predicted = _class_indices(predictions, n_labels, "predictions")
    if truth.shape != predicted.shape:
        raise ValueError(f"confusion: labels {truth.shape}, predictions {predicted.shape}")
    cells = np.bincount(truth * n_labels + predicted, minlength=n_labels**2)
    return cells.reshape(n_labels, n_labels)                        # (K,K)


def classification(labels: ArrayLike, log_probabilities: ArrayLike,
                   names: Sequence[str]) -> dict[str, Any]:
    """labels (M,), log_probabilities (M,K), names (K,) -> dict of every figure of a report."""
    logp = np.asarray(log_probabilities, dtype=np.float64)
    truth = _class_indices(labels, len(names), "labels")
    if len(truth) == 0:
        raise ValueError("classification: no texts to score")
    if logp.shape != (len(truth), len(names)):
        raise ValueError(f"classification: log_probabilities {logp.shape}, "
                         f"expected {(len(truth), len(names))}")
    if not (logp.max() <= 1e-2 and np.allclose(np.exp(logp).sum(axis=1), 1, rtol=0, atol=1e-2)):
        raise ValueError("classification: the rows of log_probabilities are no distributions "
                         "(logits, probabilities or NaN given?)")

    n = len(truth)
    counts = confusion(truth, logp.argmax(axis=1), len(names))     # (K,K)
    correct = counts.diagonal()                                     # (K,)
    support = counts.sum(axis=1)                                    # (K,)
    precision = _ratio(correct, counts.sum(axis=0))                 # (K,)
    recall = _ratio(correct, support)                               # (K,)
    f1 = _ratio(2 * correct, support + counts.sum(axis=0))          # (K,)
    low, high = wilson(int(correct.sum()), n)
    per_class = zip(names, precision, recall, f1, support, strict=True)
    return {
        "accuracy": float(correct.sum() / n),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "weighted_f1": float(f1 @ support / n),
        "loss": float(-logp[np.arange(n), truth].mean()),
        "n": n,
        "majority": float(support.max() / n),
        "confusion": counts.tolist(),
        "per_class": [
            {"name": str(name), "precision": float(p), "recall": float(r), "f1": float(f),
             "support": int(s)}
            for name, p, r, f, s in per_class
        ],
    }


def exact_match(references: Sequence[str], completions: Sequence[str]) -> dict[str, Any]:
    """M expected and M generated strings -> dict; white space at both ends does not count."""
    if len(references) != len(completions):
        raise ValueError(f"exact_match: {len(references)} references, {len(completions)} "
                         "completions")
    if len(references) == 0:
        raise ValueError("exact_match: no texts to score")
    n = len(references)
    pairs = zip(references, completions, strict=True)
    equal = sum(reference.strip() == completion.strip() for reference, completion in pairs)
    low, high = wilson(equal, n)
    return {"exact_match": equal / n, "exact_match_low": low, "exact_match_high": high, "n": n}


def _ratio(a, b):
    """a (K,), b (K,) -> a / b (K,), with 0/0 = 0."""
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def _class_indices(values, n_labels, name):
    """values (M,) -> the same as int64, checked to lie in 0..n_labels-1."""
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{name}: {values.dtype} {values.shape}, expected integers (M,)")
    if values.size and not (values.min() >= 0 and values.max() < n_labels):
        raise ValueError(f"{name}: {values.min()}..{values.max()}, expected 0..{n_labels - 1}")
    return values.astype(np.int64)
