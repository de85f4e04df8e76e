"""Options that may change when an interrupted run goes on, and what config.json keeps of that."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minisft.errors import UserError, setting
from minisft.io import run_folder
from minisft.io import training_state as states
from minisft.io.files import read_json
from minisft.training.options import Config
from minisft.training.state import require_sound

# How far a step goes and how it is computed. What is learnt, and from what, stays: the texts, the
# model, which epoch counts. So does the optimizer, whose moments are in the state.
CHANGEABLE = ("lr", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "epochs",
              "early_stopping", "precision", "micro_tokens", "save_every", "keep_state", "quiet")
KEY = "changes"     # of config.json


def with_changes(config: Any, changes: Mapping[str, Any] | None) -> Any:
    """The config of a run that goes on -> with these options changed; UserError for one that stays.
    """
    for name in changes or ():
        if name not in CHANGEABLE or name not in config.option_fields():
            raise UserError(f"{setting(name)} beside {setting('resume')}: expected some of "
                            f"{', '.join(changeable(config))}; the other settings of the run go "
                            "on as they are")
    if "epochs" in (changes or ()):
        # what the state counts by depends on how many there are
        for name in ("average", "validate_every"):
            if config.options().get(name):
                raise UserError(f"{setting('epochs')} beside {setting('resume')}: expected the "
                                f"same epochs with {setting(name)}")
    return config.replace(**(changes or {}))


def changeable(config: Config | type[Config]) -> list[str]:
    """-> the options of such a run that may change, marked for a message."""
    return [setting(name) for name in CHANGEABLE if name in config.option_fields()]


def record(folder: Path, kept: Mapping[str, Any], now: Mapping[str, Any],
           say: Callable[[str], Any]) -> None:
    """config.json of a run, and its `settings` and what else is so from now on -> config.json with
    what has changed, and after which step."""
    options = {name: [kept["settings"].get(name), value]
               for name, value in json.loads(json.dumps(now["settings"])).items()
               if name in CHANGEABLE and kept["settings"].get(name) != value}
    if not options:
        return
    # the classifier's state counts once there is one; until then its adaptation goes on
    parts = {"": folder / run_folder.STATE,
             run_folder.ADAPTATION: folder / run_folder.ADAPTATION / run_folder.STATE}
    part, place = next(((p, f) for p, f in parts.items() if states.has_state(f)), ("", None))
    step = 0
    if place is not None:
        require_sound(info := states.load_info(place))
        step = info["step"]
    change = {"step": step, "part": part, "options": options}
    run_folder.write_config(folder, {**kept, **now,
                                     KEY: [*kept_changes(kept, folder), change]})
    say("from here on: " + ", ".join(f"{name} is {new} (was {old})"
                                     for name, (old, new) in options.items()))


def kept_changes(kept: Mapping[str, Any], folder: str | Path) -> list[dict[str, Any]]:
    """config.json of a run -> its changes, each {step, part, options: {name: [old, new]}}; raises
    UserError for what `record` did not write."""
    changes = kept.get(KEY, [])
    try:
        sound = all(type(change["step"]) is int and isinstance(change["part"], str) and all(
            len(pair) == 2 for pair in change["options"].values()) for change in changes)
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound or not isinstance(changes, list):
        raise UserError(f"{folder}/{run_folder.CONFIG}: {KEY} is not what a run writes")
    return changes


def changes_of_run(folder: Path) -> list[dict[str, Any]]:
    """-> the changes of a run that is ending; raises UserError where its folder went away."""
    run_folder.require_present(folder)
    return kept_changes(read_json(folder / run_folder.CONFIG), folder)
