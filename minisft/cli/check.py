"""`minisft check`: every backward by hand against finite differences, and planted bugs.

With MINISFT_CUDA=emulate, or on a GPU, every kernel is compared with its formula besides; where
Numba is installed every compiled loop is.
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from inspect import getsource

import numpy as np
from tqdm import tqdm

from minisft.backend.array import DEVICES, device_name, gpu_available, require_gpu, to_gpu
from minisft.backend.gpu import cuda
from minisft.cli.terminal import bold, green, red
from minisft.errors import UserError
from minisft.io.checkpoint import load
from minisft.io.hub import resolve
from minisft.verify.compiled_checks import compiled_checks
from minisft.verify.gradcheck import MODEL_LIMIT, STEP, GradientError, worst_of
from minisft.verify.gradient_checks import CHECKS, check_model
from minisft.verify.kernel_checks import KERNEL_CHECKS
from minisft.verify.planted_bugs import PLANTED, sum_hides

EXAMPLES = ("minisft check softmax attention", "minisft check --break attention-scale")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="run only the checks whose name contains one of these")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--break", dest="planted", metavar="BUG",
                       help="plant a bug and see the check find it; `list` lists them")
    other.add_argument("--model", metavar="DIR",
                       help="check a checkpoint, one random direction for each tensor")
    parser.add_argument("--device", type=device_name, choices=DEVICES,
                        help="where the kernels run: cuda demands a card (default: on one where "
                        "there is one)")
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of the random directions of --model")


def run(args: argparse.Namespace) -> int:
    """-> exit code: 0 when every check passes, 1 when one fails."""
    if args.names and (args.planted or args.model):
        raise UserError(f"{args.names[0]!r}: --break and --model choose their own checks, "
                        "expected no NAME beside them")
    if args.device == "cuda":
        require_gpu()
    if args.planted == "list":
        _list_bugs()
        return 0
    if args.planted:
        return _break(args.planted)
    if args.model:
        return _check_checkpoint(args.model, args.seed)
    return _check_catalogue(args.names, args.device != "cpu" and gpu_available())


def _check_catalogue(names, on_card):
    kernels = KERNEL_CHECKS if on_card or cuda.emulated() else {}     # where something can run them
    chosen, of_kernels = _chosen(CHECKS, names), _chosen(kernels, names)
    of_loops = _chosen(compiled_checks(), names)
    if not (chosen or of_kernels or of_loops):
        raise UserError(f"no check has {' or '.join(map(repr, names))} in its name, expected a "
                        f"part of one of: {', '.join(CHECKS | kernels | compiled_checks())}")
    started, errors, failed = time.perf_counter(), [], []
    if chosen:
        _print_head()
    for c in chosen:
        try:
            row = worst_of(c.results())
        except GradientError as error:     # a gradient of another shape has no worst element
            print(f"{c.name:<38} {error}  {_verdict(False)}", flush=True)
            failed.append(c.name)
            continue
        errors.append(row.error)
        if not _print_row(c.name, row, c.limit):
            failed.append(c.name)
    failed += _check_kernels("kernel", of_kernels, to_gpu if on_card else np.asarray)
    failed += _check_kernels("compiled loop", of_loops, np.asarray)
    return _summary(len(chosen) + len(of_kernels) + len(of_loops), failed, errors, started)


def _chosen(checks, names):
    """-> the checks whose name contains one of these, or all."""
    return [c for c in checks.values()
            if not names or any(n.casefold() in c.name.casefold() for n in names)]


def _check_kernels(what, checks, put):
    """Prints each kernel's or loop's worst array -> the names of those beyond their limit."""
    failed = []
    if checks:
        print(f"{what + ', float32, against the formula':<60} {'worst array':<12} {'error':>8} "
              f"{'limit':>7}")
    for c in checks:
        row = max(c.results(put=put), key=lambda row: row.error / row.limit)
        passes = row.error <= row.limit
        print(f"{c.name:<60} {row.name:<12} {row.error:>8.1e} {row.limit:>7.1e}  "
              f"{_verdict(passes)}", flush=True)
        failed += [] if passes else [c.name]
    return failed


def _check_checkpoint(folder, seed):
    started, model = time.perf_counter(), load(resolve(folder), dtype=np.float64)
    rows = check_model(model, seed, partial(tqdm, unit="tensor", leave=False, file=sys.stderr,
                                            disable=None))     # none where stderr is a file
    _print_head()
    failed = [row.name for row in rows
              if not _print_row(row.name, replace(row, name="whole tensor"), MODEL_LIMIT)]
    return _summary(len(rows), failed, [row.error for row in rows], started)


def _break(name):
    if name not in PLANTED:
        raise UserError(f"--break {name}: no such planted bug, expected one of: list, "
                        f"{', '.join(PLANTED)}")
    bug = PLANTED[name]
    planned = CHECKS[bug.check]
    print(f"{name}: {bug.wrong}\n\n{getsource(bug.broken)}")
    rows = planned.results(bug.broken)
    failed = [row for row in rows if not row.error <= planned.limit]
    shown = rows if len(rows) <= 4 else failed     # of a whole block or model, what fails
    _print_head()
    for row in shown:
        _print_row(planned.name, row, planned.limit)
    print(f"{len(failed)} of the {len(rows)} gradients of this check beyond the limit\n\n"
          "How the check finds it: its objective is sum(R * y) with a random R as the upstream\n"
          f"gradient. Each element of each array goes {STEP:.0e} up and down; the slope between\n"
          "must be the gradient by hand.")
    if name == "softmax-zeros":
        row = sum_hides()
        print(f"\nWith sum(y) as the objective the bug passes: each row of y sums to one, so "
              f"the true\ngradient is zero. By hand {row.by_hand:g}, finite differences "
              f"{row.numeric:.1e}: a difference of {abs(row.by_hand - row.numeric):.1e}.")
    verdict = "fails, as it must (exit code 1)" if failed else "passes: the bug is NOT FOUND"
    print(bold(f"\n1 check with a bug planted: it {verdict}"))
    return 1 if failed else 0


def _verdict(passes):
    return green("ok") if passes else red("FAIL")


def _names(names, most=6):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _list_bugs():
    for name, bug in PLANTED.items():
        print(f"{name:<22} {bug.check}: {bug.wrong}")


def _print_head():
    print(f"{'check':<38} {'worst array':<22} {'index':<10} {'by hand':>11} {'finite diff.':>12} "
          f"{'error':>8} {'limit':>6}")


def _print_row(name, row, limit):
    """-> whether it passes."""
    passes = row.error <= limit
    index = "direction" if row.index is None else str(list(row.index))
    print(f"{name:<38} {row.name:<22} {index:<10} {row.by_hand:>11.5g} {row.numeric:>12.5g} "
          f"{row.error:>8.1e} {limit:>6.0e}  {_verdict(passes)}", flush=True)
    return passes


def _summary(n, failed, errors, started):
    verdict = f"{len(failed)} FAIL ({_names(failed)})" if failed else "all pass"
    largest = f", largest error {max(errors):.1e}" if errors else ""
    print(bold(f"{n} check{'s' * (n != 1)}, {verdict}{largest} "
               f"({time.perf_counter() - started:.1f} s)"))
    return 1 if failed else 0
