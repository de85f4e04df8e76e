"""The results of a run as blocks of a report, and the files they become.

Pictures are shown when they are in the folder of the report: draw them first.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minisft.evaluation import comparison, markdown, web_page
from minisft.evaluation.document import (
    Block,
    Folded,
    Heading,
    Note,
    Paragraph,
    Picture,
    Strong,
    Table,
    one_line,
)
from minisft.evaluation.figures import count, interval, percent
from minisft.io.files import write_text

_FULL_TABLE = 12      # a larger confusion matrix is listed by its largest mistakes
_SHOWN_CLASSES = 30   # of more, those with the lowest F1 are shown and the rest is folded


def write(folder: str | Path, blocks: Sequence[Block]) -> None:
    """Blocks -> report.md and report.html in the folder; a picture that is not there is left out.

    report.html holds the pictures itself, so it can be sent as it is.
    """
    folder = Path(folder)
    blocks = [block for block in blocks
              if not isinstance(block, Picture) or (folder / block.name).is_file()]
    write_text(folder / "report.md", markdown.render(blocks))
    write_text(folder / "report.html", web_page.render(blocks, folder))


@dataclass(frozen=True)
class Settings:
    """The options that count for a run: what was used, what of it was given, the defaults."""

    used: Mapping[str, Any]
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]


def classification(results: dict[str, Any], data: dict[str, Any], settings: Settings,
                   history: dict[str, Any], mistakes: Sequence[dict[str, Any]]) -> list[Block]:
    """Dicts of figures -> the report of a classifier; the keys are in the functions."""
    part, n = scored_part(data), results["n"]
    stands = comparison.verdict(results)
    return [
        Heading("Report", 1),
        Paragraph([
            Strong(percent(results["accuracy"])), f" of {count(n, f'{part} text')} are "
            "classified correctly "
            f"({interval(results['accuracy_low'], results['accuracy_high'])})"
            + (f": {stands}." if stands else ". Always answering their most frequent class would "
               f"give {percent(results['majority'])}.")]),
        *validation_warning(data),
        Table(["figure", "value"], [
            ["macro F1", percent(results["macro_f1"])],
            ["weighted F1", percent(results["weighted_f1"])],
            ["macro precision", percent(results["macro_precision"])],
            ["macro recall", percent(results["macro_recall"])],
            ["loss (nats a text)", f"{results['loss']:.4f}"],
            [f"{part} texts", f"{n:,}"],
            *cost_rows(results),
        ]),
        *_absent_classes(results),
        *comparison.report_section(results),
        Heading("Classes"),
        *classes_section(results["per_class"]),
        Heading("Confusion"),
        *confusion_section(results),
        Picture("confusion.png", "Confusion matrix"),
        Heading("The worst mistakes"),
        *mistakes_table(mistakes),
        *data_section(data),
        *learning_section(history, results),
        *settings_section(settings),
        *changes(data.get("changes") or []),
    ]


def completion(results: dict[str, Any], data: dict[str, Any], settings: Settings,
               history: dict[str, Any], samples: Sequence[dict[str, str]]) -> list[Block]:
    """Dicts of figures, samples [{prompt, expected, generated}] -> the report of prompts."""
    part, n = scored_part(data), results["n"]
    rows = [[one_line(sample[key]) for key in ("prompt", "expected", "generated")]
            for sample in samples]
    return [
        Heading("Report", 1),
        Paragraph([
            Strong(percent(results["exact_match"])), f" of {count(n, f'{part} completion')} equal "
            "the expected one word for word "
            f"({interval(results['exact_match_low'], results['exact_match_high'])}; white space "
            "at both ends does not count)."]),
        *validation_warning(data),
        Table(["figure", "value"], [
            *([["F1 of words, as SQuAD counts them", percent(results["f1"])]]
              if "f1" in results else []),
            ["loss (nats a completion token)", f"{results['loss']:.4f}"],
            ["perplexity, e^loss", f"{math.exp(min(results['loss'], 700)):.5g}"],
            [f"{part} prompts", f"{n:,}"],
            *cost_rows(results),
        ]),
        Heading("Samples"),
        Table(["prompt", "expected", "generated"], rows) if rows else Paragraph("None given."),
        *data_section(data),
        *learning_section(history, results),
        *settings_section(settings),
        *changes(data.get("changes") or []),
    ]


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
    named = ", ".join(one_line(name, 40) for name in absent[:5]) + (", ..." if n > 5 else "")
    return (f"macro F1 is the mean over all {total} classes, and counts 0 for the {n} of which "
            f"there is no text here ({named})")


def _absent_classes(results):
    note = absent_classes_note(results)
    return [] if note is None else [Note(one_line(note[0].upper() + note[1:], 1000) + ".")]


def scored_part(data):
    return "validation" if data.get("test_path") is None else "test"


def validation_warning(data):
    """A warning when the figures come from the texts on which the model was chosen."""
    if data.get("test_path") is not None:
        return []
    return [Note("There is no test set. These figures are from the validation part: whatever was "
                 "chosen by it, such as the best epoch, makes them optimistic. Expect less on new "
                 "texts.")]


def cost_rows(results):
    """train_seconds, tokens_per_second, epochs_run, best_epoch, each optional -> table rows."""
    shown = [
        ("epochs trained", "epochs_run", "{:g}"),
        ("epoch chosen", "best_epoch", "{:g}"),
        ("training time (s)", "train_seconds", "{:,.1f}"),
        ("training speed (tokens/s)", "tokens_per_second", "{:,.0f}"),
    ]
    return [[words, form.format(results[key])] for words, key, form in shown
            if results.get(key) is not None]


def classes_section(per_class):
    def table(classes):
        return Table(["class", "precision", "recall", "F1", "texts"], [
            [one_line(c["name"]), percent(c["precision"]), percent(c["recall"]), percent(c["f1"]),
             f"{c['support']:,}"] for c in classes])
    if len(per_class) <= _SHOWN_CLASSES:
        return [table(per_class)]
    return [Paragraph(f"The {_SHOWN_CLASSES} of {len(per_class)} classes with the lowest F1:"),
            table(sorted(per_class, key=lambda c: c["f1"])[:_SHOWN_CLASSES]),
            Folded("All classes", [table(per_class)])]


def confusion_section(results):
    """The matrix as a table, or the most frequent mistakes where there are too many classes."""
    counts, names = results["confusion"], [one_line(c["name"], 40) for c in results["per_class"]]
    if len(names) <= _FULL_TABLE:
        rows = [[name, *(Strong(f"{n:,}") if i == j else f"{n:,}" for j, n in enumerate(row))]
                for i, (name, row) in enumerate(zip(names, counts, strict=True))]
        return [Paragraph("Rows: the true class. Columns: the predicted one."),
                Table(["true \\ predicted", *names], rows)]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row)
             if n and i != j]
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:20]
    rows = [[names[i], names[j], f"{n:,}", percent(n / sum(counts[i]))] for n, i, j in pairs]
    if not rows:
        return [Paragraph("No text was put into a wrong class.")]
    return [Paragraph("The most frequent mistakes; the picture has all cells."),
            Table(["true class", "predicted class", "texts", "share of the true class"], rows)]


def mistakes_table(mistakes):
    if not mistakes:
        return [Paragraph("No text was classified wrongly.")]
    rows = [[f"{m['line']}", one_line(m["text"]), one_line(m["truth"], 40),
             _probability(m["p_truth"]), one_line(m["prediction"], 40),
             _probability(m["p_prediction"])] for m in mistakes]
    return [Paragraph("Wrong answers of which the model was most certain: wrong labels, texts of "
                      "two classes, or something to learn about the model."),
            Table(["line", "text", "truth", "p", "prediction", "p"], rows)]


def _probability(p):
    return percent(p) if p >= 5e-4 else "< 0.1%"


def data_section(data):
    """train_path, valid_path, test_path, n_train, n_valid, n_test, labels, ... -> section."""
    shown = [
        ("model", "model"), ("training file", "train_path"), ("validation file", "valid_path"),
        ("test file", "test_path"),
        ("training texts", "n_train"), ("validation texts", "n_valid"), ("test texts", "n_test"),
        ("rows skipped, which cannot be read", "bad_rows"), ("labels", "labels"),
        ("share of the largest class in training", "majority"),
        ("training texts cut to the longest input", "cut_train"),
        ("test texts cut to the longest input", "cut_test"),
        ("test texts that also stand in training", "shared_with_training"),
    ]
    rows = [[words, _number(data[key])] for words, key in shown if data.get(key) is not None]
    rows += [[f"texts cleaned: {one_line(step)}", _number(n)]
             for step, n in (data.get("cleaned") or {}).items()]
    blocks = [Heading("Data"), Table(["what", "value"], rows)]
    if data.get("shared_with_training"):
        blocks.append(Note("Some test texts also stand in training. The model has seen them, so "
                           "they say nothing about new texts, and the figures above are "
                           "optimistic."))
    return blocks


def learning_section(history, results):
    """One row per epoch; the training loss is the plain mean over the steps of that epoch."""
    rows = []
    for entry in history.get("epochs", []):
        accuracy = entry.get("valid_accuracy")
        valid = entry.get("valid_loss")
        rows.append([
            f"{entry['epoch']:g}" + (" (chosen)" if entry["epoch"] == results.get("best_epoch")
                                     else ""),
            f"{entry['step']:,}",
            "-" if entry.get("train_loss") is None else f"{entry['train_loss']:.4f}",
            "-" if valid is None else f"{valid:.4f}",
            "-" if accuracy is None else percent(accuracy),
        ])
    head = ["epoch", "steps", "training loss", "validation loss", "validation accuracy"]
    return [Heading("Learning"), Picture("curves.png", "Learning curves"),
            Table(head, rows) if rows else Paragraph("No epoch was completed.")]


def settings_section(settings):
    """What was given, what the model and the texts decided, and, folded, what is at its default."""
    used, given, defaults = settings.used, settings.given, settings.defaults
    unchanged = {key for key in used if key not in given
                 and key in defaults and used[key] == defaults[key]}
    parts = [("Given:", [key for key in used if key in given]),
             ("Chosen by the model and the texts:",
              [key for key in used if key not in given and key not in unchanged])]
    blocks: list[Block] = [Heading("Settings")]
    for words, keys in parts:
        if keys:
            blocks += [Paragraph(words), _setting_table(used, keys)]
    if unchanged:
        blocks.append(Folded(f"{count(len(unchanged), 'setting')} at the default",
                             [_setting_table(used, [key for key in used if key in unchanged])]))
    return blocks


def changes(changed: Sequence[dict[str, Any]]) -> list[Block]:
    """What training.changes keeps of settings that changed on the way -> blocks, none for none."""
    rows = [[f"{change['step']:,} {change['part'] and one_line(change['part'])}".strip(),
             one_line(name), _value(old), _value(new)]
            for change in changed for name, (old, new) in change["options"].items()]
    return [Paragraph("These settings changed on the way:"), Table(
        ["after step", "setting", "before", "from there on"], rows)] if rows else []


def _setting_table(used, keys):
    return Table(["setting", "value"], [[one_line(key), _value(used[key])] for key in keys])


def _value(value):
    """Any setting -> a cell."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return one_line(", ".join(value), 1000)
    if isinstance(value, str) and value and not value.strip():
        value = json.dumps(value)      # white space can be seen as "\n\n" only
    if isinstance(value, (str, Path)):
        return one_line(value, 1000)
    return one_line(json.dumps(value, default=str, ensure_ascii=False), 1000)


def _number(value):
    """A count, a share or anything else -> a cell."""
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return percent(value) if isinstance(value, float) else _value(value)
