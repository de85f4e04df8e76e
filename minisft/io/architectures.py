"""The name tables: what GPT-2's and BERT's folders call each thing, in both directions.

Names are the published ones, so a name in the code is a name in the file.

GPT-2:

    ours and in the published files      in files of a model with a head        shape in the file
    wte.weight                           transformer.wte.weight                 (V,C)
    wpe.weight                           transformer.wpe.weight                 (n_positions,C)
    h.0.ln_1.weight, .bias               transformer.h.0.ln_1...                (C,)
    h.0.attn.c_attn.weight, .bias        transformer.h.0.attn.c_attn...         (C,3C), (3C,)
    h.0.attn.c_proj.weight, .bias        transformer.h.0.attn.c_proj...         (C,C), (C,)
    h.0.ln_2.weight, .bias               transformer.h.0.ln_2...                (C,)
    h.0.mlp.c_fc.weight, .bias           transformer.h.0.mlp.c_fc...            (C,M), (M,)
    h.0.mlp.c_proj.weight, .bias         transformer.h.0.mlp.c_proj...          (M,C), (C,)
    ln_f.weight, .bias                   transformer.ln_f...                    (C,)
    score.weight                         score.weight                           (K,C), ours (C,K)
    lm_head.weight                       lm_head.weight                         (V,C), ours (C,V)

M is n_inner. `lm_head.weight` is absent where the output matrix is the token table. Old files
also hold the causal mask of each block (`attn.bias`, `attn.masked_bias`); it is left out.

BERT:

    ours                                             shape in the file
    embeddings.word_embeddings.weight                (V,C)
    embeddings.position_embeddings.weight            (max_position_embeddings,C)
    embeddings.token_type_embeddings.weight          (type_vocab_size,C)
    embeddings.LayerNorm.weight, .bias               (C,); in old files .gamma, .beta
    encoder.layer.0.attention.self.query.weight, .bias, and key, value
                                                     (out,in) = (C,C), ours (C,C)^T; (C,)
    encoder.layer.0.attention.output.dense...        (C,C), ours (C,C)^T; (C,)
    encoder.layer.0.attention.output.LayerNorm...    (C,)
    encoder.layer.0.intermediate.dense...            (M,C), ours (C,M); (M,)
    encoder.layer.0.output.dense...                  (C,M), ours (M,C); (C,)
    encoder.layer.0.output.LayerNorm...              (C,)
    pooler.dense.weight, .bias                       (C,C), ours (C,C)^T; (C,)
    classifier.weight, .bias                         (K,C), ours (C,K); (K,)

M is intermediate_size. Files of a model with a head put `bert.` before all but the classifier. The
heads that only pretraining needs (`cls.`) and `embeddings.position_ids` are left out.
"""

import re
from dataclasses import asdict, dataclass

from minisft.errors import UserError
from minisft.models import bert, gpt2
from minisft.models.heads import BertClassifier, Classifier
from minisft.nn.layers import INITIAL_SCALE

# Of a classifier on the mean of the tokens. `transformers` knows no such type and says so, where
# under `bert` it would draw a pooler at random without a word.
BERT_MEAN = "minisft_bert_mean"
NOTE = ("a BERT whose classifier reads the mean of the tokens: transformers has no such class, "
        "minisft opens this folder")


