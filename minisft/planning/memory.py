"""What a training step needs, before it runs: bytes by tensor, operations by formula.

A MemoryTracker follows the step (walk.py, bert_walk.py, seq2seq_walk.py): what a forward keeps
stays allocated until its backward has used it, what a formula needs meanwhile is a temporary. The
peak is the fullest moment. Sizes are counted in values, of `ITEM` bytes each. Compiled loops (extra
`fast`) need no more than that.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from minisft.backend import random
from minisft.data.batch import token_budget_batches
from minisft.dispatch.matmul import split_bytes
from minisft.models.adapters import LoraConfig, from_layer_on
from minisft.models.config import BertConfig, GPT2Config, Seq2SeqConfig
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.planning import operations
from minisft.planning.bert_walk import BertWalk
from minisft.planning.seq2seq_walk import Seq2SeqWalk
from minisft.planning.walk import ITEM as ITEM
from minisft.planning.walk import Walk

# BERT's names for GPT-2's rates of dropout
BERT_RATES = {"embd_pdrop": "hidden_dropout_prob", "resid_pdrop": "hidden_dropout_prob",
              "attn_pdrop": "attention_probs_dropout_prob"}
MOMENTS = 2      # AdamW's


@dataclass(frozen=True)
class Step:
    """A training step: the model's shape and the texts computed at once.

    A step that is accumulated over several such batches needs, from the second on, memory for the
    gradient of one matrix more.
    """

    config: GPT2Config | BertConfig | Seq2SeqConfig
    lengths: tuple                # of translate: of the translations, as the decoder reads them
    task: str = "classify"        # or complete, a language model; tag or answer, heads over tokens
    classes: int = 2              # of classify and tag
    train_layers: str = "all"
    gradient_checkpointing: bool = False
    dropout: float | None = None  # None: the config's
    features: bool = True         # frozen layers' outputs are computed once and kept
    adapter: LoraConfig | None = None     # in the blocks that train_layers names
    sources: tuple = ()           # lengths of the texts that a decoder's block looks at

    @property
    def tokens(self) -> int:
        """-> N, the tokens of the batch."""
        return int(sum(self.lengths))

    @property
    def labels(self) -> int:
        """-> tokens of which the next one is learnt."""
        # the last token of a text has no next one, a translation ends with a token of its own
        return {"complete": self.tokens - len(self.lengths), "translate": self.tokens}.get(
            self.task, 0)

    @property
    def encoder(self) -> "Step":
        """-> what an encoder-decoder's encoder does, as a step of its own."""
        c = cast(Seq2SeqConfig, self.config)
        return replace(self, lengths=self.sources, sources=(), config=BertConfig(
            hidden_size=c.d_model, num_hidden_layers=c.encoder_layers,
            num_attention_heads=c.encoder_attention_heads, intermediate_size=c.encoder_ffn_dim,
            hidden_dropout_prob=c.dropout, attention_probs_dropout_prob=c.attention_dropout,
            hidden_act=c.activation_function))

    @property
    def decoder(self) -> "Step":
        """-> what its decoder does."""
        c = cast(Seq2SeqConfig, self.config)
        return replace(self, config=GPT2Config(
            n_embd=c.d_model, n_layer=c.decoder_layers, n_head=c.decoder_attention_heads,
            n_inner=c.decoder_ffn_dim, embd_pdrop=c.dropout, attn_pdrop=c.attention_dropout,
            resid_pdrop=c.dropout, activation_function=c.activation_function))

    def rows_out(self, i: int) -> int:
        """-> tokens that leave block i: a classifier wants each text's last from the last one."""
        last = self.task == "classify" and i == self.config.n_layer - 1
        return len(self.lengths) if last else self.tokens

    @property
    def token_outputs(self) -> int:
        """-> numbers that a head over tokens gives for each of them; 0 where there is none."""
        return {"tag": self.classes, "answer": 2}.get(self.task, 0)

    @property
    def trains_matrices(self) -> bool:
        """-> whether the matrices of the trained blocks have gradients themselves."""
        return self.adapter is None and self.train_layers != "bias"

    def rank(self, i: int, name: str) -> int:
        """Block i, one of its linear maps -> r of its adapter, 0 for none."""
        name = f"h.{i}.{name}"
        return self.adapter.rank(name) if self.adapter and self.adapter.targets(name) else 0

    def rate(self, name: str) -> float:
        """-> a rate of dropout of the config, or the one that replaces all."""
        if self.dropout is not None:
            return self.dropout
        return getattr(self.config, BERT_RATES[name] if isinstance(self.config, BertConfig)
                       else name)


