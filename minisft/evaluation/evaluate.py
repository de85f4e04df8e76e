"""Evaluation: log-probabilities of a classifier, loss and exact match of a language model."""

from dataclasses import replace

import numpy as np
from tqdm import tqdm

from minisft.backend.array import to_cpu
from minisft.data.batch import pack, token_budget_batches
from minisft.errors import UserError
from minisft.models.generate import Sampler, generate
from minisft.ops.cross_entropy import log_softmax

# Prompts generated side by side: enough to fill the matrix products, little memory.
GENERATED_TOGETHER = 32


_TOO_LARGE = "the model gives values that are not finite, as it does after too high an --lr"


@np.errstate(over="ignore", invalid="ignore")     # told in one line
def log_probabilities(model, ids, batch_tokens, progress=None, types=None, features=None):
    """Classifier, token ids of M texts -> log-probabilities (M,K) float64; UserError on NaN.

    `types`: those of each token, where some sequences hold two texts. `features`: what the model's
    frozen layers make of the texts (features.Features).
    """
    found = np.empty((len(ids), len(model.label_names)))
    lengths = [len(x) for x in ids]
    # Long and short texts apart: an evenly filled batch is computed fastest.
    order = np.argsort(lengths, kind="stable")
    for indices in _shown(token_budget_batches(lengths, order, batch_tokens), progress):
        batch = pack([ids[n] for n in indices], example_ids=indices,
                     types=None if types is None else [types[n] for n in indices])
        if features is not None:
            batch = replace(batch, hidden=features.of(indices))
        logits = to_cpu(model.forward(batch))
        found[indices] = log_softmax(logits.astype(np.float64))
    if not np.isfinite(found).all():
        raise UserError(_TOO_LARGE)
    return found


@np.errstate(over="ignore", invalid="ignore")
def completion_loss(model, sequences, batch_tokens, progress=None):
    """LanguageModel -> mean loss of the tokens that count, perplexity, how many; UserError on NaN.
    """
    total = counted = 0.0
    batches = token_budget_batches(sequences.lengths, range(len(sequences)), batch_tokens)
    for indices in _shown(batches, progress):
        loss, denominator, _ = model.loss(sequences.batch(indices))
        total, counted = total + float(loss), counted + float(denominator)
    if not np.isfinite(total):
        raise UserError(_TOO_LARGE)
    return {"loss": total / counted, "perplexity": float(np.exp(min(total / counted, 700))),
            "tokens": int(counted)}


def completions(model, tokenizer, prompts, max_new_tokens, end_token, progress=None):
    """LanguageModel, token ids of M prompts -> the M texts that it puts behind them, greedily."""
    answers = [""] * len(prompts)
    order = np.argsort([len(p) for p in prompts], kind="stable")
    groups = [order[i:i + GENERATED_TOGETHER] for i in range(0, len(order), GENERATED_TOGETHER)]
    for group in _shown(groups, progress):
        found = generate(model, [prompts[n] for n in group], max_new_tokens,
                         Sampler(temperature=0), end_token)
        for n, generated in zip(group, found, strict=True):
            answers[n] = tokenizer.decode(generated.ids)
    return answers


def _shown(batches, description):
    return batches if description is None else tqdm(
        batches, desc=description, unit="batch", dynamic_ncols=True, disable=None)
