"""A learning curve: the same fine-tuning with several numbers of training texts and seeds.

A seed draws the texts of every size, and those of a smaller one are part of those of a larger one,
so what changes from point to point is how many texts there are.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minisft.errors import UserError, setting, tell
from minisft.evaluation import comparison, plots, report
from minisft.evaluation.document import Block, Heading, Paragraph, Picture, Table
from minisft.evaluation.figures import Verdict, count
from minisft.io import provenance, run_folder
from minisft.io.files import write_json
from minisft.jobs import finetune as runner
from minisft.jobs import seeds
from minisft.jobs.finetune import Say
from minisft.training.config import FinetuneConfig, require_sound
from minisft.training.defaults import with_defaults
from minisft.training.options import option


def _sizes(text):
    """50,100,500 -> (50, 100, 500); one of several such words."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 2 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers above 1, such as "
                                         "50 100 500")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class SizesConfig:
    """The points of the curve."""

    sizes: tuple[int, ...] = option(
        (), f"numbers of training texts, such as 50 100 500; beside {setting('resume')}: more of "
        "them", type=_sizes, nargs="+", metavar="N")


@dataclass(frozen=True)
class CurveConfig(FinetuneConfig):
    """Fine-tuning, and the sizes."""

    curve: SizesConfig = field(default_factory=SizesConfig)


def curve(config: CurveConfig, resume: str | Path | None = None, say: Say = tell) -> dict:
    """CurveConfig -> what curve.json holds; a run for each size and seed lies in the folder.

    Finished runs are read, not run again, and of each only its figures are kept. Raises UserError
    before a file is written, and loop.Interrupted.
    """
    kept = None if resume is None else run_folder.read_interrupted_run(resume)
    if kept is not None:
        more = config.curve.sizes
        config = runner.kept_config(kept, resume, CurveConfig)
        config = config.replace(sizes=sorted({*config.curve.sizes, *more}))
    _require_sizes(config)
    config = runner.with_commit(config)
    files = runner.fingerprints(config, kept, resume)
    out = resume or config.output.out
    if resume is None and out is not None:
        run_folder.check_output_folder(out, config.output.overwrite, runner.read_by(config))
    with run_folder.FolderLock(out or f"runs/{runner.run_name(config)}-curve", say,
                               unnamed=out is None) as folder:
        return _curve(config, folder, resume, files, say)


def _curve(config, folder, resume, files, say):
    if resume is not None:     # it may have got more sizes
        run_folder.write_config(folder, {**runner.record(config), "files": files,
                                         **provenance.environment()})

    first, n = config.training.seed, config.output.seeds
    planned = [seeds.PlannedRun(f"{size:,} training texts, seed {seed}:",
                                folder / f"size-{size}" / f"seed-{seed}",
                                _single(config, size, seed))
               for size in config.curve.sizes for seed in range(first, first + n)]
    points, of_seeds = [], {}
    for run, results in seeds.run_all(planned, folder, config, resume is not None, say):
        run_folder.remove_model(run.folder)
        of_seeds[run.config.training.seed] = results
        if len(of_seeds) == n:
            points.append({"size": run.config.data.train_texts} | seeds.summary(of_seeds))
            write_json(folder / "curve.json", {"points": points})
            of_seeds = {}
    run_folder.require_present(folder)
    _write(folder, points, config)
    for line in headlines(points):
        say(line)
    say(f"everything is in {folder}; open {folder / 'report.html'} first")
    return {"points": points}


def _single(config, size, seed):
    """-> the config of one run of the curve."""
    return FinetuneConfig(config.data, config.model, config.training, config.output).replace(
        train_texts=size, seed=seed, seeds=1, compare=config.output.compare or "baselines")