@dataclass(frozen=True)
class Plan:
    """Values by name, of the state, of what the forward keeps, and of the fullest moment."""

    weights: dict
    gradients: dict
    moments: dict
    kept: dict
    at_peak: dict
    largest: tuple
    operations: dict     # floating-point operations by name: (forward, backward)
    first_trainable_layer: int    # number of the first layer that is trained

    @property
    def state(self) -> int:
        """-> values of weights, gradients and moments."""
        return sum(sum(part.values()) for part in (self.weights, self.gradients, self.moments))

    @property
    def above(self) -> int:
        """-> values beyond the state at the fullest moment."""
        return sum(self.at_peak.values())


class _Trained:
    """Stands in the place of a model's store: hears which parameters are trained, holds none."""

    def __init__(self, parameters):
        self.parameters = self.trainable = parameters

    def add(self, parameters):
        self.parameters = self.parameters + parameters

    def train(self, wanted):
        self.trainable = [p for p in self.parameters if wanted(p)]


def plan(step: Step) -> Plan:
    """Step -> Plan; raises ValueError for layers that the model does not have."""
    names, config = [str(k) for k in range(step.classes)], step.config
    model: Any = (EncoderDecoder(config, dtype=None) if isinstance(config, Seq2SeqConfig) else
                  TokenClassifier(config, names, dtype=None) if step.task == "tag" else
                  SpanClassifier(config, dtype=None) if step.task == "answer" else
                  BertClassifier(config, names, dtype=None) if isinstance(config, BertConfig) else
                  Classifier(config, names, dtype=None) if step.task == "classify" else
                  LanguageModel(config, dtype=None))
    model.store = _Trained(model.parameters())
    model.train_layers(step.train_layers)
    if step.adapter is not None:
        step = replace(step, adapter=from_layer_on(
            step.adapter, min(p.layer for p in model.store.trainable), step.config))
        model.add_adapter(step.adapter, seed=None)
    weights = {p.name: p.size for p in model.parameters()}
    trainable = {p.name: p.size for p in model.store.trainable}
    first_trainable = min(p.layer for p in model.store.trainable)
    walk = {BertConfig: BertWalk, Seq2SeqConfig: Seq2SeqWalk}.get(type(config), Walk)(
        step, first_trainable)
    walk.forward()
    kept = dict(walk.tracker.allocated)
    walk.backward()
    split = _split_factor(step, walk)
    return Plan(weights, trainable, {name: MOMENTS * n for name, n in trainable.items()}, kept,
                walk.tracker.at_peak | ({"split factor": split} if split else {}),
                walk.tracker.largest,
                operations.operations(step, first_trainable, sum(trainable.values())),
                first_trainable)


def _split_factor(step, walk):
    """-> values of the largest factor that a CPU with AMX splits into parts, 0 where none does."""
    words = step.config.vocab_size if step.task == "complete" or step.sources else 0
    sides = (walk.encoder, walk.decoder) if isinstance(walk, Seq2SeqWalk) else (walk,)
    return max(split_bytes(*sizes) for side in sides for sizes in (
        (side.n, side.c, side.inner), (side.n, side.inner, side.c), (side.c, side.n, side.inner),
        (side.n, side.c, words), (words, side.n, side.c))) // ITEM


def largest_of(lengths: np.ndarray, batch_tokens: int, seed: int, config: Any,
               sources: np.ndarray | None = None, **options: Any) -> tuple[Step, Plan]:
    """Lengths of all texts, and of their sources where there are some -> the Step of an epoch that
    needs most memory, and its Plan."""
    lengths = np.asarray(lengths)
    whole = lengths if sources is None else lengths + np.asarray(sources)
    order = random.permutation(len(lengths), seed, 0)
    steps = [Step(config, tuple(lengths[batch].tolist()), **options, sources=(
        () if sources is None else tuple(np.asarray(sources)[batch].tolist())))
        for batch in token_budget_batches(whole, order, batch_tokens)]
    return max(((step, plan(step)) for step in steps), key=lambda pair: pair[1].above)
