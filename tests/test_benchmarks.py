import json
from types import SimpleNamespace

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


def case(kind="classifier"):
    """Steps of a tiny model."""
    config = GPT2Config(97, 16, 32, 1, 2).with_dropout(0.0)
    return (gpu.Bench(card=False, rounds=1), kind, config, "float32",
            gpu_step._items(kind, config, False, 4))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_side_that_computes_something_else_is_told(kind, monkeypatch):
    pytest.importorskip("torch")
    plain = Peer._norm
    for side in ("eager", "compile"):
        assert gpu_step.measured(*case(kind), side)[1] == []
        with monkeypatch.context() as patch:
            patch.setattr(Peer, "_norm", lambda self, x, name: 1.1 * plain(self, x, name))
            wrong = "\n".join(gpu_step.measured(*case(kind), side)[1])
        for what in ("loss", "gradient norm"):
            assert f"{kind} float32: the first {what} of torch {side} is" in wrong


@pytest.mark.parity
def test_a_peer_is_measured_in_a_process_without_the_others(capfd):
    pytest.importorskip("torch")
    results, wrong = gpu_step.apart(*case(), "eager")
    assert [r["side"] for r in results] == ["minisft", "torch eager"] and not wrong
    assert len({r["minisft_seconds_by_turns"] for r in results}) == 1
    assert "torch eager" in capfd.readouterr().out


def test_a_card_measures_each_peer_apart_and_tells_it_at_once(monkeypatch):
    peers, told = [], []

    def stub(bench, kind, config, precision, items, peer):
        peers.append(peer)
        return [{"side": "minisft"}, {"side": peer}], [f"{peer} is wrong"]

    monkeypatch.setattr(gpu_step, "apart", stub)
    monkeypatch.setattr(gpu_step, "torch", True)
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    monkeypatch.setattr(array, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    bench, config = gpu.Bench(card=True, rounds=1), GPT2Config(97, 16, 32, 1, 2)
    wrong = gpu_step.record_steps(bench, config, 1, ["bfloat16"], ["classifier"],
                                  ["compile", "reduce-overhead"],
                                  lambda so_far: told.append((len(bench.results), len(so_far))))
    assert peers == ["compile", "reduce-overhead"] and told == [(2, 1), (3, 2)]
    assert [r["side"] for r in bench.results] == ["minisft", *peers]
    assert wrong == ["compile is wrong", "reduce-overhead is wrong"]


@pytest.mark.parity
def test_one_compilation_serves_all_lengths():
    pytest.importorskip("torch")
    compiled, (_, kind, config, *_) = [], case()
    peer = Peer(gpu_step._model(kind, config), "cpu", lengths_vary=True,
                compiled=lambda graph, _: compiled.append(graph) or graph)
    losses = [float(peer.step([[5] * n, [6, 7]], [0, 1])[0]) for n in (3, 9, 12, 16)]
    assert len(compiled) == 1 and np.isfinite(losses).all()
