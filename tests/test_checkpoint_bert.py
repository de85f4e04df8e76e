"""BERT folders: round trips, prefixes and old names, heads that stay, go or are drawn anew."""

import json

import numpy as np
import pytest

from minisft.data.special_tokens import SpecialTokens
from minisft.errors import UserError
from minisft.io import safetensors
from minisft.io.architectures import BERT_MEAN
from minisft.io.checkpoint import load, save
from minisft.io.files import read_json, write_json
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier
from minisft.models.token_heads import TokenClassifier

CONFIG = BertConfig(vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
                    intermediate_size=20, max_position_embeddings=8)
NAMES = "business", "sports", "world"
POOLER = "pooler.dense.weight", "pooler.dense.bias"
HEAD = "classifier.weight", "classifier.bias"


def classifier(pooling="first", names=NAMES):
    model = BertClassifier(CONFIG, names, seed=5, pooling=pooling)
    rng = np.random.default_rng(5)
    for p in model.store:      # biases and norms too
        p.value[...] = rng.normal(p.fill, 0.2, p.shape)
    return model


def rewrite(folder, rename, **config):
    """Gives every tensor of a folder another name, or drops it for None; changes the config."""
    stored, _ = safetensors.read_header(folder / "model.safetensors")
    arrays = {rename(name): t.read() for name, t in stored.items() if rename(name) is not None}
    safetensors.write(folder / "model.safetensors", arrays)
    settings = read_json(folder / "config.json") | config
    write_json(folder / "config.json", {k: v for k, v in settings.items() if v is not ...})


def bare(folder, rename=lambda name: name.removeprefix("bert.")):
    """A folder as BertModel's, without a head."""
    save(classifier(), folder)
    rewrite(folder, lambda name: None if name in HEAD else rename(name),
            architectures=["BertModel"], id2label=..., label2id=..., num_labels=...)


def same(model, other, names=None):
    return all(np.array_equal(p.value, other.store[p.name].value) for p in model.store
               if names is None or p.name in names)


def refused(folder, *words, **options):
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