@dataclass(frozen=True)
class Family:
    """One architecture: its classes, and what its folders call things."""

    config: type
    classifier: type
    architectures: tuple      # of `transformers`: the classifier, and the language model if any
    prefix: str               # of the trunk's names in files of a model with a head
    head: tuple               # the classifier's own parameters, the matrix first
    optional: tuple           # names of what a folder may hold although our model does not
    unprefixed: tuple         # parameters whose name in the file has no prefix
    transposed: re.Pattern    # (out,in) in the file, (in,out) here
    left_out: re.Pattern      # tensors that nobody needs
    old: tuple                # (pattern, what it is called now) of names in old files
    depth: str                # the key of config.json with the number of blocks
    unsupported: dict

    def from_hf(self, name):
        """A name in a file -> our name for it, None for what is left out."""
        name = name.removeprefix(self.prefix)
        for pattern, now in self.old:
            name = re.sub(pattern, now, name)
        return None if self.left_out.fullmatch(name) else name

    def to_hf(self, name):
        """Our name -> the name in the files that we write."""
        return name if name in self.unprefixed else self.prefix + name

    def turned(self, name, array):
        """An array as we have it -> as the file has it, or the other way round."""
        return array.T if self.transposed.fullmatch(name) else array

    def shape_in_file(self, parameter):
        """-> the shape of its tensor."""
        turned = self.transposed.fullmatch(parameter.name)
        return parameter.shape[::-1] if turned else parameter.shape

    def is_classifier(self, settings, table):
        """config.json, tensors by our names -> whether the folder holds a trained classifier."""
        architectures = settings.get("architectures")
        named = isinstance(architectures, list) and (self.architectures[0] in architectures
                                                     or BERT_MEAN in architectures)
        if self is BERT and isinstance(architectures, list):
            return named     # a classifier of tokens has a `classifier.weight` too
        return named or self.head[0] in table


GPT2 = Family(
    config=gpt2.GPT2Config, classifier=Classifier,
    architectures=("GPT2ForSequenceClassification", "GPT2LMHeadModel"), prefix="transformer.",
    head=("score.weight",), optional=("score.weight", "lm_head.weight"),
    unprefixed=("score.weight", "lm_head.weight"),
    transposed=re.compile(r"(score|lm_head)\.weight"),
    left_out=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"), old=(), depth="n_layer",
    unsupported=gpt2.UNSUPPORTED)
BERT = Family(
    config=bert.BertConfig, classifier=BertClassifier,
    architectures=("BertForSequenceClassification",), prefix="bert.",
    head=("classifier.weight", "classifier.bias"),
    optional=("classifier.weight", "classifier.bias", "pooler.dense.weight", "pooler.dense.bias"),
    unprefixed=("classifier.weight", "classifier.bias"),
    transposed=re.compile(r"(.*\.)?(query|key|value|dense|classifier)\.weight"),
    left_out=re.compile(r"embeddings\.position_ids|cls\..*"),
    old=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    depth="num_hidden_layers", unsupported=bert.UNSUPPORTED)
FAMILIES = {"gpt2": GPT2, "bert": BERT, BERT_MEAN: BERT}


def family_of(settings, source):
    """config.json as a dict, its path for messages -> Family; raises UserError for another."""
    kind = settings.get("model_type", "gpt2")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{source}: model_type is {kind!r}, expected 'gpt2' or 'bert'")
    return FAMILIES[kind]


def family_of_model(model):
    """A built model -> Family."""
    return next(f for f in FAMILIES.values() if isinstance(model.trunk.config, f.config))


def pooling_of(settings):
    """config.json of a BERT as a dict -> what its classifier reads, "first" or "mean"."""
    return "mean" if settings.get("model_type") == BERT_MEAN else "first"


def settings_of(model, dtype, end_token, pad_token):
    """A model, the name of its dtype, ids of special tokens -> config.json as a dict."""
    family, config = family_of_model(model), model.trunk.config
    settings = {**asdict(config), **family.unsupported, "initializer_range": INITIAL_SCALE,
                "dtype": dtype, "torch_dtype": dtype}     # the second: transformers before 5
    if family is GPT2:
        settings |= {"model_type": "gpt2", "n_ctx": config.n_positions, "bos_token_id": end_token,
                     "eos_token_id": end_token, "pad_token_id": None}
    else:
        settings |= {"model_type": "bert", "pad_token_id": pad_token}
    if not isinstance(model, Classifier):
        return settings | {"architectures": [family.architectures[1]],
                           "tie_word_embeddings": model.lm_head is None}
    if family is GPT2:
        settings |= {"pad_token_id": end_token}
    settings |= {
        "architectures": [family.architectures[0]], "tie_word_embeddings": True,
        "problem_type": "single_label_classification", "num_labels": len(model.label_names),
        "id2label": {str(i): name for i, name in enumerate(model.label_names)},
        "label2id": {name: i for i, name in enumerate(model.label_names)}}
    if getattr(model, "pooling", None) == "mean":
        settings |= {"model_type": BERT_MEAN, "architectures": [BERT_MEAN], "note": NOTE}
    return settings
