"""What every table shares: options, fair timing, the machine, and the three forms of a result.

All sides work on the same item before any goes on to the next one, in an order that turns round,
so a slow minute of the machine falls on all of them. A ratio is the peer's time over ours for the
same item: above 1 ours is faster. Where Numba is installed our side runs twice, with the compiled
loops and without, as `minisft[fast]` and `minisft`.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from minisft.backend.cpu import jit, row_blocks
from minisft.errors import UserError
from minisft.io import provenance

RESULTS = Path(__file__).resolve().parent / "results"
OURS, FAST = "minisft", "minisft[fast]"
LOW = "minisft[fast] bfloat16"     # its training steps, where the processor multiplies bfloat16
STORED = f"{LOW}, results too"     # products whose results are rounded, as PyTorch's are
OUR_SIDES = FAST, LOW, OURS, STORED
PRECISIONS = "float32", "bfloat16"
PAUSE = 0.1     # seconds in which the threads of the side before stop to wait for more work


def parser(description, **defaults):
    """-> the options that every table has; `defaults` replaces some of their defaults."""
    made = argparse.ArgumentParser(description=description.splitlines()[0],
                                   formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = made.add_argument
    add("--layers", type=int, default=12, help="blocks of the model")
    add("--width", type=int, default=768, help="channels of the model")
    add("--heads", type=int, default=None, help="heads (None: one for 64 channels)")
    add("--vocab", type=int, default=50257, help="tokens of the vocabulary")
    add("--context-length", type=int, default=1024, help="most tokens of a text")
    add("--model", default=None, help="a folder or name: its weights instead of random ones")
    add("--steps", type=int, default=5, help="timed steps of each side and case")
    add("--warmup", type=int, default=1, help="untimed steps before them")
    add("--batch", type=int, nargs="+", default=[32], help="texts of a step")
    add("--dropout", type=float, nargs="+", default=[0.0], help="rates, a case for each")
    add("--precision", nargs="+", choices=PRECISIONS, default=["float32"],
        help="of the peer; ours is float32, and training steps also bfloat16 where the "
        "processor has it")
    add("--texts", default=None, help="a labelled file (None: the data set under "
        "MINISFT_SHARED, or the bundled toy-news)")
    add("--text-column", nargs="+", default=["text"], help="its column of the text")
    add("--label-column", default="label", help="its column of the label")
    add("--tokenizer", default=None, help="folder of a tokenizer (None: GPT-2's under "
        "MINISFT_SHARED, or one trained on the texts)")
    add("--seed", type=int, default=0, help="seed of weights and order")
    add("--alone", action="store_true", help="our side only, without torch")
    add("--models", default=Path(tempfile.gettempdir()) / "minisft-benchmarks",
        help="where the folders with the weights of both sides are kept")
    add("--out", type=Path, default=RESULTS, help="folder of the results")
    made.set_defaults(**defaults)
    return made


def add_shapes(made, *shapes):
    """Adds the option --shape: batches of B texts of T tokens, written BxT."""
    made.add_argument("--shape", nargs="*", default=list(shapes), help="texts x tokens of a step")


def shapes(options):
    """-> (texts, tokens) of each shape; raises UserError for one that is none."""
    made = []
    for shape in options.shape:
        size, _, length = shape.partition("x")
        if not (size.isdecimal() and length.isdecimal() and int(size) and int(length)):
            raise UserError(f"--shape {shape!r}: expected TEXTSxTOKENS, as in 8x128")
        if int(length) > options.context_length:
            raise UserError(f"--shape {shape!r}: the model takes {options.context_length} tokens")
        made.append((int(size), int(length)))
    return made


def run(job, options):
    """job(options) with an error that the user can mend as one line; -> exit code."""
    try:
        job(options)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def forms(step):
    """Our step(item) -> {name: step}: with the compiled loops, if there are any, and without."""
    return {name: step if name == FAST else without_loops(step) for name in our_sides()}


def our_sides():
    """-> the names of our forms that can run here, in float32."""
    return (FAST, OURS) if jit.enabled() else (OURS,)


def without_loops(step):
    """step(item) -> the same, as NumPy runs it."""
    def plain(item):
        with jit.compiled(False):
            return step(item)

    return plain


def alternate(sides, items, warmup=1):
    """{name: step(item)}, items -> {name: seconds of each item}, the first side leading by turns.

    The first `warmup` items run once before, untimed.
    """
    seconds = {name: [] for name in sides}
    for item in items[:warmup]:
        for step in sides.values():
            step(item)
    for turn, item in enumerate(items):
        for name in list(sides) if turn % 2 == 0 else reversed(sides):
            gc.collect()
            time.sleep(PAUSE)
            started = time.perf_counter()
            sides[name](item)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def compared(case, seconds, tokens):
    """Times of each side, real tokens of each item -> a row of the table for ours and a peer."""
    made = []
    for side in [name for name in seconds if name in OUR_SIDES]:
        ours = np.array(seconds[side])
        for peer in [name for name in seconds if name not in OUR_SIDES] or [None]:
            row = {"case": case, "side": side, "tokens": [int(n) for n in tokens],
                   "seconds": seconds[side], "ours": spread(ours),
                   "tokens_per_second": float(np.sum(tokens) / ours.sum())}
            if peer is not None:
                theirs = np.array(seconds[peer])
                row |= {"peer": peer, "peer_seconds": seconds[peer], "theirs": spread(theirs),
                        "ratio": spread(theirs / ours), "ratio_of_sums": theirs.sum() / ours.sum()}
            made.append(row)
    return made


def spread(values):
    """-> median, quartiles, lowest and highest of some numbers."""
    low, first, median, third, high = np.percentile(values, [0, 25, 50, 75, 100])
    return {"median": median, "quartiles": [first, third], "range": [low, high]}


def require_equal(ours, theirs, limit=1e-4):
    """Raises UserError unless both sides give the same logits: else nothing is worth timing."""
    difference = float(np.abs(ours - theirs).max())
    if not difference <= limit:
        raise UserError(f"the logits differ by {difference:.1e}, expected at most {limit:.0e}: "
                        "the two sides do not compute the same")
    print(f"logits equal within {difference:.1e} (limit {limit:.0e})")


def machine(with_peer=True):
    """-> versions, processor, threads, BLAS, and what the peer makes of the processor."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = provenance.environment() | {"blas": f"{blas['name']} {blas['version']}"}
    for name in ("numba", *(("torch", "transformers") if with_peer else ())):
        with suppress(PackageNotFoundError):
            found["versions"][name] = version(name)
    if not with_peer:
        return found
    import torch
    backends = torch.backends
    return found | {
        "torch_instruction_set": backends.cpu.get_cpu_capability(),
        "torch_onednn": backends.mkldnn.is_available(), "torch_mkl": backends.mkl.is_available(),
        "torch_threads": torch.get_num_threads(), **_flags()}


