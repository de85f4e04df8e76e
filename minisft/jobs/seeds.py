"""Fine-tuning with several seeds: a run for each, and how far chance moves the figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from minisft.errors import DivergedError, UserError, setting, tell
from minisft.evaluation import comparison, metrics, plots, report, translation_report
from minisft.evaluation.document import Heading, Link, Note, Paragraph, Picture, Strong, Table
from minisft.evaluation.figures import Use, Verdict, count, percent
from minisft.io import provenance, run_folder
from minisft.jobs import finetune as runner
from minisft.jobs.finetune import Say
from minisft.training.config import FinetuneConfig, require_sound
from minisft.training.loop import Interrupted

# What is averaged, as far as the task has it
FIGURES = {"bleu": "BLEU", "chrf": "chrF", "accuracy": "accuracy", "macro_f1": "macro F1",
           "exact_match": "exact match", "f1": "F1", "loss": "loss"}
SCORES = ("bleu", "chrf")     # from 0 to 100, and not told in per cent
# What other tasks than classification compare the model with, and by which figure
BASELINES = {"most_frequent_tag": ("each word's most frequent tag", "accuracy"),
             **{key: (words, "bleu") for key, words in translation_report.BASELINES.items()}}
KEPT = (*FIGURES, "n", "best_epoch", "train_seconds", *comparison.NAMES, *BASELINES)
NOT_COMPARABLE = "runs that are compared have the same options"
OPTIMISTIC = ("There is no test set. Each seed is scored on the validation part that it drew: "
              "whatever was chosen by it, such as the best epoch, makes the figures optimistic.")


@dataclass(frozen=True)
class PlannedRun:
    """One of several runs: what the terminal calls it, its folder, its config."""

    title: str
    folder: Path
    config: FinetuneConfig


def finetune(config: FinetuneConfig, resume: str | Path | None = None, say: Say = tell,
             changes: Mapping[str, Any] | None = None) -> dict:
    """Config -> results; with more than one seed, the folder holds a run for each.

    Raises as `finetune.finetune`, which does the work, and is all of it for one seed; of several
    none may change its options.
    """
    kept = None if resume is None else run_folder.read_interrupted_run(resume)
    if kept is not None:
        config = runner.kept_config(kept, resume)
    if config.output.seeds == 1:
        return runner.finetune(config, resume, say, changes)
    for name in changes or ():
        raise UserError(f"{setting(name)} beside {setting('resume')}: {NOT_COMPARABLE}")
    require_seeds(config)
    require_sound(config)
    config = runner.with_commit(config)
    if resume is None and config.output.out is not None:
        run_folder.check_output_folder(config.output.out, config.output.overwrite,
                                       runner.read_by(config))
    if kept is not None:
        runner.fingerprints(config, kept, resume)
    out = resume or config.output.out
    with run_folder.FolderLock(out or Path("runs") / runner.run_name(config), say,
                               unnamed=out is None) as folder:
        return _finetune(config, folder, resume is not None, say)


def _finetune(config, folder, resume, say):
    first, n = config.training.seed, config.output.seeds
    planned = [PlannedRun(f"seed {seed}, {seed - first + 1} of {n}:", folder / f"seed-{seed}",
                          config.replace(seeds=1, seed=seed)) for seed in range(first, first + n)]
    of_seeds = {run.config.training.seed: results for run, results in run_all(
        planned, folder, config, resume, say)}
    results = summary(of_seeds) | {"scored_on": scored_on(config)}
    _write_report(folder, results)
    run_folder.require_present(folder)
    run_folder.write_results(folder, results)
    for line in headlines(results):
        say(line)
    say(f"everything is in {folder}; open {folder / 'report.html'} first")
    say(Use(folder / f"seed-{first}" / "model", config.data.task,
            config.data.pair_column is not None))
    return results


def require_seeds(config: FinetuneConfig) -> None:
    """Raises UserError when the last seed is none."""
    seed, seeds = config.training.seed, config.output.seeds
    if seed + seeds > 2**32:
        raise UserError(f"{setting('seeds')} is {seeds} with {setting('seed')} {seed}, expected "
                        f"the last one below {2**32}")


def run_all(planned: Sequence[PlannedRun], folder: Path, config: FinetuneConfig, resume: bool,
            say: Say) -> Iterator[tuple[PlannedRun, dict]]:
    """Runs one after the other, but reads those that have finished; -> each with its results.

    config.json, of this config, is written into the folder of all once the checks of the first
    run have passed. Raises UserError, and loop.Interrupted with the folder of all.
    """
    tell = _told_once(say)
    for run in planned:
        say(run.title)
        try:
            begins = not resume and run is planned[0]
            results = _run_or_read(run, resume, (folder, config) if begins else None, tell)
        except (Interrupted, KeyboardInterrupt):
            if not (folder / "config.json").exists():     # nothing to go on with
                raise
            raise Interrupted(folder) from None
        except DivergedError as error:
            raise error.and_also(f"this was {run.title} {NOT_COMPARABLE}: start anew with "
                                 f"{setting('overwrite')} or another {setting('out')}") from None
        yield run, results


def _told_once(say):
    """-> say, but for a line that it has said before: runs of one kind begin alike."""
    told = set()

    def tell(line):
        if line not in told or isinstance(line, Verdict):
            told.add(line)
            say(line)
    return tell


def _run_or_read(run, resume, begin, tell):
    """-> results of one run: read where it has ended, gone on with where it has begun.

    begin: the folder of all and its config, before the first run, or None.
    """
    if resume and (run.folder / run_folder.RESULTS).exists():
        tell(f"{run.folder} is finished")
        if not run.config.output.keep_state:      # it may have died before that was done
            run_folder.remove_state(run.folder)
        return _sound(run_folder.read_results(run.folder), run.folder / run_folder.RESULTS)
    if resume and (run.folder / "config.json").exists():
        return runner.run(runner.prepare(run.config, run.folder, tell), tell, of_several=True)
    # without config.json a resumed run's folder holds at most the part of a file
    ready = runner.prepare(run.config.replace(
        out=str(run.folder), overwrite=run.config.output.overwrite or resume), None, tell)
    if begin is not None:
        folder, config = begin
        run_folder.create(folder, {**runner.record(config), "files": ready.files,
                                   **provenance.environment()})
    return runner.run(ready, tell, of_several=True)


def _sound(results, path):
    """-> results, once what is averaged has its type: a checksum says not who wrote the file."""
    def is_number(value):
        return type(value) in (int, float) and isfinite(value)

    def is_count(value):
        return type(value) is int and 0 <= value < 2**53

    def is_baseline(value):
        test = value.get("mcnemar") if isinstance(value, dict) else None
        return isinstance(test, dict) and all(map(is_number, (
            value.get("accuracy"), value.get("macro_f1"), test.get("p")))) and all(
            map(is_count, (test.get("only_model"), test.get("only_baseline"))))

    sound = dict.fromkeys(FIGURES, is_number) | {
        "n": is_count, "best_epoch": is_count, "train_seconds": is_number}
    wrong = [key for key, right in sound.items() if key in results and not right(results[key])]
    wrong += [key for key in ("n", "best_epoch", "train_seconds") if key not in results]
    wrong += [key for key in comparison.NAMES if results.get(key) and not is_baseline(results[key])]
    wrong += [key for key, (_, figure) in BASELINES.items() if key in results and not (
        isinstance(results[key], dict) and is_number(results[key].get(figure)))]
    if wrong or not results.keys() & FIGURES.keys():
        raise UserError(f"{path}: is not what a run writes: {', '.join(wrong or FIGURES)}; remove "
                        f"it and the run is finished once more by {setting('resume')}")
    return results


def scored_on(config: FinetuneConfig) -> str:
    """-> "test", or "validation" where there is no test set."""
    return "validation" if config.data.train and not config.data.test else "test"


def summary(of_seeds: Mapping[int, dict]) -> dict:
    """{seed: results} -> mean, spread and interval of each figure, and what was compared."""
    results = list(of_seeds.values())
    return {"seeds": list(of_seeds), "n": results[0]["n"]} | {
        key: metrics.over_seeds([r[key] for r in results], bounded=key not in ("loss", *SCORES))
        for key in FIGURES if all(key in r for r in results)} | {
        "compared": comparison.aggregate_seeds(results),
        "baselines": {key: metrics.over_seeds([r[key][figure] for r in results],
                                              bounded=figure not in SCORES)
                      for key, (_, figure) in BASELINES.items() if all(key in r for r in results)},
        "runs": [{"seed": seed} | {key: r[key] for key in KEPT if key in r}
                 for seed, r in of_seeds.items()]}


def headlines(results: dict) -> list[str]:
    """What `summary` gave -> lines for the terminal, the verdict first."""
    shown = [key for key in FIGURES if key in results]
    stands = comparison.seeds_verdict(results["compared"])
    lines: list[str] = [Verdict(
        f"{cell(shown[0], results[shown[0]]['mean'])} {FIGURES[shown[0]]}, mean of "
        f"{count(len(results['seeds']), 'seed')} on "
        f"{count(results['n'], results['scored_on'] + ' text')}")]
    if stands:
        lines.append(Verdict(f"  {stands}"))
    for key in shown:
        lines.append(f"  {FIGURES[key]}: {_spread(key, results[key])}")
    for key, found in results["baselines"].items():
        words, figure = BASELINES[key]
        lines.append(f"  {words}: {FIGURES[figure]} {_spread(figure, found)}")
    return lines + comparison.seeds_terminal_lines(results["compared"])


def _spread(key, figure):
    """-> the interval of the mean, or the values where they are too few for one."""
    if figure["low"] is None:
        return ", ".join(cell(key, value) for value in figure["values"])
    spread = f"mean {cell(key, figure['mean'])}, standard deviation {cell(key, figure['sd'])}, "
    return spread + f"95% interval {cell(key, figure['low'])} to {cell(key, figure['high'])}"


def cell(key: str, value: float | None) -> str:
    """A figure's key and value -> how it is told."""
    if value is None:
        return "-"
    return f"{value:.4f}" if key == "loss" else f"{value:.1f}" if key in SCORES else percent(value)


