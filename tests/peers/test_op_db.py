"""PyTorch's own samples of each operation (op_db), forward and backward, on every path of ours.

PyTorch computes in float64 from samples in float32; see paths.py for what each path may be off.
"""

from inspect import signature

import numpy as np
import pytest

from tests.peers.tables import LIKE_OURS, NOT_OURS, OPERATIONS

pytestmark = [pytest.mark.parity, pytest.mark.slow,
              pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")]
SEED = 42     # op_db's own, before each operation that draws


def as_numpy(torch, a):
    if isinstance(a, torch.Tensor):
        return a.detach().numpy()
    if isinstance(a, torch.dtype):
        return torch.empty(0, dtype=a).numpy().dtype
    return tuple(a) if isinstance(a, list | torch.Size) else a


def widened(torch, a):
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        return a.detach().double().requires_grad_(a.requires_grad)
    return a


def kept_by_dropout(torch, arguments):
    """Which values, or scores, PyTorch keeps: it draws them for any input of the shape alike."""
    if "query" in arguments:
        rate, (q, k) = arguments.get("dropout_p", 0.0), (arguments["query"], arguments["key"])
        shape = *np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-2]
    else:
        rate, shape = arguments.get("p", 0.5), arguments["input"].shape
    torch.manual_seed(SEED)
    return torch.nn.functional.dropout(torch.ones(shape, dtype=torch.float64), rate).numpy() != 0


def made(torch, op, express, sample, draws):
    """-> the arguments of `paths.compare`."""
    args = [widened(torch, a) for a in (sample.input, *sample.args)]
    options = {name: widened(torch, a) for name, a in sample.kwargs.items()}
    given = signature(express).bind(*args, **options).arguments
    arguments = {name: as_numpy(torch, a) for name, a in given.items()}
    if draws:
        arguments["kept"] = kept_by_dropout(torch, arguments)
    y = op(*args, **options)
    y = y[0] if isinstance(y, tuple) else y
    case = {"express": express, "arguments": arguments, "y": y.detach().numpy()}
    leaves = {name: a for name, a in given.items()
              if isinstance(a, torch.Tensor) and a.requires_grad}
    if leaves and y.requires_grad:
        dy = torch.tensor(np.random.default_rng(1).standard_normal(y.shape)).to(y.dtype)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy, allow_unused=True)
        case |= {"dy": dy.numpy(), "gradients": {
            name: g.numpy() for name, g in zip(leaves, gradients, strict=True) if g is not None}}
    return case


@pytest.mark.parametrize("name", OPERATIONS)
def test_samples_of_pytorch(torch_tests, compared, name):
    torch, (express, expected) = torch_tests.torch, OPERATIONS[name]
    cases = []
    torch.manual_seed(0)     # the samples are random
    for op in (op for op in torch_tests.op_db if op.name == name):
        for grad in True, False:      # op_db keeps some samples for one of the two
            for sample in op.reference_inputs("cpu", torch.float32, requires_grad=grad):
                cases.append((f"{op.full_name} {sample.summary()}", lambda op=op, sample=sample: (
                    made(torch, op, express, sample, "kept" in signature(express).parameters))))
    assert cases
    assert compared("op_db", cases) == expected


def test_the_tables_name_what_op_db_has(torch_tests):
    names = {op.name for op in torch_tests.op_db}
    assert {*OPERATIONS, *NOT_OURS} <= names and not OPERATIONS.keys() & NOT_OURS.keys()
    alike = {name for name in names if any(word in name for word in LIKE_OURS)}
    assert alike <= {*OPERATIONS, *NOT_OURS}
