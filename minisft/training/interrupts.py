"""Signals that ask a run to end, noted until it can save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """Signals that ask a run to end: the first is noted, a second one acts at once."""

    def __init__(self) -> None:
        self.received = self._held = False

    def record(self, number: int, frame: Any) -> None:
        """The handler."""
        if self.received and not self._held:
            raise KeyboardInterrupt
        self.received = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever comes meanwhile is noted only: a save is not cut short."""
        self._held = True
        try:
            yield
        finally:
            self._held = False


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """-> Interrupts that hear Ctrl-C, SIGTERM and, of a terminal that closes, SIGHUP.

    Signals can be caught in the main thread only; elsewhere none is heard. A SIGHUP that is ignored
    (nohup) stays so.
    """
    interrupts, previous_handlers = Interrupts(), {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and not (
                    name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                previous_handlers[number] = signal.signal(number, interrupts.record)
    except ValueError:
        pass
    try:
        yield interrupts
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
