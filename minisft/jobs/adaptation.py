"""Adaptation: next-token training on the training texts, before the classifier.

The middle step of ULMFiT (Howard and Ruder 2018, section 3.2): a language model that has read the
texts it is to classify, without their labels, needs fewer labels afterwards.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minisft.data.dataset import TokenizedDataset
from minisft.errors import UserError, setting
from minisft.evaluation.evaluate import validate
from minisft.io import run_folder
from minisft.io.files import make_folder
from minisft.models.gpt2 import GPT2
from minisft.models.heads import Classifier, LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training.config import FinetuneConfig
from minisft.training.loop import fit_in, load_or_init_state, make_optimizer
from minisft.training.saving import parse_save_every


def next_tokens(ids: Iterable[np.ndarray], end: int | None) -> TokenizedDataset:
    """Token ids of texts, the end token or None -> dataset whose labels are the next tokens.

    A text is begun as the classifier sees it, and ended by predicting the end token.
    """
    last = IGNORE if end is None else end
    return TokenizedDataset(list(ids), [np.append(row[1:], last) for row in ids])


def adapt(model: Classifier, train: TokenizedDataset, valid: TokenizedDataset, end: int | None,
          config: FinetuneConfig, folder: Path | None, resume: bool,
          say: Callable[[str], Any], name_text: Callable[[int], str] | None = None) -> dict:
    """Trains the classifier's trunk in place -> validation losses before and after, in nats.

    What was trained before an interruption is taken from the run's folder; folder None: nothing
    is written. name_text(index) says which text that is. Raises UserError for a model that predicts
    no next token, and DivergedError.
    """
    epochs = config.training.adapt_epochs
    if not isinstance(model.trunk, GPT2):
        raise UserError(f"{setting('adapt_epochs')} is {epochs}, but {config.model.model} does not "
                        "predict the next token")
    place = None if folder is None else folder / run_folder.ADAPTATION
    if place is not None:
        make_folder(place)
    # these options are about the classifier
    training = replace(config.training, epochs=epochs, early_stopping=0, average=0.0,
                       select="loss")
    learner = LanguageModel(model.trunk.config, dtype=model.store.dtype, seed=None)
    learner.to(config.model.device, config.model.precision)
    names = [p.name for p in learner.store]
    for name in names:
        learner.store[name].value[...] = model.store[name].value
    learner.store.refresh()
    train, valid = next_tokens(train.ids, end), next_tokens(valid.ids, end)
    validation = partial(validate, dataset=valid, batch_tokens=training.micro_tokens, select="loss")
    say("adapting to the training texts by next-token training:")
    before = validation(learner)["valid_loss"]
    optimizer = make_optimizer(learner, training)
    state = load_or_init_state(place, resume, learner, optimizer, say)
    fit_in(place, learner, train, training, validation, state, optimizer,
           save_every=parse_save_every(config.output.save_every), name_text=name_text,
           show_progress=not config.output.quiet)
    for name in names:
        model.store[name].value[...] = learner.store[name].value
    model.store.refresh()
    after = state.best["valid_loss"]
    say(f"adapted: the loss of the validation texts, in nats a token, fell from {before:.3f} to "
        f"{after:.3f}" if after < before else
        f"adaptation did not help: the loss of the validation texts, in nats a token, went from "
        f"{before:.3f} to {after:.3f}")
    return {"epochs": epochs, "best_epoch": state.best["epoch"], "valid_loss_before": before,
            "valid_loss": after, "seconds": state.seconds}
