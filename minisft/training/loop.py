"""The training loop: steps over packed batches, validation after each epoch, exact resume."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minisft.backend import random
from minisft.backend.constants import ceil_div
from minisft.backend.cpu import allocator
from minisft.data.batch import token_budget_batches
from minisft.data.dataset import TokenizedDataset
from minisft.dispatch import FLOAT16
from minisft.errors import DivergedError, UserError
from minisft.io import metrics_log, provenance, run_folder
from minisft.io import training_state as states
from minisft.io.files import read_json
from minisft.models.token_heads import AnyModel as Model
from minisft.training import changes, divergence, optim, recorded
from minisft.training.averaging import Mean
from minisft.training.config import TrainingConfig
from minisft.training.interrupts import catch_interrupts
from minisft.training.loss_scale import LossScale
from minisft.training.saving import SaveInterval, Saver
from minisft.training.state import State

Validate = Callable[[Model], Mapping[str, Any]]
Log = Callable[[Mapping[str, Any]], None]


class History:
    """Called with each step and epoch: keeps them, for a run that writes no metrics.jsonl."""

    def __init__(self, callback: Log | None = None) -> None:
        self.steps: list[dict] = []
        self.epochs: list[dict] = []
        self.callback = callback

    def __call__(self, entry: Mapping[str, Any]) -> None:
        kept = self.steps if metrics_log.is_step(entry) else self.epochs
        kept.append(dict(entry))
        _call(self.callback, entry)

    def as_dict(self) -> dict[str, list[dict]]:
        """-> {"steps": a dict for each step, "epochs": a dict for each epoch}."""
        return {"steps": self.steps, "epochs": self.epochs}


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP came; the state has been saved."""


def make_optimizer(model: Model, config: TrainingConfig) -> optim.Optimizer:
    """-> the optimizer that the config names, over the model's trained parameters."""
    options = ({"momentum": config.momentum} if config.optimizer == "sgd" else
               {"betas": (0.9, config.beta2)})
    return optim.OPTIMIZERS[config.optimizer](
        model.store, weight_decay=config.weight_decay,
        rates=optim.layer_wise_lr_factors(model.store, config.layer_decay), **options)


def begin(folder: Path, resume: Any, record: Mapping[str, Any], model: Model,
          say: Callable[[str], None]) -> None:
    """Makes a new run's folder with its config.json; an interrupted run has both, and there what
    has changed is added."""
    if not resume:
        # once more, under the lock: another run may have begun and ended here meanwhile
        run_folder.check_output_folder(folder, record["settings"]["overwrite"])
        run_folder.create(folder, {**record, "parameters": model.store.size,
                                   **provenance.environment()})
        return
    kept = read_json(folder / "config.json")
    changes.record(folder, kept, record, say)
    if changed := provenance.environment_changes(kept):
        say(f"note: not what the run began with: {'; '.join(changed)}; it goes on, without the "
            "certainty of the same bits")


def load_or_init_state(folder: Path | None, resume: Any, model: Model,
                       optimizer: optim.Optimizer, say: Callable[[str], None]) -> State:
    """-> State, from what an interrupted run kept in the folder, or that of the beginning."""
    state = State()
    if folder is not None and states.has_state(folder / run_folder.STATE):
        state.restore(model, optimizer, *states.load_state(folder / run_folder.STATE))
        if state.epoch and state.best is None:     # a run with a folder validates
            raise UserError("the saved state is not what a run writes: epochs have ended, and none "
                            "is the best")
        say(f"resuming after step {state.step}")
        log = folder / metrics_log.METRICS
        if found := metrics_log.set_aside_damaged_log(folder, state.step, state.epoch,
                                                      state.metrics_crc32):
            say(f"note: {log} is missing: the curves begin here" if found == log else
                f"note: {log} is not as it was when the state was saved: it is called {found.name} "
                "now, and the curves begin here")
    elif resume:
        say("the run was interrupted before its first save: starting anew")
    return state


