"""When the state of a run is saved: after so many steps or minutes, and at the ends of epochs."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from minisft.errors import UserError, setting
from minisft.training.interrupts import Interrupts

SAVE_EVERY_HELP = ("most steps, such as 500, or minutes, such as 10m, between two saves of the "
                   "state: what is lost at most where a run dies")
SHARE = 0.01      # an epoch's end is saved where that takes at most this part of the time


@dataclass(frozen=True)
class SaveInterval:
    """Steps or seconds between two saves; the other is None."""

    steps: int | None = None
    seconds: float | None = None


def parse_save_every(text: str) -> SaveInterval:
    """500 (steps) or 10m (minutes) -> SaveInterval; raises UserError."""
    found = re.fullmatch(r"([0-9]{1,12})|([0-9]{1,9}(?:\.[0-9]{1,6})?)m", str(text), re.A)
    if found is None or float(found[1] or found[2]) == 0:
        raise UserError(f"{setting('save_every')} is {text!r}, expected a number of steps such as "
                        "500, or of minutes such as 10m")
    return SaveInterval(int(found[1])) if found[1] else SaveInterval(seconds=60 * float(found[2]))


class Saver:
    """Calls save() when it is due; None for a run that keeps nothing.

    A signal that comes meanwhile waits until all is on disk.
    """

    def __init__(self, save: Callable[[], None] | None, interval: SaveInterval,
                 interrupts: Interrupts) -> None:
        self.save, self.interval, self.interrupts = save, interval, interrupts
        self.steps, self.cost, self.last = 0, 0.0, time.perf_counter()
        self.due, self.seconds = False, 0.0     # of all saves

    def __call__(self) -> None:
        """Saves now."""
        if self.save is None:
            return
        started = time.perf_counter()
        with self.interrupts.held():
            self.save()
        self.steps, self.due, self.last = 0, False, time.perf_counter()
        self.cost = self.last - started
        self.seconds += self.cost

    def after_step(self) -> None:
        """Notes whether the interval is over."""
        self.steps += 1
        steps, seconds = self.interval.steps, self.interval.seconds
        if (steps is not None and self.steps >= steps) or (
                seconds is not None and time.perf_counter() - self.last >= seconds):
            self.due = True

    def once_proven(self) -> bool:
        """Saves where it is due; -> whether it did. To be called when a further step has computed
        with what is saved: values that the last update has ruined take no other's place."""
        due = self.due
        if due:
            self()
        return due

    def after_epoch(self, last: bool) -> None:
        """Saves after the last epoch, and after one that took long enough to be worth it."""
        if last or self.cost <= SHARE * (time.perf_counter() - self.last):
            self()
