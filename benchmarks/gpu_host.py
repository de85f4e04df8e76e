"""What the CPU does in a training step on a card: kernels are stubbed, so that no card is needed.

    python -m benchmarks.gpu_host                     this checkout
    python -m benchmarks.gpu_host --before FOLDER     by turns with another checkout

GPT-2 with 12 layers at a width of 64, 32 texts of one to three tokens: as many launches as of GPT-2
124M, and so little work between them that the time is the launches' own. CuPy is stood in for by
tests/standin_cupy.py, whose kernels and products do nothing here. What CuPy itself needs for each
launch comes on top on a card, and its other functions are NumPy's here: the figures compare two
checkouts, and are none of a card.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CASES = {     # kind, precision, dropout, whether the step is recorded (a CUDA graph)
    "classifier, bfloat16": ("Classifier", "bfloat16", 0.0, False),
    "classifier, bfloat16, dropout": ("Classifier", "bfloat16", 0.1, False),
    "classifier, float32": ("Classifier", "float32", 0.0, False),
    "language model, bfloat16": ("LanguageModel", "bfloat16", 0.0, False),
    "classifier, replayed": ("Classifier", "bfloat16", 0.1, True),
    "language model, replayed": ("LanguageModel", "bfloat16", 0.1, True),
}
TURNS = 3     # processes of each checkout


def standin():
    """-> the stand-in for CuPy, whose kernels and products do nothing."""
    if "tests.standin_graphs" not in sys.modules:     # of this checkout, whichever is imported
        sys.modules["tests.standin_graphs"] = _loaded("standin_graphs")
    cupy = _loaded("standin_cupy")

    class Stubbed:
        """Launches nothing."""

        def __init__(self, code, options=()):
            pass

        def get_function(self, name):
            """-> what counts the launch of a kernel."""
            return lambda grid, block, args: cupy.launched(name)

    cupy.RawModule = Stubbed
    nowhere = SimpleNamespace(ptr=256)
    cupy.ndarray.data = property(lambda array: nowhere)     # an address that nobody reads
    cupy.ndarray.__float__ = lambda array: cupy.launched("to CPU") or 1.0     # nobody wrote a loss
    cupy.asnumpy = lambda a: (a if isinstance(a, np.ndarray) else
                              cupy.launched("to CPU") or np.ones(a.shape, a.dtype))
    cupy.cuda.cublas.gemmEx = lambda *args: cupy.launched("gemmEx")

    class Stream(cupy.cuda.Stream):
        """Whose graphs do nothing."""

        def end_capture(self):
            super().end_capture()
            return SimpleNamespace(launch=lambda: cupy.launched("graph"))

    cupy.cuda.Stream = Stream
    return cupy


def _loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub_products(cupy):
    """cuBLASLt, where the package uses it, multiplies nothing either."""
    try:
        from minisft.backend.gpu import cublaslt, gemm
    except ImportError:
        return     # an older checkout

    class Stubbed:
        """Every function succeeds; the heuristic finds one algorithm."""

        def __getattr__(self, name):
            return lambda *arguments: 0

        def cublasLtMatmulAlgoGetHeuristic(self, *arguments):     # noqa: N802
            arguments[-1]._obj.value = 1
            return 0

        def cublasLtMatmul(self, *arguments):     # noqa: N802
            cupy.launched("cublasLtMatmul")
            return 0

    stubbed = Stubbed()
    cublaslt.library = lambda cupy: stubbed
    gemm.planned = lambda cupy: True
    cupy.cuda.runtime.getDevice = staticmethod(lambda: 0)


def measured(steps):
    """-> {case: (milliseconds of CPU of each step, Counter of the launches of one)}, of the package
    that is imported."""
    from minisft.backend import array
    from minisft.backend.random import Stream
    from minisft.data.dataset import TokenizedDataset
    from minisft.models import heads
    from minisft.models.gpt2 import GPT2Config
    from minisft.training.config import TrainingConfig
    from minisft.training.loop import train_step
    from minisft.training.optim import AdamW

    array.cupy = cupy = standin()
    stub_products(cupy)
    rng, found = np.random.default_rng(0), {}
    ids = [rng.integers(0, 97, n) for n in rng.integers(2, 4, 32)]
    for name, (kind, precision, dropout, recorded) in CASES.items():
        os.environ["MINISFT_CUDA_GRAPHS"] = "" if recorded else "off"
        config = GPT2Config(97, 16, 64, 12, 4).with_dropout(dropout)
        classifier = kind == "Classifier"
        model = heads.Classifier(config, "abcd") if classifier else heads.LanguageModel(config)
        model.to("cuda", precision)
        optimizer, settings = AdamW(model.store), TrainingConfig(micro_tokens=10**9)
        labels = [i % 4 for i in range(len(ids))] if classifier else [
            np.append(row[1:], -100) for row in ids]

        def step(t, model=model, labels=labels, optimizer=optimizer, settings=settings,
                 dropout=dropout):
            texts = TokenizedDataset(ids, labels)
            stream = Stream(0, t) if dropout else None
            started = time.process_time()
            train_step(model, texts, range(len(ids)), optimizer, 1e-5, settings, stream, {})
            return 1e3 * (time.process_time() - started)

        for t in range(3):
            step(t)
        with cupy.counted() as launches:
            step(3)
        found[name] = [step(4 + t) for t in range(steps)], launches
    return found


def by_turns(folders, steps, turns=TURNS):
    """{name: checkout} -> {name: {case: (median milliseconds of CPU, launches)}}."""
    found = {name: [] for name in folders}
    for turn in range(turns):
        for name in list(folders) if turn % 2 else reversed(folders):
            path = [str(folders[name]), *filter(None, [os.environ.get("PYTHONPATH")])]
            done = subprocess.run(
                [sys.executable, __file__, "--measure", str(steps)], check=True,
                stdout=subprocess.PIPE, text=True, cwd=folders[name],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1",
                                  "OPENBLAS_NUM_THREADS": "1", "MINISFT_COMPILED": "off"})
            found[name].append(json.loads(done.stdout))
    return {name: {case: (median(ms for run in runs for ms in run[case][0]),
                          sum(runs[0][case][1].values()))
                   for case in CASES} for name, runs in found.items()}


def main(argv=None):
    """-> exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", metavar="FOLDER", type=Path, help="another checkout")
    parser.add_argument("--steps", type=int, default=10, help="of each process (10)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measured(args.measure)))
        return 0
    folders = {"before": args.before.resolve()} if args.before else {}
    found = by_turns(folders | {"now": ROOT}, args.steps)
    for case in CASES:
        print(f"{case:<32}" + ", ".join(
            f"{name} {ms:6.1f} ms of CPU, {launches} launches"
            for name, cases in found.items() for ms, launches in [cases[case]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