@pytest.mark.parametrize("pooling", BertClassifier.POOLINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_round_trip(tmp_path, pooling, dtype):
    model = classifier(pooling)
    save(model, tmp_path, dtype)
    loaded = load(tmp_path)
    assert type(loaded) is BertClassifier and loaded.newly_initialized == ()
    assert loaded.pooling == pooling
    assert loaded.label_names == NAMES and loaded.trunk.config == CONFIG
    assert [p.name for p in loaded.store] == [p.name for p in model.store]
    for p in model.store:
        assert np.array_equal(loaded.store[p.name].value, p.value.astype(dtype))


def test_names_and_shapes_in_the_file(tmp_path):
    model = classifier()
    save(model, tmp_path, special_tokens=SpecialTokens(pad=0))
    stored, metadata = safetensors.read_header(tmp_path / "model.safetensors")
    assert metadata["format"] == "pt"
    name = "encoder.layer.1.intermediate.dense.weight"
    assert stored["bert." + name].shape == (20, 12)      # (out,in), as torch has it
    np.testing.assert_array_equal(stored["bert." + name].read().T, model.store[name].value)
    assert stored["bert.embeddings.word_embeddings.weight"].shape == (31, 12)
    assert {"classifier.weight", "bert.pooler.dense.bias"} <= stored.keys()
    settings = read_json(tmp_path / "config.json")
    assert settings["model_type"] == "bert" and settings["pad_token_id"] == 0
    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert settings["id2label"] == {"0": "business", "1": "sports", "2": "world"}
    assert settings["layer_norm_eps"] == 1e-12 and "note" not in settings


def test_a_mean_says_that_others_have_no_such_class(tmp_path):
    save(classifier("mean"), tmp_path)
    settings = read_json(tmp_path / "config.json")
    assert settings["model_type"] == BERT_MEAN and settings["architectures"] == [BERT_MEAN]
    assert "transformers has no such class" in settings["note"]
    tensors, _ = safetensors.read_header(tmp_path / "model.safetensors")
    assert not [name for name in tensors if "pooler" in name]


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_old_names(tmp_path, prefix):
    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return prefix + name.replace("LayerNorm.bias", "LayerNorm.beta").removeprefix("bert.")

    model = classifier()
    bare(tmp_path, old)
    loaded = load(tmp_path, label_names=NAMES)
    assert loaded.newly_initialized == HEAD
    assert same(model, loaded, {p.name for p in model.store} - set(HEAD))
    rewrite(tmp_path, lambda name: name.replace("encoder.layer.0.output.LayerNorm.gamma",
                                                "encoder.layer.0.output.LayerNorm.delta"))
    refused(tmp_path, "encoder.layer.0.output.LayerNorm.weight is missing", label_names=NAMES)


def test_heads_of_pretraining_are_left_out(tmp_path):
    bare(tmp_path, lambda name: name)
    stored, _ = safetensors.read_header(tmp_path / "model.safetensors")
    arrays = {name: t.read() for name, t in stored.items()} | {
        "cls.predictions.bias": np.zeros(31, "f4"),
        "cls.predictions.transform.dense.weight": np.zeros((12, 12), "f4"),
        "cls.seq_relationship.weight": np.zeros((2, 12), "f4"),
        "bert.embeddings.position_ids": np.arange(8)[None]}
    safetensors.write(tmp_path / "model.safetensors", arrays)
    assert load(tmp_path, label_names=NAMES).newly_initialized == HEAD
    safetensors.write(tmp_path / "model.safetensors", arrays | {"bert.extra": np.zeros(3, "f4")})
    refused(tmp_path, "bert.extra is unexpected, the BERT that", label_names=NAMES)
    safetensors.write(tmp_path / "model.safetensors", arrays | {
        "embeddings.LayerNorm.bias": np.zeros(12, "f4")})
    refused(tmp_path, "embeddings.LayerNorm.bias is there twice", label_names=NAMES)


def test_a_head_goes_by_the_names_of_its_labels(tmp_path):
    save(classifier(), tmp_path)
    model, kept = load(tmp_path, label_names=NAMES[::-1]), classifier()
    assert not model.newly_initialized and model.label_names == NAMES[::-1]
    for name in HEAD:
        np.testing.assert_array_equal(model.store[name].value, kept.store[name].value[..., ::-1])
    model = load(tmp_path, label_names=NAMES, pooling="mean")
    assert model.newly_initialized and "reads the mean of the tokens" in model.new_head_reason


def test_what_a_bare_trunk_lacks_is_drawn(tmp_path):
    bare(tmp_path)
    model = load(tmp_path, label_names=NAMES, seed=11)
    drawn = BertClassifier(CONFIG, NAMES, seed=11)
    assert isinstance(model, Classifier) and model.newly_initialized == HEAD
    assert same(drawn, model, HEAD) and same(classifier(), model, POOLER)
    assert load(tmp_path, label_names=NAMES, pooling="mean").newly_initialized == HEAD
    rewrite(tmp_path, lambda name: None if name in POOLER else name)
    model = load(tmp_path, label_names=NAMES, seed=11)
    assert model.newly_initialized == POOLER + HEAD and same(drawn, model, POOLER + HEAD)
    assert load(tmp_path, label_names=NAMES, pooling="mean").newly_initialized == HEAD
    refused(tmp_path, "a BERT without labels")
    refused(tmp_path, "holds a BERT, which writes no text", task="complete")


def test_head_stays_for_the_same_labels_and_pooling(tmp_path):
    for pooling, other in ("first", "mean"), ("mean", "first"):
        folder = tmp_path / pooling
        save(classifier(pooling), folder)
        for options in {}, {"pooling": pooling}, {"label_names": list(NAMES)}:
            kept = load(folder, **options)
            assert kept.newly_initialized == () and kept.pooling == pooling
            assert same(kept, classifier(pooling))
        assert load(folder, label_names=["a", "b"]).newly_initialized == HEAD
        model = load(folder, label_names=NAMES, pooling=other)
        assert model.pooling == other and set(model.newly_initialized) == set(
            HEAD if other == "mean" else POOLER + HEAD)
    rewrite(tmp_path / "first", lambda name: None if "pooler" in name else name)
    refused(tmp_path / "first", "pooler.dense.weight is missing")


def test_a_classifier_of_tokens_is_no_classifier_of_texts(tmp_path):
    save(classifier(), tmp_path)
    rewrite(tmp_path, lambda name: name, architectures=["BertForTokenClassification"])
    refused(tmp_path, "a BERT without labels", task="classify")
    assert isinstance(load(tmp_path), TokenClassifier)
    assert load(tmp_path, label_names=NAMES).newly_initialized == HEAD
    rewrite(tmp_path, lambda name: name, architectures=...)
    assert load(tmp_path, label_names=NAMES).newly_initialized == ()


def test_dropout_rates(tmp_path):
    save(classifier(), tmp_path)
    model = load(tmp_path, dropout=0.25)
    assert model.drop.rate == model.trunk.blocks[1].drop_2.rate == 0.25
    assert model.trunk.blocks[0].attention.rate == model.trunk.embeddings.drop.rate == 0.25
    refused(tmp_path, "dropout", "1.0", dropout=1.0)


def test_config_contradicts_tensors(tmp_path):
    save(classifier(), tmp_path)
    good = (tmp_path / "config.json").read_text()
    for changes, words in [
            ({"vocab_size": 32}, ["word_embeddings.weight", "(31, 12)", "(32, 12)"]),
            ({"intermediate_size": 21}, ["intermediate.dense.weight", "(20, 12)", "(21, 12)"]),
            ({"type_vocab_size": 3}, ["token_type_embeddings", "(2, 12)"]),
            ({"num_hidden_layers": 1}, ["encoder.layer.1.", "unexpected"]),
            ({"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000"]),
            ({"num_attention_heads": 5}, ["config.json", "num_attention_heads 5"]),
            ({"position_embedding_type": "relative_key"}, ["position_embedding_type"]),
            ({"model_type": "gpt2"}, ["wte.weight is missing"]),
            ({"id2label": {"0": "a", "1": "b"}}, ["2 labels", "classifier.weight", "3 rows"])]:
        (tmp_path / "config.json").write_text(json.dumps(json.loads(good) | changes))
        refused(tmp_path, *words)


def test_pooling_is_berts(tmp_path):
    save(Classifier(GPT2Config(31, 8, 12, 2, 3), NAMES), tmp_path)
    refused(tmp_path, "pooling mean is for BERT", pooling="mean")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "base_model.model."])
