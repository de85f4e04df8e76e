"""Which of the peers' cases are ours, which are not, and why.

The tests hold the tables to reality: a limit that no case meets fails, and so does one that the
code has lost, a name that a peer does not have, and a name like those of ours that is not here.
"""

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple

import numpy as np

from minisft import dispatch, ops
from minisft.backend.constants import IGNORE
from minisft.training.optim import SGD, Adam, AdamW
from tests.peers import attention as attn
from tests.peers import expressions as ours


class Limit(NamedTuple):
    why: str
    holds: Callable[[], bool]     # asks the code


def _lacks(function, *names):
    """None of its arguments has one of these names."""
    return lambda: not set(names) & set(signature(function).parameters)


def _refuses(operation, *args):
    """It raises ValueError for them."""
    def holds():
        try:
            operation.forward(*args)
        except ValueError:
            return True
        return False
    return holds


_X, _Q, _LABELS, _ONE = np.ones((2, 3)), np.ones((2, 1, 3)), np.zeros(2, int), np.array([2])
_EDGES = np.array([0, 2])

LIMITS = {
    # embedding
    "padding row": Limit("a row of the table that gets no gradient: our batches have no padding",
                         _lacks(ops.embedding.backward, "padding_idx")),
    "rows of a largest norm": Limit("the table would change in a forward; operations are pure",
                                    _lacks(ops.embedding.forward, "max_norm", "norm_type")),
    "gradient by frequency": Limit("a gradient divided by how often its row is used",
                                   _lacks(ops.embedding.backward, "scale_grad_by_freq")),
    "another axis": Limit("rows are looked up along the first axis of a matrix",
                          _lacks(ops.embedding.forward, "axis", "dim")),
    "table of another rank": Limit("rows are looked up in a matrix",
                                   _refuses(dispatch.embedding, _LABELS, np.ones((4, 3, 2)))),
    # linear
    "a matrix for each text": Limit("all rows are multiplied by one matrix", _refuses(
        dispatch.linear, np.ones((2, 2, 3)), np.ones((2, 3, 4)))),
    "a bias for each row": Limit("a bias has a value for each channel",
                                 _refuses(dispatch.linear, _X, np.ones((3, 4)), np.ones((2, 4)))),
    # softmax
    "axis without a class": Limit("a maximum of nothing: NumPy refuses it",
                                  _refuses(dispatch.softmax, np.ones((2, 0)))),
    "row without a score": Limit("its softmax is no number here, as torch.softmax has it, not 0",
                                 lambda: np.isnan(_softmax_of_nothing()).all()),
    # dropout
    "rate of 1": Limit("nothing would be kept", _refuses(
        dispatch.dropout, _X, _X.astype(np.uint32), 1.0)),
    # cross_entropy
    "probabilities as targets": Limit("a text has one label", _refuses(
        dispatch.cross_entropy, _X, _X)),
    "mean of nothing": Limit("no label counts: the sum and its denominator are 0, and the caller, "
                             "who divides, refuses", lambda: _loss_of_nothing() == (0, 0)),
    "negative weights": Limit("they would turn the loss around", _refuses(
        dispatch.cross_entropy, _X, _LABELS, np.array([1.0, -1.0, 1.0]))),
    # attention
    "mask of scores": Limit("a text sees its own keys, all or those before: no mask is stored",
                            _lacks(ops.attention.forward, "mask", "attn_mask", "bias")),
    "values of another width": Limit("keys and values share one shape", _refuses(
        dispatch.attention, _Q, _Q, np.ones((2, 1, 5)), _EDGES, _EDGES[:1], _ONE)),
    "queries before the first key": Limit("more queries than keys under a causal mask", _refuses(
        dispatch.attention, _Q, _Q[:1], _Q[:1], _EDGES, _EDGES[:1], _ONE - 1)),
    "window of keys": Limit("no model of ours has one", _lacks(ops.attention.forward, "window")),
    "bounded scores": Limit("no model of ours bounds them by tanh",
                            _lacks(ops.attention.forward, "softcap")),
    "16 bits": Limit("attention is in float32, but for bfloat16's kernel, which rounds by itself",
                     lambda: [i.name for i in dispatch.attention.implementations
                              if "bits" in i.name] == []),
    # blocks
    "another activation than GELU": Limit("no model of ours has ReLU", _refuses(
        dispatch.gelu, _X, "relu")),
    # optimizers
    "largest second moment": Limit("AMSGrad", _lacks(Adam, "amsgrad")),
    "Nesterov's momentum": Limit("momentum is Polyak's", _lacks(SGD, "nesterov")),
    "damped momentum": Limit("a gradient is added whole", _lacks(SGD, "dampening")),
    "step 0": Limit("steps are counted from 1, so that the moments are always corrected",
                    lambda: _first_step() == 1),
}


def _softmax_of_nothing():
    with np.errstate(invalid="ignore"):
        return dispatch.softmax.forward(np.full((1, 2), -np.inf))[0]


def _loss_of_nothing():
    return dispatch.cross_entropy.forward(_X, np.full(2, IGNORE))[0]


def _first_step():
    optimizer = Adam(ours.store_of({"w": np.ones(2)}))
    optimizer.step(0.1)
    return optimizer.t


