"""Whole batches on each thread: bits, order, errors and contexts of one after the other."""

import gc
import io
import multiprocessing
import signal
import threading
import time
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from minisft.backend.cpu import jit, row_blocks
from minisft.data.dataset import TokenizedDataset
from minisft.dispatch import FORMATS, layer_norm, only
from minisft.errors import UserError
from minisft.evaluation import batches
from minisft.evaluation.batches import each_batch
from minisft.evaluation.evaluate import log_probabilities, token_logits
from minisft.models.adapters import LoraConfig
from minisft.models.config import BertConfig, GPT2Config
from minisft.models.heads import BertClassifier, Classifier
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.nn.layers import Layer, backward_comes, no_grad

GPT2 = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
BERT = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                  intermediate_size=64, max_position_embeddings=64)
WAIT = 30     # seconds, so that a test fails where threads wait for ever


@pytest.fixture(params=[2, 3])
def n_threads(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: request.param)
    return request.param


@pytest.fixture
def model():
    return Classifier(GPT2, "abc")


@pytest.fixture
def ids(rng):
    return [rng.integers(0, 300, n) for n in rng.integers(1, 64, 60)]


def adapted():
    made = Classifier(GPT2, "abc")
    made.add_adapter(LoraConfig(r=2))
    for p in made.store:     # B begins as zeros
        p.value[...] += 0.01
    return made


MODELS = {
    "GPT-2": lambda: Classifier(GPT2, "abc"), "BERT": lambda: BertClassifier(BERT, "abc"),
    "mean": lambda: BertClassifier(BERT, "abc", pooling="mean"), "adapter": adapted,
    "tags": lambda: TokenClassifier(BERT, "abc"), "answers": lambda: SpanClassifier(GPT2)}


def scored(model, ids):
    """-> what the model gives for each text, in batches of 150 tokens."""
    types = None if "GPT" in repr(model) else [np.arange(len(x)) // 5 % 2 for x in ids]
    if isinstance(model, Classifier):
        return list(log_probabilities(model, ids, 150, types=types))
    return token_logits(model, TokenizedDataset(ids, [], types), 150)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_threads_change_no_bit_and_no_order(kind, precision, ids, monkeypatch):
    model = MODELS[kind]()
    model.store.set_compute_dtype(FORMATS[precision])
    seen, forward = set(), type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *args: (
        seen.add((id(self), threading.get_ident())), forward(self, *args))[1])
    found = {}
    for n in (1, 2, 3):
        monkeypatch.setattr(row_blocks, "threads", lambda n=n: n)
        seen.clear()
        # BLAS adds in another order with more threads, on some processors
        with threadpool_limits(1, user_api="blas"):
            found[n] = scored(model, ids)
        assert (len(seen) == 1) == (n == 1)
    for n in (2, 3):
        for a, b in zip(found[1], found[n], strict=True):
            np.testing.assert_array_equal(a, b)


def test_each_thread_has_layers_of_its_own(n_threads, model):
    arrived, used = threading.Barrier(n_threads, timeout=WAIT), {}

    def work(own, batch):
        if batch < n_threads:     # so that each of the threads has one
            arrived.wait()
        assert used.setdefault(threading.get_ident(), own) is own
        assert own.store is model.store
        return 10 * batch

    assert each_batch(work, model, range(11)) == list(range(0, 110, 10))
    assert len({id(own) for own in used.values()}) == len(used) == n_threads
    assert used[threading.get_ident()] is model


def layers_of(layer):
    """-> a layer and those in it, with where each is held; an adapter's map is held twice."""
    yield layer
    for part in vars(layer).values():
        for x in part if isinstance(part, list | tuple) else [part]:
            if isinstance(x, Layer):
                yield from layers_of(x)


@pytest.mark.parametrize("kind", MODELS)
def test_a_replica_is_the_same_layers_with_caches_of_their_own(kind, ids):
    model = MODELS[kind]()
    first = TokenizedDataset(ids, np.zeros((60, 2), int) if kind == "answers" else [
        np.zeros(len(x), int) for x in ids] if kind == "tags" else [0] * 60).batch([0, 1])
    model.loss(first)
    theirs, ours = list(layers_of(model)), list(layers_of(model.replica()))
    assert [type(layer) for layer in theirs] == [type(layer) for layer in ours]
    assert not {id(layer) for layer in theirs} & {id(layer) for layer in ours}
    assert len({*map(id, theirs)}) == len({*map(id, ours)})
    assert model.replica().parameters() == model.parameters()
    assert any(layer.cache is not None for layer in theirs)
    assert all(layer.cache is layer.attended is None for layer in ours)
    model.replica().forward(first)
    model.loss_backward()     # what the model has saved is there


def test_no_replica_stays(model, ids, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    replicas, replica = [], Layer.replica

    def kept(layer):
        made = replica(layer)
        replicas.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Layer, "replica", kept)
    before = log_probabilities(model, ids, 150)
    gc.collect()
    assert len(replicas) == 1 and replicas[0]() is None
    for p in model.store:
        p.value += 0.1
    model.train_layers("head")     # lays the values out anew
    with threadpool_limits(1, user_api="blas"):
        after = log_probabilities(model, ids, 150)
        monkeypatch.setattr(row_blocks, "threads", lambda: 1)
        np.testing.assert_array_equal(after, log_probabilities(model, ids, 150))
    assert np.abs(after - before).max() > 1e-3


def at_work():
    """-> how many threads there are beside that of tqdm, which its first bar starts."""
    return sum(thread.name != "tqdm_monitor" for thread in threading.enumerate())


