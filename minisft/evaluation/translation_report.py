"""The report of a translator."""

from collections.abc import Sequence
from typing import Any

from minisft.evaluation.document import (
    Block,
    Heading,
    Note,
    Paragraph,
    Picture,
    Strong,
    Table,
    one_line,
)
from minisft.evaluation.figures import count, percent
from minisft.evaluation.report import (
    Settings,
    changes,
    cost_rows,
    data_section,
    learning_section,
    scored_part,
    settings_section,
    validation_warning,
)
from minisft.evaluation.translation import MISSING

NO_BLEU = MISSING
BASELINES = {"word_for_word": "a dictionary, word for word (IBM model 1)",
             "copied_source": "the source as it is"}


def blocks(results: dict[str, Any], data: dict[str, Any], settings: Settings,
           history: dict[str, Any], first: Sequence[dict[str, str]],
           worst: Sequence[dict[str, str]]) -> list[Block]:
    """Dicts of figures, translations {line, source, expected, translation, score} -> report."""
    part = scored_part(data)
    rows = [["loss (nats a token)", f"{results['loss']:.4f}"],
            ["perplexity, e^loss", f"{results['perplexity']:.5g}"],
            ["tokens right where those before are", percent(results["token_accuracy"])],
            [f"{part} texts", f"{results['n']:,}"], ["beam", f"{results['beam_size']}"],
            *cost_rows(results)]
    verdict: list[Block]
    if "bleu" in results:
        rows = [["chrF", f"{results['chrf']:.1f}"], ["BLEU is", results["bleu_signature"]],
                ["chrF is", results["chrf_signature"]], *rows]
        verdict = [Paragraph([
            "BLEU ", Strong(f"{results['bleu']:.1f}"), f" on {count(results['n'], f'{part} text')} "
            f"(95% interval {results['bleu_low']:.1f} to {results['bleu_high']:.1f}, by "
            "sentences), cased and not tokenised, as sacrebleu counts it."])]
    else:
        verdict = [Paragraph([
            Strong(percent(results["token_accuracy"])), f" of {count(results['tokens'], 'token')} "
            "are right where those before are."]), Note(NO_BLEU + ".")]
    compared = [[words, f"{found['bleu']:.1f}", f"{found['better_by']:.1f} "
                 f"({found['better_low']:.1f} to {found['better_high']:.1f})"]
                for key, words in BASELINES.items() if (found := results.get(key))]
    return [
        Heading("Report", 1), *verdict, *validation_warning(data), Table(["figure", "value"], rows),
        *([Heading("Comparison"), Table(
            ["in place of the model", "BLEU", "the model is better by (95% interval)"], compared)]
          if compared else []),
        Heading("Translations"), _texts(first),
        Heading("The worst mistakes"),
        Paragraph("Those that share fewest characters with what was expected; a translation may "
                  "be right all the same."),
        _texts(worst, "score"),
        Picture("attention.png", "Where each token of a translation looks in its source"),
        *data_section(data), *learning_section(history, results),
        *settings_section(settings), *changes(data.get("changes") or [])]


def _texts(rows, *more):
    keys = ("line", "source", "expected", "translation", *more)
    return Table(keys, [[one_line(row[key]) for key in keys] for row in rows])