# torch.testing._internal.common_methods_invocations.op_db: name -> expression, limits it meets.
OPERATIONS = {
    "nn.functional.embedding": (ours.embedding, {
        "padding row", "rows of a largest norm", "gradient by frequency"}),
    "nn.functional.linear": (ours.linear, set()),
    "mm": (ours.mm, set()),
    "nn.functional.layer_norm": (ours.layer_norm, set()),
    "native_layer_norm": (ours.layer_norm, set()),
    "nn.functional.gelu": (ours.gelu, set()),
    "erf": (ours.erf, set()),
    "softmax": (ours.softmax, {"axis without a class"}),
    "log_softmax": (ours.log_softmax, {"axis without a class"}),
    "nn.functional.softmin": (ours.softmin, {"axis without a class"}),
    "masked.softmax": (ours.masked_softmax, {"axis without a class"}),
    "masked.softmin": (ours.masked_softmin, {"axis without a class"}),
    "torch.ops.aten._safe_softmax.default": (ours.safe_softmax, {"row without a score"}),
    "_softmax_backward_data": (ours.softmax_backward_data, set()),
    "nn.functional.scaled_dot_product_attention": (attn.attention, {"mask of scores"}),
    "nn.functional.cross_entropy": (ours.cross_entropy, {
        "probabilities as targets", "negative weights"}),
    "nn.functional.linear_cross_entropy": (ours.linear_cross_entropy, {
        "probabilities as targets"}),
    "nn.functional.dropout": (ours.dropout, {"rate of 1"}),
    "native_dropout_backward": (ours.dropout_backward, set()),
}
LIKE_OURS = ("embedding", "linear", "layer_norm", "rms_norm", "gelu", "softm", "attention",
             "cross_entropy", "dropout", "nll_loss", "erf")
NOT_OURS = {
    "_upsample_bilinear2d_aa": "images",
    "erfc": "not computed: GELU needs erf alone",
    "erfinv": "not computed: GELU needs erf alone",
    "special.erfcx": "not computed: GELU needs erf alone",
    "masked.log_softmax": "log_softmax has no mask",
    "nn.functional.alpha_dropout": "another dropout",
    "nn.functional.dropout2d": "another dropout",
    "nn.functional.dropout3d": "another dropout",
    "nn.functional.feature_alpha_dropout": "another dropout",
    "nn.functional.bilinear": "a product of two inputs",
    "nn.functional.upsample_bilinear": "images",
    "nn.functional.binary_cross_entropy": "a text has one of K labels",
    "nn.functional.binary_cross_entropy_with_logits": "a text has one of K labels",
    "nn.functional.cosine_embedding_loss": "a loss of pairs",
    "nn.functional.hinge_embedding_loss": "a loss of pairs",
    "nn.functional.embedding_bag": "the mean over a text is pooling, in the classifier's head",
    "nn.functional.nll_loss": "it begins with log-probabilities, cross_entropy with logits",
    "nn.functional.gaussian_nll_loss": "regression",
    "nn.functional.poisson_nll_loss": "regression",
    "nn.functional.multi_head_attention_forward": "its one case has a mask of scores and dropout",
    "nn.functional.rms_norm": "no model of ours has it",
    "torch.ops.aten._efficient_attention_forward": "CUDA only",
    "torch.ops.aten._flash_attention_forward": "CUDA only",
}

# torch.testing._internal.common_modules.module_db: the same.
MODULES = {
    "nn.Linear": (ours.linear, set()),
    "nn.Embedding": (ours.embedding, set()),
    "nn.GELU": (ours.gelu, set()),
    "nn.LayerNorm": (ours.layer_norm, set()),
    "nn.Softmax": (ours.softmax, set()),
    "nn.Softmin": (ours.softmin, set()),
    "nn.LogSoftmax": (ours.log_softmax, set()),
    "nn.CrossEntropyLoss": (ours.cross_entropy, {
        "probabilities as targets", "negative weights", "mean of nothing"}),
    "nn.LinearCrossEntropyLoss": (ours.linear_cross_entropy, {"probabilities as targets"}),
    "nn.MultiheadAttention": (attn.multi_head_attention, {"mask of scores"}),
    "nn.TransformerEncoderLayer": (attn.encoder_layer, {"another activation than GELU"}),
}
MODULES_LIKE_OURS = ("Embedding", "Linear", "LayerNorm", "RMSNorm", "GELU", "Softm", "Attention",
                     "Transformer", "CrossEntropy", "Dropout", "NLLLoss")
MODULES_NOT_OURS = {
    "nn.Bilinear": "a product of two inputs",
    "nn.CosineEmbeddingLoss": "a loss of pairs",
    "nn.HingeEmbeddingLoss": "a loss of pairs",
    "nn.NLLLoss": "it begins with log-probabilities, CrossEntropyLoss with logits",
    "nn.GaussianNLLLoss": "regression",
    "nn.PoissonNLLLoss": "regression",
    "nn.RMSNorm": "no model of ours has it",
    "nn.Softmax2d": "images",
    "nn.TransformerEncoder": "layers with ReLU",
    "nn.TransformerDecoderLayer": "attention to another sequence is no layer of ours",
    "nn.Transformer": "layers with ReLU, and a decoder",
}

# torch.testing._internal.common_optimizers.optim_db
OPTIMIZERS = {
    "Adam": (Adam, {"largest second moment"}),
    "AdamW": (AdamW, {"largest second moment"}),
    "SGD": (SGD, {"Nesterov's momentum", "damped momentum"}),
}
OPTIMIZERS_NOT_OURS = {"Adadelta", "Adafactor", "Adagrad", "Adamax", "ASGD", "LBFGS", "Muon",
                       "NAdam", "RAdam", "RMSprop", "Rprop", "SparseAdam"}
