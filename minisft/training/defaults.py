"""What a fine-tuning run takes where its user says nothing."""

import dataclasses
from math import ceil, sqrt


def with_defaults(settings):
    """-> the settings whose default depends on others."""
    scratch = settings.model == "scratch"
    values = {"clean": "none" if settings.task == "complete" else "all",
              "dropout": 0.3 if scratch else None,
              "compare": "random" if settings.train is None else "baselines"}
    return dataclasses.replace(settings, **{
        name: value for name, value in values.items() if getattr(settings, name) is None})


def fitting(settings, model, sequences):
    """-> the settings whose default depends on the model and on how many texts there are.

    Few texts want more epochs, as in Mosbach et al. 2021: there, 20 and small learning rates made
    fine-tuning on small sets reliable.
    """
    tokens = int(sequences.lengths.sum())
    batch_tokens = settings.batch_tokens or max(1, min(2048, tokens // 8))
    enough = ceil(120 * batch_tokens / tokens)
    settings = dataclasses.replace(settings, batch_tokens=batch_tokens,
                                   pooling=getattr(model, "pooling", None))
    return dataclasses.replace(
        settings, lr=settings.lr or _default_lr(model, settings),
        epochs=settings.epochs or (15 if settings.model == "scratch" else min(max(3, enough), 20)))


def _default_lr(model, settings):
    # 5e-5 is the field's choice at GPT-2's width 768; narrower models want more, small batches
    # less (by the square root: Malladi et al. 2022), and a new head on a frozen model most.
    adam = 5e-5 * (768 / model.trunk.config.n_embd) ** 1.5 * sqrt(
        min(1, settings.batch_tokens / 2048))
    if settings.model == "scratch" or settings.train_layers == "head":
        adam = 1e-3
    return 100 * adam if settings.optimizer == "sgd" else adam     # its steps know no scale