def test_names_behind_a_wrapper(tmp_path, wrapper):
    model = classifier()
    save(model, tmp_path)
    rewrite(tmp_path, lambda name: wrapper + name)
    assert same(model, load(tmp_path))


def test_a_config_without_model_type_is_told_by_its_keys(tmp_path):
    model = classifier()
    save(model, tmp_path)
    rewrite(tmp_path, lambda name: name, model_type=..., architectures=...)
    loaded = load(tmp_path)
    assert type(loaded) is BertClassifier and same(model, loaded)


@pytest.mark.parametrize(("architecture", "names"), [
    ("BertForQuestionAnswering", ("qa_outputs.bias", "qa_outputs.weight")),
    ("BertForMultipleChoice", ("classifier.bias", "classifier.weight")),
    ("BertForTokenClassification", ("classifier.bias", "classifier.weight")),
    ("BertForPreTraining", ("cls.predictions.bias", "cls.seq_relationship.weight"))])
def test_heads_of_another_task_are_left_out_with_a_note(tmp_path, architecture, names):
    model = classifier()
    bare(tmp_path)
    tensors, _ = safetensors.read_header(tmp_path / "model.safetensors")
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    safetensors.write(tmp_path / "model.safetensors",
                      arrays | {name: np.ones((1, 12), "f4") for name in names})
    rewrite(tmp_path, lambda name: name, architectures=[architecture])
    loaded = load(tmp_path, label_names=NAMES)
    assert loaded.unused_tensors == names and loaded.newly_initialized == HEAD
    assert same(model, loaded, {p.name for p in model.store} - set(HEAD))
