"""Heads over tokens: gradients, company, folders, and the same logits in transformers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.errors import UserError
from minisft.io.checkpoint import load, save
from minisft.models.config import BertConfig, GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.ops.cross_entropy import IGNORE
from minisft.verify import gradcheck

CONFIGS = {
    "GPT-2": GPT2Config(vocab_size=19, n_positions=9, n_embd=8, n_layer=2, n_head=2,
                        embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2),
    "BERT": BertConfig(vocab_size=19, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=12, max_position_embeddings=9)}
# for differences of every element: minisft/verify/gradient_checks.py has two blocks
NARROW = {
    "GPT-2": replace(CONFIGS["GPT-2"], n_embd=4, n_inner=5, n_layer=1),
    "BERT": replace(CONFIGS["BERT"], hidden_size=4, intermediate_size=5, num_hidden_layers=1)}
NAMES = ("VERB", "NOUN", "X")


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(params=NARROW)
def narrow(request):
    return NARROW[request.param]


def model_of(rng, config, dtype=np.float32):
    model = TokenClassifier(config, NAMES, dtype, seed=3)
    model.store.values += (0.4 * rng.standard_normal(model.store.size)).astype(dtype)
    return model


def batch_of(rng, lengths=(4, 1, 9)):
    labels = [rng.integers(0, 3, n) for n in lengths]
    for row in labels:
        row[1::3] = IGNORE
    return pack([rng.integers(0, 19, n) for n in lengths], labels)


@pytest.mark.parametrize("options", [{}, {"weights": np.array([0.5, 1, 2])},
                                     {"smoothing": 0.2}])
def test_gradients_of_the_loss(rng, narrow, options):
    model, batch = model_of(rng, narrow, np.float64), batch_of(rng)
    stream = gradcheck.drawing_once(Stream(5, 1))

    def loss():
        return float(model.loss(batch, stream, **options)[0])

    loss()
    model.loss_backward(1.0)
    gradients = {p.name: p.grad.copy() for p in model.store.trainable}
    rows = gradcheck.compare(loss, {p.name: p.value for p in model.store}, gradients)
    gradcheck.require(rows, gradcheck.MODEL_LIMIT)


def test_only_counted_tokens_count(rng, config):
    model, batch = model_of(rng, config), batch_of(rng)
    loss, denominator, logits = model.loss(batch)
    counted = batch.labels != IGNORE
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -logp[np.flatnonzero(counted), batch.labels[counted]].sum()
    assert denominator == counted.sum() and float(loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="a class for each token"):
        model.loss(pack([np.arange(3)], [1]))


def test_company_changes_no_logit(rng, config):
    model, batch = model_of(rng, config), batch_of(rng)
    together = model.forward(batch)
    alone = [model.forward(pack([batch.ids[a:b]])) for a, b in
             zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-5)


def test_a_folder_keeps_the_logits(rng, config, tmp_path):
    model, batch = model_of(rng, config), batch_of(rng)
    save(model, tmp_path)
    for task in (None, "tag"):
        again = load(tmp_path, task=task)
        assert isinstance(again, TokenClassifier) and again.label_names == NAMES
        assert np.array_equal(again.forward(batch), model.forward(batch))
        assert not again.newly_initialized and not again.unused_tensors
    turned = load(tmp_path, task="tag", label_names=("X", "VERB", "NOUN"))
    np.testing.assert_allclose(turned.forward(batch), model.forward(batch)[:, [2, 0, 1]],
                               rtol=0, atol=1e-6)
    mapped = load(tmp_path, task="tag", label_names=("V", "NOUN", "X"), label_map={"VERB": "V"})
    assert np.array_equal(mapped.forward(batch), model.forward(batch))


def test_other_labels_and_other_tasks_get_a_new_head(rng, config, tmp_path):
    model = model_of(rng, config)
    save(model, tmp_path)
    other = load(tmp_path, task="tag", label_names=("A", "B"))
    assert set(other.newly_initialized) == {"classifier.weight", "classifier.bias"}
    assert "the folder's labels are VERB, NOUN, X" in other.new_head_reason
    classifier = load(tmp_path, task="classify", label_names=("A", "B"))
    assert classifier.new_head_reason == "the folder holds no classifier"
    assert classifier.unused_tensors == ("classifier.bias", "classifier.weight")
    for name in ("A", "B"), None:
        if name is None:
            with pytest.raises(UserError, match="holds a .* without labels"):
                load(tmp_path, task="classify")


def test_a_classifier_of_texts_gives_its_blocks_alone(rng, config, tmp_path):
    kind = Classifier if isinstance(config, GPT2Config) else BertClassifier
    save(kind(config, NAMES, seed=1), tmp_path)
    with pytest.raises(UserError, match="holds no tags"):
        load(tmp_path, task="tag")
    tagger = load(tmp_path, task="tag", label_names=NAMES)
    assert set(tagger.newly_initialized) == {"classifier.weight", "classifier.bias"}
    heads = {name for name in tagger.unused_tensors if not name.startswith("pooler")}
    assert heads == ({"score.weight"} if kind is Classifier else
                     {"classifier.weight", "classifier.bias"})
    if kind is Classifier:
        save(LanguageModel(config, seed=1), tmp_path)
        assert load(tmp_path, task="tag", label_names=NAMES).trunk.config == config


def test_what_a_config_says_wrong_is_refused(rng, config, tmp_path):
    save(model_of(rng, config), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["id2label"].pop("1")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="id2label gives 2 labels|lacks the number 1"):
        load(tmp_path)


@pytest.mark.parametrize("which", ["head", "last:1"])
def test_frozen_layers(rng, config, which):
    model, batch = model_of(rng, config), batch_of(rng)
    model.train_layers(which)
    model.loss(batch)
    model.loss_backward(1.0)
    trained = {p.name for p in model.store.trainable}
    assert {"classifier.weight", "classifier.bias"} <= trained and len(trained) < len(
        list(model.store))
    assert all(np.abs(p.grad).max() > 0 for p in model.store.trainable
               if not p.name.endswith(("key.bias", "c_attn.bias")))


def span_model(rng, config, dtype=np.float32):
    model = SpanClassifier(config, dtype, seed=3)
    model.store.values += (0.4 * rng.standard_normal(model.store.size)).astype(dtype)
    return model


def span_batch(rng, lengths=(4, 1, 9)):
    labels = np.array([np.sort(rng.integers(0, n, 2)) for n in lengths])
    return pack([rng.integers(0, 19, n) for n in lengths], labels)


def test_gradients_of_an_answers_loss(rng, narrow):
    model, batch = span_model(rng, narrow, np.float64), span_batch(rng)
    stream = gradcheck.drawing_once(Stream(5, 1))

    def loss():
        return float(model.loss(batch, stream)[0])

    loss()
    model.loss_backward(1.0)
    gradients = {p.name: p.grad.copy() for p in model.store.trainable}
    rows = gradcheck.compare(loss, {p.name: p.value for p in model.store}, gradients)
    gradcheck.require(rows, gradcheck.MODEL_LIMIT)
    with pytest.raises(ValueError, match=r"labels of shape \(14,\), expected \(B,2\)"):
        model.loss(batch_of(rng))


def test_a_folder_keeps_the_head_for_answers(rng, config, tmp_path):
    model, batch = span_model(rng, config), span_batch(rng)
    save(model, tmp_path)
    for task in (None, "answer"):
        again = load(tmp_path, task=task)
        assert isinstance(again, SpanClassifier) and not again.newly_initialized
        assert np.array_equal(again.forward(batch), model.forward(batch))
    tagger = load(tmp_path, task="tag", label_names=NAMES)
    assert tagger.unused_tensors == ("qa_outputs.bias", "qa_outputs.weight")
    save(tagger, tmp_path / "tags")
    other = load(tmp_path / "tags", task="answer")
    assert other.new_head_reason == "the folder holds no head for answers"
    assert set(other.newly_initialized) == {"qa_outputs.weight", "qa_outputs.bias"}


@pytest.mark.parity
@pytest.mark.parametrize("theirs", [False, True])
def test_answers_are_those_of_transformers(rng, config, tmp_path, theirs):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    model = span_model(rng, config)
    save(model, tmp_path)
    hf = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    kind = "GPT2" if isinstance(config, GPT2Config) else "Bert"
    assert type(hf).__name__ == f"{kind}ForQuestionAnswering"
    if theirs:
        hf.save_pretrained(tmp_path)
        model = load(tmp_path)
    for n in (1, 4, 9):
        ids, labels = rng.integers(0, 19, n), np.sort(rng.integers(0, n, 2))
        with torch.no_grad():
            expected = hf(torch.tensor(ids[None]), start_positions=torch.tensor(labels[:1]),
                          end_positions=torch.tensor(labels[1:]))
        loss, denominator, logits = model.loss(pack([ids], labels[None]))
        both = torch.stack([expected.start_logits[0], expected.end_logits[0]], -1).numpy()
        np.testing.assert_allclose(logits, both, rtol=0, atol=1e-5)
        # a single token can be nothing else, and theirs counts no label behind the last one
        assert float(loss / denominator) == pytest.approx(float(expected.loss), abs=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("theirs", [False, True])
def test_logits_are_those_of_transformers(rng, config, tmp_path, theirs):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    model = model_of(rng, config)
    save(model, tmp_path)
    hf = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    kind = "GPT2" if isinstance(config, GPT2Config) else "Bert"
    assert type(hf).__name__ == f"{kind}ForTokenClassification"
    assert hf.config.id2label == dict(enumerate(NAMES))
    if theirs:
        hf.save_pretrained(tmp_path)
        model = load(tmp_path)
    for n in (1, 4, 9):
        ids = rng.integers(0, 19, n)
        with torch.no_grad():
            expected = hf(torch.tensor(ids[None])).logits[0].numpy()
        np.testing.assert_allclose(model.forward(pack([ids])), expected, rtol=0, atol=1e-5)
