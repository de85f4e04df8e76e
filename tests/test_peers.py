"""A sample of PyTorch's own cases and numbers on every path that is here, without PyTorch.

`golden/make_peers.py` wrote them; tests/peers has them all, of ONNX too, and needs PyTorch.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minisft.dispatch import OPERATIONS as DISPATCHED
from minisft.dispatch import adamw
from minisft.dispatch.selection import Function
from tests.peers.nodes import NODES
from tests.peers.paths import NOISE, PATHS, available, compare, error, running
from tests.peers.tables import LIMITS, MODULES, OPERATIONS, OPTIMIZERS
from tests.peers.test_optim_db import our_steps

GOLDEN = Path(__file__).parent / "golden" / "peers.json"
DIGITS, EXACT = 9, 1e-8     # of the numbers in the file; what is allowed in float64
# One name for each expression, and those modules that say more than an operation.
NAMES = ["nn.functional.embedding", "nn.functional.linear", "mm", "nn.functional.layer_norm",
         "nn.functional.gelu", "softmax", "masked.softmax", "_softmax_backward_data",
         "log_softmax", "nn.functional.scaled_dot_product_attention", "nn.functional.cross_entropy",
         "nn.functional.linear_cross_entropy", "nn.functional.dropout", "native_dropout_backward",
         "nn.CrossEntropyLoss", "nn.MultiheadAttention", "nn.TransformerEncoderLayer"]
EXPRESSIONS = {name: (OPERATIONS | MODULES)[name][0] for name in NAMES}

# Implementations that no case of a peer reaches.
EXEMPT = {
    ("linear", "16 bits"): "its factors are rounded to 16 bits",
    ("linear", "cuBLASLt"): "a card's: tests/test_cublaslt.py compares it",
    ("lora", "cuBLASLt"): "a card's: tests/test_cublaslt.py compares it",
    ("linear", "few rows"): "no case of a peer is that large; tests/test_few_rows.py compares it",
    ("linear", "AMX x6"): "no case of a peer is that large; tests/test_matmul_float32_amx.py is",
    ("linear", "MKL"): "no case of a peer is that large; tests/test_mkl.py compares it",
    ("attention", "tensor cores"): "its factors are rounded to 16 bits",
    ("attention", "AMX"): "its factors are rounded to 16 bits",
    ("attention", "decode"): "no case asks a cache; tests/test_attention_decode.py compares it",
    ("lora", "formula"): "no peer of the sample has it; tests/test_parity_peft.py does",
    ("lora", "16 bits"): "its factors are rounded to 16 bits",
    ("span_cross_entropy", "formula"): "no peer of the sample has it",
    ("dropout", "compiled"): "it draws its own words, and a peer's mask is given",
    ("dropout", "fused kernel"): "it draws its own words, and a peer's mask is given",
}


def encode(a):
    """An array, a type, or what JSON has a word for -> JSON."""
    if not isinstance(a, np.ndarray):
        return str(a) if isinstance(a, np.dtype) else a
    if a.dtype.kind == "f" and np.array_equal(a, a.astype(np.float32), equal_nan=True):
        a = a.astype(np.float32)
    values = a.ravel().tolist()
    if a.dtype == np.float32:
        values = [float(str(x)) for x in a.ravel()]     # the shortest that is read as the same
    elif a.dtype == np.float64:
        values = [float(f"{x:.{DIGITS}g}") for x in values]
    return {"dtype": str(a.dtype), "shape": a.shape, "values": values}


def decode(a):
    """The other way round; floats become float64."""
    if not isinstance(a, dict):
        return a
    found = np.array(a["values"], a["dtype"]).reshape(a["shape"])
    return found.astype(np.float64) if found.dtype.kind == "f" else found


def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results():
    """{name: differences} of all cases, and the (operation, implementation) that ran."""
    differences, ran = {}, Counter()
    for case in golden():
        if case["peer"] in EXPRESSIONS:
            options = {key: decode(case[key]) for key in ("y", "dy") if key in case}
            for key in {"arguments", "gradients"} & case.keys():
                options[key] = {part: decode(a) for part, a in case[key].items()}
            differences.setdefault(case["peer"], []).extend(compare(
                EXPRESSIONS[case["peer"]], **options, ran=ran, exact=EXACT))
    return differences, ran


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_cases_of_pytorch(results, name):
    differences, _ = results
    assert differences[name] == []


def test_every_implementation_is_reached(results):
    _, ran = results
    wanted = {(operation.name, implementation.name) for operation in DISPATCHED.values()
              for implementation in operation.implementations
              if not isinstance(operation, Function)}
    here = {*available(), *(path for _, path in wanted if path not in PATHS)}
    missing = {pair for pair in wanted - ran.keys() if pair[1] in here}
    assert missing == {pair for pair in EXEMPT if pair[1] in here}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_pytorch(name):
    (case,) = (case for case in golden() if case["peer"] == name)
    settings = dict(case["settings"])
    lr = settings.pop("lr", 1e-3)
    values, steps = {"w": decode(case["values"])}, [{"w": decode(g)} for g in case["steps"]]
    ran = set()
    for path in available():
        with running(path):
            found = our_steps(OPTIMIZERS[name][0], settings, lr, 1, values, steps, PATHS[path])
            ran.add(adamw.choose(*[np.zeros(1, PATHS[path])] * 4).name)
        limit = EXACT if PATHS[path] == np.float64 else NOISE
        assert error(found[-1], decode(case["y"])) <= limit, path
    assert ran == {i.name for i in adamw.implementations if i.name in available()}


def test_limits_hold():
    """What the tables say that we do not compute, and nothing that no case meets."""
    assert [name for name, limit in LIMITS.items() if not limit.holds()] == []
    met = set().union(*(limits for table in (OPERATIONS, MODULES, OPTIMIZERS, NODES)
                        for _, limits in table.values()))
    assert met == LIMITS.keys()
