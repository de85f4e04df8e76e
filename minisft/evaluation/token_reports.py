"""The reports of models with a head over tokens: tags of words, answers to questions."""

from collections.abc import Sequence
from typing import Any

from minisft.evaluation.document import Block, Heading, Paragraph, Picture, Strong, Table, one_line
from minisft.evaluation.figures import count, interval, percent
from minisft.evaluation.report import (
    Settings,
    changes,
    classes_section,
    confusion_section,
    cost_rows,
    data_section,
    learning_section,
    mistakes_table,
    scored_part,
    settings_section,
    validation_warning,
)


def tagging(results: dict[str, Any], data: dict[str, Any], settings: Settings,
            history: dict[str, Any], mistakes: Sequence[dict[str, Any]]) -> list[Block]:
    """Dicts of figures -> the report of a tagger."""
    part = scored_part(data)
    rows = [["macro F1", percent(results["macro_f1"])],
            ["loss (nats a word)", f"{results['loss']:.4f}"],
            [f"{part} words", f"{results['n']:,}"],
            [f"{part} sentences", f"{results['n_sentences']:,}"],
            ["sentences right as a whole", percent(results["whole_sentences"])],
            *cost_rows(results)]
    blocks: list[Block] = [
        Heading("Report", 1),
        Paragraph([
            Strong(percent(results["accuracy"])), f" of {count(results['n'], f'{part} word')} are "
            f"tagged right ({interval(results['accuracy_low'], results['accuracy_high'])}; the "
            "sentences are what is counted, since words of one are right or wrong together)."]),
        *validation_warning(data), Table(["figure", "value"], rows)]
    if baseline := results.get("most_frequent_tag"):
        blocks += [Heading("Comparison"), Paragraph(
            f"The tag that each word had most often in training gives "
            f"{percent(baseline['accuracy'])}; {better_by(baseline)}.")]
    if entities := results.get("entities"):
        blocks += [Heading("Entities"), Paragraph(
            "An entity counts where its type, beginning and end are right, as in CoNLL 2003."),
            Table(["type", "precision", "recall", "F1", "entities"], [
                [one_line(row["name"]), percent(row["precision"]), percent(row["recall"]),
                 percent(row["f1"]), f"{row['entities']:,}"]
                for row in [*entities["per_type"], {"name": "all", **entities}]])]
    return [*blocks, Heading("Tags"), *classes_section(results["per_class"]),
            Heading("Confusion"), *confusion_section(results),
            Picture("confusion.png", "Confusion matrix"), Heading("The worst mistakes"),
            *mistakes_table(mistakes), *data_section(data), *learning_section(history, results),
            *settings_section(settings), *changes(data.get("changes") or [])]


def better_by(baseline: dict[str, Any]) -> str:
    """-> how the model stands to a baseline of words, with the interval of the difference."""
    points = [100 * baseline[key] for key in ("better_by", "better_low", "better_high")]
    sides = "" if points[1] <= 0 <= points[2] else "clearly "
    way = "better" if points[0] >= 0 else "worse"
    low, high = sorted(map(abs, points[1:])) if sides else (points[1], points[2])
    return (f"the model is {sides}{way}, by {abs(points[0]):.1f} points (95% interval {low:.1f} to "
            f"{high:.1f})")


def answering(results: dict[str, Any], data: dict[str, Any], settings: Settings,
              history: dict[str, Any], samples: Sequence[dict[str, str]]) -> list[Block]:
    """Dicts of figures, samples [{question, expected, answer}] -> the report of answers."""
    part = scored_part(data)
    kinds = [(words, results[key]) for key, words in (
        ("has_answer", "questions with an answer"), ("no_answer", "questions without"))
        if key in results]
    rows = [["always no answer", percent(results["always_empty"])],
            ["loss (nats a window)", f"{results['loss']:.4f}"],
            [f"{part} questions", f"{results['n']:,}"], ["articles", f"{results['articles']:,}"],
            *([["no answer below a margin of (nats)", f"{results['threshold']:.2f}"]]
              if results["threshold"] is not None else []), *cost_rows(results)]
    if "sliding_window" in results:
        rows.insert(1, ["sliding window, questions with an answer",
                        percent(results["sliding_window"]["f1"])])
    return [
        Heading("Report", 1),
        Paragraph([
            "F1 ", Strong(percent(results["f1"])), f" over {count(results['n'], 'question')} "
            f"({interval(results['f1_low'], results['f1_high'])}, by articles), "
            f"{percent(results['exact_match'])} match exactly, as SQuAD's evaluation counts."]),
        *validation_warning(data),
        Table(["questions", "number", "exact match", "F1", "95% interval of F1"], [
            [words, f"{kind['n']:,}", percent(kind["exact_match"]), percent(kind["f1"]),
             f"{percent(kind['f1_low'])} to {percent(kind['f1_high'])}"] for words, kind in kinds]),
        Table(["figure", "value"], rows),
        Heading("The worst mistakes"),
        Table(["question", "expected", "answer"], [
            [one_line(sample[key]) for key in ("question", "expected", "answer")]
            for sample in samples]) if samples else Paragraph("None."),
        *data_section(data), *learning_section(history, results),
        *settings_section(settings), *changes(data.get("changes") or [])]
