"""Checkpoint folders: round trips, every form that others write, and every way to be damaged."""

import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minisft.data.special_tokens import SpecialTokens
from minisft.errors import UserError
from minisft.io import config_checksums, safetensors
from minisft.io.checkpoint import load, save
from minisft.io.files import read_json
from minisft.io.model_folder import notes_of
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel

CONFIG = GPT2Config(vocab_size=31, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=20)
NAMES = "business", "sports", "world"
GOLDEN = Path(__file__).parent / "golden" / "gpt2_tiny"
CODES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "BOOL": "|b1"}


def language_model(tied=True, config=CONFIG):
    return LanguageModel(config, tied, seed=5)


def classifier(names=NAMES):
    return Classifier(CONFIG, names, seed=5)


def raw_file(path, entries, metadata=None):
    """A safetensors file by hand: entries name -> (code, shape, bytes)."""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, (code, shape, content) in entries.items():
        header[name] = {"dtype": code, "shape": list(shape),
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def foreign_entries(model, prefix="transformer.", code="F32"):
    """The model's tensors as others store them: name -> (code, shape, bytes)."""
    entries = {}
    for p in model.store:
        x = p.value
        name = prefix + p.name
        if p.name in ("score.weight", "lm_head.weight"):
            x, name = x.T, p.name
        x = np.ascontiguousarray(x, dtype=np.float32)
        raw = (x.view("<u4") >> 16).astype("<u2") if code == "BF16" else x.astype(CODES[code])
        entries[name] = code, x.shape, raw.tobytes()
    return entries


@pytest.fixture
def folder(tmp_path):
    """A folder with a language model as another program would write it: no checksums."""
    return foreign(tmp_path / "foreign", language_model())


def foreign(folder, model, **options):
    save(model, folder)
    raw_file(folder / "model.safetensors", foreign_entries(model, **options))
    return folder


def change_config(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is ...:
            settings.pop(key)
        else:
            settings[key] = value
    (folder / "config.json").write_text(json.dumps(settings))


def change_tensors(folder, changes):
    """Replaces tensors by (code, shape, bytes), or takes them out for None; drops checksums."""
    stored, _ = safetensors.read_header(folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    entries = {}
    for name, tensor in stored.items():
        size = int(np.prod(tensor.shape)) * np.dtype(CODES[tensor.dtype]).itemsize
        entries[name] = tensor.dtype, tensor.shape, content[tensor.start:tensor.start + size]
    entries |= changes
    raw_file(folder / "model.safetensors", {n: e for n, e in entries.items() if e is not None})


def zeros(*shape, code="F32"):
    return code, shape, np.zeros(shape, CODES[code]).tobytes()


def same(model, other):
    assert [p.name for p in model.store] == [p.name for p in other.store]
    return all(np.array_equal(p.value, other.store[p.name].value) for p in model.store)


def refused(folder, *words, **options):
    """Asserts that `load` says no, in one line that holds these words."""
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


# Round trips

@pytest.mark.parametrize("model", [language_model(), language_model(tied=False), classifier()],
                         ids=["tied", "untied", "classifier"])
def test_round_trip(tmp_path, model):
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(model) and loaded.newly_initialized == ()
    assert same(model, loaded) and loaded.trunk.config == model.trunk.config
    assert getattr(loaded, "label_names", None) == getattr(model, "label_names", None)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    # transformers before version 5 opens no file that does not say so
    assert safetensors.read_header(tmp_path / "model.safetensors")[1]["format"] == "pt"
    assert loaded.store.values.base.flags.owndata and loaded.store.grads.any() == 0


def test_save_after_freezing_layers(tmp_path):
    model = classifier()
    model.train_layers("last:1")
    save(model, tmp_path)
    assert same(model, load(tmp_path))


def test_float16_rounds_once(tmp_path):
    model = language_model()
    save(model, tmp_path, dtype=np.float16)
    assert read_json(tmp_path / "config.json")["dtype"] == "float16"
    loaded = load(tmp_path)
    for p in model.store:
        assert np.array_equal(loaded.store[p.name].value, p.value.astype(np.float16))


END = SpecialTokens(30, (30,), 30)


def test_config_has_what_others_ask_for(tmp_path):
    save(classifier(), tmp_path, special_tokens=END, extra_config={"made_by": "minisft"})
    settings = read_json(tmp_path / "config.json")
    assert settings["architectures"] == ["GPT2ForSequenceClassification"]
    assert settings["id2label"] == {"0": "business", "1": "sports", "2": "world"}
    assert settings["label2id"] == {"business": 0, "sports": 1, "world": 2}
    assert settings["pad_token_id"] == settings["eos_token_id"] == 30
    assert settings["n_ctx"] == settings["n_positions"] == 8 and settings["n_inner"] == 20
    assert settings["made_by"] == "minisft"
    save(language_model(tied=False), tmp_path, special_tokens=END)
    settings = read_json(tmp_path / "config.json")
    assert settings["architectures"] == ["GPT2LMHeadModel"]
    assert settings["tie_word_embeddings"] is False and settings["pad_token_id"] == 30
    save(language_model(), tmp_path, special_tokens=SpecialTokens(None, (3, 30)))
    settings = read_json(tmp_path / "config.json")
    assert [settings[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [None, [3, 30], None]


def test_save_refuses(tmp_path):
    model = language_model()
    with pytest.raises(ValueError, match="float64"):
        save(model, tmp_path, dtype=np.float64)
    with pytest.raises(ValueError, match="n_head"):
        save(model, tmp_path, extra_config={"n_head": 7})
    model.store["wpe.weight"].value[0, 0] = 1e5
    with pytest.raises(UserError, match="wpe.weight.*float16"):
        save(model, tmp_path, dtype=np.float16)
    model.store["wpe.weight"].value[0, 0] = np.nan
    with pytest.raises(UserError, match="wpe.weight.*not finite"):
        save(model, tmp_path)
    with pytest.raises(UserError, match="'a' is there twice"):
        save(classifier(["a", "b", "a"]), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save(classifier(), tmp_path / "file" / "model")


# What others write

@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prefixes_and_dtypes(tmp_path, prefix, code, dtype):
    model = language_model()
    foreign(tmp_path, model, prefix=prefix, code=code)
    loaded = load(tmp_path, dtype)
    assert loaded.store.values.dtype == dtype
    tolerance = {"F64": 0, "F32": 0, "F16": 2**-11, "BF16": 2**-7}[code]
    for p in model.store:
        np.testing.assert_allclose(loaded.store[p.name].value, p.value, rtol=tolerance, atol=1e-7)


def test_masks_of_old_files_are_left_out(folder):
    change_tensors(folder, {"transformer.h.0.attn.bias": zeros(1, 1, 8, 8, code="BOOL"),
                            "transformer.h.1.attn.bias": zeros(1, 1, 8, 8),
                            "transformer.h.1.attn.masked_bias": zeros()})
    assert same(load(folder), language_model())


def split(folder, parts=3):
    """model.safetensors -> shards with an index, as transformers writes them."""
    stored, _ = safetensors.read_header(folder / "model.safetensors")
    content, places = (folder / "model.safetensors").read_bytes(), {}
    for part in range(parts):
        name, entries = f"model-{part + 1:05}-of-{parts:05}.safetensors", {}
        for key in sorted(stored)[part::parts]:
            t = stored[key]
            entries[key] = t.dtype, t.shape, content[t.start:t.start + 4 * int(np.prod(t.shape))]
            places[key] = name
        raw_file(folder / name, entries, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    write_index(folder, places)
    return places


def write_index(folder, places):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def test_shards(folder):
    split(folder)
    assert same(load(folder), language_model())


def test_broken_shards(folder):
    places = split(folder)
    first, wte = "model-00001-of-00003.safetensors", "transformer.wte.weight"
    index = "model.safetensors.index.json"
    write_index(folder, places | {wte: "model-00009-of-00003.safetensors"})
    refused(folder, index, "model-00009-of-00003.safetensors", "not there")
    write_index(folder, places | {"transformer.h.7.ln_1.bias": first})
    refused(folder, first, "transformer.h.7.ln_1.bias", "missing")
    write_index(folder, {k: v for k, v in places.items() if k != wte})
    refused(folder, places[wte], wte, "does not say so")
    for elsewhere in "../foreign/x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x", "..":
        write_index(folder, places | {wte: elsewhere})
        refused(folder, index, elsewhere if elsewhere == ".." else repr(elsewhere))
    for text in "", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\udcff":
        (folder / index).write_text(text, errors="surrogateescape")
        refused(folder, index, "weight_map")


def test_tied_and_separate_output_matrix(folder):
    wte = foreign_entries(language_model())["transformer.wte.weight"]
    change_tensors(folder, {"lm_head.weight": wte})
    assert load(folder).lm_head is None                  # equal: one matrix
    other = np.arange(31 * 12, dtype="<f4").reshape(31, 12)
    change_tensors(folder, {"lm_head.weight": ("F32", (31, 12), other.tobytes())})
    for tie in True, False, ...:                         # different: two, as transformers 5
        change_config(folder, tie_word_embeddings=tie)
        model = load(folder)
        np.testing.assert_array_equal(model.lm_head.w.value, other.T)
    assert load(folder, task="classify", label_names=NAMES).newly_initialized == ("score.weight",)
    change_config(folder, tie_word_embeddings=False)
    change_tensors(folder, {"lm_head.weight": wte})
    assert load(folder).lm_head is not None              # equal, but told to be two
    change_tensors(folder, {"lm_head.weight": None})
    refused(folder, "lm_head.weight", "missing")


# Heads

def test_classifier_from_a_language_model_or_bare_trunk(folder):
    for architectures in ["GPT2LMHeadModel"], ["GPT2Model"], ...:
        change_config(folder, architectures=architectures)
        assert isinstance(load(folder), LanguageModel)
        model = load(folder, task="classify", label_names=NAMES, seed=11)
        assert model.label_names == NAMES and model.newly_initialized == ("score.weight",)
        drawn = Classifier(CONFIG, NAMES, seed=11).store["score.weight"].value
        np.testing.assert_array_equal(model.store["score.weight"].value, drawn)
        np.testing.assert_array_equal(model.trunk.wte.w.value,
                                      language_model().trunk.wte.w.value)
        change_config(folder, architectures=["GPT2Model"])
    refused(folder, "language model without labels", task="classify")


def test_head_stays_for_the_same_labels_only(tmp_path):
    save(classifier(), tmp_path)
    kept = load(tmp_path, label_names=list(NAMES))
    assert kept.newly_initialized == () and same(kept, classifier())
    for names in ("business", "sports"), ("a", "b", "c"), ("business", "sports", "World"):
        model = load(tmp_path, label_names=names, seed=2)
        assert model.label_names == names and model.newly_initialized == ("score.weight",)
        assert f"business, sports, world, the texts' are {', '.join(names)}" in \
            model.new_head_reason
        assert ("label_map" in model.new_head_reason) == (len(names) == 3)
        assert model.store["score.weight"].shape == (12, len(names))
        np.testing.assert_array_equal(model.trunk.ln_f.w.value, kept.trunk.ln_f.w.value)
    refused(tmp_path, "holds a classifier", task="complete")


def test_a_head_goes_by_the_names_of_its_labels(tmp_path):
    """In whatever order they are asked for, and under new names."""
    save(classifier(), tmp_path)
    kept = load(tmp_path)
    for names in itertools.permutations(NAMES):
        model = load(tmp_path, label_names=names)
        assert model.label_names == names and not model.newly_initialized
        for name, column in zip(names, model.store["score.weight"].value.T, strict=True):
            stored = kept.store["score.weight"].value.T[kept.label_names.index(name)]
            np.testing.assert_array_equal(column, stored)
    model = load(tmp_path, label_names=("2", "1", "0"), label_map=dict(zip(NAMES, "012",
                                                                           strict=True)))
    np.testing.assert_array_equal(model.store["score.weight"].value,
                                  kept.store["score.weight"].value[:, ::-1])
    assert load(tmp_path, label_map={"world": "w"}).label_names == ("business", "sports", "w")
    refused(tmp_path, "has no label 'other', expected some of business", label_map={"other": "a"})
    refused(tmp_path, "the label 'sports' is there twice", label_map={"world": "sports"})


def test_labels_of_a_config(tmp_path):
    foreign(tmp_path, classifier())
    change_config(tmp_path, id2label=..., label2id=..., num_labels=...)
    assert load(tmp_path).label_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    change_config(tmp_path, id2label={"2": "c", "0": "a", "1": "b"}, architectures=...)
    assert load(tmp_path).label_names == ("a", "b", "c")
    for labels, words in [({"0": "a", "1": "b"}, ["2 labels", "3 rows"]),
                          ({"0": "a", "1": "b", "3": "c"}, ["lacks the number 2"]),
                          ({"0": "a", "1": "b", "2": "a"}, ["'a' is there twice"]),
                          ({"0": "a", "1": "b", "2": None}, ["id2label"]),
                          ({"0": "a", "1": "b", "2": ""}, ["label 2"]),
                          (["a", "b", "c"], ["id2label"])]:
        change_config(tmp_path, id2label=labels)
        refused(tmp_path, "config.json", *words)
    change_config(tmp_path, id2label=..., num_labels=4)
    refused(tmp_path, "num_labels gives 4", "3 rows")
    change_config(tmp_path, num_labels=..., problem_type="multi_label_classification")
    refused(tmp_path, "problem_type is 'multi_label_classification'")
    change_config(tmp_path, problem_type=..., architectures=["GPT2ForSequenceClassification"])
    change_tensors(tmp_path, {"score.weight": zeros(1, 12)})
    refused(tmp_path, "1 label")
    change_tensors(tmp_path, {"score.weight": None})
    refused(tmp_path, "score.weight", "missing")
    refused(tmp_path, "label_names: 1 label", label_names=["a"])
    assert load(tmp_path, label_names=["a", "b"]).newly_initialized == ("score.weight",)


def test_dropout_rates(folder):
    change_config(folder, attn_pdrop=0.3)
    assert load(folder).trunk.config.attn_pdrop == 0.3
    model = load(folder, dropout=0.25)
    assert model.trunk.config == replace(CONFIG, embd_pdrop=.25, attn_pdrop=.25, resid_pdrop=.25)
    assert model.trunk.h[0].attn.rate == model.trunk.h[1].drop_2.rate == 0.25
    refused(folder, "dropout", "1.0", dropout=1.0)


def test_unknown_task(folder):
    with pytest.raises(ValueError, match="task is 'train'"):
        load(folder, task="train")


# Config against tensors

def test_missing_unexpected_misshapen(folder):
    file, name = folder / "model.safetensors", "transformer.h.1.mlp.c_fc.bias"
    original = file.read_bytes()
    for changes, words in [
            ({name: None}, ["h.1.mlp.c_fc.bias is missing", "(20,)"]),
            ({"transformer.h.1.extra": zeros(3)}, [file, "transformer.h.1.extra is unexpected"]),
            ({"transformer.h.2.ln_1.bias": zeros(12)}, [file, "h.2.ln_1.bias is unexpected"]),
            ({name: zeros(21)}, [file, name, "(21,)", "(20,)"]),
            ({"transformer.h.0.attn.c_attn.weight": zeros(36, 12)}, ["(36, 12)", "(12, 36)"]),
            ({name: zeros(20, code="I64")}, [file, name, "I64"]),
            ({"wte.weight": zeros(31, 12)}, [file, "wte.weight is there twice"])]:
        change_tensors(folder, changes)
        refused(folder, *words)
        file.write_bytes(original)


def test_config_contradicts_tensors(folder):
    good = (folder / "config.json").read_text()
    for changes, words in [
            ({"vocab_size": 32}, ["wte.weight", "(31, 12)", "(32, 12)"]),
            ({"n_positions": 1024}, ["wpe.weight", "(8, 12)", "(1024, 12)"]),
            ({"n_embd": 24}, ["wte.weight", "(31, 12)", "(31, 24)"]),
            ({"n_layer": 1}, ["h.1.", "unexpected"]),
            ({"n_layer": 3}, ["h.2.ln_1.weight is missing"]),
            ({"n_layer": 10**9}, ["n_layer is 1000000000"]),
            ({"vocab_size": 10**30}, ["wte.weight"]),
            ({"n_inner": None}, ["c_fc.weight", "(12, 20)", "(12, 48)"]),
            ({"n_inner": ...}, ["c_fc.weight", "(12, 20)", "(12, 48)"]),
            ({"n_inner": 21}, ["c_fc.weight", "(12, 21)"]),
            ({"n_head": 5}, ["config.json", "n_head 5"]),
            ({"model_type": "llama"}, ["config.json", "'llama'"]),
            ({"model_type": []}, ["config.json", "model_type"]),
            ({"activation_function": "relu"}, ["activation_function", "'relu'"]),
            ({"layer_norm_epsilon": 0}, ["layer_norm_epsilon"]),
            ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"])]:
        change_config(folder, **changes)
        refused(folder, *words)
        (folder / "config.json").write_text(good)


def test_n_ctx_shapes_nothing(folder):
    # keras-hub once took the inner width from it
    for n_ctx in 5, 1024, ...:
        change_config(folder, n_ctx=n_ctx)
        assert load(folder).trunk.h[0].mlp.c_fc.w.shape == (12, 20)


def test_config_cannot_be_read(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "config.json")
    for content, words in [(b"", ["not valid JSON"]), (b"{", ["not valid JSON"]),
                           (b"[1]", ["list"]), (b"\xff\xfe{}", ["not valid JSON"]),
                           (b"[" * 100_000, ["config.json"])]:
        (folder / "config.json").write_bytes(content)
        refused(folder, folder / "config.json", *words)
    (folder / "config.json").unlink()
    refused(folder, folder / "config.json", "cannot be read")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder, bad):
    x = np.zeros((31, 12), np.float32)
    x[30, 11] = bad
    change_tensors(folder, {"transformer.wte.weight": ("F32", (31, 12), x.tobytes())})
    refused(folder, folder / "model.safetensors", "transformer.wte.weight", "not finite")


def test_float64_too_large_for_float32(folder):
    x = np.full((31, 12), 1e300)
    change_tensors(folder, {"transformer.wte.weight": ("F64", (31, 12), x.tobytes())})
    refused(folder, "transformer.wte.weight", "not finite", "float32")
    assert load(folder, np.float64).trunk.wte.w.value[0, 0] == 1e300


# Files

def test_no_weights_or_those_of_others(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, folder, "neither model.safetensors nor model.safetensors.index.json nor "
            "pytorch_model.bin nor")
    (folder / "tf_model.h5").write_bytes(b"")
    refused(folder, "tf_model.h5", "only model.safetensors and pytorch_model.bin",
            "save_pretrained")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    refused(folder, "pytorch_model.bin", "old form", "torch.save")


def test_garbled_config_is_never_silent(tmp_path, rng):
    """Refused in one line, or told: what checks config.json lies in the weights' file."""
    save(classifier(), tmp_path, extra_config={"minisft": {"clean": []}})
    file = tmp_path / "config.json"
    content = file.read_bytes()
    for bit in rng.integers(0, 8 * len(content), 200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        try:
            notes = load(tmp_path).notes
            assert "is not as it was saved" in notes[0] if notes else \
                json.loads(damaged) == json.loads(content)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("key", ["id2label", "model_type", "n_head", "layer_norm_epsilon"])
def test_a_key_under_another_name_is_damage(tmp_path, key):
    save(classifier(), tmp_path)
    wrong = key[:3] + chr(ord(key[3]) ^ 1) + key[4:]
    change_config(tmp_path, **{wrong: read_json(tmp_path / "config.json")[key], key: ...})
    refused(tmp_path, tmp_path / "config.json", f"the key {key!r}", f"is called {wrong!r}")
    foreign(tmp_path, classifier())      # which has no checksums to say so
    assert load(tmp_path).notes == ()


def test_an_edited_config_is_told(tmp_path):
    """By hand; one that transformers wrote is its own."""
    save(classifier(), tmp_path)
    change_config(tmp_path, id2label=dict(zip("012", "abc", strict=True)), label2id=...)
    model = load(tmp_path)
    assert model.label_names == ("a", "b", "c")
    assert notes_of(model) == [f"{tmp_path / 'config.json'}: {key} is not as it was saved with the "
                               "weights" for key in ("id2label", "label2id")]
    change_config(tmp_path, transformers_version="5.24.0")
    assert load(tmp_path).notes == ()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", ".."])
def test_a_checksum_of_a_file_that_cannot_be(tmp_path, name):
    """A file that somebody wrote to be read here."""
    save(classifier(), tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = {key: tensor.read() for key, tensor in safetensors.read_header(path)[0].items()}
    safetensors.write(path, arrays, {config_checksums.FILES: json.dumps({name: 1})})
    (note,) = notes_of(load(tmp_path))
    assert note.endswith("is not as it was saved with the weights")


def test_golden_file_is_kept(tmp_path):
    stored, metadata = safetensors.read_header(GOLDEN / "model.safetensors")
    assert metadata == {"format": "pt"}
    model = load(GOLDEN)
    save(model, tmp_path)
    assert same(load(tmp_path), model)
    ours = safetensors.read_header(tmp_path / "model.safetensors")[0]
    assert ours.keys() == stored.keys()




# Names that others give to the same tensors

def renamed(folder, rename):
    """The names of the folder's tensors through a function, None takes a tensor out."""
    stored, _ = safetensors.read_header(folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    raw_file(folder / "model.safetensors", {
        rename(name): (t.dtype, t.shape, content[t.start:t.start + 4 * int(np.prod(t.shape))])
        for name, t in stored.items() if rename(name) is not None})


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "base_model.model.",
                                     "module._orig_mod.", "_orig_mod.base_model.model."])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_names_behind_a_wrapper(tmp_path, wrapper, prefix):
    model = language_model()
    folder = foreign(tmp_path, model, prefix=wrapper + prefix)
    assert same(load(folder), model)


def test_a_wrapper_that_explains_only_a_part_is_kept(folder):
    renamed(folder, lambda name: f"module.{name}")
    change_tensors(folder, {"module.adapter.lora_A": zeros(3)})
    refused(folder, "the tensor wte.weight is missing", "there are module.transformer.", "more")


def test_the_tied_matrix_under_the_name_of_the_head_alone(folder):
    renamed(folder, {"transformer.wte.weight": "lm_head.weight"}.get)     # and nothing else
    refused(folder, "only 1 tensors")
    foreign(folder, language_model())
    renamed(folder, lambda name: {"transformer.wte.weight": "lm_head.weight"}.get(name, name))
    assert same(load(folder), language_model())
    assert load(folder, label_names=NAMES).unused_tensors == ()
    change_config(folder, tie_word_embeddings=False)
    refused(folder, "the tensor wte.weight is missing")


@pytest.mark.parametrize("names", [
    ("qa_outputs.weight", "qa_outputs.bias"), ("multiple_choice_head.summary.weight",),
    ("classifier.weight", "classifier.bias")])
def test_heads_of_another_task_are_left_out(folder, names):
    change_tensors(folder, {name: zeros(2, 12) for name in names})
    model = load(folder)
    assert same(model, language_model()) and model.unused_tensors == tuple(sorted(names))
    assert load(folder, label_names=NAMES).unused_tensors == tuple(sorted(names))
    head = names[0].split(".")[0]
    assert notes_of(model) == [f"the folder holds a head of another task, {head}: it is not used"]
    assert notes_of(language_model()) == []


def test_a_language_models_head_is_left_out_of_a_classifier(tmp_path):
    folder = foreign(tmp_path, language_model(tied=False))
    assert load(folder, label_names=NAMES).unused_tensors == ("lm_head.weight",)
    assert load(folder).unused_tensors == ()
