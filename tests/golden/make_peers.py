"""Writes peers.json: a sample of PyTorch's own cases with its numbers, for tests/test_peers.py.

Run from the repository, with torch 2.13 and expecttest: python -m tests.golden.make_peers
"""

import contextlib
import json
import warnings
from inspect import signature

import numpy as np
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from tests.peers import test_module_db, test_op_db
from tests.peers.expressions import NotExpressible
from tests.peers.tables import OPERATIONS, OPTIMIZERS
from tests.peers.test_optim_db import STEPS, their_steps
from tests.test_peers import GOLDEN, NAMES, encode

NUMBERS, EACH = 140, 2     # of a case of op_db at most, of a name at most, but for
COUNTS = {"nn.functional.cross_entropy": 4, "nn.CrossEntropyLoss": 16}
SETTINGS = {"Adam": {"weight_decay": 0.1}, "AdamW": {"lr": 0.01, "weight_decay": 0.1},
            "SGD": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}}


def of_operations():
    """(name, the arguments of `paths.compare`) of the samples of op_db."""
    for op in op_db:
        if op.name not in NAMES or op.variant_test_name:
            continue
        express, _ = OPERATIONS[op.name]
        for sample in op.reference_inputs("cpu", torch.float32, requires_grad=True):
            if op.name.endswith("scaled_dot_product_attention"):
                tensors = sample.input, *sample.args
                if any(a.ndim != 3 for a in tensors):
                    continue
                # of four texts of one length one is enough
                sample.input, *args = (a.detach()[:1].requires_grad_() for a in tensors)
                sample.args = tuple(args)
            with contextlib.suppress(NotExpressible):
                case = test_op_db.made(torch, op, express, sample,
                                       "kept" in signature(express).parameters)
                if 0 < case["y"].size and size_of(case) <= NUMBERS:
                    yield op.name, case


def of_modules():
    """The same of the inputs of module_db, the smallest first."""
    cases = []
    for module in module_db:
        if module.name in NAMES:
            for sample in module.module_inputs_func(module, "cpu", torch.float32, True, True):
                with contextlib.suppress(NotExpressible):
                    cases.append((module.name, test_module_db.made(
                        torch, module.module_cls, sample)))
    return sorted(cases, key=lambda case: size_of(case[1]))


def size_of(case):
    return sum(a.size for a in case["arguments"].values() if isinstance(a, np.ndarray))


def chosen():
    """The first cases of each name that differ in their options."""
    found = {}
    for name, case in (*of_operations(), *of_modules()):
        kept = found.setdefault(name, {})
        options = [a if not isinstance(a, np.ndarray) else (a.dtype, a.ndim)
                   for a in case["arguments"].values()]
        key = json.dumps(options, default=str)
        if len(kept) < COUNTS.get(name, EACH) and key not in kept and expressible(case):
            kept[key] = case
    return [(name, case) for name, kept in found.items() for case in kept.values()]


def expressible(case):
    try:
        with np.errstate(all="ignore"):
            case["express"](**case["arguments"])
    except NotExpressible:
        return False
    return True


def of_optimizers():
    rng = np.random.default_rng(0)
    values = {"w": np.float32(rng.standard_normal(6))}
    gradients = [{"w": np.float32(rng.standard_normal(6))} for _ in range(STEPS)]
    for name, settings in SETTINGS.items():
        _, steps = their_steps(torch, getattr(torch.optim, name), settings,
                               {"w": values["w"].astype(float)},
                               [{"w": g["w"].astype(float)} for g in gradients])
        yield {"peer": name, "settings": settings, "values": encode(values["w"]),
               "steps": [encode(g["w"]) for g in gradients], "y": encode(steps[-1])}


def main():
    """One line a case."""
    torch.manual_seed(0)
    assert set(SETTINGS) == set(OPTIMIZERS)
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = chosen()
    for name, case in cases:
        arguments = {key: encode(a) for key, a in case["arguments"].items()}
        line = {"peer": name, "arguments": arguments, "y": encode(case["y"])}
        if "dy" in case:
            line |= {"dy": encode(case["dy"]), "gradients": {
                key: encode(a) for key, a in case["gradients"].items()}}
        lines.append(line)
    lines += of_optimizers()
    written = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    GOLDEN.write_text(f"[{written}]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
