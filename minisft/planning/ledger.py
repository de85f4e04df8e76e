"""A ledger of memory: who holds how many values, told moment by moment."""

from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Who holds how many values now, and at the fullest moment so far."""

    held: dict = field(default_factory=dict)
    peak: int = 0
    at_peak: dict = field(default_factory=dict)
    largest: tuple = "none", 0     # temporary, and its values

    def hold(self, name, values):
        """From now on `name` takes that many values."""
        self.held[name] = int(values)
        self.look()

    def drop(self, *names):
        """These are free again; a name that ends in "." stands for all that begin so."""
        for name in names:
            for known in [k for k in self.held if k == name or
                          name.endswith(".") and k.startswith(name)]:
                del self.held[known]

    def look(self, **temporary):
        """A moment with temporaries beside what is held."""
        named = {name.replace("_", " "): int(values) for name, values in temporary.items()}
        total = sum(self.held.values()) + sum(named.values())
        if total > self.peak:
            self.peak, self.at_peak = total, self.held | named
        self.largest = max([self.largest, *named.items()], key=lambda entry: entry[1])
