"""What was measured beside the model on the same texts, told in words and as a table.

Each entry of the results under a key of NAMES holds accuracy with interval, macro F1, and under
"mcnemar" what `metrics.mcnemar` says of the model and it.
"""

from minisft.evaluation.markdown import table
from minisft.evaluation.metrics import mean_interval

NAMES = {"random_weights": "the same architecture from random weights",
         "naive_bayes": "naive Bayes, which only counts words",
         "tfidf": "TF-IDF with logistic regression",
         "majority_class": "the most frequent class of the training texts"}
CHANCE = 0.05     # a difference is called larger than chance below it


def left_out(why):
    """-> what is said where a baseline cannot be had."""
    return f"{NAMES['tfidf']} is left out: {why}"


def found_in(results):
    """-> (words, what was measured) of each in the results, in the order of NAMES."""
    return [(name, results[key]) for key, name in NAMES.items() if results.get(key)]


def verdict(test):
    """McNemar's counts and p -> a clause."""
    where = (f"{test['only_ours']} texts right here alone, {test['only_theirs']} there alone, "
             f"McNemar p = {test['p']:.2g}")
    if test["p"] >= CHANCE:
        return f"no larger difference than chance gives ({where})"
    better = "better" if test["only_ours"] > test["only_theirs"] else "worse"
    return f"the model is {better}, by more than chance gives ({where})"


def headlines(results):
    """-> lines for the terminal."""
    lines = []
    for name, other in found_in(results):
        lines.append(f"for scale, {name} on the same texts: accuracy {other['accuracy']:.4f} (95% "
                     f"interval {other['accuracy_low']:.4f} to {other['accuracy_high']:.4f}), "
                     f"macro F1 {other['macro_f1']:.4f}")
        if "mcnemar" in other:
            lines.append(f"  {verdict(other['mcnemar'])}")
    if results.get("left_out"):
        lines.append(results["left_out"])
    return lines


def sentences(results):
    """-> a sentence for each, for the head of the report."""
    return "".join(
        f" {name[0].upper()}{name[1:]}: {found['accuracy']:.2%} (95% interval "
        f"{found['accuracy_low']:.2%} to {found['accuracy_high']:.2%})."
        for name, found in found_in(results))


def section(results):
    """-> lines of the report: who was right where the other was not, and how that reads."""
    tested = [(name, found) for name, found in found_in(results) if "mcnemar" in found]
    if not tested:
        return []
    rows = [[name, f"{found['accuracy']:.2%}", f"{found['macro_f1']:.4f}",
             f"{found['mcnemar']['only_ours']:,}", f"{found['mcnemar']['only_theirs']:,}",
             f"{found['mcnemar']['p']:.2g}", _short(found["mcnemar"])] for name, found in tested]
    head = ["compared with", "accuracy", "macro F1", "only the model right", "only it right",
            "McNemar p", "the model is"]
    lines = ["## Compared on the same texts", "", *table(head, rows),
             f"McNemar's exact test: were both equally good, p is how often so lopsided counts "
             f"would come by chance. Below {CHANCE} the difference is called real.", ""]
    if results.get("left_out"):
        lines += [results["left_out"] + ".", ""]
    return lines + _recipe(results.get("random_weights"))


def over_seeds(results):
    """Results of n seeds -> {key: mean accuracy, in how many the model is better and worse, p}."""
    found = {}
    for key in NAMES:
        others = [r[key] for r in results if r.get(key)]
        if not others:
            continue
        tests = [o["mcnemar"] for o in others]
        found[key] = {
            "accuracy": mean_interval([o["accuracy"] for o in others]),
            "macro_f1": mean_interval([o["macro_f1"] for o in others]),
            "better": sum(_short(t) == "better" for t in tests),
            "worse": sum(_short(t) == "worse" for t in tests), "n": len(tests),
            "p": [t["p"] for t in tests]}
    return found


def seeds_headlines(compared):
    """What `over_seeds` found -> lines for the terminal."""
    return [f"for scale, {NAMES[key]}: mean accuracy {found['accuracy']['mean']:.4f}; the model is "
            f"better by more than chance in {found['better']} of {found['n']} seeds, worse in "
            f"{found['worse']} (largest McNemar p {max(found['p']):.2g})"
            for key, found in compared.items()]


def seeds_section(compared):
    """What `over_seeds` found -> lines of the report."""
    if not compared:
        return []
    rows = [[NAMES[key], f"{found['accuracy']['mean']:.2%}", f"{found['macro_f1']['mean']:.4f}",
             f"{found['better']}", f"{found['worse']}", f"{max(found['p']):.2g}"]
            for key, found in compared.items()]
    return ["## Compared on the same texts", "",
            *table(["compared with", "mean accuracy", "mean macro F1", "seeds in which the model "
                    "is better", "seeds in which it is worse", "largest McNemar p"], rows),
            f"Better and worse by more than chance: McNemar's exact test, p below {CHANCE}.", ""]


def _short(test):
    if test["p"] >= CHANCE:
        return "neither"
    return "better" if test["only_ours"] > test["only_theirs"] else "worse"


def _recipe(found):
    """What --compare random did."""
    if not found or "epochs_run" not in found:
        return []
    return ["The random weights were trained on the same texts by the recipe that suits them: "
            f"highest rate {found['lr']:.2g}, dropout {found['dropout']:g}, "
            f"{found['epochs_run']} of at most {found['epochs']} epochs, of which the validation "
            f"part chose number {found['best_epoch']}.", ""]
