"""A whole training step of GPT-2 124M on a card, beside PyTorch eager and torch.compile.

A classifier at AG News' lengths, and a language model at 8 texts of 1,024 tokens, in float32, TF32
(float32 whose products read 10 bits of the factors) and bfloat16. PyTorch's fastest ways are among
the peers: compile, and its mode reduce-overhead (CUDA graphs, with lengths rounded up so that few
are recorded). Where lengths vary, one compilation serves them all.

Each peer steps by turns with ours, in a process of these two: there it finds neither memory that
another has left nor what another has compiled, and its figures are told before the next is
compiled. Both sides must first find the same loss and norm of the gradients from the same weights.

Of each side: the time of a step, how long the card was busy in it and with how many launches
(CUPTI, through torch.profiler, and last, as it slows down what comes after it; those of a recorded
step, a CUDA graph, count one by one), and the most memory that its allocator has reserved; of a
peer also the most that its tensors took. Where the card is busy for much less than the step, the
CPU is what is waited for.

Model FLOP utilisation as Chowdhery et al. 2022 ("PaLM", appendix B) count: 6 operations for each
token and weight of a product, 12 T C for each token and layer of attention, over real tokens, over
the card's peak. Recomputing and padding do not count.
"""

import gc
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import numpy as np

from benchmarks.gpu_peer import Peer, torch
from minisft.backend import array
from minisft.data.dataset import TokenizedDataset
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training import recorded
from minisft.training.config import TrainingConfig
from minisft.training.loop import train_step
from minisft.training.optim import AdamW

RATE = 1e-5
# Lengths of AG News under GPT-2's tokenizer: (part of 5,000 training texts, tokens at most)
AG_NEWS = ((0, 15), (0.01, 23), (0.05, 29), (0.1, 34), (0.2, 38), (0.3, 42), (0.4, 45), (0.5, 47),
           (0.6, 50), (0.7, 54), (0.8, 57), (0.9, 63), (0.95, 69), (0.98, 83), (0.99, 96),
           (0.995, 107), (0.999, 166), (1, 200))
# Dense peaks in TFLOP/s from NVIDIA's data sheets: float32 without tensor cores, 16 bits with them
PEAKS = {"H200": (67, 989), "H100 PCIe": (51, 756), "H100": (67, 989), "A100": (19.5, 312),
         "L40S": (91.6, 362), "L4": (30.3, 121), "RTX 4090": (82.6, 165), "A10": (31.2, 125),
         "T4": (8.1, 65)}
LIMITS = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 2e-2}     # of first loss and norm, relative
PRECISIONS = "float32", "tf32", "bfloat16"
OURS = "minisft"
KINDS = "classifier", "language model"
PEERS = "eager", "compile", "reduce-overhead"
UNTIMED = 2     # a step of a new size is run, then recorded, by us and by reduce-overhead
ROUND_TO = 32     # tokens to which reduce-overhead's texts are padded: one graph a length


class Ours:
    """Our side: the step of the training loop itself."""

    def __init__(self, kind, config, device, precision):
        self.model = _model(kind, config).to(device, precision)
        self.optimizer = AdamW(self.model.store)
        self.config = TrainingConfig(micro_tokens=10**9)

    def step(self, ids, labels):
        """Token ids and labels of B texts -> mean loss, norm of the gradients; one step is done."""
        return train_step(self.model, TokenizedDataset(ids, labels), range(len(ids)),
                          self.optimizer, RATE, self.config, None, {})


def _model(kind, config):
    """-> on the CPU, always with the same weights."""
    if kind == "classifier":
        return Classifier(config, ("0", "1", "2", "3"))
    return LanguageModel(config)


def record_steps(bench, config=None, rounds=20, precisions=PRECISIONS, kinds=KINDS, peers=PEERS,
                 done=None):
    """Measures every case; -> what was wrong. `config`: of a tiny model, for trying it out.

    done(what was wrong so far) is called when a peer has been measured.
    """
    wrong, config = [], config or GPT2Config.size("gpt2").with_dropout(0.0)
    ways = [name for name in peers if bench.card or name != "reduce-overhead"] if torch else []
    if bench.card:
        array.cupy.get_default_memory_pool().free_all_blocks()
    for kind in kinds:
        items = _items(kind, config, bench.card, rounds)
        for precision in precisions:
            for i, peer in enumerate(ways or [None]):
                results, found = (apart if bench.card else measured)(
                    bench, kind, config, precision, items, peer)
                bench.results += results[min(i, 1):]     # ours once
                wrong += found
                if done:
                    done(wrong)
    return wrong


