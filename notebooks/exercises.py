"""Judges the answers to the notebooks' exercises: right, or which mistake it probably is."""

from fractions import Fraction

import numpy as np

LARGEST_FACTOR = 4096     # 1/n of the right answer is called a mean up to this n
FACTORS = {np.log(2): "ln 2", 1 / np.log(2): "1 / ln 2", np.log(10): "ln 10",
           1 / np.log(10): "1 / ln 10", np.sqrt(2): "sqrt(2)", 1 / np.sqrt(2): "1 / sqrt(2)"}


def judge(answer, right, mistakes=None, tolerance=1e-6):
    """Prints whether `answer` equals `right`, or what is probably wrong with it.

    mistakes: {what one would say to the learner: the value that this mistake gives}. Arrays or
    numbers, or tuples of them; lists, tuples and fractions will do as well. Whole numbers are
    compared exactly. Raises nothing: a notebook with open exercises runs to its end.
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
    if (digits := _digits(answer, right, tolerance)) is not None:
        print(f"right to {digits} digits: give more")
        return
    print(f"not yet: {_difference(answer, right, tolerance)}")


def _numbers(value):
    """-> an array of floats, or of whole numbers as they are; None for anything else."""
    try:
        found = np.asarray(value)
        # fractions and the like arrive as objects
        return found if found.dtype.kind in "biu" else np.asarray(value, float)
    except (TypeError, ValueError):     # no numbers, or rows of unequal length
        return None


def _results(answer, right):
    """An answer to a question with several results -> them, or None if their number differs."""
    several = isinstance(answer, (tuple, list)) or np.ndim(answer) > 0
    return tuple(answer) if several and len(answer) == len(right) else None


def _pair(answer, right):
    """-> both as arrays of one shape, or None. An array of one value may stand for a number."""
    a, b = _numbers(answer), _numbers(right)
    if a is None or b is None:
        return None
    if b.ndim == 0 and a.size == 1:
        a = a.reshape(())
    return (a, b) if a.shape == b.shape else None


def _equal(answer, right, tolerance):
    if isinstance(right, tuple):
        results = _results(answer, right)
        return results is not None and all(_equal(a, b, tolerance)
                                           for a, b in zip(results, right, strict=True))
    if (pair := _pair(answer, right)) is None:
        return False
    a, b = pair
    if b.dtype.kind in "biu":
        return np.array_equal(a, b)
    # an overflow is a mistake that one may want to name, so no number equals no number
    size = np.abs(b[np.isfinite(b)]).max(initial=0)
    return np.allclose(a, b, rtol=tolerance, atol=tolerance * min(size or 1, 1), equal_nan=True)


def _digits(answer, right, tolerance):
    """-> to how many digits an answer is the right one, rounded, or None."""
    if isinstance(right, tuple):
        results = _results(answer, right)
        found = [_digits(a, b, tolerance) for a, b in zip(results or (), right, strict=False)
                 if not _equal(a, b, tolerance)]
        return min(found) if found and None not in found else None
    pair = _pair(answer, right)
    if pair is None or pair[1].dtype.kind in "biu" or not np.isfinite(pair[1]).all():
        return None
    a, b = pair
    for digits in range(2, 16) if np.abs(b).max() > 0.01 else ():
        if np.allclose(a, np.round(b, digits), rtol=0, atol=1e-12):
            return digits
    for digits in range(3, 16):     # of large and of small numbers
        rounded = np.reshape([float(f"{value:.{digits}g}") for value in b.ravel()], b.shape)
        if np.allclose(a, rounded, rtol=1e-12, atol=0):
            return digits
    return None


def _difference(answer, right, tolerance):
    if isinstance(right, tuple):
        results = _results(answer, right)
        if results is None:
            return f"expected {len(right)} results in a tuple"
        place, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(results, right, strict=True))
                           if not _equal(a, b, tolerance))
        return f"result {place + 1}: {_difference(a, b, tolerance)}"
    found = _numbers(answer)
    if found is None:
        return f"{type(answer).__name__} is no array of numbers"
    b = np.asarray(right)
    if found.ndim > 1 and _equal(np.swapaxes(found, -1, -2), right, tolerance):
        return "it is transposed"
    if (pair := _pair(answer, right)) is None:
        return f"its shape is {found.shape}, expected {b.shape}"
    a, b = pair[0].astype(float), pair[1].astype(float)
    if said := _no_number(a, b, tolerance) or _known(a, b, tolerance):
        return said
    if a.ndim == 0:
        return f"{answer} is not the value"
    gap = np.abs(a - b)
    return f"the largest difference, {gap.max():.3g}, is at {_place(np.argmax(gap), gap)}"


def _place(index, a):
    return tuple(int(i) for i in np.unravel_index(index, a.shape))


def _no_number(a, b, tolerance):
    """-> what is said of NaN and infinity where the right answer has numbers, or None."""
    bad = ~np.isfinite(a) & np.isfinite(b)
    if not bad.any():
        return None
    rows = bad.any(axis=-1) if a.ndim > 1 else np.zeros(1, bool)
    if rows.any() and not rows.all() and _equal(a[~rows], b[~rows], tolerance):
        row = _place(np.argmax(rows), rows)
        return (f"row {row[0] if len(row) == 1 else row} overflowed or is 0 / 0, the others are "
                "right: take each row's own maximum, not the maximum of the whole matrix")
    name = "NaN (no number: 0 / 0, inf - inf, or the logarithm of a negative number)" \
        if np.isnan(a[bad]).any() else "infinite"
    return f"it is {name}" + (f", first at {_place(np.argmax(bad), bad)}" if a.ndim else "")


def _known(a, b, tolerance):
    """-> what is said of a mistake that can be made in any exercise, or None."""
    def same(x, y):
        return np.allclose(x, y, rtol=tolerance, atol=tolerance * 1e-3)

    if same(a, -b):
        return "the sign is flipped"
    if said := _masked(a, b, same):
        return said
    if a.size > 1 and np.ptp(b) and same(a, np.full_like(a, np.max(b))):
        return "this is the maximum of the whole matrix; take that of each row"
    if not np.isfinite(b).all():
        return None
    off, largest = (a - b).ravel(), np.argmax(np.abs(b))
    ratio = a.ravel()[largest] / b.ravel()[largest] if b.any() else np.nan
    if (np.isfinite(ratio) and same(a, ratio * b)
            and (name := _factor(ratio, tolerance, a.size > 1))):
        return name
    if (same(off, np.full_like(off, off[0])) and abs(off[0]) > 1e-3 * np.abs(b).max()
            and a.size > 1) or (a.size == 1 and same(np.abs(off), 1)):
        each = "every value" if a.size > 1 else "it"
        return f"{each} is {abs(off[0]):.6g} too {'large' if off[0] > 0 else 'small'}"
    return None


def _masked(a, b, same):
    """-> what is said of softmax rows in which masked places got a probability, or None."""
    hidden = b == 0
    if a.ndim < 1 or not hidden.any() or not (a[hidden] > 0).any():
        return None
    if not same(a.sum(axis=-1), 1) or not same(b.sum(axis=-1), 1):
        return None
    seen = np.where(hidden, 0.0, a)
    if same(seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1e-300), b):
        return ("masked places got a probability: their scores must be -inf before the softmax, "
                "a score of 0 still counts e^0 = 1")
    return None


def _factor(ratio, tolerance, several):
    """-> what is said of an answer that is the right one times `ratio`, or None."""
    it = "every value" if several else "it"
    for value, name in FACTORS.items():
        if abs(ratio / value - 1) < tolerance:
            return f"{it} is {name} times the right one"
    fraction = Fraction(float(ratio)).limit_denominator(LARGEST_FACTOR)
    if abs(fraction) == 1 or abs(fraction / ratio - 1) > tolerance:
        pass
    elif fraction < 0 and 1 in (-fraction.numerator, fraction.denominator):
        return f"{it} is {fraction} times the right one: the sign, and a factor"
    elif fraction <= LARGEST_FACTOR:
        if fraction.numerator == 1:
            return (f"{it} is {fraction} of the right one: a mean where a sum is meant, or a "
                    f"factor {fraction.denominator} is missing")
        if fraction.denominator == 1:
            return (f"{it} is {fraction} times the right one: a sum where a mean is meant, or a "
                    f"factor {fraction} is too many")
    # any number is some multiple of any other: one alone says nothing
    return f"{it} is {ratio:.6g} times the right one" if several and abs(ratio - 1) > 0.01 else None
