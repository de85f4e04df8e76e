"""Evaluation: log-probabilities of a classifier, loss and exact match of a language model."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from minisft.backend.array import to_cpu
from minisft.backend.cpu import allocator
from minisft.data.batch import pack, token_budget_batches
from minisft.data.dataset import TokenizedDataset
from minisft.data.tokenizer import decode, unused_token_ids
from minisft.evaluation import metrics
from minisft.evaluation.batches import each_batch
from minisft.evaluation.decoding import token_loss
from minisft.models.finite import require_finite
from minisft.models.generate import Sampler, generate
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import AnyModel, SpanClassifier, TokenClassifier
from minisft.nn.layers import no_grad
from minisft.ops.cross_entropy import log_softmax

# Prompts generated at the same time: enough to fill the matrix products, little memory.
GENERATION_BATCH = 32


@allocator.reused()
@no_grad()
@np.errstate(over="ignore", invalid="ignore")     # reported by one UserError
def log_probabilities(model: Classifier, ids: Sequence[np.ndarray], batch_tokens: int,
                      progress: str | None = None, types: Sequence[np.ndarray] | None = None,
                      features: Any = None) -> np.ndarray:
    """Classifier, token ids of M texts -> log-probabilities (M,K) float64; UserError on NaN.

    `progress` describes a progress bar, None shows none. `types`: those of each token, where some
    sequences hold two texts. `features`: the output of the model's frozen layers
    (frozen_features.Features).
    """
    def of_batch(model, indices):
        batch = pack([ids[n] for n in indices], example_ids=indices,
                     types=None if types is None else [types[n] for n in indices])
        if features is not None:
            batch = replace(batch, hidden=features.of(indices))
        logits = to_cpu(model.forward(batch))
        require_finite(logits)
        logp[indices] = log_softmax(logits.astype(np.float64))

    logp = np.empty((len(ids), len(model.label_names)))
    lengths = [len(x) for x in ids]
    # Sorted by length: a batch of similar lengths is computed fastest.
    order = np.argsort(lengths, kind="stable")
    each_batch(of_batch, model, token_budget_batches(lengths, order, batch_tokens), progress)
    return logp


@allocator.reused()
@no_grad()
@np.errstate(over="ignore", invalid="ignore")
def token_logits(model: TokenClassifier | SpanClassifier, dataset: TokenizedDataset,
                 batch_tokens: int, progress: str | None = None) -> list[np.ndarray]:
    """A model with a head over tokens -> its logits (T,K) of each sequence; UserError on NaN."""
    def of_batch(model, indices):
        batch = bare.batch(indices)
        logits = to_cpu(model.forward(batch))
        require_finite(logits)
        for n, rows in zip(indices, np.split(logits, batch.cu_seqlens[1:-1]), strict=True):
            found[n] = rows

    found: list[Any] = [None] * len(dataset)
    bare = replace(dataset, labels=[0] * len(dataset))
    order = np.argsort(dataset.lengths, kind="stable")
    each_batch(of_batch, model, token_budget_batches(dataset.lengths, order, batch_tokens),
               progress)
    return found


@allocator.reused()
@no_grad()
@np.errstate(over="ignore", invalid="ignore")
def completion_loss(model: Any, dataset: TokenizedDataset, batch_tokens: int,
                    progress: str | None = None) -> dict[str, float]:
    """Model with a loss of tokens -> its mean, perplexity, how many count; UserError on NaN.
    """
    total = tokens = 0.0
    batches = token_budget_batches(dataset.lengths, range(len(dataset)), batch_tokens)
    for indices in _progress_bar(batches, progress):
        loss, denominator, _ = model.loss(dataset.batch(indices))
        total, tokens = total + float(loss), tokens + float(denominator)
    require_finite(total)
    return {"loss": total / tokens, "perplexity": float(np.exp(min(total / tokens, 700))),
            "tokens": int(tokens)}


def generate_completions(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[np.ndarray],
                         max_new_tokens: int, end_token: int | Collection[int] | None,
                         progress: str | None = None) -> list[str]:
    """LanguageModel, token ids of M prompts -> M completions as texts, by greedy decoding."""
    texts = [""] * len(prompts)
    unused = unused_token_ids(tokenizer, model.trunk.config.vocab_size)
    order = np.argsort([len(p) for p in prompts], kind="stable")
    groups = [order[i:i + GENERATION_BATCH] for i in range(0, len(order), GENERATION_BATCH)]
    for group in _progress_bar(groups, progress):
        completed = generate(model, [prompts[n] for n in group], max_new_tokens,
                             Sampler(temperature=0), end_token, unused_ids=unused)
        for n, completion in zip(group, completed, strict=True):
            texts[n] = decode(tokenizer, completion.ids)
    return texts


def validate(model: AnyModel, dataset: TokenizedDataset, batch_tokens: int,
             select: str) -> dict[str, Any]:
    """-> figures of the validation part, with the "score" by which `select` chooses an epoch.

    `select` is "accuracy", "macro_f1", "loss" or "last"; all but a classifier go by the loss.
    """
    if not isinstance(model, Classifier):
        loss: Any = (token_loss(model, dataset, batch_tokens) if isinstance(model, EncoderDecoder)
                     else completion_loss(model, dataset, batch_tokens))
        found = {"score": [-loss["loss"]], "valid_loss": loss["loss"]}
        if isinstance(model, LanguageModel | EncoderDecoder):
            found["valid_perplexity"] = loss["perplexity"]
        if "token_accuracy" in loss:
            found["valid_accuracy"] = loss["token_accuracy"]
        return found
    logp = log_probabilities(model, dataset.ids, batch_tokens, types=dataset.types,
                             features=dataset.features)
    figures = metrics.classification(dataset.labels, logp, model.label_names)
    # for the last epoch the score decides nothing, and is there to be read
    first = -figures["loss"] if select == "loss" else figures[
        "accuracy" if select == "last" else select]
    # equal accuracy is common on a small part: the loss then decides
    return {"score": [first, -figures["loss"]], "valid_loss": figures["loss"],
            "valid_accuracy": figures["accuracy"], "valid_macro_f1": figures["macro_f1"]}


def _progress_bar(batches, description):
    return batches if description is None else tqdm(
        batches, desc=description, unit="batch", dynamic_ncols=True, disable=None)