def _require_sizes(config):
    """Raises UserError for whatever would stop a later size, before the first one begins."""
    if not config.curve.sizes:
        raise UserError(f"{setting('sizes')} is missing, expected numbers of training texts such "
                        "as 50 100 500")
    if config.data.train is not None and config.data.test is None:
        raise UserError(f"{setting('test')} is missing, expected a file: without it every size "
                        "would be scored on other texts")
    if config.data.train_texts is not None:
        raise UserError(f"{setting('train_texts')} beside {setting('sizes')}: expected "
                        f"{setting('sizes')} alone")
    seeds.require_seeds(config)
    for size in config.curve.sizes:
        single = with_defaults(_single(config, size, config.training.seed))
        require_sound(single)
        try:
            runner.read_task(single).loss_options()
        except UserError as error:
            raise UserError(f"{setting('sizes')} {size}: {error.args[0]}") from None


def _first(points):
    """-> the figure that is drawn: accuracy, or that of completions or translations."""
    return next(key for key in ("accuracy", "exact_match", "bleu", "loss") if key in points[0])


def _lines(points):
    """-> {name: [what `metrics.over_seeds` gave of each size]}; the model first."""
    each = [seeds.figures_by_name(_first(points), point) for point in points]
    return {name: [found[name] for found in each] for name in each[0]
            if all(name in found for found in each)}


def headlines(points: Sequence[dict]) -> list[str]:
    """-> lines for the terminal: the largest size, then a line for each size."""
    lines, last = _lines(points), points[-1]
    key = _first(points)
    words = seeds.FIGURES[key]
    stands = comparison.seeds_verdict(last["compared"])
    shown: list[str] = [Verdict(
        f"{seeds.cell(key, last[key]['mean'])} {words} with "
        f"{count(last['size'], 'training text')}" + (f"; {stands}" if stands else ""))]
    shown.append(f"{words} on {count(last['n'], 'test text')} by number of training texts, mean of "
                 f"{count(len(last['seeds']), 'seed')}:")
    for name, found in lines.items():
        shown.append(f"  {name:41}" + "".join(f"{seeds.cell(key, each['mean']):>9}"
                                              for each in found))
    head = "".join(f"{point['size']:>9,}" for point in points)
    return [*shown[:2], f"  {'':41}{head}", *shown[2:]]


def table(points: Sequence[dict]) -> Table:
    """-> a row for each size, a column for each line of the picture."""
    lines, key = _lines(points), _first(points)
    rows = []
    for i, point in enumerate(points):
        cells = [seeds.cell(key, each["mean"]) if each["low"] is None else
                 "{} ({} to {})".format(*(seeds.cell(key, each[k]) for k in ("mean", "low",
                                                                             "high")))
                 for each in (line[i] for line in lines.values())]
        rows.append([f"{point['size']:,}", f"{len(point['seeds'])}", *cells])
    return Table(["training texts", "seeds", *lines], rows)


def _write(folder, points, config):
    """The picture and the report."""
    key, n = _first(points), config.output.seeds
    words = seeds.FIGURES[key]
    enough = points[0][key]["low"] is not None
    spread = ("one seed" if n == 1 else
              f"mean of {n} seeds, with the 95% interval of that mean" if enough else
              f"mean of {n} seeds, each a dot")
    plots.over_sizes([p["size"] for p in points], _lines(points), folder / "curve.png",
                     f"test {words}", f"{words} on {count(points[-1]['n'], 'test text')}; {spread}",
                     key not in (*seeds.SCORES, "loss"))
    chosen = (["the epoch"] * (config.training.select != "last")
              + ["what the baselines have to choose"] * bool(points[0]["compared"]))
    blocks: list[Block] = [
        Heading("Learning curve", 1),
        Paragraph(f"{words[0].upper()}{words[1:]} on test texts, {spread}{' (Student)' * enough}."),
        table(points), Picture("curve.png", "Learning curve"),
        Paragraph("A part of the texts of each size is held out for validation"
                  + ", and chooses " * bool(chosen) + " and ".join(chosen)
                  + ": the model and the baselines learn from the rest.")]
    for point in points:
        section = comparison.seeds_report_section(point["compared"])
        if section:
            blocks += [Heading(f"{point['size']:,} training texts"), *section[1:]]
    report.write(folder, blocks)
