"""The configs of the models: the keys of config.json that shape them, checked."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from minisft.errors import UserError

# layers, heads, width of the four published models
SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280),
         "gpt2-xl": (48, 25, 1600)}
GELU_FORMS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "erf"}
# Settings of `transformers` that change the model and that we do not have, with the value we have.
GPT2_UNSUPPORTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                    "add_cross_attention": False, "is_encoder_decoder": False}
SEQ2SEQ_UNSUPPORTED = {"is_encoder_decoder": True, "scale_embedding": True,
                       "tie_word_embeddings": True, "activation_dropout": 0.0}
BERT_UNSUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False,
                    "add_cross_attention": False}


class TransformerConfig:
    """What the configs of all models share: the numbers by which parameters are ordered and frozen.

    The embeddings are layer 0, the blocks follow, then what stands between them and a head (a last
    LayerNorm, a pooler), then the head.
    """

    EMBEDDING_LAYER: ClassVar = 0
    n_layer: Any

    def block_layer(self, i: int) -> int:
        """-> the layer number of block i, counted from 0."""
        return i + 1

    @property
    def final_layer(self) -> int:
        """-> the layer number of what stands between the blocks and a head."""
        return self.n_layer + 1

    @property
    def head_layer(self) -> int:
        """-> the layer number of a head."""
        return self.n_layer + 2


@dataclass(frozen=True)
class GPT2Config(TransformerConfig):
    """The keys of GPT-2's config.json that shape the model."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None               # None: 4 * n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02          # the deviation of initial values, for this width

    TITLE: ClassVar = "GPT-2"

    @property
    def gelu_form(self) -> str:
        """-> "tanh" or "erf"."""
        return GELU_FORMS[self.activation_function]

    @property
    def dropout_rates(self) -> set[float]:
        """-> the different rates of dropout."""
        return {self.embd_pdrop, self.attn_pdrop, self.resid_pdrop}

    @property
    def drops(self) -> bool:
        """-> whether any dropout is drawn in training."""
        return any(self.dropout_rates)

    def with_dropout(self, rate: float) -> Any:
        """-> the same config with this rate everywhere."""
        return replace(self, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)

    @classmethod
    def size(cls, name: str) -> "GPT2Config":
        """One of the four published sizes -> its config."""
        n_layer, n_head, n_embd = SIZES[name]
        return cls(n_layer=n_layer, n_head=n_head, n_embd=n_embd)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], source: Any) -> Any:
        """config.json as a dict, its path for messages -> config; raises UserError by key."""
        if settings.get("model_type", "gpt2") != "gpt2":
            raise UserError(f"{source}: model_type is {settings['model_type']!r}, "
                            "expected 'gpt2'")
        return read_config(cls, settings, GPT2_UNSUPPORTED, source)

    def require_sound(self, source: Any) -> None:
        """Raises UserError naming the first key that cannot be."""
        require_values(self, source, "activation_function", "layer_norm_epsilon",
                       ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
                       ("embd_pdrop", "attn_pdrop", "resid_pdrop"), may_be_none="n_inner")
        if type(self.initializer_range) not in (int, float) or \
                not 0 <= self.initializer_range < 1000:
            raise UserError(f"{source}: initializer_range is {self.initializer_range!r}, expected "
                            "a number in [0, 1000)")
        if self.n_embd % self.n_head:
            raise UserError(f"{source}: n_embd {self.n_embd} is no multiple of n_head "
                            f"{self.n_head}")


@dataclass(frozen=True)
class BertConfig(TransformerConfig):
    """The keys of BERT's config.json that shape the model."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None      # None: hidden_dropout_prob

    TITLE: ClassVar = "BERT"

    # What every model is asked for, under one name for all.
    n_embd = property(lambda self: self.hidden_size)
    n_layer = property(lambda self: self.num_hidden_layers)
    n_head = property(lambda self: self.num_attention_heads)
    n_positions = property(lambda self: self.max_position_embeddings)

    @property
    def gelu_form(self) -> str:
        """-> "erf" or "tanh"."""
        return GELU_FORMS[self.hidden_act]

    @property
    def pooled_rate(self) -> float:
        """-> dropout before the classifier."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    @property
    def dropout_rates(self) -> set[float]:
        """-> the different rates of dropout."""
        return {self.hidden_dropout_prob, self.attention_probs_dropout_prob, self.pooled_rate}

    @property
    def drops(self) -> bool:
        """-> whether any dropout is drawn in training."""
        return any(self.dropout_rates)

    def with_dropout(self, rate: float) -> Any:
        """-> the same config with this rate everywhere."""
        return replace(self, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate,
                       classifier_dropout=None)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], source: Any) -> Any:
        """config.json as a dict, its path for messages -> config; raises UserError by key."""
        return read_config(cls, settings, BERT_UNSUPPORTED, source)

    def require_sound(self, source: Any) -> None:
        """Raises UserError naming the first key that cannot be."""
        require_values(self, source, "hidden_act", "layer_norm_eps",
                       ("vocab_size", "max_position_embeddings", "hidden_size",
                        "num_hidden_layers", "num_attention_heads", "intermediate_size",
                        "type_vocab_size"),
                       ("hidden_dropout_prob", "attention_probs_dropout_prob",
                        "classifier_dropout"), may_be_none="classifier_dropout")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{source}: hidden_size {self.hidden_size} is no multiple of "
                            f"num_attention_heads {self.num_attention_heads}")


