"""The one check that what a model gives is a number, before anybody is told of it."""

import numpy as np

from minisft.errors import UserError, setting


class NotFiniteError(UserError):
    """A model gave a value that is not finite."""


def require_finite(values: np.ndarray | float) -> None:
    """Logits, or a sum of losses; raises NotFiniteError where one is not finite."""
    if not np.isfinite(values).all():
        raise NotFiniteError("the model gives values that are not finite, as it does after too "
                             f"high an {setting('lr')}")
