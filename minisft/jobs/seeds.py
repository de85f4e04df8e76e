"""Fine-tuning with several seeds: a run for each, and how far chance moves the figures."""

from dataclasses import asdict, replace
from pathlib import Path

from minisft.errors import UserError
from minisft.evaluation import comparison, metrics
from minisft.evaluation.markdown import table
from minisft.io import run_folder
from minisft.io.files import read_json, replacing, write_json
from minisft.jobs import finetune as runner
from minisft.training.config import require_sound
from minisft.training.loop import Interrupted

# What is averaged, as far as the task has it
FIGURES = {"accuracy": "accuracy", "macro_f1": "macro F1", "exact_match": "exact match",
           "loss": "loss"}
KEPT = (*FIGURES, "n", "best_epoch", "train_seconds", *comparison.NAMES)
OPTIMISTIC = ("> There is no test set. Each seed is scored on the validation part that it drew: "
              "whatever was chosen by it, such as the best epoch, makes the figures optimistic.")


def finetune(settings, resume=None, say=print):
    """Settings -> results (dict); with --seeds above 1, the folder holds a run for each seed.

    Raises as `finetune.finetune`, which does the work, and is all of it where --seeds is 1.
    """
    config = None if resume is None else run_folder.unfinished(resume)
    if config is not None:
        settings = runner.kept_run(config, resume)
    if settings.seeds == 1:
        return runner.finetune(settings, resume, say)
    require_seeds(settings)
    require_sound(settings)
    if resume is None and settings.out is not None:
        run_folder.require_free(settings.out, settings.overwrite)
    if config is not None:
        runner.fingerprints(settings, config, resume)
    folder = Path(resume or settings.out or
                  run_folder.first_free("runs", runner.run_name(settings)))

    def begin():     # the checks of the first run are those of all
        files = runner.fingerprints(settings, None, None)
        run_folder.start(folder, {"settings": asdict(settings), "files": files,
                                  **run_folder.machine()})

    found = {}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        say(f"seed {seed}, {len(found) + 1} of {settings.seeds}:")
        begins = begin if resume is None and not found else lambda: None
        try:
            found[seed] = run_or_read(replace(settings, seeds=1, seed=seed),
                                      folder / f"seed-{seed}", bool(resume), say, begins)
        except (Interrupted, KeyboardInterrupt):
            if not (folder / "config.json").exists():     # nothing to go on with
                raise
            raise Interrupted(folder) from None
    results = summary(found) | {"scored_on": scored_on(settings)}
    _write_report(folder / "report.md", found, results)
    write_json(folder / "results.json", results)
    say("\n".join(headlines(results)))
    say(f"everything is in {folder}")
    return results


def require_seeds(settings):
    """Raises UserError when the last seed is none."""
    if settings.seed + settings.seeds > 2**32:
        raise UserError(f"--seeds is {settings.seeds} with --seed {settings.seed}, expected the "
                        f"last one below {2**32}")


def run_or_read(settings, place, resuming, say, checked=lambda: None):
    """One run in its place: read where it has ended, gone on with where it has begun -> results."""
    if resuming and (place / "results.json").exists():
        say(f"{place} is finished")
        return read_json(place / "results.json")
    if resuming and (place / "config.json").exists():
        return runner.finetune(settings, place, say)
    # without config.json a resumed place holds at most the part of a file
    return runner.finetune(replace(settings, out=str(place),
                                   overwrite=settings.overwrite or resuming), None, say, checked)


def scored_on(settings):
    """-> "test", or "validation" where there is no test set."""
    return "validation" if settings.train and not settings.test else "test"


def summary(found):
    """{seed: results} -> mean, spread and interval of each figure, and what was compared."""
    results = list(found.values())
    return {"seeds": list(found), "n": results[0]["n"]} | {
        key: metrics.mean_interval([r[key] for r in results])
        for key in FIGURES if all(key in r for r in results)} | {
        "compared": comparison.over_seeds(results),
        "runs": [{"seed": seed} | {key: r[key] for key in KEPT if key in r}
                 for seed, r in found.items()]}


def headlines(results):
    """What `summary` gave -> lines for the terminal."""
    seeds = results["seeds"]
    lines = [f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}, on {results['n']:,} "
             f"{results['scored_on']} texts:"]
    for key, name in FIGURES.items():
        if key in results:
            s = results[key]
            lines.append(f"{name} {s['mean']:.4f}, standard deviation {s['sd']:.4f}, 95% interval "
                         f"of the mean {s['low']:.4f} to {s['high']:.4f}")
    return lines + comparison.seeds_headlines(results["compared"])


def _write_report(path, found, results):
    shown = [key for key in FIGURES if key in results]
    over = [[FIGURES[key], *(f"{results[key][k]:.4f}" for k in ("mean", "sd", "low", "high"))]
            for key in shown]
    each = [[f"[{run['seed']}](seed-{run['seed']}/report.md)",
             *(f"{run[key]:.4f}" for key in shown), f"{run['best_epoch']}",
             f"{run['train_seconds']:,.1f}"] for run in results["runs"]]
    lines = [
        "# Report", "",
        f"{len(found)} seeds, scored on {results['n']:,} {results['scored_on']} texts.", "",
        *([OPTIMISTIC, ""] if results["scored_on"] == "validation" else []),
        *table(["figure", "mean", "standard deviation", "95% from", "to"], over),
        "The interval is Student's, of the mean over seeds: a seed draws the new head, the order "
        "of the texts, dropout and the part held out for validation. How far the choice of the "
        "scored texts moves a figure is another matter: each seed's report has that interval.", "",
        *comparison.seeds_section(results["compared"]),
        "## Seeds", "",
        *table(["seed", *(FIGURES[key] for key in shown), "epoch chosen", "training time (s)"],
               each),
        "The settings stand in each seed's report."]
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
