"""Heads over tokens: a class for each token, or where an answer begins and ends.

They stand on GPT-2 or BERT alike, and every block computes all tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.array import Array
from minisft.data.batch import Batch
from minisft.dispatch import cross_entropy, span_cross_entropy
from minisft.models.bert import Bert
from minisft.models.config import BertConfig
from minisft.models.gpt2 import GPT2
from minisft.models.heads import Classifier, LanguageModel, Model
from minisft.models.seq2seq import EncoderDecoder
from minisft.nn.layers import Dropout, Linear


class TokenClassifier(Model):
    """`classifier` (C,K) with a bias on every token, as BertForTokenClassification and
    GPT2ForTokenClassification.

    Its dropout is that of the config's classifier (BERT) or of the residuals (GPT-2).
    """

    def __init__(self, config: Any, label_names: Sequence[str], dtype: Any = np.float32,
                 seed: int | None = 0):
        self.label_names = tuple(label_names)
        self.trunk = Bert(config) if isinstance(config, BertConfig) else GPT2(config)
        rate = config.pooled_rate if isinstance(config, BertConfig) else config.resid_pdrop
        self.drop = Dropout(rate, config.head_layer, random.POOLED)
        self.classifier = Linear("classifier", config.n_embd, len(self.label_names),
                                 config.head_layer)
        if dtype is not None:
            self.build(dtype, seed)

    @property
    def output(self) -> str:
        return f"{len(self.label_names)} tags"

    def options(self) -> dict[str, Any]:
        return {"config": self.trunk.config, "label_names": self.label_names}

    @property
    def head_layer(self) -> int:
        return self.trunk.config.head_layer

    def from_random_weights(self, dropout: float, seed: int) -> "TokenClassifier":
        """-> one of the same shape and labels that has learnt nothing."""
        return type(self)(self.trunk.config.with_dropout(dropout), self.label_names, seed=seed)

    def forward(self, batch: Batch, stream: random.Stream | None = None) -> Array:
        """Batch of N tokens -> logits (N,K)."""
        self.loss_cache = None     # of an earlier forward, whose layers' caches end here
        batch = self.received(batch)
        hidden = self.trunk.forward(batch, stream)
        hidden = self.drop.forward(hidden, stream, batch.token_example_ids, batch.positions)
        return self.classifier.forward(hidden)

    def backward(self, dlogits: Array) -> Array:
        """dlogits (N,K) -> gradient of the embedded tokens (N,C), or None where layers freeze."""
        return self.trunk.backward(self.drop.backward(self.classifier.backward(dlogits)))

    def check_labels(self, batch: Batch) -> None:
        """Raises ValueError unless each token has a label, a class or ignored."""
        self.require_labels(batch, len(batch.ids), len(self.label_names), "a class for each token")

    def loss(self, batch: Batch, stream: random.Stream | None = None, weights: Array = None,
             smoothing: float = 0.0) -> tuple[Array, Array, Array]:
        """Batch with a label for each token (N,), IGNORE where none counts -> loss summed over the
        tokens that count, denominator, logits (N,K).

        Raises ValueError for a label that is no class.
        """
        self.check_labels(batch)
        batch = self.received(batch)
        logits = self.forward(batch, stream)
        (loss, denominator), self.loss_cache = cross_entropy.forward(
            logits, batch.labels, None if weights is None else batch.asarray(weights), smoothing)
        return loss, denominator, logits


class SpanClassifier(Model):
    """`qa_outputs` (C,2) with a bias on every token: whether an answer begins and ends there, as
    BertForQuestionAnswering and GPT2ForQuestionAnswering.
    """

    def __init__(self, config: Any, dtype: Any = np.float32, seed: int | None = 0):
        self.trunk = Bert(config) if isinstance(config, BertConfig) else GPT2(config)
        self.qa_outputs = Linear("qa_outputs", config.n_embd, 2, config.head_layer)
        if dtype is not None:
            self.build(dtype, seed)

    @property
    def output(self) -> str:
        return "where an answer begins and ends"

    def options(self) -> dict[str, Any]:
        return {"config": self.trunk.config}

    @property
    def head_layer(self) -> int:
        return self.trunk.config.head_layer

    def from_random_weights(self, dropout: float, seed: int) -> "SpanClassifier":
        """-> one of the same shape that has learnt nothing."""
        return type(self)(self.trunk.config.with_dropout(dropout), seed=seed)

    def forward(self, batch: Batch, stream: random.Stream | None = None) -> Array:
        """Batch of N tokens -> logits (N,2) of beginning and end."""
        self.loss_cache = None     # of an earlier forward, whose layers' caches end here
        batch = self.received(batch)
        return self.qa_outputs.forward(self.trunk.forward(batch, stream))

    def backward(self, dlogits: Array) -> Array:
        """dlogits (N,2) -> gradient of the embedded tokens (N,C), or None where layers freeze."""
        return self.trunk.backward(self.qa_outputs.backward(dlogits))

    def loss(self, batch: Batch,
             stream: random.Stream | None = None) -> tuple[Array, Array, Array]:
        """Batch whose labels (B,2) are the first and last token of each text's answer -> loss
        summed over both, denominator, logits (N,2).

        Their mean is that of `transformers`. Raises ValueError for a label that is no token.
        """
        if batch.labels is None or np.ndim(batch.labels) != 2:
            raise ValueError("the batch has labels of shape "
                             f"{np.shape(batch.labels)}, expected (B,2), where answers begin and "
                             "end")
        batch = self.received(batch)
        logits = self.forward(batch, stream)
        (loss, denominator), self.loss_cache = span_cross_entropy.forward(
            logits, batch.cu_seqlens, batch.labels)
        return loss, denominator, logits

    def loss_backward(self, scale: float = 1.0) -> Array:
        """As `Model.loss_backward`."""
        if self.loss_cache is None:
            raise RuntimeError("SpanClassifier.loss_backward needs a forward of its own before")
        cache, self.loss_cache = self.loss_cache, None
        return self.backward(span_cross_entropy.backward(scale, cache))


# What a folder of io/model_folder.py may hold
AnyModel = Classifier | LanguageModel | TokenClassifier | SpanClassifier | EncoderDecoder
