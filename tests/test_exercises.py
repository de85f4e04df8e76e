"""The judge of the notebooks' exercises: right, which mistake, or where the difference is."""

import importlib.util
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[1] / "notebooks" / "exercises.py"
spec = importlib.util.spec_from_file_location("exercises_under_test", PATH)
exercises = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exercises)

RIGHT = np.array([[1.0, 2.0], [3.0, 4.0]])
MISTAKES = {"it is transposed": RIGHT.T, "the scale is missing": 2 * RIGHT}


@pytest.fixture
def judged(capsys):
    def judged(*args, **options):
        assert exercises.judge(*args, **options) is None
        return capsys.readouterr().out
    return judged


@pytest.mark.parametrize("answer", [RIGHT, RIGHT.tolist(), RIGHT + 1e-8, RIGHT.astype(int)])
def test_right_answers(judged, answer):
    assert judged(answer, RIGHT, MISTAKES) == "right\n"


@pytest.mark.parametrize("answer", [None, ...])
def test_an_open_exercise_is_neither_right_nor_wrong(judged, answer):
    assert judged(answer, RIGHT, MISTAKES).startswith("open:")


def test_a_known_mistake_is_named(judged):
    assert judged(RIGHT.T, RIGHT, MISTAKES) == "not yet: it is transposed\n"
    assert judged(2 * RIGHT, RIGHT, MISTAKES) == "not yet: the scale is missing\n"


def test_another_mistake_says_where(judged):
    answer = RIGHT.copy()
    answer[1, 0] += 0.5
    assert judged(answer, RIGHT, MISTAKES) == \
        "not yet: the largest difference, 0.5, is at (1, 0)\n"
    assert judged(answer, RIGHT) == judged(answer, RIGHT, MISTAKES)


@pytest.mark.parametrize("answer, said", [
    (RIGHT[0], "its shape is (2,), expected (2, 2)"),
    (1.0, "its shape is (), expected (2, 2)"),
    (RIGHT[..., None], "its shape is (2, 2, 1), expected (2, 2)"),
    (np.ones((2, 1)), "its shape is (2, 1), expected (2, 2)")])     # would broadcast
def test_shapes(judged, answer, said):
    assert judged(answer, RIGHT, MISTAKES) == f"not yet: {said}\n"


def test_numbers(judged):
    assert judged(0.5, 0.5) == "right\n"
    assert judged(2, 0.5, {"upside down": 2.0}) == "not yet: upside down\n"
    assert judged(0.7, 0.5, {"upside down": 2.0}) == "not yet: 0.7 is not the value\n"


def test_tuples(judged):
    right = RIGHT, RIGHT.sum(0)
    mistakes = {"the wrong axis": (RIGHT, RIGHT.sum(1))}
    assert judged((RIGHT.copy(), [4.0, 6.0]), right, mistakes) == "right\n"
    assert judged((RIGHT, RIGHT.sum(1)), right, mistakes) == "not yet: the wrong axis\n"
    assert judged((RIGHT, RIGHT), right, mistakes) == \
        "not yet: result 2: its shape is (2, 2), expected (2,)\n"
    assert judged((RIGHT**2, RIGHT.sum(0)), right, mistakes).startswith(
        "not yet: result 1: the largest difference, 12")
    for answer in (RIGHT[0, 0], (RIGHT,), [RIGHT] * 3):
        assert judged(answer, right, mistakes) == "not yet: expected 2 results in a tuple\n"


@pytest.mark.parametrize("answer", ["softmax", [[1.0], [1.0, 2.0]], {1, 2}, (RIGHT, RIGHT[0]),
                                    np.sum, object()])
def test_what_is_no_array_raises_nothing(judged, answer):
    for mistakes in (None, MISTAKES):
        assert judged(answer, RIGHT, mistakes).endswith("is no array of numbers\n")


def test_an_overflow_can_be_named(judged):
    overflown = np.array([np.nan, 1.0])
    assert judged(overflown, RIGHT[0], {"it overflows": overflown}) == "not yet: it overflows\n"
    assert judged(overflown, RIGHT[0]) == (
        "not yet: it is NaN (no number: 0 / 0, inf - inf, or the logarithm of a negative number), "
        "first at (0,)\n")
    assert judged(np.array([1.0, np.inf]), RIGHT[0]) == "not yet: it is infinite, first at (1,)\n"
    assert judged(np.nan, 0.5).startswith("not yet: it is NaN")


