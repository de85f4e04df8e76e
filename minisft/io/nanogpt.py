"""Checkpoints of nanoGPT (https://github.com/karpathy/nanoGPT): `ckpt.pt`, and `meta.pkl` of its
character-level data sets.

    ckpt.pt     model        tensors under GPT-2's names, perhaps behind `_orig_mod.`; matrices of
                             linear layers are (out,in), those of GPT-2's files (in,out)
                model_args   n_layer n_head n_embd block_size vocab_size, bias, dropout
                optimizer, config, iter_num, best_val_loss: not used
    meta.pkl    stoi         the id of each character

Without `bias`, linear layers and LayerNorms have none: here they are zeros. Its GELU is the exact
one, in versions before June 2023 the approximation by tanh; the file does not say which.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE

from minisft.errors import UserError, short_repr
from minisft.io.architectures import GPT2
from minisft.io.restricted_pickle import LARGEST, read_pickle
from minisft.io.torch_file import named_tensors, read_torch_file
from minisft.io.weights import copy_tensor, is_tied, require_names_and_shapes, tensors_by_name
from minisft.models.config import GPT2Config
from minisft.models.heads import LanguageModel

MODEL_ARGS = "model_args"
# nanoGPT's name -> the one in config.json
_SHAPE = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd",
          "block_size": "n_positions", "vocab_size": "vocab_size"}
_OTHER = "bias", "dropout"
_LINEAR = replace(GPT2, transposed=re.compile(
    r"(score|lm_head|h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj))\.weight"))


def read_nanogpt(path: str | Path, activation_function: str = "gelu") -> LanguageModel:
    """A ckpt.pt -> LanguageModel; raises UserError.

    `activation_function` as config.json has it, gelu or gelu_new.
    """
    path = Path(path)
    saved = read_torch_file(path)
    if not isinstance(saved, dict) or not {"model", MODEL_ARGS} <= saved.keys():
        raise UserError(f"{path}: holds no model with {MODEL_ARGS}, expected a ckpt.pt of nanoGPT; "
                        "tensors alone are read as pytorch_model.bin, beside their config.json")
    config, biased = _config(f"{path}: {MODEL_ARGS}", saved[MODEL_ARGS], activation_function)
    tensors, unused = tensors_by_name(named_tensors(path, saved["model"]).values(), _LINEAR)
    if config.n_layer > len(tensors):      # before anything as deep as they say is built
        raise UserError(f"{path}: {MODEL_ARGS}: n_layer is {config.n_layer}, but there are only "
                        f"{len(tensors)} tensors")
    model = LanguageModel(config, is_tied(tensors), dtype=None)
    shapes = {p.name: _LINEAR.shape_in_file(p) for p in model.parameters()
              if biased or not p.name.endswith(".bias")}
    require_names_and_shapes(path, MODEL_ARGS, _LINEAR, tensors, shapes)
    model.build(np.float32)      # zeros
    for name in shapes:
        copy_tensor(model.store[name], tensors[name], _LINEAR)
    model.unused_tensors = unused
    return model


def _config(source, given, activation_function):
    """-> GPT2Config and whether there are biases; raises UserError."""
    if not isinstance(given, dict):
        raise UserError(f"{source} is a {type(given).__name__}, expected numbers by name")
    for name in _SHAPE:
        if name not in given:
            raise UserError(f"{source} lacks {name}")
    for name, value in given.items():
        # False: another program's switch for what nanoGPT has not
        if name not in (*_SHAPE, *_OTHER) and value not in (None, False):
            raise UserError(f"{source} has {short_repr(name)}, which nanoGPT has not: it is of "
                            "another model")
    biased, dropout = given.get("bias", True), given.get("dropout", 0.0)
    if not isinstance(biased, bool):
        raise UserError(f"{source}: bias is {short_repr(biased)}, expected True or False")
    config = GPT2Config(activation_function=activation_function, embd_pdrop=dropout,
                        attn_pdrop=dropout, resid_pdrop=dropout,
                        **{_SHAPE[name]: given[name] for name in _SHAPE})
    config.require_sound(source)
    return config, biased


def character_tokenizer(path: str | Path) -> Tokenizer:
    """A meta.pkl -> Tokenizer with a token for each character; raises UserError.

    Other characters of a text are left out, as by any tokenizer without an unknown token.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            meta: Any = read_pickle(file.read(LARGEST + 1), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    vocab = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(vocab, dict) or not vocab or not all(
            isinstance(char, str) and len(char) == 1 and type(i) is int
            for char, i in vocab.items()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{path}: expected `stoi` with a number from 0 on for each character, as "
                        "the meta.pkl of a character-level data set of nanoGPT")
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.decoder = Fuse()
    return tokenizer
