"""The kernels on a card: first that they are right, then how fast, beside PyTorch on the same card.

    python -m benchmarks.gpu --out gpu.json   and gpu.png beside it; some twenty minutes, most of
                                              them of torch.compile
    python -m benchmarks.gpu --quick          fewer rounds and lengths, steps in bfloat16 alone
    python -m benchmarks.gpu --dry-run        the same, tiny, on the emulator: tries the command out

It needs the package, CuPy and, as the peer, PyTorch. Kernels first, then whole training steps
(benchmarks/gpu_step.py). Nothing is timed before it is right.

A kernel's time is that of twenty launches behind one another, divided by twenty: a kernel that only
spins occupies the card meanwhile, so that the CPU, which needs longer for a launch than many
kernels run, is not what is measured. Inputs rotate, so that they do not lie in the card's
second-level cache because the launch before has read them. Both hold for PyTorch as well. A kernel
bound by memory is measured by the bytes that it must move (docs/kernels.md) against a plain copy on
the same card; attention by its floating point operations.
"""

import argparse
import json
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from benchmarks.gpu_attention import record_attention
from benchmarks.gpu_step import KINDS, PEERS, PRECISIONS, record_steps
from minisft.backend import array
from minisft.backend.gpu import cuda
from minisft.backend.gpu.launch import (
    adamw,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    softmax,
)
from minisft.backend.random import Stream, Tokens
from minisft.models.gpt2 import GPT2Config
from minisft.verify.kernel_checks import KERNEL_CHECKS

try:
    import torch
except ImportError:
    torch = None

RATE = 0.1
SETS = 8           # of inputs, which rotate
LAUNCHES = 20      # behind one spin
SPIN_CYCLES = 10_000_000     # some 5 ms
SPIN = """extern "C" __global__ void spin(long long cycles) {
    const long long begin = clock64();
    while (clock64() - begin < cycles) {}
}"""


@dataclass
class Bench:
    """Where things run: on the card, or tiny on the emulator."""

    card: bool
    rounds: int
    results: list = field(default_factory=list)
    hidden: bool = True     # whether the card, not the CPU, was what the last time measured

    @property
    def name(self):
        """-> what the card calls itself."""
        if not self.card:
            return f"emulator on {platform.machine()}"
        return array.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()

    def put(self, a):
        return array.to_gpu(a) if self.card else a

    def normal(self, *shape, seed=0):
        """-> normal values on the card, float32."""
        rng = np.random.default_rng((seed, len(shape)))
        return self.put(rng.standard_normal(shape, dtype=np.float32))

    def peer(self, a, gradient=False):
        """-> the same values as a PyTorch tensor of its own."""
        t = torch.as_tensor(array.to_cpu(a)).to("cuda" if self.card else "cpu")
        return t.requires_grad_() if gradient else t

    @property
    def sets(self):
        """-> how many sets of inputs rotate."""
        return SETS if self.card else 1

    def seconds(self, works):
        """Works on one set of inputs each -> the median time of one, over the rounds."""
        works = works if isinstance(works, list) else [works]
        for work in works[:min(3, self.rounds)]:
            work()
        return median((self._by_events if self.card else _by_clock)(works)
                      for _ in range(self.rounds))

    def _by_events(self, works):
        """-> seconds of a work, of many enqueued while the card spins; of one where the CPU takes
        longer than that."""
        start, end = (array.cupy.cuda.Event() for _ in range(2))
        cuda.launch_source(SPIN, "spin", (1,), (1,), cycles=SPIN_CYCLES)
        start.record()
        for i in range(LAUNCHES):
            works[i % len(works)]()
        end.record()
        # a start that has come already was waited for by the CPU, not by the card
        self.hidden = not start.done
        end.synchronize()
        return array.cupy.cuda.get_elapsed_time(start, end) / 1e3 / LAUNCHES

    def record(self, name, works, amount, unit, peers=None):
        """Measures a work, or several on a set of inputs each, and PyTorch's; amount: bytes or
        operations of one run."""
        mine, hidden = self.seconds(works), self.hidden
        theirs = self.seconds(peers) if torch and peers else None
        self.results.append({"name": name, "seconds": mine, unit: amount / mine / 1e9,
                             "torch_seconds": theirs, "cpu_hidden": hidden,
                             "torch_cpu_hidden": self.hidden if theirs else None})
        beside = f"  PyTorch {theirs * 1e6:10.1f} us, x{theirs / mine:5.2f}" if theirs else ""
        print(f"{name:<44} {mine * 1e6:10.1f} us  {amount / mine / 1e9:9.1f} {unit}{beside}",
              flush=True)


