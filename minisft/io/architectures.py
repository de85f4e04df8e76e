"""The architectures: tensor names, shapes and config.json of each, in both directions.

Names are the published ones, so a name in the code is a name in the file.

GPT-2:

    here and in the published files      in files of a model with a head        shape in the file
    wte.weight                           transformer.wte.weight                 (V,C)
    wpe.weight                           transformer.wpe.weight                 (n_positions,C)
    h.0.ln_1.weight, .bias               transformer.h.0.ln_1...                (C,)
    h.0.attn.c_attn.weight, .bias        transformer.h.0.attn.c_attn...         (C,3C), (3C,)
    h.0.attn.c_proj.weight, .bias        transformer.h.0.attn.c_proj...         (C,C), (C,)
    h.0.ln_2.weight, .bias               transformer.h.0.ln_2...                (C,)
    h.0.mlp.c_fc.weight, .bias           transformer.h.0.mlp.c_fc...            (C,M), (M,)
    h.0.mlp.c_proj.weight, .bias         transformer.h.0.mlp.c_proj...          (M,C), (C,)
    ln_f.weight, .bias                   transformer.ln_f...                    (C,)
    score.weight                         score.weight                           (K,C), here (C,K)
    lm_head.weight                       lm_head.weight                         (V,C), here (C,V)
    classifier.weight, .bias (tags)      classifier.weight, .bias               (K,C), here (C,K)
    qa_outputs.weight, .bias (answers)   qa_outputs.weight, .bias               (2,C), here (C,2)

M is n_inner. `lm_head.weight` is absent where the output matrix is the token table. Old files
also hold the causal mask of each block (`attn.bias`, `attn.masked_bias`); it is ignored.

BERT:

    here                                             shape in the file
    embeddings.word_embeddings.weight                (V,C)
    embeddings.position_embeddings.weight            (max_position_embeddings,C)
    embeddings.token_type_embeddings.weight          (type_vocab_size,C)
    embeddings.LayerNorm.weight, .bias               (C,); in old files .gamma, .beta
    encoder.layer.0.attention.self.query.weight, .bias, and key, value
                                                     (out,in) = (C,C), here (C,C)^T; (C,)
    encoder.layer.0.attention.output.dense...        (C,C), here (C,C)^T; (C,)
    encoder.layer.0.attention.output.LayerNorm...    (C,)
    encoder.layer.0.intermediate.dense...            (M,C), here (C,M); (M,)
    encoder.layer.0.output.dense...                  (C,M), here (M,C); (C,)
    encoder.layer.0.output.LayerNorm...              (C,)
    pooler.dense.weight, .bias                       (C,C), here (C,C)^T; (C,)
    classifier.weight, .bias (of a text, or of each token)   (K,C), here (C,K); (K,)
    qa_outputs.weight, .bias (answers)               (2,C), here (C,2); (2,)

M is intermediate_size. Files of a model with a head put `bert.` before all but the classifier.
`embeddings.position_ids` is ignored.

Encoder-decoder (M2M100 of `transformers`):

    here                                             shape in the file
    shared.weight                                    (V,C), the table of both texts and the logits
    encoder.layers.0.self_attn.k_proj.weight, .bias, and v_proj, q_proj, out_proj
                                                     (out,in) = (C,C), here (C,C)^T; (C,)
    encoder.layers.0.self_attn_layer_norm...         (C,)
    encoder.layers.0.fc1.weight, .bias               (M,C), here (C,M); (M,)
    encoder.layers.0.fc2.weight, .bias               (C,M), here (M,C); (C,)
    encoder.layers.0.final_layer_norm...             (C,)
    encoder.layer_norm.weight, .bias                 (C,)
    decoder...                                       likewise, with encoder_attn (C,C) and
                                                     encoder_attn_layer_norm (C,) in each block

M is encoder_ffn_dim or decoder_ffn_dim. Files put `model.` before all of these. Copies of the table
(`lm_head.weight`, `encoder.embed_tokens.weight`, `decoder.embed_tokens.weight`) must be equal to
it; positions (`embed_positions.weights`) are ignored, since they are computed.

Heads of another task (`cls.` of BERT's pretraining, `qa_outputs.`, `multiple_choice_head.`) are
left out, and `load` says so in `unused_tensors`. Names that a wrapper of PyTorch or PEFT has put
something before (`module.`, `_orig_mod.`, `model.`, `base_model.model.`) are read without it.

A further architecture is one more entry of FAMILIES.
"""

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minisft.data.special_tokens import SpecialTokens
from minisft.data.text import GPT2_INPUTS
from minisft.errors import UserError
from minisft.models.config import (
    BERT_UNSUPPORTED,
    GPT2_UNSUPPORTED,
    SEQ2SEQ_UNSUPPORTED,
    BertConfig,
    GPT2Config,
    Seq2SeqConfig,
)
from minisft.models.heads import BertClassifier, Classifier
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import AnyModel, SpanClassifier, TokenClassifier
from minisft.nn.layers import INITIAL_SCALE
from minisft.nn.parameters import Parameter

