"""PyTorch's own inputs of each module (module_db), the gradients of its parameters with them."""

import numpy as np
import pytest

from tests.peers.expressions import NotExpressible
from tests.peers.tables import MODULES, MODULES_LIKE_OURS, MODULES_NOT_OURS

pytestmark = [pytest.mark.parity, pytest.mark.slow,
              pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")]


# Each: module, its inputs -> the arguments of its expression by name.

def linear(module, input):
    return {"input": input, "weight": module.weight, "bias": module.bias}


def embedding(module, input):
    return {"weight": module.weight, "indices": input, "padding_idx": module.padding_idx,
            "max_norm": module.max_norm}


def layer_norm(module, input):
    return {"input": input, "normalized_shape": module.normalized_shape, "weight": module.weight,
            "bias": module.bias, "eps": module.eps}


def softmax(module, input):
    return {"input": input, "dim": module.dim}


def gelu(module, input):
    return {"input": input, "approximate": module.approximate}


def cross_entropy(module, input, target):
    return {"input": input, "target": target, "weight": module.weight,
            "ignore_index": module.ignore_index, "reduction": module.reduction,
            "label_smoothing": module.label_smoothing}


def linear_cross_entropy(module, input, target):
    shape, bias = (module.num_classes, *module.out_features), module.linear.bias
    return cross_entropy(module, input, target) | {
        "linear_weight": module.linear.weight.reshape(*shape, -1),
        "linear_bias": None if bias is None else bias.reshape(shape)}


def attention(module, query, key, value, key_padding_mask=None, attn_mask=None):
    names = "in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "num_heads", "add_zero_attn"
    return {name: getattr(module, name) for name in names} | {
        "query": query, "key": key, "value": value, "out_proj_weight": module.out_proj.weight,
        "out_proj_bias": module.out_proj.bias, "key_padding_mask": key_padding_mask,
        "attn_mask": attn_mask}


def encoder_layer(module, input, src_mask=None, src_key_padding_mask=None):
    """As BERT's block, whose matrices are (in, out) and whose q, k and v have one each."""
    if getattr(module.activation, "__name__", "") != "gelu":
        raise NotExpressible("another activation than GELU")
    assert src_mask is src_key_padding_mask is None
    assert not module.norm_first and not module.self_attn.batch_first     # so input is (T,B,C)
    own = module.self_attn
    arguments = {"input": input.transpose(0, 1), "heads": own.num_heads, "eps": module.norm1.eps}
    for name, part in (("attention.output.dense", own.out_proj),
                       ("intermediate.dense", module.linear1), ("output.dense", module.linear2)):
        arguments |= {f"b.{name}.weight": part.weight.T, f"b.{name}.bias": part.bias}
    for name, part in (("attention.output.LayerNorm", module.norm1),
                       ("output.LayerNorm", module.norm2)):
        arguments |= {f"b.{name}.weight": part.weight, f"b.{name}.bias": part.bias}
    for name, w, b in zip(("query", "key", "value"), own.in_proj_weight.chunk(3),
                          own.in_proj_bias.chunk(3), strict=True):
        arguments |= {f"b.attention.self.{name}.weight": w.T, f"b.attention.self.{name}.bias": b}
    return arguments


ARGUMENTS = {
    "nn.Linear": linear, "nn.Embedding": embedding, "nn.LayerNorm": layer_norm, "nn.GELU": gelu,
    "nn.Softmax": softmax, "nn.Softmin": softmax, "nn.LogSoftmax": softmax,
    "nn.CrossEntropyLoss": cross_entropy, "nn.LinearCrossEntropyLoss": linear_cross_entropy,
    "nn.MultiheadAttention": attention, "nn.TransformerEncoderLayer": encoder_layer,
}


def made(torch, kind, sample):
    """-> the arguments of `paths.compare`."""
    def wide(a):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            return a.detach().double().requires_grad_()
        return a

    built, inputs = sample.constructor_input, sample.forward_input
    torch.manual_seed(0)
    module = kind(*built.args, **built.kwargs).double()
    args = [wide(a) for a in inputs.args]
    options = {name: wide(a) for name, a in inputs.kwargs.items()}
    name = f"nn.{kind.__name__}"
    express, arguments_of = MODULES[name][0], ARGUMENTS[name]
    given = arguments_of(module, *args, **options)
    arguments = {name: a.detach().numpy().copy() if isinstance(a, torch.Tensor) else a
                 for name, a in given.items()}
    y = module(*args, **options)
    y = y[0] if isinstance(y, tuple) else y
    if name == "nn.TransformerEncoderLayer":
        y = y.transpose(0, 1)
    dy = torch.tensor(np.random.default_rng(1).standard_normal(y.shape))
    y.backward(dy)
    leaves = [name for name, a in given.items() if isinstance(a, torch.Tensor) and a.requires_grad]
    # the same views again, of a module and of inputs that hold their gradients
    for p in module.parameters():
        p.data = grad_of(p)
    gradients = arguments_of(module, *map(grad_of, args),
                             **{name: grad_of(a) for name, a in options.items()})
    return {"express": express, "y": y.detach().numpy(), "dy": dy.numpy(), "arguments": arguments,
            "gradients": {name: gradients[name].detach().numpy() for name in leaves}}


def grad_of(a):
    return getattr(a, "grad", None) if getattr(a, "requires_grad", False) else a


@pytest.mark.parametrize("name", MODULES)
def test_inputs_of_pytorch(torch_tests, compared, name):
    torch, cases = torch_tests.torch, []
    torch.manual_seed(0)     # the inputs are random
    (module,) = (m for m in torch_tests.module_db if m.name == name)
    for training in True, False:
        for sample in module.module_inputs_func(module, "cpu", torch.float32, True, training):
            # chunks are how PyTorch computes the same; op_db has some of them
            chunked = sample.constructor_input.kwargs.get("options") is not None
            if sample.forward_input is not None and not chunked:
                cases.append((f"{name} {sample.desc}", lambda sample=sample: made(
                    torch, module.module_cls, sample)))
    assert cases
    assert compared("module_db", cases) == MODULES[name][1]


def test_the_tables_name_what_module_db_has(torch_tests):
    names = {module.name for module in torch_tests.module_db}
    assert {*MODULES, *MODULES_NOT_OURS} <= names and not MODULES.keys() & MODULES_NOT_OURS.keys()
    alike = {name for name in names if any(word in name for word in MODULES_LIKE_OURS)}
    assert alike <= {*MODULES, *MODULES_NOT_OURS}