def _write_report(folder, results):
    shown = [key for key in FIGURES if key in results]
    enough = results[shown[0]]["low"] is not None
    stands = comparison.seeds_verdict(results["compared"])
    columns = ("mean", "sd", "low", "high") if enough else ("mean",)
    over = [[FIGURES[key], *(cell(key, results[key][k]) for k in columns)] for key in shown]
    each = [[Link(f"{run['seed']}", f"seed-{run['seed']}/report"),
             *(cell(key, run[key]) for key in shown), f"{run['best_epoch']}",
             f"{run['train_seconds']:,.1f}"] for run in results["runs"]]
    plots.over_seeds(figures_by_name(shown[0], results), folder / "seeds.png",
                     f"{results['scored_on']} {FIGURES[shown[0]]}", shown[0] not in SCORES)
    report.write(folder, [
        Heading("Report", 1),
        Paragraph([Strong(cell(shown[0], results[shown[0]]["mean"])),
                   f" {FIGURES[shown[0]]}, mean of {count(len(results['runs']), 'seed')} on "
                   f"{count(results['n'], results['scored_on'] + ' text')}"
                   f"{'; ' * bool(stands)}{stands}."]),
        *([Note(OPTIMISTIC)] if results["scored_on"] == "validation" else []),
        Table(["figure", "mean", "standard deviation", "95% from", "to"][:1 + len(columns)], over),
        Paragraph(("The interval is Student's, of the mean over seeds" if enough else
                   f"Fewer than {metrics.SEEDS_OF_AN_INTERVAL} seeds have a mean and no interval "
                   "of it") + ": a seed draws the new head, the order of the texts, dropout and "
                  "the part held out for validation. How far the choice of the scored texts moves "
                  "a figure is another matter: each seed's report has that interval."),
        Picture("seeds.png", "Each seed's figure, of the model and of what it is compared with"),
        *comparison.seeds_report_section(results["compared"]),
        Heading("Seeds"),
        Table(["seed", *(FIGURES[key] for key in shown), "epoch chosen", "training time (s)"],
              each),
        Paragraph("The settings stand in each seed's report.")])


def figures_by_name(key: str, results: dict) -> dict[str, dict]:
    """The first figure's key, what `summary` gave -> {name: what `metrics.over_seeds` gave}, the
    model first."""
    return {"the model": results[key]} | {
        comparison.short(comparison.NAMES[other]): found["accuracy"]
        for other, found in results["compared"].items()} | {
        BASELINES[other][0]: found for other, found in results["baselines"].items()}