def test_tolerance(judged):
    right = RIGHT[0], RIGHT[1]
    close = RIGHT[0], RIGHT[1] * (1 + 1e-5)
    assert judged(close, right, tolerance=1e-4) == "right\n"
    for tolerance in (1e-6, 1e-12):
        assert judged(close, right, tolerance=tolerance).startswith("not yet: result 2: the large")
    assert judged(right[0] + 1e-9, right[0], tolerance=1e-12).startswith("not yet: the largest")
    assert judged((right[0] + 1e-9, right[1]), right, tolerance=1e-12).startswith(
        "not yet: result 1: the largest")


@pytest.mark.parametrize("answer", [
    [Fraction(1, 3), Fraction(2, 3)], (Fraction(1, 3), Decimal(2) / 3), (1 / 3, 2 / 3),
    np.array([1 / 3, 2 / 3], np.float32)])
def test_other_forms_of_a_right_answer(judged, answer):
    assert judged(answer, np.array([1 / 3, 2 / 3])) == "right\n"


def test_a_number_in_brackets(judged):
    for answer in ([0.5], np.array(0.5), np.array([0.5]), Fraction(1, 2)):
        assert judged(answer, 0.5) == "right\n"
    for answer in ([4, Fraction(1, 2)], np.array([4, 0.5]), (4.0, [0.5])):
        assert judged(answer, (4, 0.5)) == "right\n"
    assert judged([0.5, 0.5], 0.5) == "not yet: its shape is (2,), expected ()\n"


def test_rounded_answers(judged):
    third = np.array([1 / 3, 2 / 3])
    assert judged([0.333, 0.667], third) == "right to 3 digits: give more\n"
    assert judged((0.33333, 2 / 3), (1 / 3, 2 / 3)) == "right to 5 digits: give more\n"
    assert judged(1.23e-5, 1.2345e-5) == "right to 3 digits: give more\n"
    assert judged([0.334, 0.667], third).startswith("not yet")
    assert judged(0.3, 1 / 3) == "not yet: 0.3 is not the value\n"


def test_whole_numbers_are_compared_exactly(judged):
    assert judged(124_439_808.0, 124_439_808) == "right\n"
    assert judged(124_439_809, 124_439_808) == "not yet: it is 1 too large\n"
    assert judged([0, 3, 4.0], np.array([0, 3, 4])) == "right\n"
    assert judged([0, 3, 4.0000001], np.array([0, 3, 4])).startswith("not yet")


def test_a_mistake_that_can_be_made_anywhere(judged):
    assert judged(-RIGHT, RIGHT) == "not yet: the sign is flipped\n"
    assert judged(RIGHT.T, RIGHT) == "not yet: it is transposed\n"
    assert judged(np.ones((2, 3)) * [1, 2, 3], (np.ones((2, 3)) * [1, 2, 3]).T) == \
        "not yet: it is transposed\n"
    assert judged(RIGHT - 0.25, RIGHT) == "not yet: every value is 0.25 too small\n"
    assert "every value is 1/3 of the right one: a mean" in judged(RIGHT / 3, RIGHT)
    assert "every value is 5 times the right one: a sum" in judged(5 * RIGHT, RIGHT)
    assert "every value is -2 times the right one: the sign" in judged(-2 * RIGHT, RIGHT)
    assert judged(1.7 * RIGHT, RIGHT) == "not yet: every value is 1.7 times the right one\n"
    assert judged(np.log2(7), np.log(7)) == "not yet: it is 1 / ln 2 times the right one\n"
    assert "this is the maximum of the whole matrix" in judged(np.full((2, 2), 4.0), RIGHT)


def test_a_mask_of_zeros(judged):
    scores = np.array([[1.0, 0.5, 2.0], [0.0, -1.0, 0.5]])
    shown = np.array([[True, False, True], [True, True, False]])

    def softmax(s):
        return np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    right = softmax(np.where(shown, scores, -np.inf))
    assert judged(softmax(np.where(shown, scores, 0.0)), right).startswith(
        "not yet: masked places got a probability")
    assert judged(softmax(scores), right).startswith("not yet: masked places got a probability")
    assert judged(softmax(scores**2), right).startswith("not yet: the largest difference")


def test_the_maximum_of_the_whole_matrix(judged):
    s = np.array([[0.0, 1.0], [1000.0, 1001.0]])
    right = np.exp(s - s.max(1, keepdims=True))
    right /= right.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        wrong = np.exp(s - s.max()) / np.exp(s - s.max()).sum(1, keepdims=True)
    assert judged(wrong, right).startswith("not yet: row 0 overflowed or is 0 / 0, the others are")
    wrong[1] = 0.25
    assert judged(wrong, right).startswith("not yet: it is NaN")
