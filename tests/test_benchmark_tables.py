"""Every table of benchmarks/ runs, tiny, and compares what it says that it compares."""

import importlib
import json
import warnings

import numpy as np
import pytest

from benchmarks import harness, ideas, predict, products, sides, texts, translation
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.processor import bfloat16_by, why_not_bfloat16
from minisft.dispatch import attention
from minisft.errors import UserError

TINY = "--layers 2 --width 32 --heads 2 --vocab 400 --context-length 64 --steps 2".split()
# The tables, with what makes each of them small
TABLES = {"classifier": "--batch 3 --dropout 0 0.1", "grouped": "--batch 3",
          "equal_lengths": "--shape 2x8 1x16", "language_model": "--shape 2x8",
          "frozen": "--batch 8 --most 20 --epochs 2 --train-layers last:1",
          "generation": "--batch 3 --new-tokens 5 --prompt-tokens 4",
          "growth": "--batch 2 --lengths 4 8 --sizes 1 3 --length 5", "small": "--batch 3",
          "memory": "--batch 3 --shape --language-shape 2x8"}

ALONE = {"ideas": "--batch 3 --shape 2x8 1x280 --context-length 280 --train-layers last:1"}
STEPS = {"classifier", "grouped", "equal_lengths", "growth", "language_model", "small"}
COMPILED = {"compiled": "--batch 3 --repeats 2 --values 1000"}


