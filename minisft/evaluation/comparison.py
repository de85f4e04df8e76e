"""The comparison of the model with its baselines on the same texts, in sentences and as a table.

Each entry of the results under a key of NAMES holds accuracy with interval, macro F1, and under
"mcnemar" the result of `metrics.mcnemar` for the model and that baseline.
"""

from collections.abc import Sequence
from typing import Any

from minisft.evaluation.markdown import table
from minisft.evaluation.metrics import mean_interval

NAMES = {"random_weights": "the same architecture from random weights",
         "naive_bayes": "naive Bayes, which only counts words",
         "tfidf": "TF-IDF with logistic regression",
         "majority_class": "the most frequent class of the training texts"}
SIGNIFICANCE = 0.05     # a p below it is called a real difference


def skipped_message(reason: str) -> str:
    """-> the message for a baseline that could not be fitted."""
    return f"{NAMES['tfidf']} is left out: {reason}"


def measured_baselines(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """-> (name in words, figures) of each baseline in the results, in the order of NAMES."""
    return [(name, results[key]) for key, name in NAMES.items() if results.get(key)]


def describe_mcnemar(test: dict[str, Any]) -> str:
    """McNemar's counts and p -> a clause."""
    counts = (f"{test['only_model']} texts right here alone, {test['only_baseline']} there alone, "
              f"McNemar p = {test['p']:.2g}")
    if test["p"] >= SIGNIFICANCE:
        return f"no larger difference than chance gives ({counts})"
    return f"the model is {_better_or_worse(test)}, by more than chance gives ({counts})"


def terminal_lines(results: dict[str, Any]) -> list[str]:
    """-> lines for the terminal."""
    lines = []
    for name, baseline in measured_baselines(results):
        lines.append(f"for scale, {name} on the same texts: accuracy {baseline['accuracy']:.4f} "
                     f"(95% interval {baseline['accuracy_low']:.4f} to "
                     f"{baseline['accuracy_high']:.4f}), macro F1 {baseline['macro_f1']:.4f}")
        if "mcnemar" in baseline:
            lines.append(f"  {describe_mcnemar(baseline['mcnemar'])}")
    if results.get("left_out"):
        lines.append(results["left_out"])
    return lines


def report_sentences(results: dict[str, Any]) -> str:
    """-> a sentence for each baseline, for the head of the report."""
    return "".join(
        f" {name[0].upper()}{name[1:]}: {baseline['accuracy']:.2%} (95% interval "
        f"{baseline['accuracy_low']:.2%} to {baseline['accuracy_high']:.2%})."
        for name, baseline in measured_baselines(results))


def report_section(results: dict[str, Any]) -> list[str]:
    """-> lines of the report: how many texts only one of the two got right, and McNemar's test."""
    tested = [(name, baseline) for name, baseline in measured_baselines(results)
              if "mcnemar" in baseline]
    if not tested:
        return []
    rows = [[name, f"{baseline['accuracy']:.2%}", f"{baseline['macro_f1']:.4f}",
             f"{baseline['mcnemar']['only_model']:,}", f"{baseline['mcnemar']['only_baseline']:,}",
             f"{baseline['mcnemar']['p']:.2g}", _better_or_worse(baseline["mcnemar"])]
            for name, baseline in tested]
    head = ["compared with", "accuracy", "macro F1", "only the model right", "only it right",
            "McNemar p", "the model is"]
    lines = ["## Compared on the same texts", "", *table(head, rows),
             f"McNemar's exact test: were both equally good, p is how often so lopsided counts "
             f"would come by chance. Below {SIGNIFICANCE} the difference is called real.", ""]
    if results.get("left_out"):
        lines += [results["left_out"] + ".", ""]
    return lines + _random_weights_settings(results.get("random_weights"))


def aggregate_seeds(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results of n seeds -> {key: mean accuracy, in how many the model is better and worse, p}."""
    compared = {}
    for key in NAMES:
        baselines = [r[key] for r in results if r.get(key)]
        if not baselines:
            continue
        tests = [b["mcnemar"] for b in baselines]
        compared[key] = {
            "accuracy": mean_interval([b["accuracy"] for b in baselines]),
            "macro_f1": mean_interval([b["macro_f1"] for b in baselines]),
            "better": sum(_better_or_worse(t) == "better" for t in tests),
            "worse": sum(_better_or_worse(t) == "worse" for t in tests), "n": len(tests),
            "p": [t["p"] for t in tests]}
    return compared


def seeds_terminal_lines(compared: dict[str, dict[str, Any]]) -> list[str]:
    """The dict of `over_seeds` -> lines for the terminal."""
    return [f"for scale, {NAMES[key]}: mean accuracy {c['accuracy']['mean']:.4f}; the model is "
            f"better by more than chance in {c['better']} of {c['n']} seeds, worse in "
            f"{c['worse']} (largest McNemar p {max(c['p']):.2g})"
            for key, c in compared.items()]


def seeds_report_section(compared: dict[str, dict[str, Any]]) -> list[str]:
    """The dict of `over_seeds` -> lines of the report."""
    if not compared:
        return []
    rows = [[NAMES[key], f"{c['accuracy']['mean']:.2%}", f"{c['macro_f1']['mean']:.4f}",
             f"{c['better']}", f"{c['worse']}", f"{max(c['p']):.2g}"]
            for key, c in compared.items()]
    return ["## Compared on the same texts", "",
            *table(["compared with", "mean accuracy", "mean macro F1", "seeds in which the model "
                    "is better", "seeds in which it is worse", "largest McNemar p"], rows),
            f"Better and worse by more than chance: McNemar's exact test, p below {SIGNIFICANCE}.",
            ""]


def _better_or_worse(test):
    if test["p"] >= SIGNIFICANCE:
        return "neither"
    return "better" if test["only_model"] > test["only_baseline"] else "worse"


def _random_weights_settings(figures):
    """The settings with which the model from random weights was trained."""
    if not figures or "epochs_run" not in figures:
        return []
    return ["The random weights were trained on the same texts by the recipe that suits them: "
            f"highest rate {figures['lr']:.2g}, dropout {figures['dropout']:g}, "
            f"{figures['epochs_run']} of at most {figures['epochs']} epochs, of which the "
            f"validation part chose number {figures['best_epoch']}.", ""]