def apart(*args):
    """-> `measured` of the same, from a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measured, *args).result()


def measured(bench, kind, config, precision, items, peer=None):
    """Our steps, and by turns those of a way of PyTorch's -> results of the sides, what was wrong.
    """
    sides = {OURS: Ours(kind, config, "gpu" if bench.card else "cpu", precision)}
    if peer:
        sides[f"torch {peer}"] = _peer(bench, kind, config, precision, peer)
    first = {name: [float(a) for a in side.step(*items[0])] for name, side in sides.items()}
    wrong = [f"{kind} {precision}: the first {what} of {name} is {theirs:.6f}, ours {ours:.6f}"
             for name, found in first.items()
             for what, theirs, ours in zip(("loss", "gradient norm"), found, first[OURS],
                                           strict=True)
             if not abs(theirs / ours - 1) <= LIMITS[precision]]
    seconds = _by_turns(bench, sides, items)
    held = {name: _memory(bench, side) for name, side in sides.items()}
    tokens = sum(len(x) for ids, _ in items for x in ids) / len(items)
    work = sum(operations(config, kind, [len(x) for x in ids]) for ids, _ in items) / len(items)
    peak, results = peak_of(bench, precision), []
    for name, side in sides.items():
        time_, (reserved, allocated) = median(seconds[name]), held[name]
        rate = work / time_ / 1e12
        busy, launches = profiled(bench, side.step, items[-1])
        results.append({
            "name": f"{kind} step, {precision}", "side": name, "seconds": time_,
            "all_seconds": seconds[name], "tokens_per_second": tokens / time_, "TFLOP/s": rate,
            "model_flop_utilisation": peak and rate / peak, "busy_seconds": busy,
            "launches": launches, "reserved_bytes": reserved, "allocated_bytes": allocated,
            "minisft_seconds_by_turns": median(seconds[OURS])})
        used = f", {rate / peak:6.1%} of the peak" if peak else ""
        card = f", busy {busy * 1e3:8.2f} ms in {launches} launches" if busy else ""
        memory = f", {reserved / 1e9:5.2f} GB" if reserved else ""
        print(f"{kind + ' step, ' + precision:<32} {name:<20} {time_ * 1e3:9.2f} ms  "
              f"{tokens / time_:12,.0f} tokens/s{used}{card}{memory}", flush=True)
    return results, wrong


def _peer(bench, kind, config, precision, name):
    device, backend = ("cuda", "inductor") if bench.card else ("cpu", "eager")
    options = {"eager": {}, "compile": {"compiled": backend},
               "reduce-overhead": {"compiled": backend, "mode": "reduce-overhead",
                                   "round_to": ROUND_TO}}[name]
    tf32 = precision == "tf32"
    return Peer(_model(kind, config), device, "float32" if tf32 else precision, lr=RATE, tf32=tf32,
                lengths_vary=kind == "classifier", **options)


def _memory(bench, side):
    """-> bytes that a side's allocator has reserved at most, and that its tensors took at most;
    None where that is not known. Right where the process has one side of its kind, and no more."""
    if not bench.card:
        return None, None
    _wait(bench)
    if not isinstance(side, Ours):
        return torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    reserved = array.cupy.get_default_memory_pool().total_bytes()     # what is free again, too
    if steps := recorded.steps_of(side.model):     # a pool of their own
        reserved += steps.recorder.total_bytes()
    return reserved, None


def profiled(bench, step, item):
    """-> seconds that the card was busy in a step, launches; None, None without card or PyTorch."""
    if not (bench.card and torch):
        return None, None
    for _ in range(2):     # a step of a new size is run, then recorded, then replayed
        step(*item)
    _wait(bench)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(*item)
        _wait(bench)
    rows = [row for row in profile.key_averages()
            if row.device_type == torch.autograd.DeviceType.CUDA]
    return sum(r.self_device_time_total for r in rows) / 1e6, sum(r.count for r in rows)


def _by_turns(bench, sides, items):
    """-> {side: seconds of each item}, each side leading by turns; every item came before."""
    for _ in range(UNTIMED):
        for item in items:
            for side in sides.values():
                side.step(*item)
    seconds = {name: [] for name in sides}
    for turn, item in enumerate(items):
        for name in list(sides) if turn % 2 else reversed(sides):
            gc.collect()
            _wait(bench)
            started = time.perf_counter()
            sides[name].step(*item)
            _wait(bench)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait(bench):
    if bench.card:
        array.cupy.cuda.Device().synchronize()     # of PyTorch's streams too


def _items(kind, config, card, n):
    """-> n times ids and labels of a step."""
    rng, made = np.random.default_rng(0), []
    for _ in range(n):
        if kind == "classifier":
            lengths = ag_news_lengths(rng, 32 if card else 4)
        else:
            lengths = [1024] * 8 if card else [7] * 2
        ids = [rng.integers(0, config.vocab_size, min(length, config.n_positions))
               for length in lengths]
        labels = [int(k) for k in rng.integers(0, 4, len(ids))] if kind == "classifier" else [
            np.append(row[1:], IGNORE) for row in ids]
        made.append((ids, labels))
    return made


def ag_news_lengths(rng, n):
    """-> lengths of n texts, drawn from the table of AG News."""
    parts, tokens = zip(*AG_NEWS, strict=True)
    return np.interp(rng.random(n), parts, tokens).round().astype(int).tolist()


def operations(config, kind, lengths):
    """-> floating-point operations of a training step over texts of these lengths."""
    c, n = config.n_embd, sum(lengths)
    weights = 12 * config.n_layer * c * c
    attention = 12 * config.n_layer * c * sum(t * t for t in lengths)
    head = len(lengths) * 4 * c if kind == "classifier" else n * config.vocab_size * c
    return 6 * (weights * n + head) + attention


def peak_of(bench, precision):
    """-> the card's peak in TFLOP/s, or None for one that is not in the table."""
    for name, peaks in PEAKS.items():
        if bench.card and name in bench.name:
            # of TF32 half as many as of 16 bits, on each of these that has it
            return {"float32": peaks[0], "tf32": peaks[1] / 2}.get(precision, peaks[1])
    return None
