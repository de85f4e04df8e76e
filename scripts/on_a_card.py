"""All that a card must show, in one go of at most ten minutes, least to most.

    python scripts/on_a_card.py --out card             card/report.json, and what each part said
    python scripts/on_a_card.py --out tried --dry-run  tries the command out, tiny, without a card

    tests        pytest -m "gpu and not slow": kernels, products and whole steps against NumPy
    products     cuBLASLt at the shapes of GPT-2, each layout, with a bias and without, in float64
    host         the CPU's part of a step, with kernels stubbed
    finetune     `minisft finetune --device gpu` in every precision
    generation   python -m benchmarks.gpu_generation: tokens a second beside transformers
    benchmark    python -m benchmarks.gpu --quick: kernels and whole steps beside PyTorch

A part that takes longer than its share is stopped and told, and the next one begins.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = "float32", "tf32", "bfloat16", "float16"
TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size",
        "257", "--epochs", "1"]
# GPT-2's products of 8 x 1,024 tokens: rows, inner size, columns
SHAPES = ((8192, 768, 2304), (8192, 768, 768), (8192, 768, 3072), (8192, 3072, 768),
          (1627, 768, 2304), (2048, 768, 50304))
TESTS = ["tests/test_kernels.py", "tests/test_mixed_precision.py", "tests/test_tensor_cores.py",
         "tests/test_graph.py", "tests/test_recorded.py", "tests/test_device.py",
         "tests/test_device_decoding.py"]


def products(shapes=SHAPES):
    """-> a line for each product that is further off than its rounding allows.

    Prints how many went to cuBLASLt. Errors are against float64 of the factors.
    """
    import numpy as np

    from minisft.backend import array
    from minisft.backend.gpu import gemm
    from minisft.dispatch.matmul import FORMATS, matmul, rounded, widened

    on_card = array.gpu_available()
    put = array.to_gpu if on_card else np.asarray
    rng, wrong, n_tried = np.random.default_rng(0), [], 0
    for n, k, m in shapes:
        rows = rng.choice(n, min(n, 64), replace=False)
        for name in FORMATS:
            x, w = (rounded(put(rng.standard_normal(s, dtype=np.float32)), FORMATS[name])
                    for s in ((n, k), (k, m)))
            bias = put(rng.standard_normal(m, dtype=np.float32))
            wide_x, wide_w = (array.to_cpu(widened(a)).astype(np.float64) for a in (x, w))
            expected = wide_x[rows] @ wide_w
            for b in (None, bias):
                for a, c in ((x, w), (put(x.T.copy()).T, w), (x, put(w.T.copy()).T)):
                    y = array.to_cpu(matmul(a, c, bias=b))[rows]
                    off = np.abs(y - expected - (0 if b is None else array.to_cpu(b))).max()
                    n_tried += 1
                    # a card may cut a factor of TF32 where the CPU rounds it
                    if not off <= (5e-3 * k**0.5 if name == "tf32" else 1e-5 * k):
                        wrong.append(f"{name} ({n},{k}) by ({k},{m}), bias {b is not None}: "
                                     f"off by {off:.2g}")
    by = "cuBLASLt" if on_card and gemm.planned(array.cupy) else "what there is instead of cuBLASLt"
    print(f"{n_tried} products by {by}, {len(wrong)} wrong")
    return wrong


def parts(args):
    """-> {name: (command, seconds at most)}."""
    python, dry = sys.executable, args.dry_run
    texts = ["--train", str(args.train), "--test", str(args.test)] if args.train else []
    tuned = {f"finetune {precision}": (
        [python, "-m", "minisft", "finetune", "--out", str(args.out / f"run-{precision}"),
         "--quiet", "--compare", "none", "--device", "cpu" if dry else "gpu", "--precision",
         precision, *texts, *(TINY if dry else [])], 30)
        for precision in (PRECISIONS[:1] if dry else PRECISIONS)}
    return {
        "tests": ([python, "-m", "pytest", "-q", "-m", "gpu and not slow", *TESTS,
                   *(["--collect-only"] if dry else [])], 80),
        "products": ([python, __file__, "--products", *(["--dry-run"] if dry else [])], 20),
        "host": ([python, "-m", "benchmarks.gpu_host", "--steps", "1" if dry else "10"], 40),
        **tuned,
        "generation": ([python, "-m", "benchmarks.gpu_generation", "--rounds", "3", *(
            ["--dry-run", "--new-tokens", "4", "--peers"] if dry else [])], 80),
        "benchmark": ([python, "-m", "benchmarks.gpu", "--quick", "--out",
                       str(args.out / "gpu.json"), *(["--dry-run"] if dry else [])], 250),
    }


def run(name, command, seconds, out):
    """-> {"code", "seconds"} of a part; code None where it was stopped. What it said is kept."""
    began = time.perf_counter()
    with open(out / f"{name.replace(' ', '-')}.txt", "w", encoding="utf-8") as said:
        part = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT,
                                start_new_session=True)
        try:
            code = part.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if part.poll() is None:     # with what it has started, which would keep the card busy
                if hasattr(os, "killpg"):     # not on Windows
                    os.killpg(part.pid, signal.SIGKILL)
                else:
                    part.kill()
                part.wait()
    return {"code": code, "seconds": round(time.perf_counter() - began, 1)}


def main(argv=None):
    """-> exit code: 0, 1 where a part failed or was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("card"), help="a new folder (card)")
    parser.add_argument("--train", type=Path, help="texts with labels (the bundled toy-news)")
    parser.add_argument("--test", type=Path, help="and others to test on")
    parser.add_argument("--only", nargs="+", help="parts, by the first word of their name")
    parser.add_argument("--dry-run", action="store_true", help="tiny, without a card")
    parser.add_argument("--products", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.products:
        wrong = products(((5, 32, 7),) if args.dry_run else SHAPES)
        print(*wrong, sep="\n")
        return bool(wrong)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True)
    found = {}
    for name, (command, seconds) in parts(args).items():
        if args.only and name.split()[0] not in args.only:
            continue
        found[name] = run(name, command, seconds, args.out)
        code = found[name]["code"]
        print(f"{name:<20} {found[name]['seconds']:6.1f} s  "
              f"{'done' if code == 0 else 'stopped' if code is None else f'FAILED ({code})'}",
              flush=True)
        (args.out / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(any(part["code"] != 0 for part in found.values()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    sys.exit(main())