def fit_in(folder: Path | None, model: Model, sequences: TokenizedDataset, config: TrainingConfig,
           validate: Validate, state: State, optimizer: optim.Optimizer,
           log: Log | None = None, **options: Any) -> dict:
    """`fit`, with metrics.jsonl and the state in the run's folder; -> history of steps and epochs.

    folder None: nothing is written. Raises UserError where the folder goes away meanwhile.
    """
    if folder is None:
        history = History(log)
        fit(model, sequences, config, validate, state, optimizer, log=history, **options)
        return history.as_dict()
    metrics = metrics_log.MetricsLog(folder, state.step, state.epoch)

    def both(entry):
        metrics(entry)
        _call(log, entry)

    def save():
        if not divergence.values_finite(model):
            raise divergence.of_values(model, state.step, optimizer, config)
        metrics.sync()      # first: the state is never ahead of what is logged
        state.metrics_crc32 = metrics.checksum
        states.save_state(folder / run_folder.STATE, *state.to_save(model, optimizer))

    try:
        fit(model, sequences, config, validate, state, optimizer, log=both, save=save, **options)
        metrics.sync()
    except DivergedError as error:
        raise divergence.drop_useless_state(error, folder, model, state, validate) from None
    finally:
        metrics.close()
    return metrics_log.read_history(folder)


class BatchPlan(Sequence):
    """For each epoch its batches, each a list of text numbers; planned when they are asked for.

    `stretch`: an item holds so many batches, whatever the epoch. The memory is that of one item
    and one epoch, however many there are.
    """

    def __init__(self, sequences: TokenizedDataset, config: TrainingConfig,
                 stretch: int | None = None) -> None:
        self.lengths, self.config, self.stretch = sequences.lengths, config, stretch
        self._planned: tuple[int, list[list[int]]] | None = None      # an epoch, its batches
        self.counts = [len(self._epoch(epoch)) for epoch in range(config.epochs)]
        self.steps = sum(self.counts)

    def __len__(self) -> int:
        return len(self.counts) if self.stretch is None else ceil_div(
            self.steps, self.stretch)

    def __getitem__(self, i: Any) -> list[list[int]]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        if self.stretch is None:
            return self._epoch(i)
        found, first, start = [], i * self.stretch, 0
        for epoch, count in enumerate(self.counts):
            here = slice(max(first - start, 0), max(first + self.stretch - start, 0))
            if here.start < count and here.stop > 0:
                found += self._epoch(epoch)[here]
            start += count
        return found

    def _epoch(self, epoch):
        if self._planned is None or self._planned[0] != epoch:
            order = random.permutation(len(self.lengths), self.config.seed, epoch)
            self._planned = epoch, token_budget_batches(self.lengths, order,
                                                        self.config.batch_tokens)
        return self._planned[1]


@np.errstate(over="ignore", invalid="ignore")     # a run that diverges is told in one line
def train_step(model: Model, sequences: TokenizedDataset, indices: Sequence[int],
               optimizer: optim.Optimizer, lr: float, config: TrainingConfig,
               stream: random.Stream | None, loss_options: Mapping[str, Any],
               scale: LossScale | None = None,
               name_text: Callable[[int], str] | None = None,
               proven: Callable[[], None] | None = None,
               ahead: recorded.Ahead | None = None) -> tuple[float, float | None]:
    """One optimizer step on these texts, in pieces of at most micro_tokens tokens.

    -> mean loss and gradient norm before clipping. The pieces' sums are divided once, by the
    whole denominator: the step equals that of one large batch. `scale` (loss_scale.LossScale)
    multiplies the loss; the norm is None where its gradients overflow and the step is left out.
    proven() is called where loss and gradients are finite, before anything changes. `ahead` makes
    the batches of the step after this one while a card computes. Raises DivergedError, which calls
    the texts by name_text(index).
    """
    factor = 1.0 if scale is None else scale.value
    model.store.zero_grad()
    total = denominator = 0.0
    squares = None
    pieces = _pieces(model, sequences, indices, config, stream) if ahead is None else ahead.pieces()
    for i, piece in enumerate(pieces):
        loss, counted, squares = recorded.loss_and_gradients(
            model, piece, stream, factor, loss_options, i == 0,
            None if ahead is None or i else ahead.make)
        total, denominator = total + loss, denominator + counted
    denominator *= factor
    norm = optim.gradient_norm(model.store) if squares is None else math.sqrt(squares)
    mean, norm = total * factor / denominator, norm / denominator
    overflow = ""
    if proven is not None and math.isfinite(mean) and math.isfinite(norm):
        proven()
    try:
        if scale is not None and math.isfinite(mean) and not scale.update(math.isfinite(norm)):
            return mean, None
    except OverflowError as error:
        overflow = str(error)
    if overflow or not (math.isfinite(mean) and math.isfinite(norm)):
        raise divergence.of_step(
            model, sequences, indices, stream, loss_options, optimizer, config, factor,
            overflow or f"the loss is {mean:.4g}, the gradient's norm {norm:.4g}", name_text)
    optimizer.step(lr, optim.clip_scale(norm, config.max_grad_norm) / denominator)
    return mean, norm


