"""Fine-tuning with several seeds: a run for each, and how far chance moves the figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minisft.errors import UserError, setting
from minisft.evaluation import comparison, metrics
from minisft.evaluation.markdown import table
from minisft.io import run_folder
from minisft.io.files import write_text
from minisft.jobs import finetune as runner
from minisft.jobs.finetune import Say
from minisft.training.config import FinetuneConfig, require_sound
from minisft.training.loop import Interrupted

# What is averaged, as far as the task has it
FIGURES = {"accuracy": "accuracy", "macro_f1": "macro F1", "exact_match": "exact match",
           "loss": "loss"}
KEPT = (*FIGURES, "n", "best_epoch", "train_seconds", *comparison.NAMES)
OPTIMISTIC = ("> There is no test set. Each seed is scored on the validation part that it drew: "
              "whatever was chosen by it, such as the best epoch, makes the figures optimistic.")


@dataclass(frozen=True)
class PlannedRun:
    """One of several runs: what the terminal calls it, its folder, its config."""

    title: str
    folder: Path
    config: FinetuneConfig


def finetune(config: FinetuneConfig, resume: str | Path | None = None, say: Say = print) -> dict:
    """Config -> results; with more than one seed, the folder holds a run for each.

    Raises as `finetune.finetune`, which does the work, and is all of it for one seed.
    """
    kept = None if resume is None else run_folder.read_interrupted_run(resume)
    if kept is not None:
        config = runner.kept_config(kept, resume)
    if config.output.seeds == 1:
        return runner.finetune(config, resume, say)
    require_seeds(config)
    require_sound(config)
    if resume is None and config.output.out is not None:
        run_folder.check_output_folder(config.output.out, config.output.overwrite)
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
        planned, folder, config.options(), resume, say)}
    results = summary(of_seeds) | {"scored_on": scored_on(config)}
    _write_report(folder / "report.md", of_seeds, results)
    run_folder.require_present(folder)
    run_folder.write_results(folder, results)
    say("\n".join(headlines(results)))
    say(f"everything is in {folder}")
    return results


def require_seeds(config: FinetuneConfig) -> None:
    """Raises UserError when the last seed is none."""
    seed, seeds = config.training.seed, config.output.seeds
    if seed + seeds > 2**32:
        raise UserError(f"{setting('seeds')} is {seeds} with {setting('seed')} {seed}, expected "
                        f"the last one below {2**32}")


def run_all(planned: Sequence[PlannedRun], folder: Path, options: dict, resume: bool,
            say: Say) -> Iterator[tuple[PlannedRun, dict]]:
    """Runs one after the other, but reads those that have finished; -> each with its results.

    config.json, with these options, is written into the folder of all once the checks of the first
    run have passed. Raises UserError, and loop.Interrupted with the folder of all.
    """
    for run in planned:
        say(run.title)
        try:
            begins = not resume and run is planned[0]
            results = _run_or_read(run, resume, (folder, options) if begins else None, say)
        except (Interrupted, KeyboardInterrupt):
            if not (folder / "config.json").exists():     # nothing to go on with
                raise
            raise Interrupted(folder) from None
        yield run, results


def _run_or_read(run, resume, begin, say):
    """-> results of one run: read where it has ended, gone on with where it has begun.

    begin: the folder of all and its options, before the first run, or None.
    """
    if resume and (run.folder / run_folder.RESULTS).exists():
        say(f"{run.folder} is finished")
        return run_folder.read_results(run.folder)
    if resume and (run.folder / "config.json").exists():
        return runner.finetune(run.config, run.folder, say)
    # without config.json a resumed run's folder holds at most the part of a file
    ready = runner.prepare(run.config.replace(
        out=str(run.folder), overwrite=run.config.output.overwrite or resume), None, say)
    if begin is not None:
        folder, options = begin
        run_folder.create(folder, {"settings": options, "files": ready.files,
                                   **run_folder.environment()})
    return runner.run(ready, say)


def scored_on(config: FinetuneConfig) -> str:
    """-> "test", or "validation" where there is no test set."""
    return "validation" if config.data.train and not config.data.test else "test"


def summary(of_seeds: Mapping[int, dict]) -> dict:
    """{seed: results} -> mean, spread and interval of each figure, and what was compared."""
    results = list(of_seeds.values())
    return {"seeds": list(of_seeds), "n": results[0]["n"]} | {
        key: metrics.mean_interval([r[key] for r in results])
        for key in FIGURES if all(key in r for r in results)} | {
        "compared": comparison.aggregate_seeds(results),
        "runs": [{"seed": seed} | {key: r[key] for key in KEPT if key in r}
                 for seed, r in of_seeds.items()]}


def headlines(results: dict) -> list[str]:
    """What `summary` gave -> lines for the terminal."""
    seeds = results["seeds"]
    lines = [f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}, on {results['n']:,} "
             f"{results['scored_on']} texts:"]
    for key, name in FIGURES.items():
        if key in results:
            s = results[key]
            lines.append(f"{name} {s['mean']:.4f}, standard deviation {s['sd']:.4f}, 95% interval "
                         f"of the mean {s['low']:.4f} to {s['high']:.4f}")
    return lines + comparison.seeds_terminal_lines(results["compared"])


def _write_report(path, of_seeds, results):
    shown = [key for key in FIGURES if key in results]
    over = [[FIGURES[key], *(f"{results[key][k]:.4f}" for k in ("mean", "sd", "low", "high"))]
            for key in shown]
    each = [[f"[{run['seed']}](seed-{run['seed']}/report.md)",
             *(f"{run[key]:.4f}" for key in shown), f"{run['best_epoch']}",
             f"{run['train_seconds']:,.1f}"] for run in results["runs"]]
    lines = [
        "# Report", "",
        f"{len(of_seeds)} seeds, scored on {results['n']:,} {results['scored_on']} texts.", "",
        *([OPTIMISTIC, ""] if results["scored_on"] == "validation" else []),
        *table(["figure", "mean", "standard deviation", "95% from", "to"], over),
        "The interval is Student's, of the mean over seeds: a seed draws the new head, the order "
        "of the texts, dropout and the part held out for validation. How far the choice of the "
        "scored texts moves a figure is another matter: each seed's report has that interval.", "",
        *comparison.seeds_report_section(results["compared"]),
        "## Seeds", "",
        *table(["seed", *(FIGURES[key] for key in shown), "epoch chosen", "training time (s)"],
               each),
        "The settings stand in each seed's report."]
    write_text(path, "\n".join(lines) + "\n")
