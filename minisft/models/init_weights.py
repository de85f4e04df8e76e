"""Initial values: N(0, 0.02), residual projections smaller (Radford et al. 2019, section 2.3).

Each parameter draws from a stream of its own, numbered by its name: by its place among the model's
names in the order of the published files. So the order in which a class happens to make its layers
changes no value, nor does the width or dtype of another parameter.
"""

import re
from collections.abc import Container, Iterable

from minisft.backend import random
from minisft.nn.parameters import Parameter

# Names without .weight and .bias, the block's number left out; a new architecture adds its own.
ORDER = (
    "wte", "wpe", "shared",
    "embeddings.word_embeddings", "embeddings.position_embeddings",
    "embeddings.token_type_embeddings", "embeddings.LayerNorm",
    # of a block
    "h.ln_1", "h.attn.c_attn", "h.attn.c_proj", "h.ln_2", "h.mlp.c_fc", "h.mlp.c_proj",
    "encoder.layer.attention.self.query", "encoder.layer.attention.self.key",
    "encoder.layer.attention.self.value", "encoder.layer.attention.output.dense",
    "encoder.layer.attention.output.LayerNorm", "encoder.layer.intermediate.dense",
    "encoder.layer.output.dense", "encoder.layer.output.LayerNorm",
    *(f"encoder.layers.{layer}" for layer in (
        "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj",
        "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")),
    *(f"decoder.layers.{layer}" for layer in (
        "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj",
        "self_attn_layer_norm", "encoder_attn.k_proj", "encoder_attn.v_proj",
        "encoder_attn.q_proj", "encoder_attn.out_proj", "encoder_attn_layer_norm", "fc1", "fc2",
        "final_layer_norm")),
    # behind the blocks, and the heads
    "ln_f", "encoder.layer_norm", "decoder.layer_norm", "pooler.dense", "score", "lm_head",
    "classifier", "qa_outputs")
BLOCK = re.compile(r"(h|encoder\.layers?|decoder\.layers)\.(\d+)\.")


def init_weights(parameters: Iterable[Parameter], seed: int,
                 names: Container[str] | None = None) -> None:
    """Fills the parameters of these names, or all, with initial values.

    `parameters` are all of the model. Raises ValueError for a name that ORDER lacks.
    """
    for number, p in enumerate(sorted(parameters, key=lambda p: published_place(p.name))):
        if names is not None and p.name not in names:
            continue
        p.value[...] = p.fill
        if p.scale:
            p.value += (p.scale * random.normal(p.shape, seed, number)).astype(p.value.dtype)


def published_place(name: str) -> tuple[int, int, int, int]:
    """A parameter's name -> what sorts it as the published files have it.

    Before, in or behind the blocks; the block's number; the place in ORDER; weight before bias.
    """
    block = BLOCK.match(name)
    layer, _, kind = BLOCK.sub(r"\1.", name).rpartition(".")
    if layer not in ORDER or kind not in ("weight", "bias"):
        raise ValueError(f"{name} has no place in models/init_weights.py: add it to ORDER")
    place = ORDER.index(layer)
    part = 1 if block else 0 if place < ORDER.index("h.ln_1") else 2
    return part, int(block[2]) if block else 0, place, int(kind == "bias")
