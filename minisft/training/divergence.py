"""Where a run that diverged left the finite numbers, and why in all likelihood.

Only a run that has met a value that is not finite pays for this: the step is computed once more,
and what each operation gives is looked at.
"""

import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import array_module
from minisft.data.batch import token_budget_batches
from minisft.data.dataset import TokenizedDataset
from minisft.dispatch import BFLOAT16, FORMATS, only, watched
from minisft.errors import DivergedError, UserError, setting
from minisft.io import run_folder
from minisft.io import training_state as states
from minisft.models.finite import NotFiniteError
from minisft.models.token_heads import AnyModel as Model
from minisft.nn.layers import Layer
from minisft.training.config import TrainingConfig
from minisft.training.optim import Optimizer

# what a backward gives, where it is more than dx
GRADIENTS = {"linear": ("dx", "dw", "db"), "layer_norm": ("dx", "dw", "db"),
             "attention": ("dq", "dk", "dv"), "embedding": ("dw",)}
METHODS = "forward", "backward", "forward_columns", "backward_columns"
MOST_TEXTS = 256      # of a batch, that are looked at one by one
LARGE_WEIGHT = 1e6    # of a class: beyond any use, and enough to be the reason
LARGE_VALUE = 1e4     # of a parameter: the same


@dataclass(frozen=True)
class Finding:
    """The first value that was not finite: `kind` is values, forward, backward or sum."""

    kind: str
    operation: str
    tensor: str


class _Found(Exception):
    """Ends the second computing at the first value that is not finite."""


def all_finite(value: Any) -> bool:
    """-> whether an array or number of floats is finite; what holds no floats is."""
    if isinstance(value, float):
        return isfinite(value)
    if getattr(value, "dtype", None) == BFLOAT16:
        return not bool(((value & 0x7F80) == 0x7F80).any())
    if getattr(value, "dtype", np.dtype(int)).kind != "f":
        return True
    return bool(array_module(value).isfinite(value).all())


def values_finite(model: Model) -> bool:
    """-> whether all values that are trained are; one pass, and no array of answers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return isfinite(float(model.store.values.sum())) or all_finite(model.store.values)


@np.errstate(all="ignore")
def first_not_finite(model: Model, run: Callable[[], Any]) -> Finding | None:
    """Calls run(), which computes with the model -> the first tensor that is not finite, or None.

    First the values of the model, then what each operation and layer gives, then the gradients.
    """
    wrong = [p.name for p in model.store if not all_finite(p.value)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return Finding("values", "", f"the values of {wrong[0]}{more}")
    within: list[str] = []      # the layers that are computing, innermost last

    def require(good, kind, operation, tensor):
        if not good:
            raise _Found(Finding(kind, operation, tensor))

    def see(operation, direction, given):
        names = ("the output",) if direction == "forward" else GRADIENTS.get(operation, ("dx",))
        for i, value in enumerate(given if isinstance(given, tuple) else (given,)):
            name = names[min(i, len(names) - 1)]
            require(all_finite(value), direction, f"{operation}.{direction}",
                    f"{name} of {operation}.{direction} in {within[-1] if within else 'the head'}")

    def leave(layer, direction, given):
        if isinstance(given, tuple):      # of columns, whose operation was seen
            return
        kind = type(layer).__name__
        require(all_finite(given), direction, f"{kind}.{direction}",
                f"the output of {kind}.{direction} in {within[-1]}")

    try:
        # no sum is added and normalised at once: each is to be seen
        with only("formula", operations=("residual_layer_norm",)), watched(see), \
                _named_layers(model, within, leave):
            run()
    except _Found as found:
        return found.args[0]
    finally:
        model.clear_cache()
        model.loss_cache = None
    for p in model.store.trainable:
        if not all_finite(p.grad):
            return Finding("backward", "sum", f"the gradient of {p.name}")
    return None


@contextmanager
def _named_layers(model: Model, within: list[str], leave: Callable) -> Iterator[None]:
    """Within it each layer that computes stands in `within`, by the name of its parameters;
    leave(layer, method, what it gave) is called at its end."""
    with ExitStack() as stack:
        for layer, name in _layers(model, "the model"):
            for method in METHODS:
                if hasattr(layer, method):
                    vars(layer)[method] = _entered(getattr(layer, method), layer, method, name,
                                                   within, leave)
                    stack.callback(vars(layer).pop, method)
        yield


def _entered(compute, layer, method, name, within, leave):
    def entered(*args, **options):
        within.append(name)
        given = compute(*args, **options)
        leave(layer, method, given)
        within.pop()
        return given
    return entered


def _layers(layer, name):
    """-> (layer, name) of a layer and all in it; one without parameters has the outer one's."""
    names = [p.name for p in layer.parameters()]
    prefix = os.path.commonprefix([f"{n}." for n in names])
    name = prefix.rpartition(".")[0] or name
    if len(names) == 1:
        name = names[0].rpartition(".")[0] or name
    yield layer, name
    for part in vars(layer).copy().values():
        for inner in part if isinstance(part, list) else [part]:
            if isinstance(inner, Layer):
                yield from _layers(inner, name)


