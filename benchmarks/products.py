"""Matrix products alone, at the shapes of GPT-2 124M: NumPy's float32, our bfloat16, the peer's.

python -m benchmarks.products

Ratio: the time of NumPy's product, or the peer's, over that of ours in bfloat16. Factors are
rounded before; ours packs them within the time. Results are float32 or, where the processor's
products can store them so, bfloat16, as the peer's are in bfloat16. Memory that was freed is used
again, as in a training run: panels of a token table are 77 MB, whose fresh pages would take as long
as the product.
"""

import sys

import numpy as np

from benchmarks import harness
from minisft.backend.bfloat16 import from_bfloat16
from minisft.backend.cpu import allocator
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.processor import why_not_bfloat16
from minisft.dispatch import matmul, to_bfloat16
from minisft.errors import UserError

# rows, summed over, columns: of a step of 1,650 tokens forward and backward, of generation
SHAPES = ((1650, 768, 2304), (1650, 768, 768), (1650, 768, 3072), (1650, 3072, 768),
          (768, 1650, 3072), (256, 768, 50257), (8, 768, 3072), (1, 768, 3072), (1, 768, 50257))
NUMPY = "NumPy float32"


def run(options):
    """Writes the table."""
    if reason := why_not_bfloat16():
        raise UserError(f"bfloat16: {reason}")
    rng, made = np.random.default_rng(0), []
    for rows, inner, columns in SHAPES:
        a, b = (rng.standard_normal(shape, dtype=np.float32)
                for shape in ((rows, inner), (inner, columns)))
        low = to_bfloat16(a), to_bfloat16(b)
        out = aligned((rows, columns), np.float32)
        exact = np.matmul(*map(from_bfloat16, low))
        harness.require_equal(matmul(*low) / np.abs(exact).max(), exact / np.abs(exact).max())
        # a measurement of some time; of tiny ones the calls take it
        times = max(1, int(3e9 / max(rows * inner * columns, 2**20)))
        sides = {harness.LOW: lambda _, low=low, out=out: matmul(*low, out),
                 NUMPY: lambda _, a=a, b=b, out=out: np.matmul(a, b, out=out)}
        stored = aligned((rows, columns), np.uint16)
        if matmul.choose(*low, stored).name != "widened":
            sides[harness.STORED] = lambda _, low=low, out=stored: matmul(*low, out)
        if not options.alone:
            sides |= peers(a, b)
        several = {name: repeated(step, times) for name, step in sides.items()}
        with allocator.reused():
            seconds = harness.alternate(several, [None] * options.steps, options.warmup)
        work = 2e-9 * rows * inner * columns * times
        found = harness.compared(f"{rows} x {inner} x {columns}", seconds, [1] * options.steps)
        for row in found:
            row["columns"] = {"results": "bfloat16" if row["side"] == harness.STORED else "float32",
                              "bfloat16, GFLOP/s": f"{work / np.median(row['seconds']):,.0f}",
                              "peer": row["peer"],
                              "peer, GFLOP/s": f"{work / np.median(row['peer_seconds']):,.0f}",
                              "ratio": f"**{row['ratio']['median']:.2f}**"}
        made += found
    harness.write("products", "Matrix products alone, bfloat16", made, options, "none")


def repeated(step, times):
    """-> step(item), so many times."""
    def several(item):
        for _ in range(times):
            step(item)
    return several


def peers(a, b):
    """-> {name: step} of PyTorch's products of the same factors."""
    import torch
    harness.set_threads()
    made = {}
    for name in harness.PRECISIONS:
        x, y = (torch.from_numpy(factor).to(getattr(torch, name)) for factor in (a, b))
        made[f"torch {name}"] = lambda _, x=x, y=y: x @ y
    return made


def main(argv=None):
    """Arguments -> exit code."""
    return harness.run(run, harness.parser(__doc__).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