def _pieces(model, sequences, indices, config, stream):
    """-> the batches of a step, one after the other, as far as the CPU can prepare them."""
    for piece in token_budget_batches(sequences.lengths, indices, config.micro_tokens):
        yield recorded.ready(model, sequences.batch(piece, stream), stream)


def fit(model: Model, sequences: TokenizedDataset, config: TrainingConfig,
        validate: Validate | None, state: State, optimizer: optim.Optimizer, *,
        save: Callable[[], None] | None = None, log: Log | None = None,
        loss_options: Mapping[str, Any] | None = None, plan: BatchPlan | None = None,
        stretch: str = "epoch", save_every: SaveInterval | None = None,
        name_text: Callable[[int], str] | None = None, show_progress: bool = True) -> State:
    """Trains in place; ends with the values of the epoch that validation found best, or, with
    config.select "last", with those of the last. Where config.average has begun, these are the
    mean of the values (averaging.py).

    validate(model) -> dict with "score" (higher is better) and what else to report, or None for
    no validation: then the last epoch counts. save() keeps the state: at `save_every`, after
    epochs (saving.Saver) and at an interruption. log(dict) is called with each step and epoch.
    `plan` (default: one item an epoch) gives the batches between two validations: `stretch` is
    what the terminal calls them. Raises Interrupted, and DivergedError, which calls the texts by
    name_text(index): the values are then those of the best epoch, if one has ended.
    """
    epochs = plan or BatchPlan(sequences, config)
    total = epochs.steps
    warmup = int(config.warmup_ratio * total)
    lengths = sequences.lengths
    if model.store.compute_dtype != FLOAT16:
        state.scale = None      # a run may go on in another precision
    elif state.scale is None:
        state.scale = LossScale()
    validate = divergence.checked(validate, state, optimizer, config)
    recent: deque[float] = deque(maxlen=20)
    with allocator.reused(), recorded.kept(model), divergence.back_to_best(model, state), \
            catch_interrupts() as interrupts, tqdm(
            total=total, initial=state.step, unit="step", desc="training", dynamic_ncols=True,
            disable=not show_progress or None) as bar:     # none where stderr is a file
        saver = Saver(save, save_every or SaveInterval(), interrupts)
        first, begun = state.step, time.perf_counter()

        def show(report):
            rate = (time.perf_counter() - begun) / max(1, state.step - first)
            _show_epoch(report, f"{stretch} {report['epoch']} of {len(epochs)}",
                        rate * (total - state.step) if bar.disable else 0)

        while state.epoch < len(epochs) and not _patience_is_over(state, config):
            steps = epochs[state.epoch][state.index:]
            ahead = recorded.Ahead(
                lambda indices, step: _pieces(model, sequences, indices, config,
                                              random.Stream(config.seed, step)),
                steps, state.step)
            for indices in steps:
                started = time.perf_counter() - saver.seconds
                lr = config.lr * optim.schedule(config.schedule, state.step, total, warmup)
                stream = random.Stream(config.seed, state.step)
                loss, norm = train_step(model, sequences, indices, optimizer, lr, config,
                                        stream, loss_options or {}, state.scale, name_text,
                                        partial(_save_if_due, saver, interrupts), ahead)
                state.step += 1
                state.index += 1
                if state.step > (1 - config.average) * total:
                    _average(model, state)
                seconds = time.perf_counter() - saver.seconds - started
                tokens = int(lengths[indices].sum())
                state.seconds += seconds
                state.tokens += tokens
                state.loss_sum += loss
                recent.append(loss)
                _call(log, {"step": state.step, "epoch": state.epoch + 1, "loss": loss, "lr": lr,
                            "grad_norm": norm, "tokens": tokens,
                            "tokens_per_second": tokens / seconds} | _scale_of(state))
                bar.set_postfix_str(f"loss {sum(recent) / len(recent):.3f}, "
                                    f"{state.tokens / state.seconds:.0f} tokens/s")
                bar.update()
                _save_or_stop(saver, interrupts)
            _finish_epoch(model, config, validate, state, log, show if show_progress else None)
            saver.after_epoch(last=interrupts.received or state.epoch == len(epochs)
                              or _patience_is_over(state, config))
            if interrupts.received:
                raise Interrupted
    if validate is None and not divergence.values_finite(model):
        raise divergence.of_values(model, state.step, optimizer, config)
    if state.best_values is not None:
        model.store.values[...] = model.store.xp.asarray(state.best_values)
        model.store.refresh()
    elif state.mean is not None:
        state.mean.copy_to(model)
    return state


