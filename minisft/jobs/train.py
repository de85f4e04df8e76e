"""Training in memory, for who has a model and a data set of token ids."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from minisft.data.dataset import TokenizedDataset
from minisft.data.pairs import PairDataset
from minisft.errors import UserError
from minisft.evaluation.evaluate import validate
from minisft.jobs.classify import class_weights
from minisft.models.heads import Classifier
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import AnyModel
from minisft.training.config import FinetuneConfig, TrainingConfig, require_sound
from minisft.training.defaults import SMOOTHING, resolve_defaults
from minisft.training.loop import History, Interrupted, fit, make_optimizer
from minisft.training.state import State


def train(model: AnyModel, dataset: TokenizedDataset,
          config: TrainingConfig | None = None, *, validation: TokenizedDataset | None = None,
          callback: Callable[[Mapping[str, Any]], Any] | None = None,
          show_progress: bool = True) -> dict[str, list[dict]]:
    """Trains the model in place -> {"steps": a dict for each step, "epochs": a dict for each}.

    Options of the config that are None are chosen as `minisft finetune` chooses them. On
    `validation` each epoch is scored, and the model ends as it was after the best one
    (config.select); without it, after the last. What is trained and where it computes are the
    model's: `model.train_layers("head")`, `model.to("cuda")`. `callback(dict)` is called with each
    step and epoch. An EncoderDecoder learns from a data.pairs.PairDataset. Raises UserError, and
    KeyboardInterrupt.
    """
    config = config or TrainingConfig()
    for name in ("adapt_epochs", "token_dropout", "token_swap"):
        if getattr(config, name):
            raise UserError(f"{name} is for TextClassifier and the command finetune, which have "
                            "the texts")
    kind = PairDataset if isinstance(model, EncoderDecoder) else TokenizedDataset
    for name, given in (("dataset", dataset), ("validation", validation)):
        if given is not None and isinstance(given, PairDataset) != (kind is PairDataset):
            raise UserError(f"{name} is a {type(given).__name__}, expected a {kind.__name__} for "
                            f"the model, a {type(model).__name__}")
    whole = FinetuneConfig(training=config)
    require_sound(whole)
    config = resolve_defaults(whole, model, dataset).training
    options = _loss_options(model, dataset, config)
    for block in model.trunk.blocks:
        block.gradient_checkpointing = config.gradient_checkpointing
    validated = None if validation is None else partial(
        validate, dataset=validation, batch_tokens=config.micro_tokens, select=config.select)
    history = History(callback)
    try:
        fit(model, dataset, config, validated, State(), make_optimizer(model, config),
            log=history, loss_options=options, show_progress=show_progress)
    except Interrupted:
        raise KeyboardInterrupt from None
    return history.as_dict()


def _loss_options(model: AnyModel, dataset: TokenizedDataset,
                  config: TrainingConfig) -> dict[str, Any]:
    """-> what the model's loss takes beside the batch; raises UserError for what it does not."""
    if isinstance(model, Classifier):
        return {"smoothing": config.label_smoothing or 0.0,
                "weights": class_weights(config.class_weights, model.label_names,
                                         list(dataset.labels))}
    kind = type(model).__name__
    if config.class_weights != "none":
        raise UserError(f"class_weights is for a Classifier, the model is a {kind}")
    if isinstance(model, EncoderDecoder):
        return {"smoothing": SMOOTHING if config.label_smoothing is None else
                config.label_smoothing}
    if config.label_smoothing:
        raise UserError("label_smoothing is for a Classifier or an EncoderDecoder, the model is a "
                        f"{kind}")
    return {}
