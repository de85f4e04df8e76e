"""The folder of an encoder-decoder: here again, in transformers, and what cannot use it."""

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import minisft
from minisft.cli import main
from minisft.data.batch import pack_pairs
from minisft.data.special_tokens import SpecialTokens
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from minisft.io import safetensors
from minisft.io.checkpoint import load, save
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.config import GPT2Config, Seq2SeqConfig
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.translate import beam_search, greedy

CONFIG = Seq2SeqConfig(
    vocab_size=300, d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3,
    decoder_attention_heads=2, encoder_ffn_dim=40, decoder_ffn_dim=56, max_position_embeddings=30,
    pad_token_id=3, decoder_start_token_id=5, eos_token_id=7)
START, END = CONFIG.decoder_start_token_id, CONFIG.eos_token_id


def model_of(rng, config=CONFIG):
    model = EncoderDecoder(config, seed=1)
    model.store.values += (0.15 * rng.standard_normal(model.store.size)).astype(np.float32)
    return model


def sources(rng, lengths=(6, 1, 17, 4)):
    return [rng.integers(8, CONFIG.vocab_size, n) for n in lengths]


def pairs(rng):
    return pack_pairs(sources(rng), sources(rng, (3, 9, 12, 1)), START, END)


def folder_of(rng, path, model=None):
    tokenizer = train_tokenizer(["a small text", "ein kleiner Text"], 280)
    model = model or model_of(rng)
    model.special_tokens = SpecialTokens(START, (END,), CONFIG.pad_token_id)
    write_folder(path, model, tokenizer, Preprocessing())
    return model


def test_a_folder_keeps_every_bit(rng, tmp_path):
    model, batch = folder_of(rng, tmp_path), pairs(rng)
    for task in (None, "translate"):
        again = load(tmp_path, task=task)
        assert isinstance(again, EncoderDecoder) and again.trunk.config == CONFIG
        assert np.array_equal(again.forward(batch), model.forward(batch))
        assert not again.notes and not again.newly_initialized and not again.unused_tensors
    again, tokenizer = minisft.load(str(tmp_path), "translate", dropout=0.3)
    assert again.trunk.config.dropout_rates == {0.3} and tokenizer.encode("text").ids
    save(model, tmp_path / "half", np.float16)
    np.testing.assert_allclose(load(tmp_path / "half").forward(batch), model.forward(batch),
                               rtol=0, atol=0.05)


def test_names_of_the_file_are_those_of_transformers(rng, tmp_path):
    save(model_of(rng), tmp_path)
    tensors = safetensors.read_header(tmp_path / "model.safetensors")[0]
    assert tensors["model.shared.weight"].shape == (300, 24)
    assert tensors["model.encoder.layers.1.fc1.weight"].shape == (40, 24)
    assert tensors["model.decoder.layers.2.encoder_attn.k_proj.bias"].shape == (24,)
    assert len(tensors) == 1 + 2 * 16 + 3 * 26 + 4


@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.embed_tokens.weight",
                                  "model.decoder.embed_tokens.weight"])
def test_copies_of_the_table(rng, tmp_path, name):
    model, batch = model_of(rng), pairs(rng)
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = {n: t.read() for n, t in safetensors.read_header(path)[0].items()}
    positions = {"model.encoder.embed_positions.weights": np.zeros((3, 24), np.float32)}
    table = arrays["model.shared.weight"]
    safetensors.write(path, arrays | positions | {name: table}, {"format": "pt"})
    assert np.array_equal(load(tmp_path).forward(batch), model.forward(batch))
    del arrays["model.shared.weight"]     # saved under its other name alone
    safetensors.write(path, arrays | {name: table}, {"format": "pt"})
    assert np.array_equal(load(tmp_path).forward(batch), model.forward(batch))
    safetensors.write(path, arrays | {"model.shared.weight": table, name: table + 1},
                      {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} is not equal to model.shared.weight"):
        load(tmp_path)


@pytest.mark.parametrize("task, options, expected", [
    ("classify", {}, "a classifier"), ("complete", {}, "a language model such as GPT-2"),
    ("tag", {}, "a GPT-2 or a BERT"), ("answer", {}, "a GPT-2 or a BERT"),
    (None, {"label_names": ("a", "b")}, "a classifier")])
def test_other_tasks_are_refused(rng, tmp_path, task, options, expected):
    save(model_of(rng), tmp_path)
    with pytest.raises(UserError, match=f"which translates and nothing else, expected {expected}"):
        load(tmp_path, task=task, **options)
    with pytest.raises(ValueError, match="task is 'translation', expected classify, "):
        load(tmp_path, task="translation")


@pytest.mark.parametrize("kind", [LanguageModel, lambda c: Classifier(c, ("a", "b"))])
def test_others_do_not_translate(tmp_path, kind):
    save(kind(GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1)), tmp_path)
    with pytest.raises(UserError, match="holds a GPT-2, expected an encoder-decoder"):
        load(tmp_path, task="translate")