def _by_clock(works):
    start = time.perf_counter()
    works[0]()
    return time.perf_counter() - start


def correct(bench):
    """Every kernel against its formula -> the names of those beyond their limit."""
    failed = []
    for check in KERNEL_CHECKS.values():
        for size in (1, 33, 127) if bench.card else (33,):
            rows = check.results(size, bench.put)
            failed += [f"{check.name}, size {size}: {row}" for row in rows
                       if not row.error <= row.limit]
    print(f"correct: {len(KERNEL_CHECKS)} checks of kernels, {len(failed)} beyond their limit")
    return failed


def memory_bound(bench, n):
    """n tokens of GPT-2's width."""
    inputs = [(bench.normal(n, 768, seed=i), bench.normal(n, 768, seed=SETS + i))
              for i in range(bench.sets)]
    size = inputs[0][0].size
    bench.record("copy", [x.copy for x, _ in inputs], 8 * size, "GB/s")
    for module, name in ((softmax.naive, "softmax_naive"), (softmax.fused, "softmax")):
        _pair(bench, name, inputs, module, (), torch and torch.softmax, (-1,))
    w, b = bench.normal(768), bench.normal(768)
    _pair(bench, "layer_norm", inputs, layer_norm, (w, b),
          torch and torch.nn.functional.layer_norm,
          torch and ((768,), bench.peer(w), bench.peer(b)))
    bias = bench.normal(3072)
    wide = [(bench.normal(n, 3072, seed=i), bench.normal(n, 3072, seed=SETS + i))
            for i in range(bench.sets)]
    _pair(bench, "gelu with bias", wide, gelu, ("tanh", bias))
    words = Tokens(Stream(0, 1), 1, 1, bench.put(np.arange(n) // 50), bench.put(np.arange(n) % 50))
    bench.record("dropout", [partial(dropout.forward, x, words, RATE) for x, _ in inputs],
                 8 * size, "GB/s",
                 torch and [_forward(bench, torch.dropout, x, RATE, True) for x, _ in inputs])
    ids = bench.put(np.random.default_rng(0).integers(0, 50257 if bench.card else 97, n))
    bench.record("embedding backward", [partial(embedding.backward, dy, (ids, (50257, 768)))
                                        for _, dy in inputs], 8 * size, "GB/s")


def _pair(bench, name, inputs, module, rest, peer=None, peer_rest=()):
    """Forward and backward of an operation bound by memory on every set of inputs (x, dy)."""
    size = inputs[0][0].size
    bench.record(f"{name} forward", [partial(module.forward, x, *rest) for x, _ in inputs],
                 8 * size, "GB/s",
                 peer and [_forward(bench, peer, x, *peer_rest) for x, _ in inputs])
    caches = [module.forward(x, *rest)[1] for x, _ in inputs]
    bench.record(f"{name} backward", [partial(module.backward, dy, cache) for (_, dy), cache in
                                      zip(inputs, caches, strict=True)], 12 * size, "GB/s",
                 peer and [_backward(bench, peer, x, dy, *peer_rest) for x, dy in inputs])


def loss_and_step(bench, n, classes, parameters):
    """The head's loss over n tokens, and AdamW over all parameters."""
    z = bench.normal(n, classes)
    labels = bench.put(np.arange(n) % classes)
    bench.record("cross_entropy forward", lambda: cross_entropy.forward(z, labels), 4 * z.size,
                 "GB/s", torch and _forward(bench, torch.nn.functional.cross_entropy, z,
                                            bench.peer(labels)))
    _, cache = cross_entropy.forward(z, labels)
    bench.record("cross_entropy backward", lambda: cross_entropy.backward(1.0, cache, out=z),
                 8 * z.size, "GB/s")
    values, grads = bench.normal(parameters), bench.normal(parameters)
    m, v = 0 * values, 0 * values
    bench.record("norm of the gradients", lambda: adamw.squares(grads), 4 * parameters, "GB/s")
    peer = None
    if torch:
        p = bench.peer(values, gradient=True)
        p.grad = bench.peer(grads)
        peer = torch.optim.AdamW([p], lr=1e-5, fused=bench.card).step
    group = [(parameters, 1e-5, 0.01)]
    bench.record("adamw", lambda: adamw.step(values, grads, m, v, 1, group), 28 * parameters,
                 "GB/s", peer)


def _forward(bench, function, x, *rest):
    t = bench.peer(x)
    return lambda: function(t, *rest)


def _backward(bench, function, x, dy, *rest):
    t, up = bench.peer(x, gradient=True), bench.peer(dy)
    return _gradients(function(t, *rest), [t], up)


def _gradients(y, inputs, up):
    return lambda: torch.autograd.grad(y, inputs, up, retain_graph=True)


def main(argv=None):
    """-> exit code: 0, 1 when a kernel is wrong, 2 without a card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the emulator")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and lengths, steps in "
                        "bfloat16 alone")
    parser.add_argument("--only", choices=("kernels", "steps"), help="the one or the other")
    parser.add_argument("--steps-of", nargs="+", choices=KINDS, default=KINDS, help="all")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="of the steps: all, or "
                        "bfloat16 with --quick")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="of the steps: "
                        "all; each case of compile takes minutes")
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON, and beside it a "
                        "picture")
    args = parser.parse_args(argv)
    if not args.dry_run and not array.gpu_available():
        print("benchmarks.gpu: no CUDA card that CuPy can use, expected one (or --dry-run)",
              file=sys.stderr)
        return 2
    bench = Bench(card=not args.dry_run, rounds=1 if args.dry_run else 5 if args.quick else 20)
    failed = correct(bench)

    def told(wrong):     # what comes next takes minutes, and may not end
        save(bench, args.out, failed + wrong)

    if args.dry_run:
        memory_bound(bench, 8)
        loss_and_step(bench, 4, 97, 1000)
        record_attention(bench, (16,), 32)
        with emulated():
            failed += record_steps(bench, GPT2Config(97, 16, 32, 1, 2).with_dropout(0.0), rounds=1,
                                   peers=args.peers, done=told)
    else:
        if args.only != "steps":
            memory_bound(bench, 8192)
            loss_and_step(bench, 2048, 50257, 124_439_808)
            record_attention(bench, (128, 1024) if args.quick else
                             (128, 256, 512, 1024, 2048, 4096), 16384)
            told([])
        if args.only != "kernels":
            failed += record_steps(bench, rounds=bench.rounds, precisions=args.precision or (
                ("bfloat16",) if args.quick else PRECISIONS), kinds=args.steps_of,
                peers=args.peers, done=told)
    for line in failed:
        print(f"wrong: {line}")
    save(bench, args.out, failed)
    if args.out:
        draw(bench, Path(args.out).with_suffix(".png"))
    return 1 if failed else 0


def save(bench, out, failed):
    """The results so far as JSON, where a file is asked for."""
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump({"card": bench.name, "torch": torch and torch.__version__, "wrong": failed,
                       "results": bench.results}, file, indent=1)


@contextmanager
def emulated():
    """Within it, models compute through the emulated kernels."""
    kept = os.environ.get("MINISFT_CUDA")
    os.environ["MINISFT_CUDA"] = "emulate"
    try:
        yield
    finally:
        os.environ.pop("MINISFT_CUDA") if kept is None else os.environ.update(MINISFT_CUDA=kept)


def draw(bench, path):
    """Two pictures: each kernel's speed beside PyTorch's, and tokens a second of each step."""
    figure = Figure(figsize=(9, 10), dpi=120, layout="constrained")
    kernels, steps = figure.subplots(2, height_ratios=(3, 1))
    beside = [r for r in bench.results if r.get("torch_seconds")]
    kernels.barh([r["name"] for r in beside], [r["torch_seconds"] / r["seconds"] for r in beside],
                 color="#4c78a8")
    kernels.axvline(1, color="#7f7f7f", lw=1)
    kernels.set_xlabel("PyTorch's time over ours (above 1: ours is faster)")
    whole = [r for r in bench.results if "side" in r]
    steps.barh([f"{r['name']}, {r['side']}" for r in whole],
               [r["tokens_per_second"] for r in whole],
               color=["#4c78a8" if r["side"] == "minisft" else "#bab0ac" for r in whole])
    steps.set_xlabel("tokens a second")
    for axes in (kernels, steps):
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(bench.name, fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