def made(name, folder, *more):
    """Runs a table -> what it wrote as JSON."""
    module = importlib.import_module(f"benchmarks.{name}")
    arguments = [*TINY, *(TABLES | ALONE | COMPILED)[name].split(),
                 "--models", str(folder / "models"),
                 "--out", str(folder / "out"), *more]
    assert module.main(arguments) == 0
    assert (folder / "out" / f"{name}.png").stat().st_size > 1000
    assert "| case |" in (folder / "out" / f"{name}.md").read_text()
    return json.loads((folder / "out" / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def without_data_sets(monkeypatch):
    monkeypatch.delenv("MINISFT_SHARED", raising=False)
    monkeypatch.setattr(harness, "PAUSE", 0)


@pytest.fixture
def options(tmp_path):
    return harness.parser("x").parse_args([*TINY, "--models", str(tmp_path)])


@pytest.mark.parametrize("name", TABLES | ALONE)
def test_table_runs_without_torch(name, tmp_path):
    found = made(name, tmp_path, "--alone")
    assert found["rows"] and "toy-news" in found["texts"]
    told = {row["side"] for row in found["rows"] if "side" in row}
    assert told - {harness.LOW} == set(harness.our_sides())     # with compiled loops and without
    assert (harness.LOW in told) == (name in STEPS and not why_not_bfloat16())
    assert "torch" not in found["machine"]["versions"]


@pytest.mark.skipif(bool(why_not_bfloat16()), reason=f"{why_not_bfloat16()}")
def test_products_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "SHAPES", ((3, 4, 5), (20, 7, 33)))
    assert products.main(["--alone", "--steps", "2", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "products.json").read_text())["rows"]
    sides = {row["side"] for row in rows}
    assert [row["case"] for row in rows] == [case for case in ("3 x 4 x 5", "20 x 7 x 33")
                                             for _ in sides]
    assert sides == {harness.LOW} | ({harness.STORED} if bfloat16_by() == "AMX" else set())
    assert {row["peer"] for row in rows} == {products.NUMPY}


def test_texts_are_predicted_by_turns(tmp_path):
    assert predict.main(["--alone", "--count", "7", "--steps", "2", "--models", str(tmp_path),
                         "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "predict-minisft-gpt2.json").read_text())["rows"]
    assert all(row["tokens"] == [4, 3] for row in rows)     # texts, of which it counts the rate
    assert {row["side"] for row in rows} - {harness.LOW} == set(harness.our_sides())
    assert (harness.LOW in {row["side"] for row in rows}) == (not why_not_bfloat16())


def test_compiled_loops_take_turns_with_numpy(tmp_path, monkeypatch):
    pytest.importorskip("numba", reason="compiled loops need the extra fast")
    from benchmarks import compiled
    seen = set()
    monkeypatch.setattr(compiled, "WIDTHS", ((5, 8),))
    monkeypatch.setattr(compiled, "INNER", ((5, 8),))
    monkeypatch.setattr(compiled, "SCORES", (2, 3, 5))
    monkeypatch.setattr(compiled, "LOGITS", (3, 11))
    monkeypatch.setattr(compiled, "AT_LEAST", 0)
    loss = sides.Ours.step
    monkeypatch.setattr(sides.Ours, "step", lambda *args: (seen.add(jit.enabled()), loss(*args))[1])
    found = made("compiled", tmp_path)
    assert seen == {True, False} and found["machine"]["compiled"]
    cases = [row["case"] for row in found["rows"]]
    assert len(cases) == len(set(cases)) and cases[0] == "layer_norm (5, 8), forward"
    assert sum(case.startswith("step") for case in cases) == 4
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    assert compiled.main([*TINY, "--out", str(tmp_path)]) == 2


@pytest.mark.parity
@pytest.mark.parametrize("name", TABLES)
def test_table_compares_with_the_peer(name, tmp_path, capsys):
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs
        found = made(name, tmp_path)
    assert "torch" in found["machine"]["versions"]
    assert name == "memory" or "logits equal" in capsys.readouterr().out
    assert any("ratio" in row or "columns" in row for row in found["rows"])


@pytest.mark.parity
@pytest.mark.parametrize("task", ["classify", "complete"])
def test_both_sides_take_the_same_steps(task, options, rng):
    pytest.importorskip("transformers")
    ids = [rng.integers(0, 399, n) for n in (5, 9, 2)]
    labels = [1, 0, 2] if task == "classify" else [np.append(x[1:], -100) for x in ids]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, peer = sides.pair(sides.weights(options, task), options)
        before = ours.step(ids, labels), peer.step(ids, labels)
        after = ours.step(ids, labels), peer.step(ids, labels)
    assert before[0] == pytest.approx(before[1], abs=1e-5)
    assert after[0] == pytest.approx(after[1], abs=1e-5) and after[0] < before[0] - 1e-3


def test_sides_alternate_and_each_item_is_timed_once():
    calls = []
    found = harness.alternate({"a": lambda x: calls.append(("a", x)),
                               "b": lambda x: calls.append(("b", x))}, [1, 2], warmup=1)
    assert calls == [("a", 1), ("b", 1), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert {name: len(s) for name, s in found.items()} == {"a": 2, "b": 2}


def test_ratio_is_the_peers_time_over_ours():
    row, = harness.compared("c", {"minisft": [1.0, 2.0], "torch": [3.0, 4.0]}, [10, 20])
    assert row["ratio"]["range"] == [2, 3] and row["ratio_of_sums"] == pytest.approx(7 / 3)
    assert row["tokens_per_second"] == 10
    assert "**2.50**" in harness.table([row])[2]


def test_sides_that_differ_are_not_timed():
    with pytest.raises(UserError, match="do not compute the same"):
        harness.require_equal(np.zeros(3), np.array([0, 0, 2e-4]))
    with pytest.raises(UserError):
        harness.require_equal(np.zeros(1), np.array([np.nan]))


@pytest.mark.parametrize("shape", ["8", "x8", "0x8", "2x65", "2x8x2"])
def test_shapes_that_are_none_are_refused(shape, capsys):
    module = importlib.import_module("benchmarks.language_model")
    assert module.main([*TINY, "--shape", shape, "--alone"]) == 2
    assert shape in capsys.readouterr().err


def test_weights_are_made_once(options):
    folder = sides.weights(options, "classify")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert sides.weights(options, "classify") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    options.model = str(folder)
    assert sides.weights(options, "classify") != folder


def test_texts_come_from_the_file_that_is_named(options, tmp_path):
    file = tmp_path / "news.csv"
    file.write_text("text,label\n" + "one two three,a\nfour five,b\n" * 3)
    options.texts = str(file)
    found, names, said = texts.read(options)
    assert len(found) == 6 and names == ("a", "b") and said.startswith("news.csv, 6 texts")
    assert max(x.max() for x in found.ids) < options.vocab - 1     # the last id is for padding


def test_batches_of_each_kind():
    once = texts.batches(10, 4, 2)
    assert len({int(n) for batch in once for n in batch}) == 8
    assert [len(b) for b in texts.batches(3, 4, 5)] == [4] * 5
    lengths = np.arange(40) % 17
    for batch in texts.grouped(lengths, 4, 6):
        assert len(batch) == 4 and np.ptp(lengths[batch]) <= 3
    random = np.mean([np.ptp(lengths[b]) for b in texts.batches(40, 4, 6)])
    assert random > 3


def test_ideas_switch_what_they_name(options, rng, monkeypatch):
    ours = sides.Ours(sides.weights(options, "classify"))
    ids = [rng.integers(0, 399, n) for n in (5, 60, 9, 2)]
    seen, q = [], np.zeros((2, 1, 4), np.float32)
    forward = ours.model.trunk.forward
    monkeypatch.setattr(ours.model.trunk, "forward", lambda batch, stream=None, last_only=False: (
        seen.append((len(batch.ids), last_only, row_blocks.BLOCK,
                     attention.choose(q, q, q, [0, 2], [0], [2]).name == "formula")),
        forward(batch, stream, last_only))[1])
    block = row_blocks.BLOCK
    nothing = ideas.Variant(ours, True, True, ideas.NEVER, True).logits(ids)
    packed = ideas.Variant(ours, False, True, ideas.NEVER).logits(ids)
    every = ideas.Variant(ours).logits(ids)
    assert seen == [(240, False, ideas.NEVER, True), (76, False, ideas.NEVER, False),
                    (76, True, block, False)]
    for other in packed, every:
        np.testing.assert_allclose(other, nothing, rtol=0, atol=1e-6)


def test_ideas_take_equal_steps(options, rng):
    ids = [rng.integers(0, 399, n) for n in (5, 60, 9, 2)]
    losses = []
    for switches in ((True, True, ideas.NEVER), (False, False, None)):
        ours = sides.Ours(sides.weights(options, "classify"))
        variant = ideas.Variant(ours, *switches)
        for _ in range(3):
            variant.step((ids, [0, 1, 2, 3]))
        losses.append(ours.step(ids, [0, 1, 2, 3]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("alone", [True, pytest.param(False, marks=pytest.mark.parity)])
def test_a_translators_step_is_compared(tmp_path, alone, capsys):
    if not alone:
        pytest.importorskip("torch")
    for side in ("source", "target"):
        (tmp_path / side).write_text("".join(
            f"{' '.join(f'{side}{n * k % 7}' for k in range(1 + n % 5))}\n" for n in range(60)))
    assert translation.main([
        *TINY, "--tokens", "60", "--source", str(tmp_path / "source"), "--target",
        str(tmp_path / "target"), "--out", str(tmp_path), *["--alone"] * alone]) == 0
    found = json.loads((tmp_path / "translation.json").read_text())
    assert {row["case"] for row in found["rows"]} == {
        f"{order} lengths, dropout {rate}" for order in ("any", "like") for rate in ("0", "0.1")}
    assert alone or capsys.readouterr().out.count("logits equal within") == 2
    assert translation.main([*TINY]) == 2     # no files and no data sets
