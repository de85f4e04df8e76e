"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners")."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from minisft.backend import random
from minisft.errors import UserError
from minisft.models.trunk import Trunk
from minisft.nn.blocks import Block
from minisft.nn.layers import Dropout, Embedding, LayerNorm

# layers, heads, width of the four published models
SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280),
         "gpt2-xl": (48, 25, 1600)}
GELU_FORMS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "erf"}
# Settings of `transformers` that change the model and that we do not have, with the value we have.
UNSUPPORTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
               "add_cross_attention": False, "is_encoder_decoder": False}


@dataclass(frozen=True)
class GPT2Config:
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

    TITLE: ClassVar = "GPT-2"

    @property
    def gelu_form(self):
        """-> "tanh" or "erf"."""
        return GELU_FORMS[self.activation_function]

    @property
    def drops(self):
        """-> whether any dropout is drawn in training."""
        return bool(self.embd_pdrop or self.attn_pdrop or self.resid_pdrop)

    def with_dropout(self, rate):
        """-> the same config with this rate everywhere."""
        return replace(self, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)

    @classmethod
    def size(cls, name):
        """One of the four published sizes -> its config."""
        n_layer, n_head, n_embd = SIZES[name]
        return cls(n_layer=n_layer, n_head=n_head, n_embd=n_embd)

    @classmethod
    def from_dict(cls, settings, source):
        """config.json as a dict, its path for messages -> config; raises UserError by key."""
        if settings.get("model_type", "gpt2") != "gpt2":
            raise UserError(f"{source}: model_type is {settings['model_type']!r}, "
                            "expected 'gpt2'")
        return read_config(cls, settings, UNSUPPORTED, source)

    def require_sound(self, source):
        """Raises UserError naming the first key that cannot be."""
        require_values(self, source, "activation_function", "layer_norm_epsilon",
                       ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
                       ("embd_pdrop", "attn_pdrop", "resid_pdrop"), may_be_none="n_inner")
        if self.n_embd % self.n_head:
            raise UserError(f"{source}: n_embd {self.n_embd} is no multiple of n_head "
                            f"{self.n_head}")


def read_config(kind, settings, unsupported, source):
    """config.json as a dict -> a config of this kind; `unsupported`: the value that we have.

    Raises UserError by key.
    """
    for key, ours in unsupported.items():
        if settings.get(key, ours) != ours:
            raise UserError(f"{source}: {key} = {settings[key]} is not supported "
                            f"(only {ours})")
    config = kind(**{f.name: settings[f.name] for f in fields(kind) if f.name in settings})
    config.require_sound(source)
    return config


def require_values(config, source, activation, epsilon, whole, rates, may_be_none):
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


class GPT2(Trunk):
    """Embeddings, blocks and the last LayerNorm; a head of `heads.py` goes on top.

        (1) x = drop(wte[ids] + wpe[positions])
        (2) x = h[i](x)      for each block, 0 first
        (3) y = ln_f(x)
    """

    def __init__(self, config):
        self.config = config
        width, last = config.n_embd, config.n_layer + 1
        self.wte = Embedding("wte", config.vocab_size, width, layer=0)
        self.wpe = Embedding("wpe", config.n_positions, width, layer=0)
        self.drop = Dropout(config.embd_pdrop, 0, random.EMBEDDING)
        self.h = [Block(f"h.{i}", config, layer=i + 1) for i in range(config.n_layer)]
        self.ln_f = LayerNorm("ln_f", width, last, config.layer_norm_epsilon)

    @property
    def blocks(self):
        """-> the blocks, which the files call h."""
        return self.h

    def embed(self, batch, stream):
        """Batch of N tokens -> x (N,C)."""
        x = self.wte.forward(batch.ids) + self.wpe.forward(batch.positions)
        return self.drop.forward(x, stream, batch.token_example_ids, batch.positions)          # (1)

    def pooled_rows(self, batch):
        """-> the row of each sequence that a classifier reads (B,): its last token."""
        return batch.last

    def forward(self, batch, stream=None, last_only=False, kv_cache=None):
        """Batch of N tokens -> hidden (N,C), or (B,C) of each sequence's last token only.

        `stream` (random.Stream) turns dropout on in the layers that are trained; `past` (a cache
        of keys and values for each block, see generate.py) holds what came before.
        """
        x = self.run_blocks(batch, stream, last_only, kv_cache)                              # (2)
        return self.ln_f.forward(x)                                                      # (3)

    def backward(self, dy):
        """dhidden (N,C) or (B,C) -> gradient of the embedded tokens (N,C).

        Stops at the lowest layer that is trained; returns None unless that is the embeddings.
        """
        first_trainable = self.first_trainable_layer
        if first_trainable > self.config.n_layer + 1:
            return None
        dx = self.run_backward(self.ln_f.backward(dy))
        if first_trainable > 0:
            return None
        dx = self.drop.backward(dx)
        self.wpe.backward(dx)
        self.wte.backward(dx)
        return dx


def initialise(parameters, seed, names=None):
    """Fills the parameters of these names, or all, with initial values: N(0, 0.02), residual
    projections smaller.

    Radford et al. 2019, section 2.3. Drawn by the parameter's place in the model, so a width or
    dtype changes nothing for the others.
    """
    for number, p in enumerate(parameters):
        if names is not None and p.name not in names:
            continue
        p.value[...] = p.fill
        if p.scale:
            p.value += (p.scale * random.normal(p.shape, seed, number)).astype(p.value.dtype)


def count(config):
    """-> parameters of the model, the tied matrix counted once.

        (4) (V + T) C + L (4 C^2 + 2 C M + M + 9 C) + 2 C      T: n_positions, M: n_inner
    """
    c, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    block = 4 * c * c + 2 * c * inner + inner + 9 * c
    return (config.vocab_size + config.n_positions) * c + config.n_layer * block + 2 * c     # (4)
