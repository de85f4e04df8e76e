import gc
import multiprocessing
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
from threadpoolctl import OpenBLASController, threadpool_info, threadpool_limits

from minisft.backend.cpu import row_blocks


@pytest.fixture(params=[1, 2, 3])
def n_threads(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("n, row_bytes", [
    (0, 8), (1, 8), (7, row_blocks.BLOCK // 3), (7, row_blocks.BLOCK),
    (5, 10 * row_blocks.BLOCK), (100_003, 4)])
def test_blocks_cover_every_row_once(n, row_bytes):
    found = row_blocks.blocks(n, row_bytes)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(n))
    assert all((part.stop - part.start) * row_bytes <= max(row_blocks.BLOCK, row_bytes)
               for part in found)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 17])
def test_results_keep_their_order(n_threads, n):
    assert row_blocks.each(lambda i: i * i, range(n)) == [i * i for i in range(n)]


def test_every_thread_takes_a_share(n_threads):
    arrived = threading.Barrier(n_threads, timeout=20)     # broken unless all of them come
    row_blocks.each(lambda i: arrived.wait(), range(n_threads))


def test_work_within_work(n_threads):
    found = row_blocks.each(lambda i: sum(row_blocks.each(lambda j: i * j, range(5))), range(7))
    assert found == [10 * i for i in range(7)]


def test_an_error_reaches_the_caller_and_leaves_the_pool_usable(n_threads):
    def work(i):
        if i == 4:
            raise ZeroDivisionError("in a share")
        return i

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="in a share"):
            row_blocks.each(work, range(8))
    assert row_blocks.each(work, range(4)) == [0, 1, 2, 3]


def test_no_thread_keeps_what_it_worked_on(n_threads):
    items = [np.empty(1) for _ in range(4)]
    gone = [weakref.ref(item) for item in items]
    row_blocks.each(np.negative, items)
    del items
    assert [item() for item in gone] == [None] * 4


def test_an_error_comes_when_all_threads_are_done(monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 3)
    arrived, done, made = threading.Barrier(3, timeout=20), [], []

    def work(i):
        here = np.empty(1)
        made.append(weakref.ref(here))
        arrived.wait()
        if i < 2:
            raise ZeroDivisionError
        time.sleep(0.2)
        done.append(i)

    def fails():
        try:
            row_blocks.each(work, range(3))
        except ZeroDivisionError:
            return True

    gc.disable()     # an error's frames hold their arrays: none may wait for the collector
    try:
        assert [fails() for _ in range(3)] == [True] * 3 and done == [2] * 3
        assert [array() for array in made] == [None] * 9
    finally:
        gc.enable()


def test_threads_begin_once_whoever_comes_first(monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 3)
    monkeypatch.setattr(row_blocks, "_begun", {})
    begin, before = threading.Barrier(4, timeout=20), threading.active_count()

    def first():
        begin.wait()
        assert row_blocks.each(abs, [-1, -2, -3]) == [1, 2, 3]

    callers = [threading.Thread(target=first) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert threading.active_count() == before + 2


def blas_threads():
    return [library["num_threads"] for library in threadpool_info()
            if library["user_api"] == "blas"]


def test_products_of_several_threads_stay_on_their_own(n_threads):
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        found = row_blocks.each_product(
            lambda i: row_blocks.each_product(lambda j: blas_threads(), range(2)), range(5))
        alone = row_blocks.each_product(lambda i: blas_threads(), [0])
        with pytest.raises(ZeroDivisionError):
            row_blocks.each_product(lambda i: 1 / i, range(4))
        assert alone == [before] and blas_threads() == before
    inside = [1] * len(before) if n_threads > 1 else before
    assert before and found == [[inside] * 2] * 5


def test_alone_a_thread_does_all_its_work(n_threads):
    with threadpool_limits(2, user_api="blas"), row_blocks.alone():
        found = row_blocks.each_product(lambda i: (threading.get_ident(), blas_threads()), range(5))
        assert found == [(threading.get_ident(), blas_threads())] * 5
        with row_blocks.alone():
            pass
        assert row_blocks.is_alone()
    assert not row_blocks.is_alone()


@pytest.fixture
def two_blas_threads():
    """BLAS has two, and any thread may set another number."""
    limit = threadpool_limits(2, user_api="blas")
    OpenBLASController.clear_controlling_thread()
    yield
    limit.restore_original_limits()
    OpenBLASController.clear_controlling_thread()


@pytest.mark.parametrize("leaves_last", ["ours", "the other"])
def test_blas_gets_its_threads_back_whoever_leaves_last(two_blas_threads, monkeypatch, leaves_last):
    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    entered, leave = threading.Event(), threading.Event()

    def others(i):
        if not i:
            entered.set()
            assert leave.wait(20)

    def ours(i):
        if not i:
            other.start()
            assert entered.wait(20)
            if leaves_last == "ours":
                leave.set()
                other.join(20)
            assert set(blas_threads()) == {1}

    other = threading.Thread(target=row_blocks.each_product, args=(others, range(2)))
    row_blocks.each_product(ours, range(2))
    assert set(blas_threads()) == {2 if leaves_last == "ours" else 1}
    leave.set()
    other.join(20)
    assert set(blas_threads()) == {2}


def test_errstate_reaches_every_thread(n_threads):
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        row_blocks.each(lambda i: np.exp(np.float32([1000.0])), range(6))


@pytest.mark.parametrize("openblas, omp, expected", [
    (None, None, 4), ("2", "1", 2), (None, "3", 3), (None, "3,2", 3), ("", "1", 1), ("99", None, 4),
    ("0", None, 4), ("many", "2", 2)])
def test_threads_follow_the_environment(monkeypatch, openblas, omp, expected):
    monkeypatch.setattr(row_blocks.os, "sched_getaffinity", lambda pid: range(4), raising=False)
    for name, value in [("OPENBLAS_NUM_THREADS", openblas), ("OMP_NUM_THREADS", omp)]:
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert row_blocks.threads.__wrapped__() == expected


def of_two_blocks():
    return row_blocks.each(abs, [-1, -2])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(row_blocks, "threads", lambda: 2)
    assert of_two_blocks() == [1, 2]     # the pool is there before the fork
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(of_two_blocks).get(60) == [1, 2]