def where(model, batch):
    """-> who computes a batch, and how many threads BLAS has."""
    return row_blocks.is_alone(), {library["num_threads"] for library in threadpool_info()
                                   if library["user_api"] == "blas"}


def test_what_is_left_over_is_spread(n_threads, model):
    with threadpool_limits(2, user_api="blas"):
        found = each_batch(where, model, range(2 * n_threads + 1))
        assert found == [(True, {1})] * 2 * n_threads + [(False, {2})]
        assert where(model, 0) == (False, {2})


def one_thread(model, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 1)
    monkeypatch.setattr(Layer, "replica", None)     # nobody asks


def few_batches(model, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 7)
    monkeypatch.setattr(Layer, "replica", None)


def by_function(model, monkeypatch):
    layer = model.trunk.blocks[1].mlp
    monkeypatch.setattr(layer, "forward", layer.forward)


@pytest.mark.parametrize("prepare", [
    one_thread, few_batches, by_function,
    lambda model, patch: patch.setattr(batches, "MOST", 1),
    lambda model, patch: patch.setattr(model.store, "xp", SimpleNamespace()),
    lambda model, patch: patch.setenv("MINISFT_CUDA", "emulate")],
    ids=["one thread", "few batches", "function", "many threads", "card", "emulator"])
def test_elsewhere_one_batch_comes_after_the_other(model, monkeypatch, prepare):
    def work(own, batch):
        assert own is model and not row_blocks.is_alone()
        return threading.get_ident(), batch

    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    prepare(model, monkeypatch)
    assert each_batch(work, model, range(6)) == [(threading.get_ident(), n) for n in range(6)]
    assert each_batch(work, model, []) == []


def test_within_work_of_a_thread_there_are_no_others(model, n_threads):
    with row_blocks.alone():
        assert {row for row in each_batch(lambda *_: threading.get_ident(), model, range(9))} == {
            threading.get_ident()}


@pytest.mark.parametrize("failing", [(0, 1), (1,), (0,), (4,)])
def test_the_error_is_that_of_the_first_batch_that_has_one(model, monkeypatch, failing):
    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    arrived, begun = threading.Barrier(2, timeout=WAIT), []

    def work(own, batch):
        begun.append(batch)
        if batch < 2:
            arrived.wait()     # both threads are at work
        if batch in failing:
            raise UserError(f"batch {batch}")
        time.sleep(0.01)
        return batch

    threads = at_work()
    for _ in range(5):
        begun.clear()
        with pytest.raises(UserError, match=f"^batch {failing[0]}$"):
            each_batch(work, model, range(500))
        assert len(begun) < 100 and at_work() == threads


def test_an_interrupt_ends_all_threads(model, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    arrived, begun = threading.Barrier(2, timeout=WAIT), []

    def work(own, batch):
        begun.append(batch)
        if batch < 2:
            arrived.wait()
        if own is model:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)

    threads, before = at_work(), where(model, 0)
    with pytest.raises(KeyboardInterrupt):
        each_batch(work, model, range(500))
    assert len(begun) < 100 and at_work() == threads
    assert where(model, 0) == before


def test_contexts_reach_every_thread(model, n_threads):
    x, w, b = np.ones((512, 768), np.float32), np.ones(768, np.float32), np.zeros(768, np.float32)
    arrived = threading.Barrier(n_threads, timeout=WAIT)

    def work(own, batch):
        arrived.wait()
        return (layer_norm.choose(x, w, b).name, jit.enabled(), backward_comes(),
                np.geterr()["over"], threading.get_ident())

    with only("formula"), jit.compiled(False), no_grad(), np.errstate(over="raise"):
        found = each_batch(work, model, range(n_threads))
    assert {row[:-1] for row in found} == {("formula", False, False, "raise")}
    assert len({row[-1] for row in found}) == n_threads


@pytest.mark.parametrize("progress", [None, "predicting"])
def test_progress_counts_the_batches(model, n_threads, monkeypatch, progress):
    out = io.StringIO()

    def on_a_terminal(*args, disable, **options):
        return tqdm(*args, disable=bool(disable), file=out, **options)

    monkeypatch.setattr(batches, "tqdm", on_a_terminal)
    each_batch(lambda own, batch: None, model, range(8), progress)
    shown = out.getvalue()
    assert not shown if progress is None else "predicting: 100%" in shown and "8/8" in shown
    if progress:     # an error leaves the line complete
        with pytest.raises(ZeroDivisionError) as kept:
            each_batch(lambda own, batch: 1 / 0, model, range(8), progress)
        assert out.getvalue().endswith("\n") and kept


def test_a_users_own_threads(model, ids, monkeypatch):
    def run(n):
        found[n] = log_probabilities(replicas[n], ids, 150)

    found, replicas = {}, [model.replica() for _ in range(3)]
    users = [threading.Thread(target=partial(run, n)) for n in range(3)]
    with threadpool_limits(1, user_api="blas"):
        alone = log_probabilities(model, ids, 150)
        monkeypatch.setattr(row_blocks, "threads", lambda: 2)
        for user in users:
            user.start()
        for user in users:
            user.join(WAIT)
    for n in range(3):
        np.testing.assert_array_equal(found[n], alone)


def in_batches(model):
    return [int(n) for n in each_batch(lambda own, batch: 2 * batch, model, range(5))]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(model, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    assert in_batches(model) == [0, 2, 4, 6, 8]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(in_batches, (model,)).get(60) == [0, 2, 4, 6, 8]