@np.errstate(all="ignore")
def of_step(model: Model, sequences: TokenizedDataset, indices: Sequence[int],
            stream: random.Stream | None, loss_options: Mapping[str, Any], optimizer: Optimizer,
            config: TrainingConfig, factor: float, what: str,
            name_text: Callable[[int], str] | None) -> DivergedError:
    """A step whose loss or gradient is not finite -> the error that says all that is known.

    `what` is what was found so far, `factor` the scale of the loss; name_text(index) says which
    text that is.
    """
    def again():
        model.store.zero_grad()
        for piece in token_budget_batches(sequences.lengths, indices, config.micro_tokens):
            model.loss(sequences.batch(piece, stream), stream, **loss_options)
            model.loss_backward(1.0 if model.store.compute_dtype is None else factor)

    found = first_not_finite(model, again)
    cause, remedy = _cause(model, found, again, loss_options, optimizer, config)
    alone: list[int] = []
    if found is not None and found.kind == "forward" and len(indices) <= MOST_TEXTS:
        alone = [i for i in indices if _text_is_at_fault(model, sequences, i, stream,
                                                         loss_options)]
    step = optimizer.t + 1 if stream is None else stream.step + 1
    return _error(step, step - 1, found, what, cause, remedy,
                  _texts(indices, alone, name_text or "text {}".format))


def of_values(model: Model, step: int, optimizer: Optimizer,
              config: TrainingConfig) -> DivergedError:
    """As `of_step`, where nobody has computed with the values yet."""
    return _without_a_batch(model, lambda: None, step, "", optimizer, config)


def checked(validate: Callable[[Model], Any] | None, state: Any, optimizer: Optimizer,
            config: TrainingConfig) -> Callable[[Model], Any] | None:
    """validate(model), or None -> the same, which raises DivergedError where a value is not finite.

    `state` is the loop's, for its step.
    """
    if validate is None:
        return None

    def validate_or_explain(model):
        try:
            return validate(model)
        except NotFiniteError:
            raise _without_a_batch(model, lambda: validate(model), state.step,
                                   "in the validation after it", optimizer, config) from None
    return validate_or_explain


@contextmanager
def back_to_best(model: Model, state: Any, always: bool = False) -> Iterator[None]:
    """Behind it, after a DivergedError or `always`, the model is as after the best epoch, if there
    is one."""
    diverged = False
    try:
        yield
    except DivergedError:
        diverged = True
        raise
    finally:
        if (diverged or always) and state.best_values is not None:
            _set_values(model, state.best_values)


def drop_useless_state(error: DivergedError, folder: Path, model: Model, state: Any,
                       validate: Callable[[Model], Any]) -> DivergedError:
    """-> the error. A state that was saved between the harm and its discovery is removed from the
    folder: whoever went on from there would meet the same."""
    place = folder / run_folder.STATE
    if not states.has_state(place):
        return error
    with back_to_best(model, state, always=True):
        _set_values(model, states.load_state(place)[0]["values"])
        try:
            validate(model)
        except NotFiniteError:
            states.remove_state(place)
            return error.and_also("what was saved of the run is of no use and was removed, so it "
                                  "starts anew")
    return error


def keep_last_good(error: DivergedError, model: Model, state: Any, folder: Path | None,
                   write: Callable[[], Any], stretch: str = "epoch") -> DivergedError:
    """write() keeps the model as it was after the best epoch, or else when the run was last saved.

    -> the error, which says it. folder None: nothing is written.
    """
    if folder is None:
        return error
    place, when = folder / run_folder.STATE, None
    try:
        if state.best is not None:      # the loop has put its values back
            when = f"after {stretch} {state.best['epoch']}, the best so far,"
        elif states.has_state(place):
            arrays, info = states.load_state(place)
            _set_values(model, arrays["values"])
            when = f"after step {info['step']}, where it was last saved,"
        if when is None:
            return error.and_also("", folder)
        write()
    except UserError as failure:
        return error.and_also(f"no model could be kept: {failure.args[0]}", folder)
    return error.and_also(f"the model as it was {when} is in {folder / 'model'}", folder)


def _set_values(model, values):
    model.store.values[...] = model.store.xp.asarray(values)
    model.store.refresh()


def with_way_on(error: DivergedError) -> DivergedError:
    """-> the error with how its run goes on, where another option would help."""
    if error.folder is None or not error.remedy:
        return error
    return error.and_also(f"go on with {setting('resume', str(error.folder))} and {error.remedy}")


