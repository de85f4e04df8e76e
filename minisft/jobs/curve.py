"""A learning curve: the same fine-tuning with several numbers of training texts and seeds.

A seed draws the texts of every size, and those of a smaller one are part of those of a larger one,
so what changes from point to point is how many texts there are.
"""

import argparse
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from minisft.data.text import parse_steps
from minisft.errors import UserError
from minisft.evaluation import comparison, plots
from minisft.evaluation.markdown import table
from minisft.io import run_folder
from minisft.io.files import replacing, write_json
from minisft.jobs import finetune as runner
from minisft.jobs import seeds
from minisft.training.config import Settings, option, require_sound
from minisft.training.defaults import with_defaults
from minisft.training.loop import Interrupted


def _sizes(text):
    """50,100,500 -> (50, 100, 500)."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 2 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers above 1 with commas "
                                         "between them, such as 50,100,500")
    return tuple(sorted({int(part) for part in parts}))


@dataclass(frozen=True)
class CurveSettings(Settings):
    """Those of fine-tuning, and the sizes."""

    sizes: tuple = option((), "numbers of training texts, such as 50,100,500; beside --resume: "
                          "more of them", type=_sizes, metavar="N,N,...")
    GROUPS: ClassVar = Settings.GROUPS | {"sizes": "the curve"}


def curve(settings, resume=None, say=print):
    """CurveSettings -> what curve.json holds; a run for each size and seed lies in the folder.

    Finished runs are read, not run again, and of each only its figures are kept. Raises UserError
    before a file is written, and train.Interrupted.
    """
    config = None if resume is None else run_folder.unfinished(resume)
    if config is not None:
        more = settings.sizes
        settings = runner.kept_run(config, resume, CurveSettings)
        settings = replace(settings, sizes=tuple(sorted({*settings.sizes, *more})))
    settings = replace(settings, compare=settings.compare or "baselines")
    _require_sizes(settings)
    files = runner.fingerprints(settings, config, resume)
    folder = Path(resume or settings.out or
                  run_folder.first_free("runs", f"{runner.run_name(settings)}-curve"))
    if resume is None:
        run_folder.require_free(folder, settings.overwrite)
    kept = {"settings": asdict(settings), "files": files, **run_folder.machine()}
    if resume is not None:
        write_json(folder / "config.json", kept)     # it may have got more sizes

    points, begun = [], resume is not None
    for size in settings.sizes:
        found = {}
        for seed in range(settings.seed, settings.seed + settings.seeds):
            say(f"{size:,} training texts, seed {seed}:")
            place = folder / f"size-{size}" / f"seed-{seed}"
            try:
                found[seed] = seeds.run_or_read(
                    _single(settings, size, seed), place, resume is not None, say,
                    (lambda: None) if begun else lambda: run_folder.start(folder, kept))
            except (Interrupted, KeyboardInterrupt):
                if not (folder / "config.json").exists():     # nothing to go on with
                    raise
                raise Interrupted(folder) from None
            run_folder.keep_figures(place)
            begun = True
        points.append({"size": size} | seeds.summary(found))
        write_json(folder / "curve.json", {"points": points})
    _write(folder, points, settings)
    say(text_table(points))
    say(f"everything is in {folder}")
    return {"points": points}


def _single(settings, size, seed):
    """-> the settings of one run of the curve."""
    values = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    return Settings(**values | {"train_texts": size, "seed": seed, "seeds": 1})


def _require_sizes(settings):
    """Raises UserError for whatever would stop a later size, before the first one begins."""
    if not settings.sizes:
        raise UserError("--sizes is missing, expected numbers of training texts such as "
                        "50,100,500")
    if settings.train is not None and settings.test is None:
        raise UserError("--test is missing, expected a file: without it every size would be scored "
                        "on other texts")
    if settings.train_texts is not None:
        raise UserError("--train-texts beside --sizes: expected --sizes alone")
    seeds.require_seeds(settings)
    for size in settings.sizes:
        single = _single(settings, size, settings.seed)
        require_sound(single)
        clean = parse_steps(with_defaults(single).clean)
        try:
            runner.TASKS[single.task](single, clean)
        except UserError as error:
            raise UserError(f"--sizes {size}: {error}") from None


def _first(points):
    """-> the figure that is drawn: accuracy, or that of completions."""
    return "accuracy" if "accuracy" in points[0] else "exact_match"


def _lines(points):
    """-> {name: [(mean, low, high) of each size]}; the model first."""
    key = _first(points)
    lines = {"the model": [_bar(p[key]) for p in points]}
    for other, words in comparison.NAMES.items():
        if all(other in p["compared"] for p in points):
            lines[words.split(",")[0]] = [_bar(p["compared"][other]["accuracy"]) for p in points]
    return lines


def _bar(mean_interval):
    return mean_interval["mean"], mean_interval["low"], mean_interval["high"]


def text_table(points):
    """-> a Markdown table: a row for each size, a column for each line of the picture."""
    lines = _lines(points)
    rows = []
    for i, point in enumerate(points):
        cells = [f"{mean:.4f}" if low is None else f"{mean:.4f} ({low:.4f} to {high:.4f})"
                 for mean, low, high in (line[i] for line in lines.values())]
        rows.append([f"{point['size']:,}", f"{len(point['seeds'])}", *cells])
    return "\n".join(table(["training texts", "seeds", *lines], rows)).rstrip()


def _write(folder, points, settings):
    """The picture and the report."""
    words = _first(points).replace("_", " ")
    plots.over_sizes([p["size"] for p in points], _lines(points), folder / "curve.png",
                     f"test {words}", f"{words} on {points[-1]['n']:,} test texts" + (
                         f"; bars: 95% interval of the mean of {settings.seeds} seeds"
                         if settings.seeds > 1 else ", one seed"))
    lines = ["# Learning curve", "", f"{words.capitalize()} on test texts"
             + (", mean over seeds with the 95% interval of that mean (Student)."
                if settings.seeds > 1 else ", one seed."), "", text_table(points), "",
             "![Learning curve](curve.png)", "",
             "A part of the texts of each size is held out for validation, and chooses "
             + ("" if settings.select == "last" else "the epoch and ")
             + "what the baselines have to choose: the model and they learn from the rest.", ""]
    for point in points:
        section = comparison.seeds_section(point["compared"])
        if section:
            lines += [f"## {point['size']:,} training texts", "", *section[2:]]
    with replacing(folder / "report.md") as file:
        file.write(("\n".join(lines).rstrip() + "\n").encode())