@pytest.mark.parametrize("changed, message", [
    ({"scale_embedding": False}, "scale_embedding = False is not supported"),
    ({"activation_dropout": 0.1}, "activation_dropout = 0.1 is not supported"),
    ({"activation_function": "relu"}, "activation_function is 'relu'"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
    ({"decoder_layers": 4}, "decoder.layers.3.self_attn.k_proj.weight is missing"),
    ({"decoder_layers": 400}, "encoder_layers . decoder_layers is 402, but there are only"),
    ({"encoder_ffn_dim": 41}, "encoder.layers.0.fc1.weight has shape"),
    ({"d_model": "24"}, "d_model is '24', expected a whole number"),
    ({"eos_token_id": [7, 8]}, r"eos_token_id is \[7, 8\]"),
])
def test_configs_that_do_not_fit(rng, tmp_path, changed, message):
    save(model_of(rng), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("command, expected", [
    (["predict", "a text"], "expected a classifier"),
    (["generate", "a text"], "expected a language model"),
    (["plan"], "expected a GPT-2 or a BERT"),
])
def test_commands_that_cannot_use_it(rng, tmp_path, capsys, command, expected):
    folder_of(rng, tmp_path)
    name, *rest = command
    assert main([name, "--model", str(tmp_path), *rest]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "encoder-decoder" in line and expected in line


def test_the_command_checks_its_gradients(rng, tmp_path, capsys):
    config = Seq2SeqConfig(vocab_size=9, d_model=4, encoder_layers=1, decoder_layers=1,
                           encoder_attention_heads=2, decoder_attention_heads=1, encoder_ffn_dim=3,
                           decoder_ffn_dim=3, max_position_embeddings=5)
    save(model_of(rng, config), tmp_path)
    assert main(["check", "--model", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "decoder.layers.0.encoder_attn.v_proj.weight (dropout)" in out
    assert "94 checks, all pass" in out


@pytest.fixture(scope="module")
def hf():
    """torch and transformers; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
        kind = transformers.M2M100ForConditionalGeneration
        transformers.utils.logging.disable_progress_bar()
    return SimpleNamespace(torch=torch, Model=kind, Config=transformers.M2M100Config)


def padded(hf, batch, end):
    """A packed batch -> ids (B,T), filled up with the padding token, and mask (B,T)."""
    rows = [batch.ids[a:b] for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
    ids = np.full((len(rows), max(map(len, rows))), end)
    for row, text in zip(ids, rows, strict=True):
        row[:len(text)] = text
    mask = np.arange(ids.shape[1]) < batch.lengths[:, None]
    return hf.torch.tensor(ids), hf.torch.tensor(mask.astype(int))


def their_logits(hf, model, batch):
    ids, mask = padded(hf, batch.source, CONFIG.pad_token_id)
    targets, target_mask = padded(hf, batch, CONFIG.pad_token_id)
    with hf.torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
    return logits[target_mask.bool()].numpy()


@pytest.mark.parity
def test_transformers_has_the_same_logits(hf, rng, tmp_path):
    model, batch = folder_of(rng, tmp_path), pairs(rng)
    theirs, notes = hf.Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    ours, other = model.forward(batch), their_logits(hf, theirs.eval(), batch)
    assert np.abs(ours - other).max() < 1e-4 and np.ptp(ours) > 1
    assert np.array_equal(ours.argmax(axis=1), other.argmax(axis=1))


@pytest.mark.parity
def test_a_folder_of_transformers_has_the_same_logits(hf, rng, tmp_path):
    hf.torch.manual_seed(3)
    made = hf.Config(**vars(CONFIG) | {"activation_function": "gelu", "init_std": 0.2})
    theirs, batch = hf.Model(made).eval(), pairs(rng)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path).forward(batch)
    assert np.abs(ours - their_logits(hf, theirs, batch)).max() < 1e-4 and np.ptp(ours) > 1


def their_words(sequences):
    """ids (B,T) of generate -> those between the start and the end token."""
    rows = [row[1:].tolist() for row in sequences]
    return [row[:row.index(END)] if END in row else row for row in rows]


@pytest.mark.parity
@pytest.mark.parametrize("penalty, push", [(0.0, 2), (0.8, 3), (1.0, 4)])
def test_transformers_has_the_same_translations(hf, rng, tmp_path, penalty, push):
    model = model_of(rng)
    # towards the end token, else a model of random weights would never end
    model.trunk.decoder.layer_norm.b.value += push * model.store["shared.weight"].value[END]
    folder_of(rng, tmp_path, model)
    theirs, texts = hf.Model.from_pretrained(tmp_path).eval(), sources(rng, (6, 1, 17, 4, 9, 3))
    ids, mask = padded(hf, pack_pairs(texts, texts, START, END).source, CONFIG.pad_token_id)
    found = theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, num_beams=1,
                            do_sample=False)
    expected = [g.ids for g in greedy(model, texts, 12)]
    assert [words[:len(e)] for words, e in zip(their_words(found), expected, strict=True)
            ] == expected
    found = theirs.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, num_beams=4, do_sample=False,
        length_penalty=penalty, early_stopping="never", output_scores=True,
        return_dict_in_generate=True)
    ours = beam_search(model, texts, 4, penalty, 12)
    assert [h.ids for h in ours] == their_words(found.sequences)
    np.testing.assert_allclose([h.score for h in ours], found.sequences_scores, atol=1e-4)
    assert {"stop", "length"} == {h.finish_reason for h in ours}
