"""Adaptation: next-token training on the training texts, before the classifier.

The middle step of ULMFiT (Howard and Ruder 2018, section 3.2): a language model that has read the
texts it is to classify, without their labels, needs fewer labels afterwards.
"""

from dataclasses import replace

import numpy as np

from minisft.data.dataset import TokenizedDataset
from minisft.errors import UserError
from minisft.evaluation.evaluate import completion_loss
from minisft.models.gpt2 import GPT2
from minisft.models.heads import LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training.loop import fit_in, load_or_init_state, make_optimizer

FOLDER = "adaptation"     # within the run's, with a log and a state of its own


def next_tokens(ids, end):
    """Token ids of texts, the end token or None -> Sequences whose labels are the next tokens.

    A text is begun as the classifier sees it, and ended by predicting the end token.
    """
    last = IGNORE if end is None else end
    return TokenizedDataset(list(ids), [np.append(row[1:], last) for row in ids])


def adapt(model, train, valid, end, settings, folder, resume, say):
    """Trains the classifier's trunk in place -> validation losses before and after, in nats.

    train, valid: Sequences of the classifier. What was trained before an interruption is taken
    from the folder. Raises UserError for a model that predicts no next token.
    """
    if not isinstance(model.trunk, GPT2):
        raise UserError(f"--adapt-epochs is {settings.adapt_epochs}, but {settings.model} does "
                        "not predict the next token")
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    # these options are about the classifier
    settings = replace(settings, epochs=settings.adapt_epochs, early_stopping=0,
                       average=0.0, select="loss")
    learner = LanguageModel(model.trunk.config, dtype=model.store.dtype, seed=None)
    learner.to(settings.device, settings.precision)
    names = [p.name for p in learner.store]
    for name in names:
        learner.store[name].value[...] = model.store[name].value
    learner.store.refresh()
    train, valid = next_tokens(train.ids, end), next_tokens(valid.ids, end)

    def validate(model):
        found = completion_loss(model, valid, settings.micro_tokens)
        return {"score": [-found["loss"]], "valid_loss": found["loss"],
                "valid_perplexity": found["perplexity"]}

    say("adapting to the training texts by next-token training:")
    before = validate(learner)["valid_loss"]
    optimizer = make_optimizer(learner, settings)
    progress = load_or_init_state(place, resume, learner, optimizer, say)
    fit_in(place, learner, train, settings, validate, progress, optimizer)
    for name in names:
        model.store[name].value[...] = learner.store[name].value
    model.store.refresh()
    found = {"epochs": settings.adapt_epochs, "best_epoch": progress.best["epoch"],
             "valid_loss_before": before, "valid_loss": progress.best["valid_loss"],
             "seconds": progress.seconds}
    say(f"adapted: the loss of the validation texts, in nats a token, fell from {before:.3f} to "
        f"{found['valid_loss']:.3f}" if found["valid_loss"] < before else
        f"adaptation did not help: the loss of the validation texts, in nats a token, went from "
        f"{before:.3f} to {found['valid_loss']:.3f}")
    return found
