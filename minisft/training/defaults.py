"""What a fine-tuning run takes where its user says nothing."""

from math import ceil, sqrt

from minisft.data.dataset import TokenizedDataset
from minisft.dispatch import resolve_precision
from minisft.models.token_heads import AnyModel
from minisft.training.config import FinetuneConfig

SMOOTHING = 0.1     # of a translator's labels: Vaswani et al. 2017, section 5.4


def with_defaults(config: FinetuneConfig) -> FinetuneConfig:
    """-> the config with those options whose default depends on others."""
    scratch, options = config.model.model == "scratch", config.options()
    config = config.replace(
        precision=resolve_precision(config.model.precision, config.model.device))
    translates = config.data.task == "translate"
    values = {"clean": default_cleaning(config.data.task),
              "dropout": None if not scratch else 0.1 if translates else 0.3,
              **({} if config.model.adapter is None else {
                  "rank": 8, "alpha": 2.0 * (config.model.rank or 8), "adapter_dropout": 0.0}),
              "label_smoothing": {"classify": 0.0, "translate": SMOOTHING}.get(config.data.task),
              "compare": "random" if config.data.train is None and
              config.data.task == "classify" else "baselines"}
    return config.replace(**{
        name: value for name, value in values.items() if options[name] is None})


def default_cleaning(task: str) -> str:
    """-> the steps for a task: code and other completions keep their lines."""
    return "all" if task == "classify" else "none"


def resolve_defaults(config: FinetuneConfig, model: AnyModel,
                     sequences: TokenizedDataset) -> FinetuneConfig:
    """-> the config with those options whose default depends on the model and the training texts.

    Few texts want more epochs, as in Mosbach et al. 2021: there, 20 and small learning rates made
    fine-tuning on small sets reliable.
    """
    scratch, training = config.model.model == "scratch", config.training
    translates = config.data.task == "translate"
    tokens = int(sequences.lengths.sum())
    batch_tokens = training.batch_tokens or default_batch_tokens(tokens)
    enough = ceil(120 * batch_tokens / tokens)
    head = scratch or config.model.train_layers == "head"
    few = getattr(model, "adapter", None) is not None or config.model.train_layers == "bias"
    return config.replace(
        batch_tokens=batch_tokens, pooling=getattr(model, "pooling", None),
        lr=training.lr or (10 if few else 1) * _default_lr(
            model, batch_tokens, head, training.optimizer, translates),
        epochs=training.epochs or (
            (10 if translates else 15) if scratch else min(max(3, enough), 20)))


def default_batch_tokens(tokens: int) -> int:
    """Tokens of the training texts -> tokens of an optimizer step."""
    return max(1, min(2048, tokens // 8))


def _default_lr(model, batch_tokens, from_random_weights, optimizer, translates):
    # 5e-5 is the field's choice at GPT-2's width 768; narrower models want more, small batches
    # less (by the square root: Malladi et al. 2022), and a new head on a frozen model most.
    adam = 5e-5 * (768 / model.trunk.config.n_embd) ** 1.5 * sqrt(min(1, batch_tokens / 2048))
    if from_random_weights:
        # a translator's by the root of the width: Vaswani et al. 2017, eq. 3
        adam = 5e-3 * sqrt(128 / model.trunk.config.n_embd) if translates else 1e-3
    return 100 * adam if optimizer == "sgd" else adam     # its steps know no scale
