"""Wrong answers of six kinds to every exercise of the notebooks: most must be named.

And right answers in other forms, none of which may be called wrong. `-s` prints the table.
"""

import importlib.util
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from test_notebooks import FOLDER, SOLUTIONS, cells

UNNAMED = ("the largest difference", "is not the value", "its shape is", "results in a tuple",
           "is no array of numbers")
KINDS = ("sign flipped", "transposed", "off by a constant", "mean for sum", "masked by 0",
         "maximum of the whole matrix")
LEAST = 0.9
# Two kinds need the numbers of the exercise: an expression in the names of its solution.
IN_PLACE = {
    ("05_softmax", 1, "maximum of the whole matrix"):
        "np.exp(s - s.max()) / np.exp(s - s.max()).sum(1, keepdims=True)",
    ("06_attention", 1, "masked by 0"):
        "softmax.forward(np.where(below > 0, q @ k.T / 2, 0.0))[0] @ v",
    ("14_fused_kernels", 1, "maximum of the whole matrix"):
        "(np.full((3, 1), s.max()), np.exp(s - s.max()).sum(1, keepdims=True),"
        " np.exp(s - s.max()) @ v)",
}


@pytest.fixture(scope="module")
def exercises():
    spec = importlib.util.spec_from_file_location("exercises_diagnoses", FOLDER / "exercises.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def asked(exercises):
    """-> of each exercise its notebook, number, arguments of judge, and names at its judgement."""
    found, patch = [], pytest.MonkeyPatch()
    with patch.context() as here:
        here.chdir(FOLDER / "solutions")
        here.syspath_prepend(FOLDER)
        here.setenv("MPLBACKEND", "agg")
        import exercises as imported
        for name in SOLUTIONS:
            calls, names = [], {}

            def keep(answer, right, mistakes, calls=calls, names=names, **options):
                calls.append((right, mistakes, options, dict(names)))
            here.setattr(imported, "judge", keep)
            for source in cells(f"solutions/{name}", "code"):
                exec(source, names)
            found += [(name, number, *call) for number, call in enumerate(calls, 1)]
    return found


def one_result(right, change):
    """-> right with each of its results changed by itself, where `change` gives something else."""
    if not isinstance(right, tuple):
        changed = change(right)
        return [] if changed is None else [changed]
    return [right[:i] + (changed,) + right[i + 1:]
            for i, result in enumerate(right) if (changed := change(result)) is not None]


def sign(result):
    return -np.asarray(result) if np.any(result) else None


def transposed(result):
    a = np.asarray(result)
    if a.ndim < 2 or 1 in a.shape[-2:] or np.array_equal(a, np.swapaxes(a, -1, -2)):
        return None
    return np.swapaxes(a, -1, -2)


def off(result):
    return np.asarray(result) + 1


def mean(result):
    a = np.asarray(result)
    return a / (a.shape[-1] if a.ndim and a.shape[-1] > 1 else 3) if np.any(a) else None


def wrong_answers(name, number, right, names):
    """-> pairs of a kind and a wrong answer of it to one exercise."""
    for kind, change in zip(KINDS, (sign, transposed, off, mean), strict=False):
        for answer in one_result(right, change):
            yield kind, answer
    for kind in KINDS[4:]:
        if expression := IN_PLACE.get((name, number, kind)):
            with np.errstate(all="ignore"):
                yield kind, eval(expression, names)


def test_wrong_answers_are_named(exercises, asked, capsys):
    made, named, unnamed = Counter(), Counter(), []
    for name, number, right, mistakes, options, names in asked:
        for kind, answer in wrong_answers(name, number, right, names):
            exercises.judge(answer, right, mistakes, **options)
            said = capsys.readouterr().out
            assert not said.startswith(("right", "open")), (name, number, kind)
            made[kind] += 1
            if any(phrase in said for phrase in UNNAMED):
                unnamed.append(f"{name} {number}, {kind}: {said.strip()}")
            else:
                named[kind] += 1
    print("\n".join(f"{kind:<28} {named[kind]:>3} of {made[kind]:>3} named" for kind in KINDS))
    print(*unnamed, sep="\n")
    assert set(made) == set(KINDS) and made.total() > 200
    assert named.total() >= LEAST * made.total(), "\n".join(unnamed)


@pytest.mark.parametrize("kind, wrong, right, said", [
    ("sign flipped", -3.5, 3.5, "sign"), ("off by a constant", 4.5, 3.5, "1 too large"),
    ("mean for sum", 3.5 / 3, 3.5, "1/3 of the right one")])
def test_the_name_is_that_of_the_kind(exercises, capsys, kind, wrong, right, said):
    for scale in (1, np.array([1.0, 2.0])) if kind != "off by a constant" else (1,):
        exercises.judge(wrong * scale, right * scale)
        assert said in capsys.readouterr().out


def other_forms(right):
    """-> a right answer as lists, tuples, fractions, arrays of one value, in other precisions."""
    if isinstance(right, tuple):
        yield list(right)
        forms = [list(other_forms(result)) for result in right]
        yield from zip(*(found[:min(map(len, forms))] for found in forms), strict=True)
        return
    a = np.asarray(right)
    yield a.tolist()
    yield a.astype(float)
    yield a + 1e-9 * np.abs(a) if a.dtype.kind == "f" else a.astype(np.int32)
    yield np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(a).tolist()
    yield tuple(a) if a.ndim else [a.item()]


def test_right_answers_in_other_forms(exercises, asked, capsys):
    judged = 0
    for name, number, right, mistakes, options, _ in asked:
        for answer in other_forms(right):
            exercises.judge(answer, right, mistakes, **options)
            assert capsys.readouterr().out == "right\n", (name, number, answer)
            judged += 1
    assert judged > 250


def test_rounded_answers_are_not_called_wrong(exercises, asked, capsys):
    def rounded(result):
        a = np.asarray(result, float)
        return a.round(5) if np.abs(a - a.round(5)).max() > 1e-6 else None
    judged = 0
    for name, number, right, mistakes, options, _ in asked:
        for answer in one_result(right, rounded):
            exercises.judge(answer, right, mistakes, **options)
            assert capsys.readouterr().out.startswith("right"), (name, number)
            judged += 1
    assert judged > 15