def _without_a_batch(model, run, step, what, optimizer, config):
    found = first_not_finite(model, run)
    cause, remedy = _cause(model, found, run, {}, optimizer, config)
    return _error(step, step, found, what, cause, remedy)


def _error(step, updated, found, what, cause, remedy, texts=""):
    """`updated`: the last step that changed the values."""
    tensor = "" if found is None else found.tensor
    if tensor:
        since = f" since the update of step {updated}" if found.kind == "values" and updated else ""
        first = f"{tensor} {'are' if found.kind == 'values' else 'is'} not finite{since}"
        what = f"{first} ({what})" if what else first
    return DivergedError(f"step {step}: " + "; ".join(filter(None, (
        what, f"the likely cause is {cause}", texts))), step, tensor, cause, remedy)


def _texts(indices, alone, name_text):
    some = alone if 0 < len(alone) < len(indices) else list(indices)
    names = ", ".join(name_text(int(i)) for i in some[:2])
    if some is alone:
        return f"it comes with {len(alone)} of the {len(indices)} texts of the batch alone: {names}"
    return f"the batch begins with {names}" if len(indices) > 1 else f"the batch is {names}"


def _text_is_at_fault(model, sequences, index, stream, loss_options):
    loss, _, _ = model.loss(sequences.batch([index], stream), stream, **loss_options)
    model.clear_cache()
    model.loss_cache = None
    return not isfinite(float(loss))


def _cause(model, found, again, loss_options, optimizer, config):
    """-> the likely cause, what to try ("": nothing that is an option)."""
    store = model.store
    weights = loss_options.get("weights")
    if weights is not None and max(weights) > LARGE_WEIGHT:
        return f"{setting('class_weights')} of {float(max(weights)):.3g}", ""
    if found is not None and found.kind == "values" and not optimizer.t:
        return "the model: it had such values before the first step", ""
    if store.compute_dtype == FORMATS["float16"]:
        store.set_compute_dtype(None)
        fine = first_not_finite(model, again) is None
        store.set_compute_dtype(FORMATS["float16"])
        if fine:
            return ("float16, which ends at 65504: the same step is finite in float32",
                    setting("precision", "bfloat16"))
    largest = max(store, key=lambda p: float(abs(p.value).max()))
    size = float(abs(largest.value).max())
    if not optimizer.t or size > max(LARGE_VALUE, _reach(optimizer, config)):
        return f"the model: {largest.name} holds values up to {size:.3g}", ""
    return _of_the_update(store, optimizer, config)


def _reach(optimizer, config):
    """-> how far all steps so far can have moved a weight, at most."""
    lr, decay = optimizer.last_lr or config.lr, config.weight_decay
    if lr * decay > 1 or config.optimizer == "sgd" and not config.max_grad_norm:
        return inf
    longest = config.max_grad_norm / max(1 - config.momentum, 1e-6)
    # Adam's step is at most the rate, but for a few times that where gradients come suddenly
    return optimizer.t * lr * (longest if config.optimizer == "sgd" else 100)


def _of_the_update(store, optimizer, config):
    """The rate or the decay, by what each makes of the weights in one step."""
    lr, decay = optimizer.last_lr or config.lr, config.weight_decay
    asked = lr if config.lr is None else config.lr     # a step may be told without an option
    # of the initial values: what the weights were before they went wrong is gone
    usual = sqrt(sum(p.size * (p.scale**2 + p.fill**2) for p in store) / store.size) or 1.0
    if config.optimizer == "sgd":
        length = (config.max_grad_norm or 1.0) / max(1 - config.momentum, 1e-6)
        step, growth = lr * length / (usual * sqrt(store.size)), lr * decay / 2
    else:      # Adam's step is the rate, whatever the gradient is; a decay in it overflows alone
        step, growth = lr / usual, lr * decay / 2 if config.optimizer == "adamw" else decay / 1e30
    rate = f"{setting('lr')} {asked:.3g}"
    if growth > max(step, 1):
        return (f"{setting('weight_decay')} {decay:.3g} with {rate}: a step multiplies the weights "
                f"by {1 - lr * decay:.3g}" if config.optimizer != "adam" else
                f"{setting('weight_decay')} {decay:.3g}, which is added to the gradient",
                f"a smaller {setting('weight_decay')}")
    if step > 1:
        return (f"{rate}: a step changes the weights by {step:.1g} times what they began with",
                f"a smaller {setting('lr')}")
    if not config.max_grad_norm:
        return (f"the norm of the gradients, which {setting('max_grad_norm')} 0 does not limit",
                f"{setting('max_grad_norm')} 1, or a smaller {setting('lr')}")
    return f"too high an {setting('lr')} (now {asked:.3g})", f"a smaller {setting('lr')}"
