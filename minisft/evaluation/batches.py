"""Many batches that need no gradient: on a CPU every thread computes whole batches.

Spread over all threads, a batch makes them meet behind each product, norm and attention, dozens of
times a block, and who is done first waits. With a batch each they meet once, at the end, and BLAS
multiplies with one thread for each of ours.

A layer keeps the cache of one forward, so each thread has layers of its own (`Layer.replica`)
around the same parameters. They end with the call, so nothing has to follow when training changes
weights.
"""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from itertools import islice
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from minisft.backend.cpu import row_blocks
from minisft.backend.gpu import cuda

MOST = 8     # threads with a batch each: so many batches are in memory at once

Texts = TypeVar("Texts")
Result = TypeVar("Result")


def each_batch(work: Callable[[Any, Texts], Result], model: Any, batches: Sequence[Texts],
               progress: str | None = None) -> list[Result]:
    """work(model, batch) for each of the batches -> what it gave, in their order.

    Which thread takes a batch, and when, changes no bit: they are those of one thread, and of what
    is left over those of all. An error is that of the first batch that has one; after it, or
    Ctrl-C, no other batch begins. `progress` describes a progress bar, None shows none.
    """
    results: list[Any] = [None] * len(batches)
    models = _models(model, len(batches))
    with tqdm(batches, desc=progress, unit="batch", dynamic_ncols=True,
              disable=True if progress is None else None) as bar:
        numbered = enumerate(bar)
        if len(models) > 1:
            whole = len(batches) - len(batches) % len(models)
            _on_threads(work, models, islice(numbered, whole), results)
        for i, batch in numbered:     # what is left is spread over all threads
            results[i] = work(model, batch)
    return results


def _models(model, n_batches):
    """-> the model, and a replica for each further thread if these are to compute whole batches."""
    n = row_blocks.threads()
    if not 2 <= n <= min(n_batches, MOST) or row_blocks.is_alone() or \
            model.store.xp is not np or cuda.possible():
        return [model]
    models = [model, *(model.replica() for _ in range(n - 1))]
    return [model] if None in models else models


def _on_threads(work, models, numbered, results):
    """Each of the models on a thread of its own takes a batch whenever it has done one."""
    lock, stopped = Lock(), Event()
    errors: dict[int, BaseException] = {}

    def take():
        with lock:
            return None if stopped.is_set() else next(numbered, None)

    def share(model):
        i = -1
        try:
            with row_blocks.alone():
                for i, batch in iter(take, None):
                    results[i] = work(model, batch)
        except BaseException as error:
            errors[i] = error
            stopped.set()

    # the context carries np.errstate, no_grad and the like over to the other threads
    others = [Thread(target=copy_context().run, args=(share, model)) for model in models[1:]]
    with row_blocks.one_blas_thread:
        try:
            for other in others:
                other.start()
            share(models[0])
        finally:
            stopped.set()
            for other in others:
                if other.ident is not None:
                    other.join()
    if errors:
        raise errors.pop(min(errors))
