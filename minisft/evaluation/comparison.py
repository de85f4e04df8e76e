"""The comparison of the model with its baselines on the same texts, in sentences and as a table.

Each entry of the results under a key of NAMES holds accuracy with interval, macro F1, and under
"mcnemar" the result of `metrics.mcnemar` for the model and that baseline.
"""

from collections.abc import Sequence
from typing import Any

from minisft.evaluation.document import Block, Heading, Paragraph, Table
from minisft.evaluation.figures import count, p_value, percent
from minisft.evaluation.metrics import over_seeds

NAMES = {"random_weights": "the same architecture from random weights",
         "naive_bayes": "naive Bayes, which only counts words",
         "tfidf": "TF-IDF with logistic regression",
         "majority_class": "the most frequent class in training"}
SIGNIFICANCE = 0.05     # a p below it is called a real difference
NO_DIFFERENCE = "no clear difference"


def skipped_message(reason: str) -> str:
    """-> the message for a baseline that could not be fitted."""
    return f"{NAMES['tfidf']} is left out: {reason}"


def short(name: str) -> str:
    """A value of NAMES -> what stands before its comma."""
    return name.split(",")[0]


def measured_baselines(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """-> (name in words, figures) of each baseline in the results, in the order of NAMES."""
    return [(name, results[key]) for key, name in NAMES.items() if results.get(key)]


def verdict(results: dict[str, Any]) -> str:
    """-> how the model stands to its baselines, in a clause; empty where none was measured."""
    outcomes: dict[str, list] = {}
    for name, baseline in measured_baselines(results):
        if "mcnemar" in baseline:
            outcomes.setdefault(outcome(baseline["mcnemar"]), []).append((name, baseline))
    for found, words in (("worse", "clearly worse than"), (NO_DIFFERENCE, f"{NO_DIFFERENCE} to"),
                         ("better", "clearly better than")):
        if found in outcomes:
            name, baseline = max(outcomes[found], key=lambda pair: pair[1]["accuracy"])
            best = percent(baseline["accuracy"])
            n = len(outcomes[found])
            return (f"{words} all {n} baselines (the best: {best})" if found == "better" and n > 1
                    else f"{words} {short(name)}, {best}")
    return ""


def terminal_lines(results: dict[str, Any]) -> list[str]:
    """-> lines for the terminal: the baselines in a table, and what was left out."""
    found = measured_baselines(results)
    lines = []
    if found:
        lines.append("on the same texts (right here alone : right there alone, McNemar's test):")
    width = max((len(short(name)) for name, _ in found), default=0)
    for name, baseline in found:
        line = f"  {short(name):{width}}  {percent(baseline['accuracy']):>6}"
        if "mcnemar" in baseline:
            test = baseline["mcnemar"]
            line += (f"  {_stands(test)} ({test['only_model']} : {test['only_baseline']}, "
                     f"p {_sign(test['p'])})")
        lines.append(line)
    if results.get("left_out"):
        lines.append(results["left_out"])
    return lines


def report_section(results: dict[str, Any]) -> list[Block]:
    """-> blocks of the report: how many texts only one of the two got right, McNemar's test."""
    tested = [(name, baseline) for name, baseline in measured_baselines(results)
              if "mcnemar" in baseline]
    if not tested:
        return []
    rows = [[name, percent(baseline["accuracy"]), percent(baseline["macro_f1"]),
             f"{baseline['mcnemar']['only_model']:,}", f"{baseline['mcnemar']['only_baseline']:,}",
             p_value(baseline["mcnemar"]["p"]), outcome(baseline["mcnemar"])]
            for name, baseline in tested]
    head = ["compared with", "accuracy", "macro F1", "only the model right", "only it right",
            "McNemar p", "the model is"]
    blocks: list[Block] = [
        Heading("Compared on the same texts"), Table(head, rows),
        Paragraph("McNemar's exact test: were both equally good, p is how often so lopsided "
                  f"counts would come by chance. Below {SIGNIFICANCE} the difference is called "
                  "clear.")]
    if results.get("left_out"):
        blocks.append(Paragraph(results["left_out"] + "."))
    return blocks + _random_weights_settings(results.get("random_weights"))


def aggregate_seeds(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results of n seeds -> {key: mean accuracy, in how many the model is better and worse, p}."""
    compared = {}
    for key in NAMES:
        baselines = [r[key] for r in results if r.get(key)]
        if not baselines:
            continue
        tests = [b["mcnemar"] for b in baselines]
        compared[key] = {
            "accuracy": over_seeds([b["accuracy"] for b in baselines]),
            "macro_f1": over_seeds([b["macro_f1"] for b in baselines]),
            "better": sum(outcome(t) == "better" for t in tests),
            "worse": sum(outcome(t) == "worse" for t in tests), "n": len(tests),
            "p": [t["p"] for t in tests]}
    return compared


def seeds_verdict(compared: dict[str, dict[str, Any]]) -> str:
    """What `aggregate_seeds` gave -> as `verdict`: against the best baseline of them all."""
    if not compared:
        return ""
    key = max(compared, key=lambda key: compared[key]["accuracy"]["mean"])
    best = compared[key]
    return (f"against {short(NAMES[key])}, {percent(best['accuracy']['mean'])}: clearly better in "
            f"{best['better']}, worse in {best['worse']} of {count(best['n'], 'seed')}")


def seeds_terminal_lines(compared: dict[str, dict[str, Any]]) -> list[str]:
    """What `aggregate_seeds` gave -> lines for the terminal."""
    if not compared:
        return []
    width = max(len(short(NAMES[key])) for key in compared)
    return ["on the same texts (in how many seeds the model is clearly better, worse):"] + [
        f"  {short(NAMES[key]):{width}}  {percent(c['accuracy']['mean']):>6}  better in "
        f"{c['better']} of {c['n']}, worse in {c['worse']} (largest p {_sign(max(c['p']))})"
        for key, c in compared.items()]


def seeds_report_section(compared: dict[str, dict[str, Any]]) -> list[Block]:
    """What `aggregate_seeds` gave -> blocks of the report."""
    if not compared:
        return []
    rows = [[NAMES[key], percent(c["accuracy"]["mean"]), percent(c["macro_f1"]["mean"]),
             f"{c['better']}", f"{c['worse']}", p_value(max(c["p"]))]
            for key, c in compared.items()]
    return [Heading("Compared on the same texts"),
            Table(["compared with", "mean accuracy", "mean macro F1", "seeds in which the model "
                   "is clearly better", "seeds in which it is clearly worse",
                   "largest McNemar p"], rows),
            Paragraph(f"Clearly: McNemar's exact test, p below {SIGNIFICANCE}.")]


def outcome(test: dict[str, Any]) -> str:
    """What `metrics.mcnemar` gave -> "better", "worse", or that there is no clear difference."""
    if test["p"] >= SIGNIFICANCE:
        return NO_DIFFERENCE
    return "better" if test["only_model"] > test["only_baseline"] else "worse"


def _stands(test):
    found = outcome(test)
    return found if found == NO_DIFFERENCE else f"the model is {found}"


def _sign(p):
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def _random_weights_settings(figures):
    """The settings with which the model from random weights was trained."""
    if not figures or "epochs_run" not in figures:
        return []
    return [Paragraph(
        "The random weights were trained on the same texts by the recipe that suits them: "
        f"highest rate {figures['lr']:.2g}, dropout {figures['dropout']:g}, "
        f"{figures['epochs_run']} of at most {figures['epochs']} epochs, of which the "
        f"validation part chose number {figures['best_epoch']}.")]
