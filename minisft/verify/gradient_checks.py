"""The catalogue of gradient checks that `minisft check` runs: operations, layers, whole models.

    from minisft.verify.gradient_checks import CHECKS
    rows = CHECKS["softmax"].results()

Shapes are tiny, so that every element of every array is checked in seconds. Inputs and weights
are drawn wide (0.3 and more): with GPT-2's initial 0.02 attention is nearly uniform, gradients
nearly vanish and a bug hides. `results(broken)` runs a check on a broken variant of its part:
see `minisft/verify/planted_bugs.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minisft.backend.random import Stream
from minisft.data.batch import Batch, pack, pack_pairs
from minisft.models import bert
from minisft.models.adapters import LoraConfig
from minisft.models.config import Seq2SeqConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.seq2seq import Embeddings, EncoderDecoder, SharedTable
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.nn.blocks import MLP, Block, SelfAttention
from minisft.nn.cross_attention import Attention, DecoderBlock, EncoderBlock
from minisft.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minisft.nn.lora import LoraLinear
from minisft.nn.parameters import Parameters
from minisft.ops import (
    attention,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    linear,
    lora,
    softmax,
    span_cross_entropy,
)
from minisft.verify.gradcheck import (
    LIMIT,
    MODEL_LIMIT,
    Result,
    check,
    compare,
    compare_directions,
    drawing_once,
)

CONFIG = GPT2Config(vocab_size=11, n_positions=5, n_embd=4, n_inner=5, n_layer=2, n_head=2,
                    embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3)
BERT = bert.BertConfig(vocab_size=11, max_position_embeddings=5, hidden_size=4,
                       num_hidden_layers=2, num_attention_heads=2, intermediate_size=6,
                       hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
SEQ2SEQ = Seq2SeqConfig(vocab_size=11, d_model=4, encoder_layers=1, decoder_layers=2,
                        encoder_attention_heads=1, decoder_attention_heads=2, encoder_ffn_dim=5,
                        decoder_ffn_dim=3, max_position_embeddings=6, dropout=0.3,
                        attention_dropout=0.3)
# the last two sequences are pairs of texts, which is BERT's matter alone
BATCH = pack([[3], [1, 4, 1, 10, 9], [2, 6, 3]], example_ids=[7, 0, 4],
             types=[[0], [0, 0, 0, 1, 1], [0, 1, 1]])
# sources longer and shorter than their targets
PAIRS = pack_pairs([[3, 5, 2], [7], [1, 4, 4, 2]], [[8], [4, 10, 9, 8], [6, 3]], 1, 2, [7, 0, 4])
STREAM = drawing_once(Stream(seed=0, step=1))
RATE = 0.3


@dataclass(frozen=True)
class Check:
    """run(part) -> rows, where part is the backward of an operation, or the class of a layer."""

    name: str
    part: Callable
    run: Callable
    limit: float = LIMIT

    def results(self, broken: Callable | None = None) -> list[Result]:
        """-> a gradcheck.Result for each array, of `broken` in the place of the part."""
        return self.run(broken or self.part)


def check_model(model: Classifier | LanguageModel | EncoderDecoder, seed: int = 0,
                progress: Callable[[list[str]], Iterable[str]] = iter) -> list[Result]:
    """A built model in float64 -> a Result for each trained parameter, then again under dropout.

    One random direction for each, on three short texts of random tokens. Changes the values while
    it runs and puts them back; the gradients are lost. Raises ValueError for another dtype.
    """
    if model.store.dtype != np.float64:
        raise ValueError(f"the model is {model.store.dtype}: gradients are checked in float64")
    rng, config = np.random.default_rng(seed), model.trunk.config
    batch = _short_texts(model, rng)
    rows = _directions(model, batch, None, rng, seed, progress)
    if config.drops:
        dropped = _directions(model, batch, Stream(seed, step=1), rng, seed, progress)
        rows += [replace(row, name=f"{row.name} (dropout)") for row in dropped]
    return rows


def _short_texts(model, rng) -> Batch:
    config = model.trunk.config
    few = rng.integers(config.vocab_size, size=8)     # of twelve tokens, some are repeated

    def texts(*lengths):
        return [rng.choice(few, min(n, config.n_positions)) for n in lengths]

    if isinstance(model, EncoderDecoder):
        targets = [text[1:] for text in texts(7, 1, 4)]
        return pack_pairs(texts(1, 7, 4), targets, config.decoder_start_token_id,
                          config.eos_token_id)
    return pack(texts(1, 7, 4))


def _directions(model, batch, stream, rng, seed, progress):
    dy = rng.standard_normal(model.forward(batch, stream).shape)
    model.store.zero_grad()
    model.backward(dy)
    trainable = model.store.trainable
    return compare_directions(lambda: float(np.vdot(dy, model.forward(batch, stream))),
                              {p.name: p.value for p in trainable},
                              {p.name: p.grad for p in trainable}, seed + 1, progress)


def _normal(*shapes, seed=1):
    """-> an array of normal values for each shape, all independent (also of `check`'s own seed 0).

    Were v a copy of k, say, a backward that took one for the other would pass.
    """
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def _operation(forward, *inputs, names, backward):
    return check(forward, backward, *inputs, names=names, limit=np.inf)


def _embedding(backward):
    # token 1 three times, token 2 not at all
    ids = np.array([1, 0, 1, 3, 1])
    return _operation(embedding.forward, ids, *_normal((4, 3)), names=["w"], backward=backward)


def _linear(backward):
    # square, so that a transposed dw has the right shape
    return _operation(linear.forward, *_normal((5, 4), (4, 4), (4,)), names=["x", "w", "b"],
                      backward=backward)


def _lora(backward):
    # B is square, so that a transposed dB has the right shape
    return _operation(lora.forward, *_normal((5, 4), (3, 4), (3, 3)), 1.7, names=["x", "a", "b"],
                      backward=backward)


def _layer_norm(backward):
    x, w, b = _normal((4, 5), (5,), (5,))
    return _operation(layer_norm.forward, x, 1 + 0.3 * w, b, names=["x", "w", "b"],
                      backward=backward)


def _gelu(form, backward):
    (x,) = _normal((3, 5))
    return _operation(partial(gelu.forward, form=form), 2 * x, names=["x"], backward=backward)


def _softmax(backward):
    (s,) = _normal((4, 5))
    s[1] *= 20              # nearly all on one class
    s[2, 3] = -np.inf       # a masked score
    return _operation(softmax.forward, s, names=["s"], backward=backward)


def _dropout(backward):
    words = np.random.default_rng(2).integers(2**32, size=(4, 5), dtype=np.uint32)
    return _operation(dropout.forward, *_normal((4, 5)), words, RATE, names=["x"],
                      backward=backward)


def _attention(queries, causal, drop, backward):
    """queries: how many of each of the three sequences, of keys there are 1, 5 and 3."""
    cu_seqlens, starts = np.cumsum([0, *queries]), BATCH.cu_seqlens[:-1]

    def words(b, n_keys):
        positions = np.arange(n_keys - queries[b], n_keys)
        return STREAM.scores(1, BATCH.example_ids[b], positions, 2, n_keys)

    return _operation(attention.forward, *_normal((sum(queries), 2, 3), (9, 2, 3), (9, 2, 3)),
                      cu_seqlens, starts, BATCH.lengths, causal,
                      (RATE, words) if drop else None, names=["q", "k", "v"], backward=backward)


def _cross_entropy(options, backward):
    weights, smoothing = (np.array([0.5, 1.0, 2.0, 0.1]), 0.2) if options else (None, 0.0)
    labels = np.array([2, 0, cross_entropy.IGNORE if options else 1, 3, 2])

    def forward(z):
        (loss, _), cache = cross_entropy.forward(z, labels, weights, smoothing)
        return loss, cache

    (z,) = _normal((5, 4))
    return _operation(forward, 2 * z, names=["z"], backward=backward)


def _span_cross_entropy(backward):
    labels = np.array([[0, 3], [0, cross_entropy.IGNORE], [2, 2]])

    def forward(z):
        (loss, _), cache = span_cross_entropy.forward(z, np.array([0, 4, 5, 9]), labels)
        return loss, cache

    (z,) = _normal((9, 2))
    return _operation(forward, 2 * z, names=["z"], backward=backward)


def _modules(layer, forward, *inputs):
    """A layer or model, forward() -> y, those of its inputs that have a gradient -> rows."""
    store, rng = Parameters(layer.parameters(), np.float64), np.random.default_rng(0)
    for p in store:
        p.value[...] = p.fill + 0.3 * rng.standard_normal(p.shape)
    dy = rng.standard_normal(forward().shape)
    values, gradients = ({p.name: getattr(p, kind) for p in store} for kind in ("value", "grad"))
    d = layer.backward(dy)
    for name, x, dx in zip("xm", inputs, d if isinstance(d, tuple) else (d,), strict=False):
        values[name], gradients[name] = x, dx
    return compare(lambda: float((dy * forward()).sum()), values, gradients)


def _plain_layer(arguments, kind):
    layer, (x,) = kind(*arguments), _normal((9, CONFIG.n_embd))
    return _modules(layer, lambda: layer.forward(x), x)


def _embedding_layer(kind):
    layer = kind("wte", CONFIG.vocab_size, CONFIG.n_embd, 0)
    return _modules(layer, lambda: layer.forward(BATCH.ids))


def _dropout_layer(kind):
    layer, (x,) = kind(RATE, 1, 2), _normal((9, CONFIG.n_embd))
    return _modules(layer, lambda: layer.forward(x, STREAM, BATCH.token_example_ids,
                                                 BATCH.positions), x)


def _lora_layer(kind):
    layer, (x,) = kind(Linear("c_fc", CONFIG.n_embd, 5, 1), 2, 1.7, RATE), \
        _normal((9, CONFIG.n_embd))
    layer.begin(BATCH, STREAM, None)
    return _modules(layer, lambda: layer.forward(x), x)


def _packed_layer(name, rows, kind, config=CONFIG):
    layer, (x,) = kind(name, config, 1), _normal((9, config.n_embd))
    return _modules(layer, lambda: layer.forward(x, BATCH, STREAM, rows), x)


def _decoder_embeddings(kind):
    # the table is the model's: here it is put beside
    shared = SharedTable(SEQ2SEQ)
    layer = kind(shared, SEQ2SEQ, SEQ2SEQ.head_layer)
    layer.table = shared
    return _modules(layer, lambda: layer.forward(PAIRS, STREAM))


def _between_texts(make, forward, kind):
    """A layer whose rows of x ask rows of m, of another text: the gradients of both."""
    layer = make(kind)
    x, m = _normal((len(PAIRS.ids), SEQ2SEQ.d_model), (len(PAIRS.source.ids), SEQ2SEQ.d_model))
    return _modules(layer, lambda: forward(layer, x, m), x, m)


def _ask(layer, x, m):
    keys = PAIRS.source.cu_seqlens[:-1], PAIRS.source.lengths
    return layer.forward(x, *layer.project(m), PAIRS, STREAM, keys)


def _encoder_block(kind):
    layer, (x,) = kind("encoder.layers.0", SEQ2SEQ, 1), _normal((9, SEQ2SEQ.d_model))
    return _modules(layer, lambda: layer.forward(x, BATCH, STREAM), x)


def _encoder_decoder(kind):
    model = kind(SEQ2SEQ, np.float64)
    return _modules(model, lambda: model.forward(PAIRS, STREAM))


def _language_model(tied, rows, kind):
    model = kind(CONFIG, tied, np.float64)
    return _modules(model, lambda: model.forward(BATCH, rows=rows))


def _classifier(kind, config=CONFIG, **options):
    model = kind(config, ["a", "b", "c"], np.float64, **options)
    return _modules(model, lambda: model.forward(BATCH, STREAM))


def _span_classifier(kind, config=CONFIG):
    model = kind(config, np.float64)
    return _modules(model, lambda: model.forward(BATCH, STREAM))


def _adapted(kind, config=CONFIG, **options):
    """Base and adapters are all trained here; where the base is frozen, its part is left out."""
    model = kind(config, ["a", "b", "c"], np.float64, **options)
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, lora_dropout=RATE))
    return _modules(model, lambda: model.forward(BATCH, STREAM))


def _bert_embeddings(kind):
    layer = kind("embeddings", BERT)
    return _modules(layer, lambda: layer.forward(BATCH, STREAM))


def _pooler(arguments, n, kind):
    layer, (x,) = kind(*arguments), _normal((n, BERT.n_embd))
    return _modules(layer, lambda: layer.forward(x, BATCH), x)


_OPERATIONS = [
    Check("embedding", embedding.backward, _embedding),
    Check("linear", linear.backward, _linear),
    Check("lora", lora.backward, _lora),
    Check("layer_norm", layer_norm.backward, _layer_norm),
    Check("gelu (tanh)", gelu.backward, partial(_gelu, "tanh")),
    Check("gelu (erf)", gelu.backward, partial(_gelu, "erf")),
    Check("softmax", softmax.backward, _softmax),
    Check("dropout", dropout.backward, _dropout),
    Check("attention (causal)", attention.backward,
          partial(_attention, [1, 5, 3], True, False)),
    Check("attention (all keys)", attention.backward,
          partial(_attention, [1, 5, 3], False, False)),
    Check("attention (fewer queries than keys)", attention.backward,
          partial(_attention, [1, 2, 1], True, False)),
    Check("attention (causal, dropout)", attention.backward,
          partial(_attention, [1, 5, 3], True, True)),
    Check("cross_entropy", cross_entropy.backward, partial(_cross_entropy, False)),
    Check("cross_entropy (all options)", cross_entropy.backward, partial(_cross_entropy, True)),
    Check("span_cross_entropy", span_cross_entropy.backward, _span_cross_entropy),
]
_LAYERS = [
    Check("layer: Embedding", Embedding, _embedding_layer),
    Check("layer: Linear", Linear, partial(_plain_layer, ("c_fc", CONFIG.n_embd, 5, 1))),
    Check("layer: LoraLinear (dropout)", LoraLinear, _lora_layer),
    Check("layer: LayerNorm", LayerNorm, partial(_plain_layer, ("ln_1", CONFIG.n_embd, 1, 1e-5))),
    Check("layer: MLP", MLP, partial(_plain_layer, ("mlp", CONFIG, 1))),
    Check("layer: Dropout", Dropout, _dropout_layer),
    Check("layer: SelfAttention (dropout)", SelfAttention, partial(_packed_layer, "attn", None)),
    Check("layer: Block (dropout)", Block, partial(_packed_layer, "h.0", None)),
    Check("layer: Block (dropout, last rows)", Block,
          partial(_packed_layer, "h.0", BATCH.last)),
    Check("BERT layer: Embeddings (dropout)", bert.Embeddings, _bert_embeddings),
    Check("BERT layer: SelfAttention (dropout)", bert.SelfAttention,
          partial(_packed_layer, "attention", None, config=BERT)),
    Check("BERT layer: Block (dropout)", bert.Block,
          partial(_packed_layer, "layer", None, config=BERT)),
    Check("BERT layer: Block (dropout, first rows)", bert.Block,
          partial(_packed_layer, "layer", BATCH.first, config=BERT)),
    Check("seq2seq layer: Embeddings (dropout)", Embeddings, _decoder_embeddings),
    Check("seq2seq layer: Attention (dropout)", Attention, partial(
        _between_texts, lambda kind: kind("encoder_attn", SEQ2SEQ, 1, 2, False, 5), _ask)),
    Check("seq2seq layer: EncoderBlock (dropout)", EncoderBlock, _encoder_block),
    Check("seq2seq layer: DecoderBlock (dropout)", DecoderBlock, partial(
        _between_texts, lambda kind: kind("decoder.layers.0", SEQ2SEQ, 3, 7),
        lambda layer, x, m: layer.forward(x, m, PAIRS, STREAM))),
    Check("BERT layer: Pooler", bert.Pooler, partial(_pooler, ("pooler", BERT), 3)),
    Check("BERT layer: MeanPooler", bert.MeanPooler, partial(_pooler, (), 9)),
]
_MODELS = [
    Check("GPT-2 language model (tied)", LanguageModel,
          partial(_language_model, True, None), MODEL_LIMIT),
    # Only some rows get a logit, as in the loss of a prompt's completion.
    Check("GPT-2 language model (separate)", LanguageModel,
          partial(_language_model, False, np.array([0, 3, 4, 7])), MODEL_LIMIT),
    Check("GPT-2 classifier (dropout, last rows)", Classifier, _classifier, MODEL_LIMIT),
    Check("BERT classifier (dropout, first rows)", BertClassifier,
          partial(_classifier, config=BERT), MODEL_LIMIT),
    Check("BERT classifier (dropout, mean)", BertClassifier,
          partial(_classifier, config=BERT, pooling="mean"), MODEL_LIMIT),
    Check("GPT-2 token classifier (dropout)", TokenClassifier, _classifier, MODEL_LIMIT),
    Check("GPT-2 span classifier (dropout)", SpanClassifier, _span_classifier, MODEL_LIMIT),
    Check("BERT span classifier (dropout)", SpanClassifier,
          partial(_span_classifier, config=BERT), MODEL_LIMIT),
    Check("BERT token classifier (dropout)", TokenClassifier, partial(_classifier, config=BERT),
          MODEL_LIMIT),
    Check("encoder-decoder (dropout)", EncoderDecoder, _encoder_decoder, MODEL_LIMIT),
    Check("GPT-2 classifier (adapters, last rows)", Classifier, _adapted, MODEL_LIMIT),
    Check("BERT classifier (adapters, first rows)", BertClassifier,
          partial(_adapted, config=BERT), MODEL_LIMIT),
]
CHECKS = {c.name: c for c in _OPERATIONS + _LAYERS + _MODELS}
