"""Which implementation runs, that it is told, and that all of them refuse what does not fit."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from minisft import ops
from minisft.backend.cpu import jit, row_blocks
from minisft.dispatch import OPERATIONS, Site, cross_entropy, gelu, layer_norm, only
from minisft.dispatch.row_blocks import ByRow, RowBlocks
from minisft.ops.cross_entropy import IGNORE

PACKAGE = Path(__file__).resolve().parents[1] / "minisft"


@pytest.fixture(params=[1, 2, 5])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK", 64)     # a few rows of the arrays below
    monkeypatch.setattr(row_blocks, "threads", lambda: request.param)


def same(a, b, tolerance=0.0):
    """Nested results of the same structure, equal but for rounding of sums."""
    assert isinstance(a, tuple) == isinstance(b, tuple)
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y, tolerance)
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype and np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    else:
        assert a == b


def cases(rng, n):
    """-> forward's arguments and the upstream gradient, for each operation that runs in blocks."""
    x, z = rng.standard_normal((n, 3)), rng.standard_normal((n, 5))
    # a width that equals the number of rows of a block must not be taken for rows
    wide = rng.standard_normal((n, 2))
    labels = rng.integers(0, 5, n)
    labels[::3] = IGNORE
    return [
        (gelu, (x,), x[::-1].copy()),
        (gelu, (x, "erf"), x[::-1].copy()),
        (layer_norm, (x, rng.standard_normal(3), rng.standard_normal(3)), x[::-1].copy()),
        (layer_norm, (wide, *rng.standard_normal((2, 2)), 0.1), wide[::-1].copy()),
        (cross_entropy, (z, labels), 0.7),
        (cross_entropy, (z, labels, rng.uniform(1, 2, 5), 0.2), -1.3),
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 31])
def test_row_blocks_give_what_the_formula_gives(rng, small_blocks, n):
    for operation, args, dy in cases(rng, n):
        formula = getattr(ops, operation.name)
        expected = formula.forward(*args)
        y, cache = operation.forward(*args)
        in_blocks = len(row_blocks.blocks(n, 8 * args[0].shape[1])) > 1
        assert cache.implementation.name == ("row blocks" if in_blocks else "formula")
        assert isinstance(cache.entries, ByRow) == in_blocks
        same((y, tuple(cache)), expected, 1e-14)
        same(operation.backward(dy, cache), formula.backward(dy, expected[1]), 1e-14)


def test_sums_do_not_depend_on_the_number_of_threads(rng, monkeypatch):
    x = rng.standard_normal((1009, 16)).astype(np.float32)
    w, b = rng.standard_normal((2, 16)).astype(np.float32)
    monkeypatch.setattr(row_blocks, "BLOCK", 1000)
    found = []
    for n in (1, 2, 3):
        monkeypatch.setattr(row_blocks, "threads", lambda n=n: n)
        with only("row blocks"):
            _, cache = layer_norm.forward(x, w, b)
        assert cache.implementation.name == "row blocks"
        found.append(layer_norm.backward(x[::-1], cache))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_passes_through_is_not_copied(rng, small_blocks):
    x, w, b = rng.standard_normal((9, 3)), np.ones(3), np.zeros(3)
    _, cache = layer_norm.forward(x, w, b)
    assert cache[0] is x and cache[1] is w and cache.entries.by_row == (True, False, True, True)


def test_the_gradient_takes_the_place_of_the_logits_only_when_asked(rng, small_blocks):
    z, labels = rng.standard_normal((9, 5)), rng.integers(0, 5, 9)
    kept = z.copy()
    _, cache = cross_entropy.forward(z, labels)
    expected = cross_entropy.backward(2.0, cache)
    assert np.array_equal(z, kept)
    dz = cross_entropy.backward(2.0, cache, out=z)
    assert dz is z and np.array_equal(z, expected)


def test_a_sum_that_is_not_declared_is_refused(small_blocks):
    class Forgotten:
        @staticmethod
        def forward(x):
            return x, (x.sum(axis=0),)

        backward = forward

    with pytest.raises(ValueError, match="forward: a result of shape"):
        RowBlocks(Forgotten, forward=("x",), backward=()).forward(np.ones((9, 3)))


