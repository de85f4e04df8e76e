"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners")."""

from dataclasses import dataclass, fields

from minisft import random
from minisft.errors import UserError
from minisft.layers import Block, Dropout, Embedding, Layer, LayerNorm

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

    @property
    def gelu_form(self):
        """-> "tanh" or "erf"."""
        return GELU_FORMS[self.activation_function]

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
        for key, ours in UNSUPPORTED.items():
            if settings.get(key, ours) != ours:
                raise UserError(f"{source}: {key} = {settings[key]} is not supported "
                                f"(only {ours})")
        known = {f.name: settings[f.name] for f in fields(cls) if f.name in settings}
        config = cls(**known)
        config.require_sound(source)
        return config

    def require_sound(self, source):
        """Raises UserError naming the first key that cannot be."""
        for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, key)
            if key == "n_inner" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{source}: {key} is {value!r}, expected a whole number above 0")
        for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(f"{source}: {key} is {value!r}, expected a number in [0, 1)")
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
            raise UserError(f"{source}: layer_norm_epsilon is {epsilon!r}, expected "
                            "a number in (0, 1)")
        if self.activation_function not in tuple(GELU_FORMS):     # may be unhashable
            raise UserError(f"{source}: activation_function is {self.activation_function!r}, "
                            f"expected one of {', '.join(GELU_FORMS)}")
        if self.n_embd % self.n_head:
            raise UserError(f"{source}: n_embd {self.n_embd} is no multiple of n_head "
                            f"{self.n_head}")


class GPT2(Layer):
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

    def forward(self, batch, stream=None, last_only=False, past=None):
        """Batch of N tokens -> hidden (N,C), or (B,C) of each sequence's last token only.

        `stream` (random.Stream) turns dropout on; `past` (a cache of keys and values for each
        block, see generate.py) holds what came before.
        """
        x = self.wte.forward(batch.ids) + self.wpe.forward(batch.positions)
        x = self.drop.forward(x, stream, batch.token_texts, batch.positions)             # (1)
        for i, block in enumerate(self.h):
            rows = batch.last if last_only and i == len(self.h) - 1 else None
            x = block.forward(x, batch, stream, rows, None if past is None else past[i])     # (2)
        return self.ln_f.forward(x)                                                      # (3)

    def backward(self, dy):
        """dhidden (N,C) or (B,C) -> gradient of the embedded tokens (N,C).

        Stops at the lowest layer that is trained; returns None unless that is the embeddings.
        """
        lowest = min((p.layer for p in self.parameters() if p.grad is not None), default=None)
        if lowest is None:
            return None
        dx = self.ln_f.backward(dy)
        for i in reversed(range(max(lowest - 1, 0), len(self.h))):
            dx = self.h[i].backward(dx)
        if lowest > 0:
            return None
        dx = self.drop.backward(dx)
        self.wpe.backward(dx)
        self.wte.backward(dx)
        return dx


def initialise(parameters, seed):
    """Fills each parameter with its initial values: N(0, 0.02), residual projections smaller.

    Radford et al. 2019, section 2.3. Drawn by the parameter's place in the model, so a width or
    dtype changes nothing for the others.
    """
    for number, p in enumerate(parameters):
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