def _flags():
    """-> which units for bfloat16 and matrices the processor has; they change the peer's case."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return {"amx": "unknown", "avx512_bf16": "unknown"}
    return {"amx": "amx_tile" in words, "avx512_bf16": "avx512_bf16" in words,
            "onednn_max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "not limited")}


def write(name, title, made, options, texts, plot=None):
    """Prints the table as Markdown; writes NAME.md, NAME.json and NAME.png to the out folder.

    `plot(axes)` draws the picture; without it the ratios are drawn.
    """
    found = machine(not options.alone)
    lines = [f"# {title}", "", f"Texts: {texts}.", "", *_machine_lines(found), "", *table(made)]
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # of a path its name: where things lie on one machine helps nobody
    settings = {key: value.name if isinstance(value, Path) else value
                for key, value in vars(options).items()}
    (options.out / f"{name}.json").write_text(json.dumps(
        {"title": title, "texts": texts, "machine": found, "options": settings, "rows": made},
        indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(8, max(4.5, 0.4 * len(made))), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    (plot or (lambda a: _draw_ratios(a, made)))(axes)
    figure.savefig(options.out / f"{name}.png")


def table(made):
    """Rows -> lines of a Markdown table; a row's own columns stand in its "columns"."""
    columns = list(dict.fromkeys(key for row in made for key in cells(row)))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cells(row).get(key, "") for key in columns) + " |"
                    for row in made]


def cells(row):
    """A row -> what the table shows of it, by column."""
    if "columns" in row:
        return {"case": row["case"], **row["columns"]}
    shown = {"case": row["case"], "side": row["side"], "its s": _seconds(row["ours"])}
    if "peer" in row:
        low, high = row["ratio"]["range"]
        shown |= {"peer": row["peer"], "peer, s": _seconds(row["theirs"]),
                  "ratio": f"**{row['ratio']['median']:.2f}**", "range": f"{low:.2f}-{high:.2f}",
                  "of sums": f"{row['ratio_of_sums']:.2f}"}
    return shown | {"tokens/s": f"{row['tokens_per_second']:,.0f}"}


def _seconds(found):
    first, third = found["quartiles"]
    return f"{found['median']:.3g} ({first:.3g}-{third:.3g})"


def _machine_lines(found):
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [f"{found['processor']}, {found['threads']} threads, Python {found['python']}, "
             f"{versions}, {found['blas']}."]
    if "torch_instruction_set" in found:
        lines.append(f"The peer: {found['torch_instruction_set']}, AMX {found['amx']}, AVX512-BF16 "
                     f"{found['avx512_bf16']}, oneDNN {found['torch_onednn']}, MKL "
                     f"{found['torch_mkl']}, {found['torch_threads']} threads.")
    lines.append("Seconds: median (quartiles). Ratio: the peer's time over ours for the same "
                 "work, median and range.")
    return lines


def _draw_ratios(axes, made):
    shown = [row for row in made if "ratio" in row] or made
    names = [f"{row['case']}\n{row['side']}, {row.get('peer', 'alone')}" for row in shown]
    places = np.arange(len(shown))
    if "ratio" in shown[0]:
        middle = np.array([row["ratio"]["median"] for row in shown])
        ends = np.array([row["ratio"]["range"] for row in shown]).T
        axes.barh(places, middle, xerr=np.abs(ends - middle), color="#4c78a8", height=0.6)
        axes.axvline(1, color="#7f7f7f", lw=1)
        axes.set_xlabel("the peer's time over ours (above 1: ours is faster)")
    else:
        axes.barh(places, [row["ours"]["median"] for row in shown], color="#4c78a8", height=0.6)
        axes.set_xlabel("seconds")
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()


def set_threads():
    """The peer uses as many threads as ours; -> that number."""
    import torch
    torch.set_num_threads(row_blocks.threads())
    return row_blocks.threads()
