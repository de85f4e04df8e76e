"""PyTorch's own settings of each optimizer (optim_db), ten steps, on every path of ours."""

import numpy as np
import pytest

from minisft.dispatch import adamw
from tests.peers.expressions import NotExpressible, store_of
from tests.peers.paths import EXACT, NOISE, PATHS, available, error, running
from tests.peers.tables import OPTIMIZERS, OPTIMIZERS_NOT_OURS

pytestmark = [pytest.mark.parity, pytest.mark.slow]
SHAPES = {"weight": (7, 5), "bias": (5,), "scale": (1,)}
STEPS = 10


def options_of(found):
    """The settings of one of PyTorch's optimizers -> ours, its learning rate, and the sign of the
    gradients: to maximize is to follow them upwards."""
    refused = {"amsgrad": "largest second moment", "nesterov": "Nesterov's momentum",
               "dampening": "damped momentum"}
    for name, limit in refused.items():
        if found.get(name):
            raise NotExpressible(limit)
    names = {"betas", "eps", "weight_decay", "momentum"} & found.keys()
    return {name: found[name] for name in names}, float(found["lr"]), -1 if found["maximize"] else 1


def their_steps(torch, kind, settings, values, gradients):
    """-> PyTorch's settings, defaults too, and the values after each step, in float64."""
    tensors = {name: torch.nn.Parameter(torch.tensor(a)) for name, a in values.items()}
    optimizer, steps = kind(tensors.values(), **settings), []
    for step in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(step[name])
        optimizer.step()
        steps.append(np.concatenate([p.detach().numpy().ravel() for p in tensors.values()]))
    return optimizer.defaults, steps


def our_steps(kind, options, lr, sign, values, gradients, dtype):
    store, steps = store_of(values, dtype), []
    optimizer = kind(store, **options)
    for step in gradients:
        for p in store.trainable:
            p.grad[...] = step[p.name]
        optimizer.step(lr, sign)
        steps.append(np.concatenate([p.value.ravel() for p in store.trainable]))
    return steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_of_pytorch(torch_tests, counts, name, rng):
    (info,) = (o for o in torch_tests.optim_db if o.optim_cls.__name__ == name)
    ours, expected = OPTIMIZERS[name]
    values = {part: rng.standard_normal(shape, dtype=np.float32).astype(np.float64)
              for part, shape in SHAPES.items()}
    gradients = [{part: rng.standard_normal(shape) for part, shape in SHAPES.items()}
                 for _ in range(STEPS)]
    limits, paths = set(), set()
    for given in info.optim_inputs_func(device="cpu"):
        for implementation in ("for loop", *(i for i in info.supported_impls
                                             if i != "differentiable")):
            counts.tried("optim_db")
            how = {} if implementation == "for loop" else {implementation: True}
            if "fused" in how and isinstance(given.kwargs.get("lr"), torch_tests.torch.Tensor):
                how["lr"] = float(given.kwargs["lr"])
            defaults, theirs = their_steps(torch_tests.torch, info.optim_cls, given.kwargs | how,
                                           values, gradients)
            try:
                options = options_of(defaults)
            except NotExpressible as limit:
                limits.add(str(limit))
                counts.not_expressible("optim_db", str(limit))
                continue
            for path in available():
                with running(path):
                    found = our_steps(ours, *options, values, gradients, PATHS[path])
                    buffer = np.zeros(1, PATHS[path])
                    if ours.__name__ == "AdamW":
                        paths.add(adamw.choose(*[buffer] * 4).name)
                # a value is subtracted ten times: each is rounded
                limit = EXACT if PATHS[path] == np.float64 else NOISE
                for t, (a, b) in enumerate(zip(found, theirs, strict=True)):
                    assert error(a, b) <= limit, (path, given.desc, implementation, t)
            counts.equal("optim_db")
    assert limits == expected
    assert name != "AdamW" or paths == {
        i.name for i in adamw.implementations if i.name in available()}


def test_the_tables_name_what_optim_db_has(torch_tests):
    names = {info.optim_cls.__name__ for info in torch_tests.optim_db}
    assert names == {*OPTIMIZERS, *OPTIMIZERS_NOT_OURS}
