"""Figures of an evaluation against hand-computed cases and scikit-learn."""

import itertools
import json
import math

import numpy as np
import pytest

from minisft.evaluation import metrics

NAMES = ["a", "b", "c"]


def log_probabilities(predictions, k, p=0.7):
    """predictions (M,) -> (M,K) with p on the prediction, the rest shared."""
    rest = (1 - p) / (k - 1)
    return np.log(np.where(np.arange(k) == np.array(predictions)[:, None], p, rest))


def test_confusion_by_hand():
    counts = metrics.confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert metrics.confusion([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_classification_by_hand():
    got = metrics.classification([0, 0, 1, 2, 2, 2], log_probabilities([0, 1, 1, 2, 0, 2], 3),
                                 NAMES)
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["majority"] == 0.5 and got["n"] == 6
    precision, recall = [1 / 2, 1 / 2, 1], [1 / 2, 1, 2 / 3]
    f1 = [1 / 2, 2 / 3, 4 / 5]
    assert [c["precision"] for c in got["per_class"]] == pytest.approx(precision)
    assert [c["recall"] for c in got["per_class"]] == pytest.approx(recall)
    assert [c["f1"] for c in got["per_class"]] == pytest.approx(f1)
    assert [c["support"] for c in got["per_class"]] == [2, 1, 3]
    assert [c["name"] for c in got["per_class"]] == NAMES
    assert got["macro_precision"] == pytest.approx(np.mean(precision))
    assert got["macro_recall"] == pytest.approx(np.mean(recall))
    assert got["macro_f1"] == pytest.approx(np.mean(f1))
    assert got["weighted_f1"] == pytest.approx((2 * f1[0] + f1[1] + 3 * f1[2]) / 6)
    assert got["loss"] == pytest.approx(-(4 * math.log(0.7) + 2 * math.log(0.15)) / 6)
    assert (got["accuracy_low"], got["accuracy_high"]) == metrics.wilson(4, 6)


def test_a_class_never_predicted_and_one_never_true_count_as_zero():
    got = metrics.classification([0, 1, 1], log_probabilities([0, 0, 0], 3), NAMES)
    assert got["per_class"][1] == {"name": "b", "precision": 0, "recall": 0, "f1": 0, "support": 2}
    assert got["per_class"][2] == {"name": "c", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert got["macro_f1"] == pytest.approx((2 * (1 / 3) / (4 / 3)) / 3)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("m", [1, 7])
def test_all_right_and_all_wrong(k, m):
    labels = np.arange(m) % k
    names = [str(i) for i in range(k)]
    right = metrics.classification(labels, log_probabilities(labels, k), names)
    assert right["accuracy"] == right["weighted_f1"] == right["accuracy_high"] == 1
    assert 0 < right["accuracy_low"] < 1
    wrong = metrics.classification(labels, log_probabilities((labels + 1) % k, k), names)
    assert wrong["accuracy"] == wrong["macro_f1"] == wrong["accuracy_low"] == 0
    assert 0 < wrong["accuracy_high"] < 1


def test_everything_is_plain_python_and_float32_is_welcome():
    logp = log_probabilities([0, 1], 2).astype(np.float32)
    got = metrics.classification(np.array([0, 1], dtype=np.int32), logp, np.array(["x", "y"]))
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert isinstance(metrics.wilson(np.int64(1), 3)[0], float)


@pytest.mark.parametrize("labels, logp, message", [
    ([], np.zeros((0, 2)), "no texts"),
    ([0, 1], log_probabilities([0], 2), "expected"),
    ([0, 2], log_probabilities([0, 1], 2), "0..2, expected 0..1"),
    ([-1, 0], log_probabilities([0, 1], 2), "expected 0..1"),
    ([0.0, 1.0], log_probabilities([0, 1], 2), "expected integers"),
    ([0, 1], np.exp(log_probabilities([0, 1], 2)), "no distributions"),
    ([0, 1], np.array([[-3.0, -4.0], [-5.0, -1.0]]), "no distributions"),
    ([0, 1], np.full((2, 2), np.nan), "no distributions"),
    ([0, 1], np.full((2, 2), 1e4), "no distributions"),
])
def test_wrong_input_is_refused(labels, logp, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification(labels, logp, ["x", "y"])


def test_wilson_published_values():
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3."""
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605),
                 (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (successes, n), interval in published.items():
        assert metrics.wilson(successes, n) == pytest.approx(interval, abs=5e-5)


def test_wilson_at_the_ends():
    z2 = 1.959963984540054**2
    for n in (1, 3, 7600, 10**9):
        low, high = metrics.wilson(0, n)
        assert low == 0.0 and high == pytest.approx(z2 / (n + z2))
        low, high = metrics.wilson(n, n)
        assert high == 1.0 and low == pytest.approx(n / (n + z2))
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        metrics.wilson(3, 2)


def test_exact_match():
    got = metrics.exact_match(["yes", " no", "Yes", ""], ["yes\n", "no", "yes", " "])
    assert got["exact_match"] == 0.75 and got["n"] == 4
    assert (got["exact_match_low"], got["exact_match_high"]) == metrics.wilson(3, 4)
    for truths, answers in ([], []), (["a"], []):
        with pytest.raises(ValueError, match="exact_match"):
            metrics.exact_match(truths, answers)


@pytest.mark.parity
@pytest.mark.parametrize("m, k", [(1, 2), (9, 2), (50, 7), (3000, 20)])
def test_classification_matches_scikit_learn(m, k, rng):
    sk = pytest.importorskip("sklearn.metrics")
    labels = rng.integers(k, size=m)
    logits = 3 * rng.standard_normal((m, k)) + 3 * (labels[:, None] == np.arange(k))
    logits[:, k - 1] -= 20    # never predicted
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    answers = logp.argmax(axis=1)
    got = metrics.classification(labels, logp, [str(i) for i in range(k)])
    options = {"labels": range(k), "zero_division": 0}
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, answers, **options)
    assert [c["precision"] for c in got["per_class"]] == pytest.approx(precision)
    assert [c["recall"] for c in got["per_class"]] == pytest.approx(recall)
    assert [c["f1"] for c in got["per_class"]] == pytest.approx(f1)
    assert [c["support"] for c in got["per_class"]] == support.tolist()
    for average in ("macro", "weighted"):
        f1 = sk.f1_score(labels, answers, average=average, **options)
        assert got[f"{average}_f1"] == pytest.approx(f1)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, answers))
    assert got["loss"] == pytest.approx(sk.log_loss(labels, np.exp(logp), labels=range(k)))
    assert got["confusion"] == sk.confusion_matrix(labels, answers, labels=range(k)).tolist()


def test_mcnemar_counts_every_outcome():
    """The slow twin tosses all 2^n coins and counts the outcomes at least as lopsided."""
    labels = np.zeros(14, dtype=int)
    for only_model, only_baseline in [(0, 0), (1, 0), (0, 5), (3, 3), (7, 2), (1, 8)]:
        n = only_model + only_baseline
        ours, theirs = np.ones(14, dtype=int), np.ones(14, dtype=int)
        ours[:only_model], theirs[only_model:n] = 0, 0
        ours[n:n + 2] = theirs[n:n + 2] = 0              # both right: says nothing
        found = metrics.mcnemar(labels, ours, theirs)
        assert (found["only_model"], found["only_baseline"]) == (only_model, only_baseline)
        lopsided = abs(only_model - only_baseline)
        heads = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        assert found["p"] == pytest.approx(
            sum(abs(2 * h - n) >= lopsided for h in heads) / 2**n, rel=1e-12)


def test_mcnemar_known_values_and_large_counts():
    # 5 of 5 coins: 2 / 32; 2 of 12: 2 * (1 + 12 + 66) / 4096
    def p(a, b):
        return metrics.mcnemar(np.zeros(a + b), np.r_[np.zeros(a), np.ones(b)],
                               np.r_[np.ones(a), np.zeros(b)])["p"]
    assert p(5, 0) == 0.0625 and p(2, 10) == 158 / 4096 and p(0, 0) == p(4, 4) == p(4, 5) == 1
    assert p(3000, 3000) == 1 and 0 < p(0, 1000) < 1e-300 and p(9000, 0) == 0
    # many coins are nearly normal: (|a - b| - 1) / sqrt(a + b) = 2 standard deviations
    assert p(5101, 4900) == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=2e-3)
    with pytest.raises(ValueError, match="baseline_predictions"):
        metrics.mcnemar([0, 1], [0, 1], [0])


def test_t_critical_against_the_printed_table():
    # Abramowitz and Stegun, table 26.10, column A = 0.95; and the normal limit
    for n, t in [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262),
                 (10, 2.228), (30, 2.042), (120, 1.980)]:
        assert metrics.t_critical(n) == pytest.approx(t, abs=6e-4)
    assert metrics.t_critical(100_000) == pytest.approx(1.95996, abs=1e-4)
    assert metrics.t_critical(4, 0.99) == pytest.approx(4.604, abs=6e-4)
    with pytest.raises(ValueError):
        metrics.t_critical(0)


def test_mean_interval_by_hand():
    found = metrics.mean_interval([0.8, 0.9, 1.0])
    assert (found["mean"], found["sd"]) == pytest.approx((0.9, 0.1))
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found["low"], found["high"]) == pytest.approx((0.9 - half, 0.9 + half), abs=1e-6)
    assert metrics.mean_interval([0.5]) == {"mean": 0.5, "sd": None, "low": None, "high": None,
                                            "n": 1}
    with pytest.raises(ValueError):
        metrics.mean_interval([])


def test_the_interval_of_the_seeds_holds_the_mean_as_often_as_it_says(rng):
    held = 0
    for _ in range(4000):
        found = metrics.mean_interval(rng.normal(0.3, 0.05, 3))
        held += found["low"] <= 0.3 <= found["high"]
    assert 0.94 < held / 4000 < 0.96


def test_log_loss_of_scikit_learn():
    """Equal, but theirs raises a probability near 0, and ours has no bound."""
    sk = pytest.importorskip("sklearn.metrics")
    logits = np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 300.0]])
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for dtype, bound in (np.float64, 2.2e-16), (np.float32, 1.2e-7):
        p = np.exp(logp).astype(dtype)
        ours = metrics.classification([1, 0], logp[:2], ["a", "b"])["loss"]
        assert ours == pytest.approx(sk.log_loss([1, 0], p[:2], labels=[0, 1]), rel=1e-6)
        ours = metrics.classification([0], logp[2:], ["a", "b"])["loss"]
        theirs = sk.log_loss([0], p[2:], labels=[0, 1])
        assert ours == pytest.approx(300) and theirs == pytest.approx(-np.log(bound), rel=0.01)
