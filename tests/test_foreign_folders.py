"""The same text gives the same answer in `transformers`: our folders there, and theirs here.

Each folder is a kind that people have: random weights, wide enough that logits differ.
"""

import os
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer

from minisft.data.sequences import encode_sequences
from minisft.data.text import clean, train_tokenizer
from minisft.evaluation.evaluate import log_probabilities
from minisft.io.model_folder import (
    Preprocessing,
    read_folder,
    read_preprocessing,
    special_tokens_of,
    write_folder,
)
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel

pytestmark = pytest.mark.parity

SHAPE = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
TEXTS = ["a film about a river", "first line\nsecond  line", "the river of a film", "a long film"]


@pytest.fixture(scope="module")
def hf():
    """transformers; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


def ours(tokenizer, labels=None):
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), **SHAPE)
    model = Classifier(config, labels) if labels else LanguageModel(config)
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(
        model.store.size).astype(np.float32)
    return model


def our_probabilities(folder, texts):
    """As `minisft predict` has them."""
    model, tokenizer, preprocessing = read_folder(folder)
    texts = [clean(text, preprocessing.clean)[0] for text in texts]
    ids, types, _ = encode_sequences(tokenizer, texts, preprocessing.max_length,
                                     preprocessing.truncate)
    return np.exp(log_probabilities(model, ids, 1000, types=types))


def their_probabilities(hf, folder, texts):
    """As the pipeline has them: tokenizer and model as they come."""
    pipe = hf.pipeline("text-classification", model=str(folder), top_k=None)
    names = list(pipe.model.config.id2label.values())
    return np.array([[next(p["score"] for p in row if p["label"] == name) for name in names]
                     for row in pipe(texts, truncation=True)])


def test_our_classifier_as_it_comes(hf, tokenizer, tmp_path):
    """Every argument that the tokenizer gives goes to the model: token types would be added."""
    write_folder(tmp_path, ours(tokenizer, ("neg", "pos", "so")), tokenizer,
                 Preprocessing(clean=()))
    expected = their_probabilities(hf, tmp_path, TEXTS)
    assert np.ptp(expected, axis=0).min() > 0.01
    np.testing.assert_allclose(our_probabilities(tmp_path, TEXTS), expected, atol=1e-5)


def foreign(hf, tokenizer, folder, kind="GPT2ForSequenceClassification", roles=None, **settings):
    """A folder that transformers wrote, with random weights."""
    import torch
    torch.manual_seed(0)
    roles = roles or {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
                                      model_input_names=["input_ids", "attention_mask"], **roles)
    ids = {f"{role}_id": fast.convert_tokens_to_ids(token) for role, token in roles.items()}
    config = hf.GPT2Config(vocab_size=len(fast), initializer_range=0.3, **SHAPE | ids | settings)
    getattr(hf, kind)(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def test_a_foreign_classifier_reads_texts_as_they_are(hf, tokenizer, tmp_path):
    foreign(hf, tokenizer, tmp_path)
    texts = [*TEXTS, "A &amp; B\t<b>bold</b>", "\\$3  \n"]
    expected = their_probabilities(hf, tmp_path, texts)
    np.testing.assert_allclose(our_probabilities(tmp_path, texts), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_only_torch_save_has_written(hf, tokenizer, tmp_path, dtype):
    """pytorch_model.bin: the same logits as from their own loading."""
    import torch
    foreign(hf, tokenizer, tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.to(getattr(torch, dtype))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    if dtype == "float32":
        expected = their_probabilities(hf, tmp_path, TEXTS)     # from the file
    else:      # the values as stored, computed in float32 as we do
        model.float().save_pretrained(tmp_path / "again")
        hf.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
        expected = their_probabilities(hf, tmp_path / "again", TEXTS)
    np.testing.assert_allclose(our_probabilities(tmp_path, TEXTS), expected, atol=1e-5)


def test_our_folder_saved_again_by_trainer(hf, tokenizer, tmp_path):
    """An epoch of Trainer on our folder: it loads here, and its texts are cleaned as before."""
    pytest.importorskip("accelerate")
    kept = Preprocessing(("entities", "spaces"), 9, "tail")
    write_folder(tmp_path / "ours", ours(tokenizer, ("neg", "pos")), tokenizer, kept)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    fast = hf.AutoTokenizer.from_pretrained(tmp_path / "ours")
    rows = [dict(fast(text)) | {"labels": i % 2} for i, text in enumerate(TEXTS)]
    trainer = hf.Trainer(
        model, hf.TrainingArguments(str(tmp_path / "run"), num_train_epochs=1, report_to="none",
                                    use_cpu=True, disable_tqdm=True, learning_rate=0.01),
        train_dataset=rows, data_collator=hf.DataCollatorWithPadding(fast))
    before = our_probabilities(tmp_path / "ours", TEXTS)
    trainer.train()
    trainer.save_model(str(tmp_path / "theirs"))
    fast.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "minisft.json").exists()
    assert read_preprocessing(tmp_path / "theirs") == kept
    texts = [clean(text, kept.clean)[0] for text in TEXTS]
    expected = their_probabilities(hf, tmp_path / "theirs", texts)
    assert np.abs(expected - before).max() > 0.01
    np.testing.assert_allclose(our_probabilities(tmp_path / "theirs", TEXTS), expected, atol=1e-5)


def test_generation_as_it_comes(hf, tokenizer, tmp_path, caplog):
    """The pipeline on our folder: the same text, ended by the end token or the model's length."""
    model = ours(tokenizer)
    write_folder(tmp_path, model, tokenizer, Preprocessing(clean=()))
    prompts, room = ["a film", "the river of a", "first line\n"], model.trunk.config.n_positions
    pipe = hf.pipeline("text-generation", model=str(tmp_path))
    for prompt in prompts:
        ids = np.array(tokenizer.encode(prompt).ids)
        (new,) = generate(model, [ids], room - len(ids), Sampler(0),
                          special_tokens_of(model, tokenizer).eos)
        (found,) = pipe(prompt, do_sample=False)
        assert found["generated_text"] == prompt + tokenizer.decode(new.ids)
    assert "max_" not in caplog.text and "pad" not in caplog.text


