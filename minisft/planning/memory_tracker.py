"""What is in memory at each moment of a step, and how much at the fullest one."""

from dataclasses import dataclass, field


@dataclass
class MemoryTracker:
    """How many values each name has allocated now, and at the fullest moment so far."""

    allocated: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    at_peak: dict[str, int] = field(default_factory=dict)
    largest: tuple[str, int] = "none", 0     # the largest temporary, and its values

    def allocate(self, name: str, values: float) -> None:
        """From now on `name` takes that many values."""
        self.allocated[name] = int(values)
        self.observe()

    def free(self, *names: str) -> None:
        """Frees these; a name that ends in "." stands for all that begin with it."""
        for name in names:
            for known in [k for k in self.allocated if k == name or
                          name.endswith(".") and k.startswith(name)]:
                del self.allocated[known]

    def observe(self, **temporary: float) -> None:
        """A moment with temporaries besides what is allocated."""
        named = {name.replace("_", " "): int(values) for name, values in temporary.items()}
        total = sum(self.allocated.values()) + sum(named.values())
        if total > self.peak:
            self.peak, self.at_peak = total, self.allocated | named
        self.largest = max([self.largest, *named.items()], key=lambda entry: entry[1])
