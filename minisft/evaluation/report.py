"""The results of a run as Markdown: `report.md`, with `curves.png` and `confusion.png`.

Texts and names come from the user's data and may hold anything, so every one of them passes
`escape`. Pictures are linked when they are in the folder of the report: draw them first.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minisft.evaluation import comparison
from minisft.evaluation.markdown import escape as escape
from minisft.evaluation.markdown import table
from minisft.io.files import write_text

_FULL_TABLE = 12      # a larger confusion matrix is listed by its largest mistakes


def write_report(path: str | Path, results: dict[str, Any], data: dict[str, Any],
                 settings: dict[str, Any], history: dict[str, Any],
                 mistakes: Sequence[dict[str, Any]]) -> None:
    """Classification: dicts of figures -> report.md at `path`; the keys are in the functions."""
    part, n = _scored_part(data), results["n"]
    lines = [
        "# Report",
        "",
        f"**{results['accuracy']:.2%}** of {n:,} {part} texts are classified correctly "
        f"(95% interval {results['accuracy_low']:.2%} to {results['accuracy_high']:.2%}). "
        f"Always answering their most frequent class would give {results['majority']:.2%}."
        + comparison.report_sentences(results),
        "",
        *_validation_warning(data),
        *table(["figure", "value"], [
            ["macro F1", f"{results['macro_f1']:.4f}"],
            ["weighted F1", f"{results['weighted_f1']:.4f}"],
            ["macro precision", f"{results['macro_precision']:.4f}"],
            ["macro recall", f"{results['macro_recall']:.4f}"],
            ["loss (nats a text)", f"{results['loss']:.4f}"],
            [f"{part} texts", f"{n:,}"],
            *_cost(results),
        ]),
        *_absent_classes(results),
        *comparison.report_section(results),
        "## Classes",
        "",
        *table(["class", "precision", "recall", "F1", "texts"], [
            [escape(c["name"]), f"{c['precision']:.4f}", f"{c['recall']:.4f}", f"{c['f1']:.4f}",
             f"{c['support']:,}"] for c in results["per_class"]
        ]),
        "## Confusion",
        "",
        *_confusion(results),
        *_picture(path, "confusion.png", "Confusion matrix"),
        "## The worst mistakes",
        "",
        *_mistakes(mistakes),
        *_data(data),
        *_learning(path, history, results),
        *_settings(settings),
    ]
    _write(path, lines)


def write_completion_report(path: str | Path, results: dict[str, Any], data: dict[str, Any],
                            settings: dict[str, Any], history: dict[str, Any],
                            samples: Sequence[dict[str, str]]) -> None:
    """Prompt/completion: dicts of figures, samples [{prompt, expected, generated}] -> report.md."""
    part, n = _scored_part(data), results["n"]
    rows = [[escape(sample[key]) for key in ("prompt", "expected", "generated")]
            for sample in samples]
    lines = [
        "# Report",
        "",
        f"**{results['exact_match']:.2%}** of {n:,} {part} completions equal the expected one "
        f"word for word (95% interval {results['exact_match_low']:.2%} to "
        f"{results['exact_match_high']:.2%}; white space at both ends does not count).",
        "",
        *_validation_warning(data),
        *table(["figure", "value"], [
            ["loss (nats a completion token)", f"{results['loss']:.4f}"],
            ["perplexity, e^loss", f"{math.exp(min(results['loss'], 700)):.5g}"],
            [f"{part} prompts", f"{n:,}"],
            *_cost(results),
        ]),
        "## Samples",
        "",
        *(table(["prompt", "expected", "generated"], rows) if rows else ["None given.", ""]),
        *_data(data),
        *_learning(path, history, results),
        *_settings(settings),
    ]
    _write(path, lines)


def worst_mistakes(texts: Sequence[str], lines: Sequence[int], labels: ArrayLike,
                   log_probabilities: ArrayLike, names: Sequence[str],
                   k: int = 10) -> list[dict[str, Any]]:
    """texts, lines, labels (M,), log_probabilities (M,K) -> the k most confident wrong predictions.

    Worst first, each {text, line, truth, prediction, p_truth, p_prediction}; ties in file order.
    """
    logp = np.asarray(log_probabilities, dtype=np.float64)          # (M,K)
    truth = np.asarray(labels)
    if not len(texts) == len(lines) == len(truth) == len(logp):
        raise ValueError(f"worst_mistakes: {len(texts)} texts, {len(lines)} lines, "
                         f"{len(truth)} labels, {len(logp)} rows of log_probabilities")
    predictions = logp.argmax(axis=1)                               # (M,)
    wrong = np.flatnonzero(predictions != truth)
    worst = wrong[np.argsort(-logp[wrong, predictions[wrong]], kind="stable")][:k]
    return [
        {
            "text": texts[i],
            "line": int(lines[i]),
            "truth": names[truth[i]],
            "prediction": names[predictions[i]],
            "p_truth": float(np.exp(logp[i, truth[i]])),
            "p_prediction": float(np.exp(logp[i, predictions[i]])),
        }
        for i in worst
    ]


def absent_classes_note(results: dict[str, Any]) -> str | None:
    """Figures of a classifier -> a sentence on the classes that the scored texts lack, or None."""
    absent = [row["name"] for row in results["per_class"] if row["support"] == 0]
    if not absent:
        return None
    n, total = len(absent), len(results["per_class"])
    named = ", ".join(absent[:5]) + (", ..." if n > 5 else "")
    return (f"macro F1 is the mean over all {total} classes, and counts 0 for the {n} of which "
            f"there is no text here ({named})")


def _absent_classes(results):
    note = absent_classes_note(results)
    return [] if note is None else [f"> {escape(note[0].upper() + note[1:])}.", ""]


def _scored_part(data):
    return "validation" if data.get("test_path") is None else "test"


def _validation_warning(data):
    """A warning when the figures come from the texts on which the model was chosen."""
    if data.get("test_path") is not None:
        return []
    return ["> There is no test set. These figures are from the validation part: whatever was "
            "chosen by it, such as the best epoch, makes them optimistic. Expect less on new "
            "texts.", ""]


def _cost(results):
    """train_seconds, tokens_per_second, epochs_run, best_epoch, each optional -> table rows."""
    shown = [
        ("epochs trained", "epochs_run", "{:g}"),
        ("epoch chosen", "best_epoch", "{:g}"),
        ("training time (s)", "train_seconds", "{:,.1f}"),
        ("training speed (tokens/s)", "tokens_per_second", "{:,.0f}"),
    ]
    return [[words, form.format(results[key])] for words, key, form in shown
            if results.get(key) is not None]


def _confusion(results):
    """The matrix as a table, or the most frequent mistakes where there are too many classes."""
    counts, names = results["confusion"], [escape(c["name"], 40) for c in results["per_class"]]
    if len(names) <= _FULL_TABLE:
        rows = [[name, *(f"**{count:,}**" if i == j else f"{count:,}"
                         for j, count in enumerate(row))]
                for i, (name, row) in enumerate(zip(names, counts, strict=True))]
        return ["Rows: the true class. Columns: the predicted one.", "",
                *table(["true \\ predicted", *names], rows)]
    pairs = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row)
             if count and i != j]
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:20]
    rows = [[names[i], names[j], f"{count:,}", f"{count / sum(counts[i]):.1%}"]
            for count, i, j in pairs]
    if not rows:
        return ["No text was put into a wrong class.", ""]
    return ["The most frequent mistakes; the picture has all cells.", "",
            *table(["true class", "predicted class", "texts", "share of the true class"], rows)]


def _mistakes(mistakes):
    if not mistakes:
        return ["No text was classified wrongly.", ""]
    rows = [[f"{m['line']}", escape(m["truth"], 40), _probability(m["p_truth"]),
             escape(m["prediction"], 40), _probability(m["p_prediction"]), escape(m["text"])]
            for m in mistakes]
    return ["Wrong answers of which the model was most certain: wrong labels, texts of two "
            "classes, or something to learn about the model.", "",
            *table(["line", "truth", "p", "prediction", "p", "text"], rows)]


def _probability(p):
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.1e}"


def _data(data):
    """train_path, test_path, n_train, n_valid, n_test, labels, cut_*, cleaned, ... -> section."""
    shown = [
        ("training file", "train_path"), ("test file", "test_path"),
        ("training texts", "n_train"), ("validation texts", "n_valid"), ("test texts", "n_test"),
        ("rows skipped, which cannot be read", "bad_rows"), ("labels", "labels"),
        ("share of the largest class in training", "majority"),
        ("training texts cut to the longest input", "cut_train"),
        ("test texts cut to the longest input", "cut_test"),
        ("test texts that also stand in training", "shared_with_training"),
    ]
    rows = [[words, _number(data[key])] for words, key in shown if data.get(key) is not None]
    rows += [[f"texts cleaned: {escape(step)}", _number(count)]
             for step, count in (data.get("cleaned") or {}).items()]
    lines = ["## Data", "", *table(["what", "value"], rows)]
    if data.get("shared_with_training"):
        lines += ["> Some test texts also stand in training. The model has seen them, so they say "
                  "nothing about new texts, and the figures above are optimistic.", ""]
    return lines


def _learning(path, history, results):
    """One row per epoch; the training loss is the plain mean over the steps of that epoch."""
    lines, rows = ["## Learning", ""], []
    for entry in history.get("epochs", []):
        accuracy = entry.get("valid_accuracy")
        valid = entry.get("valid_loss")
        rows.append([
            f"{entry['epoch']:g}" + (" (chosen)" if entry["epoch"] == results.get("best_epoch")
                                     else ""),
            f"{entry['step']:,}",
            "-" if entry.get("train_loss") is None else f"{entry['train_loss']:.4f}",
            "-" if valid is None else f"{valid:.4f}",
            "-" if accuracy is None else f"{accuracy:.2%}",
        ])
    head = ["epoch", "steps", "training loss", "validation loss", "validation accuracy"]
    lines += table(head, rows) if rows else ["No epoch was completed.", ""]
    return lines + _picture(path, "curves.png", "Learning curves")


def _settings(settings):
    rows = [[escape(key), _value(value)] for key, value in settings.items()]
    return ["## Settings", "", *table(["setting", "value"], rows)]


def _value(value):
    """Any setting -> escaped cell."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return escape(", ".join(value), 1000)
    if isinstance(value, str) and value and not value.strip():
        value = json.dumps(value)      # white space can be seen as "\n\n" only
    if isinstance(value, (str, Path)):
        return escape(value, 1000)
    return escape(json.dumps(value, default=str, ensure_ascii=False), 1000)


def _number(value):
    """A count, a share or anything else -> escaped cell."""
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return f"{value:.2%}" if isinstance(value, float) else _value(value)


def _picture(path, name, words):
    return [f"![{words}]({name})", ""] if (Path(path).parent / name).is_file() else []


def _write(path, lines):
    text = "\n".join(lines).rstrip("\n") + "\n"
    write_text(path, text)
