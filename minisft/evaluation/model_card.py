"""The card of a pretrained model: where it comes from, how good it is, what it cannot do."""

import re
import shlex
from pathlib import Path

from minisft.errors import as_flag, shown
from minisft.evaluation.document import one_line
from minisft.evaluation.markdown import escape, render
from minisft.evaluation.report import changes
from minisft.io.files import write_text

# What says nothing of the model, or stands in the card by itself
OMITTED = ("source", "out", "overwrite", "quiet")

# What the Hugging Face Hub reads of a card; licence and language of the texts are not known here.
FRONT_MATTER = ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:",
                "- minisft", "- gpt2", "---", "")


def write_card(path, config, results, samples, machine, changed=()):
    """PretrainConfig, figures, texts written by the model, runs.machine(), settings that changed on
    the way -> README.md beside the weights."""
    lines = [
        *FRONT_MATTER, "# A small GPT-2, pretrained with minisft", "",
        f"{results['parameters']:,} parameters, GPT-2's architecture and file format, float16. "
        "`transformers` and `minisft` open this folder.", "",
        "## Text", "",
        *([f"- {shown(line)}" for line in config.data.source]      # Markdown, if they like
          or ["The sources were not stated when the model was trained."]), "",
        "## Held-out text", "", "| figure | value |", "| --- | ---: |",
        f"| loss (nats a token) | {results['valid_loss']:.4f} |",
        f"| perplexity | {results['valid_perplexity']:.2f} |",
        f"| bits per byte | {results['bits_per_byte']:.3f} |",
        f"| bits per byte of `xz -9e` on the same text | {results['xz_bits_per_byte']:.3f} |",
        f"| tokens seen in training | {results['tokens_seen']:,} |",
        f"| training time (s) | {results['train_seconds']:,.0f} |", "",
        "![Loss and learning rate](curves.png)", "",
        "## Settings", "", *_fenced(shown(command(config))), "",
        f"On {machine['processor']}, {machine['threads']} thread"
        f"{'s' * (str(machine['threads']) != '1')}, Python {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        + (". Settings changed on the way, so the command alone does not give this model again."
           if changed else ". The same command and seed give the same losses bit for bit where "
           "these are the same."),
        "",
        "| setting | value |", "| --- | --- |",
        *(f"| {name} | {escape(one_line(value))} |"
          for name, value in shown_options(config).items()), "",
        *([render(changes(changed))] if changed else []),
        "## Samples", "", "Written from nothing, temperature 0.8:", "",
        *(line for text in samples for line in ("> " + escape(one_line(text, 600)), "")),
        "## What it cannot do", "",
        "It is far too small to know facts or to hold a thought over a few sentences: what it "
        "writes sounds like its texts and means nothing. It has read nothing but those texts, with "
        "their age and their prejudices. It is meant to be fine-tuned as a classifier, and to be "
        "read.", ""]
    write_text(path, "\n".join(lines))


def _fenced(line):
    """-> a block of code, whatever stands in the line."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", line)), default=0))
    return [f"{fence}sh", line, fence]


def shown_options(config):
    """-> the settings that made the model; files by their names, not by where they lay."""
    values = {name: value for name, value in config.options().items() if name not in OMITTED}
    values["text"] = tuple(Path(path).name for path in config.data.text)
    values["valid"] = config.data.valid and Path(config.data.valid).name
    return values


def command(config):
    """-> the command line that gives this model again: every setting that is not its default."""
    words = ["minisft", "pretrain"]
    defaults = type(config)().options()
    for name, value in shown_options(config).items():
        if value != defaults[name]:
            words += [as_flag(name), *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)