def _average(model, state):
    if state.mean is None:
        state.mean = Mean(model.store.values)
    else:
        state.mean.add(model.store.values)


def _finish_epoch(model, config, validate, state, log, show):
    report = {"epoch": state.epoch + 1, "step": state.step,
              "train_loss": state.loss_sum / state.index}
    if validate is not None:
        recorded.make_room(model)
        with nullcontext() if state.mean is None else state.mean.within(model):
            report |= validate(model)
            if state.mean is not None:
                report["averaged"] = state.mean.count
            if state.best is None or config.select == "last" or \
                    report["score"] > state.best["score"]:
                state.best, state.best_values = report, model.store.values.copy()
        if show is not None:
            show(report)
    state.epoch, state.index, state.loss_sum = state.epoch + 1, 0, 0.0
    _call(log, report)     # last: whatever it raises, the state is that of an epoch that ended


def _show_epoch(report, title, seconds_left):
    """A line for an epoch; the time that is left where no bar shows it."""
    shown = []
    for name, value in report.items():
        words = name.replace("_", " ").replace("f1", "F1")
        if name.endswith(("accuracy", "f1")):
            shown.append(f"{words.removeprefix('valid ')} {value:.1%}")
        elif isinstance(value, float) and name not in ("score", "valid_perplexity"):
            shown.append(f"{words} {value:.4f}")
    if seconds_left >= 1:
        shown.append(f"{_duration(seconds_left)} left")
    tqdm.write(f"{title}: {', '.join(shown)}")


def _duration(seconds):
    minutes, hours = seconds / 60, seconds / 3600
    return (f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else
            f"{seconds:.0f} s")


def _scale_of(state):
    return {} if state.scale is None else {"loss_scale": state.scale.value}


def _patience_is_over(state, config):
    return bool(config.early_stopping and state.best
                and state.epoch - state.best["epoch"] >= config.early_stopping)


def _call(log, entry):
    if log is not None:
        log(entry)


def _save_or_stop(saver, interrupts):
    """After a step: at an interruption saves and raises Interrupted."""
    if interrupts.received:
        saver()
        raise Interrupted
    saver.after_step()


def _save_if_due(saver, interrupts):
    """Within a step, whose loss is finite and which has changed nothing yet."""
    if saver.once_proven() and interrupts.received:      # before, or while it was saved
        raise Interrupted
