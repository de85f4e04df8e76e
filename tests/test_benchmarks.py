import json
import weakref
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


def case(kind="classifier", size=2):
    """Steps of a tiny model."""
    config = GPT2Config(97, 16, 32, size, 2).with_dropout(0.0)
    return gpu_step.Case(gpu.Bench(card=False, rounds=1), kind, config, "float32",
                         gpu_step._items(kind, config, False, 4))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_side_that_computes_something_else_is_told(kind, monkeypatch):
    pytest.importorskip("torch")
    right, wrong = case(kind), case(kind)
    gpu_step._measure(right)
    assert right.wrong == []
    plain = Peer._norm
    monkeypatch.setattr(Peer, "_norm", lambda self, x, name: 1.1 * plain(self, x, name))
    gpu_step._measure(wrong)
    for what in ("loss", "gradient norm"):
        for side in ("torch eager", "torch compile"):
            assert f"{kind} float32: the first {what} of {side} is" in "\n".join(wrong.wrong)


@pytest.mark.parity
def test_a_peer_is_told_and_gone_before_the_next_is_made(monkeypatch):
    pytest.importorskip("torch")
    alive, seen = weakref.WeakSet(), []
    plain = Peer.__init__

    def begin(self, *args, **kwargs):
        seen.append((len(alive), [r["side"] for r in measured.bench.results]))
        alive.add(self)
        plain(self, *args, **kwargs)

    monkeypatch.setattr(Peer, "__init__", begin)
    measured, told = case(size=1), []
    gpu_step._measure(measured, ("compile", "eager"),
                      done=lambda wrong: told.append(len(measured.bench.results)))
    assert seen == [(0, ["minisft"]), (0, ["minisft", "torch compile"])] and told == [1, 2, 3]
    assert all(r["minisft_seconds_by_turns"] > 0 for r in measured.bench.results[1:])


@pytest.mark.parity
def test_one_compilation_serves_all_lengths():
    pytest.importorskip("torch")
    compiled, measured = [], case(size=1)
    model = gpu_step._model(measured.kind, measured.config)
    peer = Peer(model, "cpu", compiled=lambda graph, _: compiled.append(graph) or graph,
                lengths_vary=True)
    losses = [float(peer.step([[5] * n, [6, 7]], [0, 1])[0]) for n in (3, 9, 12, 16)]
    peer.close()
    assert len(compiled) == 1 and np.isfinite(losses).all()


@pytest.mark.parametrize("ours", [False, True])
def test_memory_of_other_sides_is_not_counted(monkeypatch, ours):
    class Allocator:
        """One that keeps what is freed, as CuPy's pool and torch.cuda."""

        used = reserved = most = 0

        def take(self, size):
            self.used += size
            self.reserved = max(self.reserved, self.used)
            self.most = max(self.most, self.reserved)

        def empty_cache(self):
            self.reserved = self.used

        def reset_peak_memory_stats(self):
            self.most = self.reserved

        def synchronize(self):
            pass

    memory = Allocator()
    memory.free_all_blocks = memory.empty_cache
    memory.used_bytes = memory.memory_allocated = lambda: memory.used
    memory.total_bytes = lambda: memory.reserved
    memory.max_memory_reserved = memory.max_memory_allocated = lambda: memory.most
    memory.Device = lambda: memory
    monkeypatch.setattr(gpu_step, "torch", SimpleNamespace(cuda=memory))
    monkeypatch.setattr(array, "cupy", SimpleNamespace(
        cuda=memory, get_default_memory_pool=lambda: memory))
    bench = SimpleNamespace(card=True)
    memory.take(11)     # another side's, of whose tensors three bytes stay
    memory.take(-8)
    others = gpu_step._emptied(bench, ours)
    memory.take(5)
    memory.take(-4)
    assert gpu_step._peak(bench, ours)[0] - others == 5
