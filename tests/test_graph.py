"""CUDA graphs: what is recorded, what is replayed, and what a recording refuses."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.gpu import cuda, emulator, gemm, graph
from minisft.errors import UserError
from tests import standin_cublaslt, standin_cupy

needs_compiler = pytest.mark.skipif(emulator.compiler() is None,
                                    reason="no C++ compiler to emulate CUDA kernels")
SHIFTED = """extern "C" __global__ void shifted(const float* x, float* y, int n, float by) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += x[i] + by;
}
"""


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def card(request, monkeypatch):
    monkeypatch.delenv("MINISFT_CUDA_GRAPHS", raising=False)
    with standin_cublaslt.card_or_stand_in(request.param):
        yield


def shift(x, y, by):
    cuda.launch_source(SHIFTED, "shifted", (1,), (32,), x=x, y=y, n=len(x), by=by)


class Work:
    """y += 2 x^2 + by, where by is of the card, or a number that a recording keeps."""

    def __init__(self, xp):
        self.x, self.y = xp.zeros(5, dtype=np.float32), xp.zeros(5, dtype=np.float32)
        self.on_card, self.number, self.calls = xp.zeros(1, dtype=np.float32), 0.0, 0

    def __call__(self):
        self.calls += 1
        square = self.x * self.x
        shift(square + square, self.y, 0.0)
        self.y += self.on_card
        shift(array.cupy.zeros(5, dtype=np.float32), self.y, self.number)


@needs_compiler
def test_a_replay_does_the_same_on_other_numbers(card):
    work, recorder, expected = Work(array.cupy), graph.Recorder(), np.zeros(5, np.float32)
    for t in range(5):
        x = np.arange(5, dtype=np.float32) + t
        work.x[...] = array.cupy.asarray(x)
        work.on_card[...] = float(t)
        recorder.run("key", work)
        expected += 2 * x * x + t
        np.testing.assert_array_equal(array.to_cpu(work.y), expected)
    # run, recorded and replayed, replayed
    assert work.calls == 2 and recorder.replays == 4 and recorder.total_bytes() >= 0


@needs_compiler
def test_a_forgotten_number_is_found(card):
    work, recorder = Work(array.cupy), graph.Recorder()
    for t in range(3):
        work.y[...] = 0
        work.number = float(t)
        recorder.run("key", work)
    assert array.to_cpu(work.y).tolist() == [1.0] * 5     # of when it was recorded


@needs_compiler
def test_products_of_ours_are_recorded(card, rng):
    xp, recorder = array.cupy, graph.Recorder()
    x, w, y = (xp.asarray(rng.standard_normal((16, 16)).astype(np.float16)) for _ in range(3))
    bias, out = xp.arange(16, dtype=np.float32), xp.zeros((16, 16), dtype=np.float32)

    def work():
        low = gemm.product(x, w, xp.empty((16, 16), dtype=np.float16))
        out[...] = gemm.product(low, w.T, bias=bias)

    for t in range(3):
        x[...] = y * (t + 1)
        recorder.run("key", work)
        expected = gemm.product(gemm.product(x, w, xp.empty((16, 16), dtype=np.float16)), w.T,
                                bias=bias)
        np.testing.assert_array_equal(array.to_cpu(out), array.to_cpu(expected))
    assert recorder.replays == 2


FORBIDDEN = {
    "fetches an array": lambda x: array.to_cpu(x),
    "fetches a number": lambda x: float(x[0, 0]),
    "asks": lambda x: bool(x[0, 0] > 0),
    "brings an array over": lambda x: array.to_gpu(np.ones(3)),
    "a mask": lambda x: x[x > 0],
    "CuPy's product": lambda x: x @ x,
}


@needs_compiler
@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_cannot_be_recorded_runs_as_it_is(card, name):
    xp, recorder = array.cupy, graph.Recorder()
    x, y, calls = xp.ones((4, 4), dtype=np.float32), xp.zeros(4, dtype=np.float32), []

    def work():
        calls.append(name)
        shift(x[0], y, 0.0)
        FORBIDDEN[name](x)

    recorder.run("key", work)
    with pytest.warns(RuntimeWarning, match="not recorded as a CUDA graph"):
        recorder.run("key", work)
    for _ in range(2):
        recorder.run("key", work)
    assert array.to_cpu(y).tolist() == [4.0] * 4 and recorder.replays == 0
    assert len(calls) == 5     # once in vain


@needs_compiler
def test_an_interruption_ends_the_recording(card):
    xp, recorder, calls = array.cupy, graph.Recorder(), []
    x, y = xp.ones(4, dtype=np.float32), xp.zeros(4, dtype=np.float32)

    def work():
        calls.append(1)
        shift(x, y, 0.0)
        if len(calls) == 2:
            raise KeyboardInterrupt

    recorder.run("key", work)
    with pytest.raises(KeyboardInterrupt):
        recorder.run("key", work)
    for other in (recorder, graph.Recorder()):
        other.run("key", work)
    assert array.to_cpu(y).tolist() == [3.0] * 4


@needs_compiler
def test_what_has_not_come_for_long_gives_its_place(card):
    recorder, works = graph.Recorder(most=1), [Work(array.cupy) for _ in range(2)]
    for key in (0, 0, *[1] * (graph.STALE + 3)):
        works[key].x[...] = 1.0
        recorder.run(key, works[key])
    assert recorder.graphs[0] is None and recorder.graphs[1]
    assert array.to_cpu(works[1].y).tolist() == [2.0 * (graph.STALE + 3)] * 5


@needs_compiler
def test_more_are_not_recorded(card):
    recorder, works = graph.Recorder(most=2), [Work(array.cupy) for _ in range(3)]
    for _ in range(3):
        for key, work in enumerate(works):
            work.x[...] = 1.0
            recorder.run(key, work)
    assert [work.calls for work in works] == [2, 2, 3] and recorder.replays == 4
    assert all(array.to_cpu(work.y).tolist() == [6.0] * 5 for work in works)


@needs_compiler
def test_a_recorder_that_nobody_needs_is_gone_at_once(card):
    """Nothing in a circle keeps it, and the memory of its pool, until somebody collects."""
    recorder, work = graph.Recorder(), Work(array.cupy)
    for _ in range(3):
        recorder.run("key", work)
    gc.disable()
    try:
        recorder = weakref.ref(recorder)
        assert recorder() is None
    finally:
        gc.enable()


def test_without_a_card_and_where_it_is_off_work_runs(monkeypatch):
    calls, recorder = [], graph.Recorder()
    monkeypatch.setattr(array, "cupy", None)
    for _ in range(3):
        recorder.run("key", lambda: calls.append(1))
    monkeypatch.setattr(array, "cupy", standin_cupy)
    monkeypatch.setenv("MINISFT_CUDA_GRAPHS", "off")
    for _ in range(3):
        recorder.run("key", lambda: calls.append(1))
    assert len(calls) == 6 and recorder.replays == 0
    monkeypatch.setenv("MINISFT_CUDA_GRAPHS", "on")
    with pytest.raises(UserError, match="MINISFT_CUDA_GRAPHS is 'on', expected off or nothing"):
        recorder.run("key", calls.clear)


@pytest.mark.parametrize("fails, recorded, freed", [(0, True, 0), (1, True, 1), (2, False, 1)])
def test_a_pool_that_must_give_memory_back_drops_its_graphs(monkeypatch, fails, recorded, freed):
    left, asked = [fails], []

    class Refused(Exception):
        pass

    def memory(size):
        asked.append(size)
        if left[0]:
            left[0] -= 1
            raise Refused
        return "memory"

    emptied = []
    monkeypatch.setattr(array, "cupy", SimpleNamespace(
        cuda=SimpleNamespace(Memory=memory, MemoryPointer=lambda memory, offset: memory,
                             runtime=SimpleNamespace(CUDARuntimeError=Refused)),
        get_default_memory_pool=lambda: SimpleNamespace(
            free_all_blocks=lambda: emptied.append(1))))
    graphs = {"key": "graph"}
    if recorded:
        assert graph._allocate(graphs, 512) == "memory"
    else:
        with pytest.raises(Refused):
            graph._allocate(graphs, 512)
    assert bool(graphs) == recorded and len(emptied) == freed
    assert asked == [512] * min(fails + 1, 2)