def test_generation_stops_where_theirs_does(hf, tokenizer, tmp_path):
    foreign(hf, tokenizer, tmp_path, "GPT2LMHeadModel")
    their = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    fast = hf.AutoTokenizer.from_pretrained(tmp_path)
    inputs = fast("a film", return_tensors="pt")
    free = their.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=-1)[0]
    ends = [int(free[-3]), 279]
    their.generation_config.eos_token_id = ends
    their.save_pretrained(tmp_path)
    expected = their.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    model, tokenizer, _ = read_folder(tmp_path)
    prompt = inputs["input_ids"][0].numpy()
    (new,) = generate(model, [prompt], 8, Sampler(0), special_tokens_of(model, tokenizer).eos)
    assert [*prompt, *new.ids, ends[0]] == expected and new.finish_reason == "stop"


def test_roles_of_another_name_outlive_us(hf, tokenizer, tmp_path):
    """Read, written again: theirs pads a batch with its own token and gives our probabilities."""
    roles = {"bos_token": "a", "eos_token": "r", "pad_token": "<|endoftext|>", "unk_token": "i"}
    foreign(hf, tokenizer, tmp_path / "theirs", roles=roles)
    model, again, preprocessing = read_folder(tmp_path / "theirs")
    write_folder(tmp_path / "ours", model, again, preprocessing)
    fast = hf.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert {role: getattr(fast, role) for role in roles} == roles
    config = hf.AutoConfig.from_pretrained(tmp_path / "ours")
    assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == [
        tokenizer.token_to_id(roles[f"{role}_token"]) for role in ("bos", "eos", "pad")]
    inputs = fast(TEXTS, padding=True, return_tensors="pt")
    peer = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    expected = peer.eval()(**inputs).logits.softmax(-1).detach().numpy()
    np.testing.assert_allclose(our_probabilities(tmp_path / "ours", TEXTS), expected, atol=1e-5)


def test_a_language_model_in_trainer(hf, tokenizer, tmp_path, caplog, monkeypatch):
    """The special tokens of tokenizer and model are the same: Trainer has none to change."""
    pytest.importorskip("accelerate")
    write_folder(tmp_path / "ours", ours(tokenizer), tokenizer, Preprocessing(clean=()))
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    fast = hf.AutoTokenizer.from_pretrained(tmp_path / "ours")
    names = "bos_token_id", "eos_token_id", "pad_token_id"
    before = [[getattr(c, name) for name in names] for c in (model.config, model.generation_config)]
    monkeypatch.setattr(hf.utils.logging.get_logger("transformers"), "propagate", True)
    hf.utils.logging.set_verbosity_warning()
    trainer = hf.Trainer(
        model, hf.TrainingArguments(str(tmp_path / "run"), num_train_epochs=1, report_to="none",
                                    use_cpu=True, disable_tqdm=True),
        train_dataset=[dict(fast(text)) for text in TEXTS], processing_class=fast,
        data_collator=hf.DataCollatorForLanguageModeling(fast, mlm=False))
    trainer.train()
    hf.utils.logging.set_verbosity_error()
    assert "PAD" not in caplog.text
    assert before == [[getattr(c, name) for name in names]
                      for c in (model.config, model.generation_config)] == [[279] * 3] * 2
    trainer.save_model(str(tmp_path / "theirs"))
    found, _, _ = read_folder(tmp_path / "theirs", task="complete")
    np.testing.assert_array_equal(found.store["wpe.weight"].value,
                                  model.transformer.wpe.weight.detach().numpy())