def test_only_what_is_named_runs(rng):
    x, w = rng.standard_normal((50_000, 3)), np.ones(3)
    assert layer_norm.choose(x, w, w).name == "row blocks"
    with only("formula"):
        assert layer_norm.choose(x, w, w).name == "formula"
        with only("row blocks", operations=("gelu",)):
            assert gelu.choose(x).name == "row blocks"
            assert layer_norm.choose(x, w, w).name == "formula"
    with only("row blocks"):
        assert gelu.choose(x).name == layer_norm.choose(x, w, w).name == "row blocks"
    assert layer_norm.choose(x, w, w).name == "row blocks"


def test_a_cache_is_taken_by_who_made_it(rng):
    x, w = rng.standard_normal((5, 3), dtype=np.float32), np.ones(3, np.float32)
    with only("formula"):
        _, cache = layer_norm.forward(x, w, w)
    same(layer_norm.backward(x, cache), ops.layer_norm.backward(x, tuple(cache)))
    with pytest.raises(TypeError, match="layer_norm.backward: the cache is a tuple, expected what "
                                        "layer_norm.forward of minisft.dispatch returned"):
        layer_norm.backward(x, tuple(cache))


def test_each_refusal_has_a_reason():
    x = np.zeros((3, 4), np.float32)
    rows = layer_norm.explain(Site("off", False, True, True), {"x": x, "w": x[0], "b": x[0]})
    assert [name for name, _ in rows] == ["fused kernel", "compiled", "row blocks", "formula"]
    assert [bool(why) for _, why in rows] == [True, True, True, False]
    assert rows[2][1] == "the rows fit one block"
    rows = layer_norm.explain(Site("fused", False, True, False), {"x": x, "w": x[0], "b": x[0]})
    assert rows[0] == ("fused kernel", "")
    rows = layer_norm.explain(Site("fused", False, False, False), {"x": x, "w": x[0], "b": x[0]})
    assert rows[0] == ("fused kernel", "not all of its numbers are float32")


X, ONES = np.zeros((6, 8), np.float32), np.ones(8, np.float32)
Q, CU, LABELS = np.zeros((6, 2, 4), np.float32), np.array([0, 2, 6]), np.array([0, 1, 2, 3, 4, 5])
MISFITS = [
    ("layer_norm", (X, ONES[:1], ONES), "layer_norm: w has shape (1,), expected (8,)"),
    ("layer_norm", (X, ONES, ONES[:1]), "layer_norm: b has shape (1,), expected (8,)"),
    ("layer_norm", (X[0], ONES, ONES), "layer_norm: x has shape (8,), expected (N,C)"),
    ("linear", (X, X), "linear: w has shape (6, 8), expected (8, 8)"),
    ("linear", (X, X.T, ONES[:1]), "linear: b has shape (1,), expected (6,)"),
    ("linear", (X[0], X.T), "linear: x has shape (8,) and w (8, 6), expected (N,C) and (C,M)"),
    ("lora", (X, X[:2], X[:3, :3], 1.0), "lora: b has shape (3, 3), expected (3, 2)"),
    ("lora", (X, X[:2, :1], X[:3, :2], 1.0), "lora: a has shape (2, 1), expected (2, 8)"),
    ("lora", (X[0], X[:2], X[:3, :2], 1.0), "lora: x has shape (8,), a (2, 8) and b (3, 2)"),
    ("embedding", (np.array([[1]]), X), "embedding: ids have shape (1, 1)"),
    ("gelu", (X, "relu"), "gelu: form is 'relu', expected tanh or erf"),
    ("dropout", (X, np.zeros((6, 1), np.uint32), 0.5), "dropout: words has shape (6, 1)"),
    ("dropout", (X, np.zeros((6, 8), np.uint32), 1.0), "dropout: rate is 1.0, expected"),
    ("cross_entropy", (X, LABELS[:1]), "cross_entropy: labels has shape (1,), expected (6,)"),
    ("cross_entropy", (X, LABELS, ONES[:1]), "cross_entropy: weights has shape (1,)"),
    ("cross_entropy", (X, LABELS, ONES - 3), "the smallest weight is -2.0, expected weights of at"),
    ("cross_entropy", (X, LABELS, ONES * np.nan), "the smallest weight is nan, expected"),
    ("cross_entropy", (X, LABELS, None, 1.5), "cross_entropy: smoothing is 1.5, expected a number"),
    ("cross_entropy", (X, LABELS, None, -0.1), "cross_entropy: smoothing is -0.1, expected"),
    ("cross_entropy", (X, LABELS, None, np.nan), "cross_entropy: smoothing is nan, expected"),
    ("cross_entropy", (X[0], LABELS), "cross_entropy: z has shape (8,), expected (N,K)"),
    ("attention", (X, Q, Q, CU, CU[:-1], np.diff(CU)), "attention: q has shape (6, 8)"),
    ("attention", (Q, Q[:, :1], Q, CU, CU[:-1], np.diff(CU)), "attention: k has shape (6, 1, 4)"),
    ("attention", (Q, Q, Q[:5], CU, CU[:-1], np.diff(CU)), "attention: v has shape (5, 2, 4)"),
    ("attention", (Q, Q, Q, CU, CU, np.diff(CU)), "attention: key_starts has shape (3,)"),
    ("attention", (Q, Q, Q, CU + 1, CU[:-1], np.diff(CU)), "attention: cu_seqlens go from 1 to 7"),
    ("attention", (Q, Q, Q, CU, CU[:-1], np.array([2, 5])), "keys of sequence 1 go from 2 to 7"),
    ("attention", (Q, Q, Q, CU, CU[:-1], np.array([1, 4])), "sequence 0: 2 queries but 1 keys"),
]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name, args, message", MISFITS)
def test_arguments_that_do_not_fit_are_refused(name, args, message, compiled):
    with jit.compiled(compiled), pytest.raises(ValueError, match=re.escape(message)):
        OPERATIONS[name].forward(*args)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (1, 1, 5)])
