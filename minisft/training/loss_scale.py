"""Loss scaling for float16 (Micikevicius et al. 2018, "Mixed precision training", section 3.2).

Gradients below 6e-8 would be zero in float16. The loss is multiplied by a scale before the
backward, which lifts them all, and the gradients are divided by it in float32. The largest scale
that overflows nothing is searched for: a step whose gradients are not finite is left out and
halves it, 2000 good steps in a row double it.
"""

from dataclasses import dataclass

FIRST, LEAST = 2.0**16, 2.0**-24
PATIENCE = 2000


@dataclass
class LossScale:
    """The scale, and how many steps in a row were good; both belong into a run's saved state."""

    value: float = FIRST
    good: int = 0

    def update(self, finite):
        """Whether a step's gradients are finite -> the same; the scale for the next step follows.

        Raises OverflowError where no scale helps.
        """
        if not finite:
            self.value, self.good = self.value / 2, 0
            if self.value < LEAST:
                raise OverflowError(f"gradients overflow float16 even at a loss scale of {LEAST:g}")
        elif self.good + 1 == PATIENCE:
            self.value, self.good = self.value * 2, 0
        else:
            self.good += 1
        return finite
