"""The kernels on a card: first that they are right, then how fast, beside PyTorch on the same card.

    python -m benchmarks.gpu --out gpu.json   and gpu.png beside it; some ten minutes
    python -m benchmarks.gpu --dry-run        the same, tiny, on the emulator: tries the command out

It needs the package, CuPy and, as the peer, PyTorch. Kernels first, then whole training steps
(benchmarks/gpu_step.py). Nothing is timed before it is right.

Times are medians of single launches between two CUDA events, after warm-up. A kernel bound by
memory is measured by the bytes that it must move (docs/kernels.md) against a plain copy on the
same card; attention by its floating point operations.
"""

import argparse
import json
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from benchmarks.gpu_attention import record_attention
from benchmarks.gpu_step import record_steps
from minisft.backend import array
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


@dataclass
class Bench:
    """Where things run: on the card, or tiny on the emulator."""

    card: bool
    rounds: int
    results: list = field(default_factory=list)

    @property
    def name(self):
        """-> what the card calls itself."""
        if not self.card:
            return f"emulator on {platform.machine()}"
        return array.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()

    def put(self, a):
        return array.to_gpu(a) if self.card else a

    def normal(self, *shape):
        """-> normal values on the card, float32."""
        rng = np.random.default_rng(len(shape))
        return self.put(rng.standard_normal(shape, dtype=np.float32))

    def peer(self, a, gradient=False):
        """-> the same values as a PyTorch tensor of its own."""
        t = torch.as_tensor(array.to_cpu(a)).to("cuda" if self.card else "cpu")
        return t.requires_grad_() if gradient else t

    def seconds(self, work):
        """-> median over the rounds, by CUDA events on the card."""
        for _ in range(min(3, self.rounds)):
            work()
        return median((self._by_events if self.card else _by_clock)(work)
                      for _ in range(self.rounds))

    def _by_events(self, work):
        start, end = (array.cupy.cuda.Event() for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return array.cupy.cuda.get_elapsed_time(start, end) / 1e3

    def record(self, name, work, amount, unit, peer=None):
        """Measures work, and PyTorch's; amount: bytes or operations of one run."""
        mine = self.seconds(work)
        theirs = self.seconds(peer) if torch and peer else None
        self.results.append({"name": name, "seconds": mine, unit: amount / mine / 1e9,
                             "torch_seconds": theirs})
        beside = f"  PyTorch {theirs * 1e6:10.1f} us, x{theirs / mine:5.2f}" if theirs else ""
        print(f"{name:<44} {mine * 1e6:10.1f} us  {amount / mine / 1e9:9.1f} {unit}{beside}",
              flush=True)


def _by_clock(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def correct(bench):
    """Every kernel against its formula -> the names of those beyond their limit."""
    failed = []
    for check in KERNEL_CHECKS.values():
        for size in (1, 33, 127) if bench.card else (33,):
            rows = check.results(size, bench.asarray)
            failed += [f"{check.name}, size {size}: {row}" for row in rows
                       if not row.error <= row.limit]
    print(f"correct: {len(KERNEL_CHECKS)} checks of kernels, {len(failed)} beyond their limit")
    return failed


def memory_bound(bench, n):
    """n tokens of GPT-2's width."""
    x, dy = bench.normal(n, 768), bench.normal(n, 768)
    bench.record("copy", x.copy, 8 * x.size, "GB/s")
    for module, name in ((softmax.naive, "softmax_naive"), (softmax.fused, "softmax")):
        p, cache = module.forward(x)
        bench.record(f"{name} forward", lambda m=module: m.forward(x), 8 * x.size, "GB/s",
                     torch and _forward(bench, torch.softmax, x, -1))
        bench.record(f"{name} backward", lambda m=module, c=cache: m.backward(dy, c), 12 * x.size,
                     "GB/s", torch and _backward(bench, torch.softmax, x, dy, -1))
    w, b = bench.normal(768), bench.normal(768)
    _, cache = layer_norm.forward(x, w, b)
    bench.record("layer_norm forward", lambda: layer_norm.forward(x, w, b), 8 * x.size, "GB/s",
                 torch and _forward(bench, torch.nn.functional.layer_norm, x, (768,),
                                     bench.peer(w), bench.peer(b)))
    bench.record("layer_norm backward", lambda: layer_norm.backward(dy, cache), 12 * x.size,
                 "GB/s", torch and _backward(bench, torch.nn.functional.layer_norm, x, dy, (768,),
                                              bench.peer(w), bench.peer(b)))
    wide, dwide, bias = bench.normal(n, 3072), bench.normal(n, 3072), bench.normal(3072)
    _, of_gelu = gelu.forward(wide, "tanh", bias)
    bench.record("gelu with bias forward", lambda: gelu.forward(wide, "tanh", bias),
                 8 * wide.size, "GB/s")
    bench.record("gelu with bias backward", lambda: gelu.backward(dwide, of_gelu),
                 12 * wide.size, "GB/s")
    words = Tokens(Stream(0, 1), 1, 1, bench.put(np.arange(n) // 50), bench.put(np.arange(n) % 50))
    bench.record("dropout", lambda: dropout.forward(x, words, RATE), 8 * x.size, "GB/s",
                 torch and _forward(bench, torch.dropout, x, RATE, True))
    ids = bench.put(np.random.default_rng(0).integers(0, 50257 if bench.card else 97, n))
    bench.record("embedding backward", lambda: embedding.backward(dy, (ids, (50257, 768))),
                 8 * x.size, "GB/s")


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
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON, and beside it a "
                        "picture")
    args = parser.parse_args(argv)
    if not args.dry_run and not array.gpu_available():
        print("benchmarks.gpu: no CUDA card that CuPy can use, expected one (or --dry-run)",
              file=sys.stderr)
        return 2
    bench = Bench(card=not args.dry_run, rounds=1 if args.dry_run else 20)
    failed = correct(bench)
    if args.dry_run:
        memory_bound(bench, 8)
        loss_and_step(bench, 4, 97, 1000)
        record_attention(bench, (16,), 32)
        with emulated():
            failed += record_steps(bench, GPT2Config(97, 16, 32, 1, 2).with_dropout(0.0), rounds=1)
    else:
        memory_bound(bench, 8192)
        loss_and_step(bench, 2048, 50257, 124_439_808)
        record_attention(bench, (128, 256, 512, 1024, 2048, 4096), 16384)
        failed += record_steps(bench)
    for line in failed:
        print(f"wrong: {line}")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"card": bench.name, "torch": torch and torch.__version__, "wrong": failed,
                       "results": bench.results}, file, indent=1)
        draw(bench, Path(args.out).with_suffix(".png"))
    return 1 if failed else 0


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
