"""Judges the answers to the notebooks' exercises: right, or which mistake it probably is."""

import numpy as np


def judge(answer, right, mistakes=None, tolerance=1e-6):
    """Prints whether `answer` equals `right`, or what is probably wrong with it.

    mistakes: {what one would say to the learner: the value that this mistake gives}. Arrays or
    numbers, or tuples of them. Raises nothing: a notebook with open exercises runs to its end.
    """
    if answer is None or answer is Ellipsis:
        print("open: put your answer in the place of the dots")
        return
    if _equal(answer, right, tolerance):
        print("right")
        return
    for said, value in (mistakes or {}).items():
        if _equal(answer, value, tolerance):
            print(f"not yet: {said}")
            return
    print(f"not yet: {_difference(answer, right, tolerance)}")


def _equal(a, b, tolerance):
    if isinstance(b, tuple):
        return isinstance(a, tuple) and len(a) == len(b) and all(
            _equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    try:
        # an overflow is a mistake that one may want to name, so no number equals no number
        return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=tolerance, atol=tolerance,
                                                          equal_nan=True)
    except (TypeError, ValueError):     # no numbers, or rows of unequal length
        return False


def _difference(answer, right, tolerance):
    if isinstance(right, tuple):
        if not isinstance(answer, tuple) or len(answer) != len(right):
            return f"expected {len(right)} results in a tuple"
        place, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(answer, right, strict=True))
                           if not _equal(a, b, tolerance))
        return f"result {place + 1}: {_difference(a, b, tolerance)}"
    try:
        found = np.asarray(answer, float)
    except (TypeError, ValueError):
        return f"{type(answer).__name__} is no array of numbers"
    if found.shape != np.shape(right):
        return f"its shape is {found.shape}, expected {np.shape(right)}"
    gap = np.abs(found - np.asarray(right, float))
    if gap.ndim == 0:
        return f"{answer} is not the value"
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(gap), gap.shape))
    return f"the largest difference, {gap.max():.3g}, is at {worst}"
