import json

import numpy as np
import pytest

from benchmarks import gpu, gpu_step
from benchmarks.gpu_peer import Peer
from minisft.backend import array
from minisft.backend.gpu import emulator
from minisft.models.gpt2 import GPT2Config


@pytest.mark.slow
@pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler to emulate CUDA kernels")
def test_the_gpu_benchmark_runs_dry(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert not found["wrong"] and len(found["results"]) >= 27
    assert all(r["seconds"] > 0 for r in found["results"])
    steps = {(r["name"], r["side"]) for r in found["results"] if "side" in r}
    assert {(f"{kind} step, {precision}", "minisft") for kind in ("classifier", "language model")
            for precision in ("float32", "bfloat16")} <= steps
    shown = capsys.readouterr().out
    assert "attention_tensor_cores 2x16 backward" in shown and "attention 2 of AG News" in shown
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.skipif(array.gpu_available(), reason="there is a card")
def test_without_a_card_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA card" in capsys.readouterr().err


def test_operations_of_a_step_are_those_of_its_products():
    # GPT-2 124M at 8x1024: 6 operations a token for each weight of a product, the head's matrix too
    config = GPT2Config.size("gpt2")
    weights = 12 * 12 * 768**2 + 50257 * 768
    attention = 6 * 12 * 2 * 1024 * 768     # of a token: (T,C) by (C,T), twice, in 12 layers
    assert gpu_step.operations(config, "language model", [1024] * 8) == 8 * 1024 * (
        6 * weights + attention)
    # a classifier's head reads one token of each text
    assert gpu_step.operations(config, "classifier", [3, 5]) == 6 * (
        8 * 12 * 12 * 768**2 + 2 * 4 * 768) + 12 * 12 * 768 * (9 + 25)


def test_lengths_are_those_of_ag_news():
    lengths = gpu_step.ag_news_lengths(np.random.default_rng(0), 5000)
    assert np.mean(lengths) == pytest.approx(48.5, abs=1) and np.median(lengths) == 47
    assert 15 <= min(lengths) and max(lengths) <= 200


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_side_that_computes_something_else_is_told(kind, monkeypatch):
    pytest.importorskip("torch")
    bench = gpu.Bench(card=False, rounds=1)
    config = GPT2Config(97, 16, 32, 2, 2).with_dropout(0.0)
    items = gpu_step._items(kind, config, False, 4)
    assert gpu_step._case(bench, kind, config, "float32", items) == []
    plain = Peer._norm
    monkeypatch.setattr(Peer, "_norm", lambda self, x, name: 1.1 * plain(self, x, name))
    wrong = "\n".join(gpu_step._case(bench, kind, config, "float32", items))
    for what in ("loss", "gradient norm"):
        for side in ("torch eager", "torch compile"):
            assert f"{kind} float32: the first {what} of {side} is" in wrong