# The model_type of a classifier on the mean of the tokens. `transformers` does not know it and
# says so; under `bert` it would draw a pooler at random without a warning.
BERT_MEAN = "minisft_bert_mean"
# What DataParallel, torch.compile, Lightning and PEFT put before the names of the model they hold.
WRAPPERS = re.compile(r"((module|_orig_mod|base_model\.model|model)\.)+")
# Keys that BERT's config.json has and GPT-2's has not
BERT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
NOTE = ("a BERT whose classifier reads the mean of the tokens: transformers has no such class, "
        "minisft opens this folder")


# The tasks whose head reads every token, and its parameters, the matrix first.
TOKEN_HEADS = {"tag": ("classifier.weight", "classifier.bias"),
               "answer": ("qa_outputs.weight", "qa_outputs.bias")}


@dataclass(frozen=True)
class Family:
    """One architecture: its classes, what it can do, and the names in its folders."""

    model_type: str           # in config.json
    config: type[Any]
    classifier: type[Classifier] | None     # None: it only translates
    architectures: tuple[str, ...]    # of `transformers`: classifier or translator, language model
    token_architectures: dict[str, str]     # likewise, by the task of a head over tokens
    can_generate: bool        # whether it is a language model that writes text
    has_pooling: bool         # whether its classifier can read the first token or the mean of all
    # whether a tensor named as the classifier's matrix shows that the folder holds a classifier of
    # texts, whatever config.json says: in BERT's files a classifier of tokens has that name too
    head_implies_classifier: bool
    # (config, special tokens) -> further keys of config.json
    extra_settings: Callable[[Any, SpecialTokens], dict[str, Any]]
    prefix: str               # of the trunk's names in files of a model with a head
    head: tuple[str, ...]     # the classifier's own parameters, the matrix first
    optional: tuple[str, ...]     # names of tensors that a folder may hold and the model lack
    unprefixed: tuple[str, ...]   # parameters whose name in the file has no prefix
    transposed: re.Pattern[str]   # (out,in) in the file, (in,out) here
    trunk_tensors: re.Pattern[str]
    ignored_tensors: re.Pattern[str]
    other_heads: re.Pattern[str]  # of another task
    legacy_names: tuple[tuple[str, str], ...]     # (pattern, today's name) of names in old files
    n_layer_key: str          # the key of config.json with the number of blocks
    unsupported: dict[str, Any]   # keys of config.json that may only have this value
    input_names: tuple[str, ...]  # what a tokenizer gives it in `transformers`

    def from_hf(self, name: str) -> str | None:
        """A name in a file -> the name here, None for an ignored tensor."""
        name = name.removeprefix(self.prefix)
        for pattern, current in self.legacy_names:
            name = re.sub(pattern, current, name)
        return None if self.ignored_tensors.fullmatch(name) else name

    def knows(self, name: str) -> bool:
        """-> whether a name in a file can be one of this architecture."""
        known = self.from_hf(name)
        return (known is None or known in self.optional
                or self.trunk_tensors.fullmatch(known) is not None
                or self.other_heads.fullmatch(known) is not None)

    def without_wrappers(self, names: Iterable[str]) -> dict[str, str]:
        """Names in a file -> each without what a wrapper has put before it.

        They stay as they are unless that makes names of this architecture of all of them.
        """
        bare = {name: name if self.knows(name) else WRAPPERS.sub("", name, count=1)
                for name in names}
        return bare if all(map(self.knows, bare.values())) else {name: name for name in bare}

    def to_hf(self, name: str) -> str:
        """A name here -> the name in the files that we write."""
        return name if name in self.unprefixed else self.prefix + name

    def convert_layout(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array as the model has it -> as the file has it, or the reverse."""
        return array.T if self.transposed.fullmatch(name) else array

    def shape_in_file(self, parameter: Parameter) -> tuple[int, ...]:
        """-> the shape of its tensor."""
        transposed = self.transposed.fullmatch(parameter.name)
        return parameter.shape[::-1] if transposed else parameter.shape

    def token_task(self, settings: dict[str, Any]) -> str | None:
        """config.json -> the task of its head over tokens, None where it has none."""
        architectures = settings.get("architectures")
        return next((task for task, name in self.token_architectures.items()
                     if isinstance(architectures, list) and name in architectures), None)

    def is_classifier(self, settings: dict[str, Any], tensors: Container[str]) -> bool:
        """config.json, tensors by name -> whether the folder holds a trained classifier."""
        architectures = settings.get("architectures")
        if self.classifier is None:
            return False
        if not isinstance(architectures, list):
            return self.head[0] in tensors
        if self.architectures[0] in architectures or BERT_MEAN in architectures:
            return True
        return self.head_implies_classifier and self.head[0] in tensors


def _gpt2_settings(config, special_tokens):
    return {"n_ctx": config.n_positions, **special_tokens.settings}


def _bert_settings(config, special_tokens):
    return {"pad_token_id": special_tokens.pad}


def _seq2seq_settings(config, special_tokens):
    # the two last: blocks that `transformers` would leave out at random when it trains
    return {"bos_token_id": special_tokens.bos, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}


GPT2 = Family(
    model_type="gpt2", config=GPT2Config, classifier=Classifier,
    architectures=("GPT2ForSequenceClassification", "GPT2LMHeadModel"),
    token_architectures={"tag": "GPT2ForTokenClassification",
                         "answer": "GPT2ForQuestionAnswering"},
    can_generate=True, has_pooling=False, head_implies_classifier=True,
    extra_settings=_gpt2_settings, prefix="transformer.",
    head=("score.weight",), optional=("score.weight", "lm_head.weight"),
    unprefixed=("score.weight", "lm_head.weight", *TOKEN_HEADS["tag"], *TOKEN_HEADS["answer"]),
    transposed=re.compile(r"(score|lm_head|classifier|qa_outputs)\.weight"),
    trunk_tensors=re.compile(r"(wte|wpe|ln_f|h\.\d+)\..+"),
    ignored_tensors=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
    other_heads=re.compile(r"(qa_outputs|multiple_choice_head|classifier)\..+"), legacy_names=(),
    n_layer_key="n_layer", unsupported=GPT2_UNSUPPORTED, input_names=GPT2_INPUTS)
BERT = Family(
    model_type="bert", config=BertConfig, classifier=BertClassifier,
    architectures=("BertForSequenceClassification",),
    token_architectures={"tag": "BertForTokenClassification",
                         "answer": "BertForQuestionAnswering"},
    can_generate=False, has_pooling=True, head_implies_classifier=False,
    extra_settings=_bert_settings, prefix="bert.",
    head=("classifier.weight", "classifier.bias"),
    optional=("classifier.weight", "classifier.bias", "pooler.dense.weight", "pooler.dense.bias"),
    unprefixed=(*TOKEN_HEADS["tag"], *TOKEN_HEADS["answer"]),
    transposed=re.compile(r"(.*\.)?(query|key|value|dense|classifier|qa_outputs)\.weight"),
    trunk_tensors=re.compile(r"(embeddings|encoder|pooler)\..+"),
    ignored_tensors=re.compile(r"embeddings\.position_ids"),
    other_heads=re.compile(r"(cls|qa_outputs)\..+"),
    legacy_names=((r"LayerNorm\.gamma$", "LayerNorm.weight"),
                  (r"LayerNorm\.beta$", "LayerNorm.bias")),
    n_layer_key="num_hidden_layers", unsupported=BERT_UNSUPPORTED,
    input_names=("input_ids", "token_type_ids", "attention_mask"))
SEQ2SEQ = Family(
    model_type="m2m_100", config=Seq2SeqConfig, classifier=None,
    architectures=("M2M100ForConditionalGeneration",), token_architectures={},
    can_generate=False, has_pooling=False, head_implies_classifier=False,
    extra_settings=_seq2seq_settings, prefix="model.", head=(),
    optional=("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    unprefixed=("lm_head.weight",),
    transposed=re.compile(r".*\.((k|v|q|out)_proj|fc1|fc2)\.weight"),
    trunk_tensors=re.compile(r"(shared|encoder|decoder)\..+"),
    ignored_tensors=re.compile(r"(encoder|decoder)\.embed_positions\.weights?"),
    other_heads=re.compile(r"(?!)"), legacy_names=(),
    n_layer_key="encoder_layers + decoder_layers", unsupported=SEQ2SEQ_UNSUPPORTED,
    input_names=("input_ids", "attention_mask"))
FAMILIES = {family.model_type: family for family in (GPT2, BERT, SEQ2SEQ)}


def family_of(settings: dict[str, Any], source: str | Path) -> Family:
    """config.json as a dict, its path for messages -> Family; raises UserError for another.

    Old files have no model_type: their other keys tell BERT from GPT-2.
    """
    likely = "bert" if any(key in settings for key in BERT_KEYS) else "gpt2"
    model_type = settings.get("model_type", likely)
    if model_type == BERT_MEAN:
        return BERT
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{source}: model_type is {model_type!r}, expected one of "
                        f"{', '.join(map(repr, FAMILIES))}")
    return FAMILIES[model_type]


def family_of_model(model: AnyModel) -> Family:
    """A built model -> Family."""
    return next(f for f in FAMILIES.values() if isinstance(model.trunk.config, f.config))


def pooling_of(settings: dict[str, Any]) -> str:
    """config.json of a BERT as a dict -> what its classifier reads, "first" or "mean"."""
    return "mean" if settings.get("model_type") == BERT_MEAN else "first"


def hf_config(model: AnyModel, dtype: str,
              special_tokens: SpecialTokens) -> dict[str, Any]:
    """A model, the name of its dtype, the special tokens -> config.json as a dict."""
    family, config = family_of_model(model), model.trunk.config
    settings = {"initializer_range": INITIAL_SCALE, **asdict(config), **family.unsupported,
                "dtype": dtype, "torch_dtype": dtype,     # the second: transformers before 5
                "model_type": family.model_type,
                **family.extra_settings(config, special_tokens)}
    if isinstance(model, EncoderDecoder):
        return settings | {"architectures": list(family.architectures)}
    if isinstance(model, SpanClassifier):
        return settings | {"architectures": [family.token_architectures["answer"]],
                           "tie_word_embeddings": True, "num_labels": 2}
    if isinstance(model, TokenClassifier):
        return settings | {
            "architectures": [family.token_architectures["tag"]], "tie_word_embeddings": True,
            "classifier_dropout": model.drop.rate} | _labels_of(model)
    if not isinstance(model, Classifier):
        return settings | {"architectures": [family.architectures[1]],
                           "tie_word_embeddings": model.lm_head is None}
    settings |= {
        "architectures": [family.architectures[0]], "tie_word_embeddings": True,
        "problem_type": "single_label_classification"} | _labels_of(model)
    if getattr(model, "pooling", None) == "mean":
        settings |= {"model_type": BERT_MEAN, "architectures": [BERT_MEAN], "note": NOTE}
    return settings


def _labels_of(model):
    return {"num_labels": len(model.label_names),
            "id2label": {str(i): name for i, name in enumerate(model.label_names)},
            "label2id": {name: i for i, name in enumerate(model.label_names)}}
