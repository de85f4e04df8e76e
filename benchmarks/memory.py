"""Table (g): peak memory of a training step above weights, gradients and moments.

python -m benchmarks.memory

Each side and case has a process of its own. Above is the peak of its resident memory over the
steps that follow its first one, less what it held before it had a model and 16 bytes for each
parameter: in the first step the peer's moments do not exist yet. Before that, a step of a tiny
model loads what each side loads late.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from argparse import Namespace
from pathlib import Path

import numpy as np

from benchmarks import harness, language_model, sides, texts

ROOT = Path(__file__).resolve().parents[1]
BYTES = 16     # a float32 for weight, gradient and each of AdamW's two moments
MB = 2**20
TINY = {"layers": 1, "width": 16, "heads": 1, "model": None}


def cases(options):
    """-> {case: task}: texts as they come, and of the equal lengths that --shape lists."""
    made = {f"{size} texts as they come": "classify" for size in options.batch}
    made |= {f"classifier {size}x{length}": "classify" for size, length in harness.shapes(options)}
    return made | {f"language model {shape}": "complete" for shape in options.language_shape}


def items(case, sequences, options):
    """-> (ids, labels) of each step of a case."""
    if case.endswith("as they come"):
        size = int(case.split()[0])
        return [([sequences.ids[n] for n in numbers], [sequences.labels[n] for n in numbers])
                for numbers in texts.batches(len(sequences), size, options.steps, options.seed)]
    size, length = map(int, case.split()[-1].split("x"))
    if case.startswith("language"):
        return language_model.items(sequences, size, length, options.steps)
    return [(list(ids), list(sequences.labels[:size])) for ids in
            texts.equal(sequences, length, size * options.steps).reshape(-1, size, length)]


def measure(options):
    """One side and case in this process -> prints bytes as JSON."""
    task = cases(options)[options.only]
    sequences, names, _ = texts.read(options)
    todo = items(options.only, sequences, options)
    step, _ = _side(Namespace(**vars(options) | TINY), task, names)
    step(*_first(todo))
    del step
    gc.collect()
    before = _status("VmRSS")
    step, size = _side(options, task, names)
    step(*todo[0])
    if options.measure in harness.OUR_SIDES:
        tracemalloc.start()
    reset = _reset_peak()
    for item in todo:
        step(*item)
    peak = _status("VmHWM")
    traced = tracemalloc.get_traced_memory()[1] if tracemalloc.is_tracing() else None
    print(json.dumps({"peak": peak, "before": before, "parameters": size, "reset": reset,
                      "above": peak - before - BYTES * size, "traced": traced}))


def _side(options, task, names):
    """-> the step of the side that is measured, and the number of its parameters."""
    folder = sides.weights(options, task, names)
    if options.measure in harness.OUR_SIDES:
        ours = sides.Ours(folder, options.dropout[0])
        return ours.step, ours.model.store.size
    peer, precision = sides.Peer(folder, options.dropout[0]), options.measure.split()[-1]
    return (lambda ids, labels: peer.step(ids, labels, precision),
            sum(p.numel() for p in peer.live))


def _first(todo):
    """-> the first two texts of the first step, the beginning of each."""
    ids, labels = todo[0]
    return [x[:8] for x in ids[:2]], [x[:8] if np.ndim(x) else x for x in labels[:2]]


def _status(name):
    """-> bytes of this process: VmRSS held now, VmHWM at the peak."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # the peak for both where there is no such file: macOS counts bytes, others kilobytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak():
    """Forgets the peak so far, that of loading; -> whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def child(options, side, case):
    """-> what a process of its own measures of one side and case."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *options.argv, "--measure", side, "--only",
         case], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | ({"MINISFT_COMPILED": "off"} if side == harness.OURS else {}))
    if done.returncode:
        raise RuntimeError(f"{side}, {case}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(options):
    """Writes the table, or, in a process of one side and case, measures it."""
    if options.measure:
        measure(options)
        return
    _, names, said = texts.read(options)
    for task in set(cases(options).values()):      # made here: no process of a side does it
        for shape in options, Namespace(**vars(options) | TINY):
            sides.weights(shape, task, names)
    peers = [] if options.alone else [f"torch {p}" for p in options.precision]
    made = []
    for case in cases(options):
        found = {peer: child(options, peer, case) for peer in peers}
        for side in harness.our_sides():
            ours = child(options, side, case)
            for peer, theirs in found.items() or [(None, None)]:
                made.append({"case": case, "side": side, "ours": ours, "peer": peer,
                             "theirs": theirs, "columns": _columns(side, ours, peer, theirs)})
    if not all(side["reset"] for row in made for side in (row["ours"], row["theirs"]) if side):
        said += "; the system cannot forget a peak, so these may be those of loading"
    harness.write("memory", "Peak memory of a training step above weights, gradients and moments",
                  made, options, said, lambda axes: _draw(axes, made))


def _columns(side, ours, peer, theirs):
    shown = {"side": side, "above, MB": f"{ours['above'] / MB:,.0f}",
             "by tracemalloc, MB": f"{ours['traced'] / MB:,.0f}",
             "in all, MB": f"{ours['peak'] / MB:,.0f}"}
    if theirs is None:
        return shown
    return shown | {"peer": peer, "peer above, MB": f"{theirs['above'] / MB:,.0f}",
                    "peer in all, MB": f"{theirs['peak'] / MB:,.0f}",
                    "ours / peer, above": f"**{ours['above'] / theirs['above']:.2f}**"}


def _draw(axes, made):
    places = np.arange(len(made))
    axes.barh(places - 0.2, [row["ours"]["above"] / MB for row in made], 0.4, label="ours")
    if made[0]["theirs"]:
        axes.barh(places + 0.2, [row["theirs"]["above"] / MB for row in made], 0.4, label="torch")
    axes.set_yticks(places, [f"{row['case']}\n{row['side']}, {row['peer'] or 'alone'}"
                             for row in made], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("MB above weights, gradients and moments")
    axes.legend(frameon=False)


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, steps=2)
    harness.add_shapes(parser, "8x128", "4x512")
    parser.add_argument("--language-shape", nargs="*", default=["4x64", "4x256"],
                        help="texts x tokens of a language model's step")
    parser.add_argument("--measure", default=None, help="(inner) the side of this process")
    parser.add_argument("--only", default=None, help="(inner) the case of this process")
    options = parser.parse_args(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    return harness.run(run, options)


if __name__ == "__main__":
    sys.exit(main())