@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_the_result_has_the_shape_of_x(shape, form, compiled):
    """A scalar too, which np.ascontiguousarray makes one-dimensional."""
    x = np.ones(shape, np.float32)
    with jit.compiled(compiled):
        y, cache = gelu.forward(x, form)
        assert np.shape(y) == shape and np.shape(gelu.backward(np.asarray(y), cache)) == shape


@pytest.mark.parametrize("compiled", [True, False])
def test_a_dy_of_another_shape_is_refused(compiled):
    """NumPy would spread it, and a compiled loop would read past its end."""
    with jit.compiled(compiled):
        for name, args in (("layer_norm", (X, ONES, ONES)), ("gelu", (X,)), ("softmax", (X,)),
                           ("linear", (X, X.T)), ("lora", (X, X[:2], X[:, :2], 1.0)),
                           ("embedding", (LABELS, X)),
                           ("dropout", (X, np.zeros((6, 8), np.uint32), 0.5)),
                           ("attention", (Q, Q, Q, CU, CU[:-1], np.diff(CU)))):
            y, cache = OPERATIONS[name].forward(*args)
            with pytest.raises(ValueError, match=f"{name}.backward: dy has shape"):
                OPERATIONS[name].backward(y[:1], cache)


# Who else may name an implementation, and why.
NAMING = {
    "backend": "they are the implementations",
    "dispatch": "it decides",
    "verify": "it compares implementations",
    "planning": "it counts what the implementations of attention do",
    "cli": "it asks for a version of the kernels, and says what runs",
    "io.provenance": "it records whether compiled loops ran",
    "training.config": "it asks whether there is an emulator",
    "evaluation.batches": "it asks whether kernels could run, which take one batch at a time",
    "models.device_decoding": "it records what kernels and cuBLASLt compute",
    "training.recorded": "it records what kernels and cuBLASLt compute",
}
IMPLEMENTATIONS = re.compile(
    r"minisft\.backend\.(gpu|cpu\.(compiled|jit))|minisft\.backend\.cpu import .*\bjit\b|"
    r"minisft\.dispatch\.(?!selection)|attention_groups|attention_key_blocks")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_else_names_an_implementation(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if name.split(".")[0] in NAMING or name in NAMING:
        return
    code = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
    assert not IMPLEMENTATIONS.search(code), IMPLEMENTATIONS.search(code)[0]
