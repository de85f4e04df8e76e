"""The judge of the notebooks' exercises: right, which mistake, or where the difference is."""

import importlib.util
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
    assert judged(3, 0.5, {"upside down": 2.0}) == "not yet: 3 is not the value\n"


def test_tuples(judged):
    right = RIGHT, RIGHT.sum(0)
    mistakes = {"the wrong axis": (RIGHT, RIGHT.sum(1))}
    assert judged((RIGHT.copy(), [4.0, 6.0]), right, mistakes) == "right\n"
    assert judged((RIGHT, RIGHT.sum(1)), right, mistakes) == "not yet: the wrong axis\n"
    assert judged((RIGHT, RIGHT), right, mistakes) == \
        "not yet: result 2: its shape is (2, 2), expected (2,)\n"
    assert judged((RIGHT + 1, RIGHT.sum(0)), right, mistakes).startswith(
        "not yet: result 1: the largest difference, 1")
    for answer in (RIGHT, (RIGHT,), [RIGHT, RIGHT.sum(0)]):
        assert judged(answer, right, mistakes) == "not yet: expected 2 results in a tuple\n"


@pytest.mark.parametrize("answer", ["softmax", [[1.0], [1.0, 2.0]], {1, 2}, (RIGHT, RIGHT[0]),
                                    np.sum, object()])
def test_what_is_no_array_raises_nothing(judged, answer):
    for mistakes in (None, MISTAKES):
        assert judged(answer, RIGHT, mistakes).endswith("is no array of numbers\n")


def test_an_overflow_can_be_named(judged):
    overflown = np.array([np.nan, 1.0])
    assert judged(overflown, RIGHT[0], {"it overflows": overflown}) == "not yet: it overflows\n"
    assert judged(overflown, RIGHT[0]).startswith("not yet: the largest difference, nan,")


def test_tolerance(judged):
    right = RIGHT[0], RIGHT[1]
    close = RIGHT[0], RIGHT[1] * (1 + 1e-5)
    assert judged(close, right, tolerance=1e-4) == "right\n"
    for tolerance in (1e-6, 1e-12):
        assert judged(close, right, tolerance=tolerance).startswith("not yet: result 2: the large")
    assert judged(right[0] + 1e-9, right[0], tolerance=1e-12).startswith("not yet: the largest")
    assert judged((right[0] + 1e-9, right[1]), right, tolerance=1e-12).startswith(
        "not yet: result 1: the largest")