@dataclass(frozen=True)
class Seq2SeqConfig(TransformerConfig):
    """The keys of M2M100's config.json that shape the model.

    The blocks are numbered through: first those of the encoder, then those of the decoder. Texts
    have at most `max_position_embeddings` tokens; their positions are sinusoids.
    """

    vocab_size: int = 8000
    d_model: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    encoder_attention_heads: int = 4
    decoder_attention_heads: int = 4
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    activation_function: str = "gelu_new"
    max_position_embeddings: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pad_token_id: int = 0
    decoder_start_token_id: int = 1
    eos_token_id: int = 2

    TITLE: ClassVar = "encoder-decoder"
    LAYER_NORM_EPS: ClassVar = 1e-5

    # What every model is asked for, under one name for all.
    n_embd = property(lambda self: self.d_model)
    n_layer = property(lambda self: self.encoder_layers + self.decoder_layers)
    n_head = property(lambda self: self.decoder_attention_heads)
    n_positions = property(lambda self: self.max_position_embeddings)

    def cross_layer(self, j: int) -> int:
        """-> in place of a layer's number, what the masks of decoder block j's cross-attention
        hang on: behind all layers."""
        return self.head_layer + 1 + j

    @property
    def gelu_form(self) -> str:
        """-> "tanh" or "erf"."""
        return GELU_FORMS[self.activation_function]

    @property
    def dropout_rates(self) -> set[float]:
        """-> the different rates of dropout."""
        return {self.dropout, self.attention_dropout}

    @property
    def drops(self) -> bool:
        """-> whether any dropout is drawn in training."""
        return any(self.dropout_rates)

    def with_dropout(self, rate: float) -> Any:
        """-> the same config with this rate everywhere."""
        return replace(self, dropout=rate, attention_dropout=rate)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], source: Any) -> Any:
        """config.json as a dict, its path for messages -> config; raises UserError by key."""
        return read_config(cls, settings, SEQ2SEQ_UNSUPPORTED, source)

    def require_sound(self, source: Any) -> None:
        """Raises UserError naming the first key that cannot be."""
        require_values(self, source, "activation_function", "LAYER_NORM_EPS",
                       ("vocab_size", "d_model", "encoder_layers", "decoder_layers",
                        "encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim",
                        "decoder_ffn_dim", "max_position_embeddings"),
                       ("dropout", "attention_dropout"))
        if self.d_model % 2 or self.d_model < 4:
            raise UserError(f"{source}: d_model is {self.d_model}, expected an even number of 4 or "
                            "more")
        for key in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, key):
                raise UserError(f"{source}: d_model {self.d_model} is no multiple of {key} "
                                f"{getattr(self, key)}")
        for key in ("pad_token_id", "decoder_start_token_id", "eos_token_id"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or \
                    not 0 <= value < self.vocab_size:
                raise UserError(f"{source}: {key} is {value!r}, expected the number of a token, "
                                f"from 0 to {self.vocab_size - 1}")
        if self.pad_token_id in (self.decoder_start_token_id, self.eos_token_id):
            # `transformers` would take such a token for padding, which has no position
            raise UserError(f"{source}: pad_token_id is {self.pad_token_id} as another of the "
                            "special tokens, expected one of its own")


def read_config(kind: Any, settings: dict[str, Any], unsupported: dict[str, Any],
                source: Any) -> Any:
    """config.json as a dict -> a config of this kind; `unsupported`: the value that we have.

    Raises UserError by key.
    """
    for key, supported in unsupported.items():
        if settings.get(key, supported) != supported:
            raise UserError(f"{source}: {key} = {settings[key]} is not supported "
                            f"(only {supported})")
    config = kind(**{f.name: settings[f.name] for f in fields(kind) if f.name in settings})
    config.require_sound(source)
    return config


def require_values(config: Any, source: Any, activation: str, epsilon: str,
                   whole: tuple[str, ...], rates: tuple[str, ...], may_be_none: str = "") -> None:
    """Names of a config's keys, by what they must be -> UserError naming the first that is not."""
    for key in whole:
        value = getattr(config, key)
        if key == may_be_none and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{source}: {key} is {value!r}, expected a whole number above 0")
    for key in rates:
        value = getattr(config, key)
        if key == may_be_none and value is None:
            continue
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{source}: {key} is {value!r}, expected a number in [0, 1)")
    value = getattr(config, epsilon)
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{source}: {epsilon} is {value!r}, expected a number in (0, 1)")
    value = getattr(config, activation)
    if value not in tuple(GELU_FORMS):     # may be unhashable
        raise UserError(f"{source}: {activation} is {value!r}, expected one of "
                        f"{', '.join(GELU_FORMS)}")
