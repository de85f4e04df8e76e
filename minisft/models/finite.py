"""The one check that what a model gives is a number, before anybody is told of it."""

import numpy as np

from minisft.errors import UserError, setting


def require_finite(values: np.ndarray | float) -> None:
    """Logits, or a sum of losses; raises UserError where one is not finite."""
    if not np.isfinite(values).all():
        raise UserError("the model gives values that are not finite, as it does after too high an "
                        f"{setting('lr')}")
