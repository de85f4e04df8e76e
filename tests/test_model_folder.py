"""What a model folder says beside the weights, and what is made of it when it is read again."""

import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer

from minisft.cli import main
from minisft.data.batch import pack
from minisft.data.special_tokens import SpecialTokens, read_special_tokens
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from minisft.io import hub
from minisft.io.files import read_json, write_json
from minisft.io.model_folder import (
    Columns,
    Preprocessing,
    read_folder,
    read_preprocessing,
    write_folder,
)
from minisft.models.bert import BertConfig
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.ops.cross_entropy import log_softmax

SHAPE = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
TEXTS = ["a film about a river", "the river of a film", "a long, long film"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


def gpt2(tokenizer, labels=("neg", "pos"), **shape):
    """A classifier whose weights are no zeros and no ties."""
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), **SHAPE | shape)
    model = Classifier(config, labels) if labels else LanguageModel(config)
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(
        model.store.size).astype(np.float32)
    return model


def test_the_model_says_what_its_tokenizer_gives(tokenizer, tmp_path):
    """Not the kind of the tokenizer: GPT-2 has no token types, whatever splits its words."""
    write_folder(tmp_path / "gpt2", gpt2(tokenizer), tokenizer, Preprocessing())
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=8, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=8, max_position_embeddings=32)
    write_folder(tmp_path / "bert", BertClassifier(config, "ab"), tokenizer, Preprocessing())
    names = {family: read_json(tmp_path / family / "tokenizer_config.json")["model_input_names"]
             for family in ("gpt2", "bert")}
    assert names == {"gpt2": ["input_ids", "attention_mask"],
                     "bert": ["input_ids", "token_type_ids", "attention_mask"]}


def probabilities(folder, text):
    """Of a text as it is, by the model and the tokenizer of a folder."""
    model, tokenizer, _ = read_folder(folder)
    logits = model.forward(pack([np.array(tokenizer.encode(text).ids)])).astype(np.float64)
    return np.exp(log_softmax(logits))[0]


LINES, ONE_LINE = "a film &amp; a river\nthe  river", "a film & a river the river"


def foreign(folder):
    """A folder that minisft wrote -> one that says nothing of its texts."""
    (folder / "minisft.json").unlink()
    settings = read_json(folder / "config.json")
    del settings["minisft"]
    write_json(folder / "config.json", settings)


@pytest.mark.parametrize("who, options, cleaned", [
    ("ours", [], True), ("ours", ["--clean", "none"], False), ("saved again", [], True),
    ("foreign", [], False), ("foreign", ["--clean", "all"], True)])
def test_texts_are_cleaned_as_the_folder_says(tokenizer, tmp_path, capsys, who, options, cleaned):
    """predict and evaluate; `saved again`: by transformers, which drops minisft.json."""
    folder = tmp_path / "model"
    write_folder(folder, gpt2(tokenizer), tokenizer, Preprocessing())
    if who == "foreign":
        foreign(folder)
    elif who == "saved again":
        (folder / "minisft.json").unlink()
    assert main(["predict", "--model", str(folder), *options, LINES]) == 0
    captured = capsys.readouterr()
    shown = float(captured.out.splitlines()[-1].rsplit(",", 1)[1])
    different, expected = (probabilities(folder, text)[1] for text in (
        (LINES, ONE_LINE) if cleaned else (ONE_LINE, LINES)))
    assert shown == pytest.approx(expected, abs=1e-6) and abs(expected - different) > 1e-3
    assert ("cleaning: entities, tags" if cleaned else "cleaning: none") in captured.err
    write_json(tmp_path / "one.json", [{"text": LINES, "label": "pos"}])
    assert main(["evaluate", "--model", str(folder), "--test", str(tmp_path / "one.json"),
                 "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(-np.log(expected))


def test_a_foreign_language_model_reads_texts_as_they_are(tokenizer, tmp_path, capsys):
    """evaluate scores all tokens of a completion's lines, and generate continues the same text."""
    folder, answer = tmp_path / "model", "the river\n\nof  a film\n"
    write_folder(folder, gpt2(tokenizer, labels=None), tokenizer, Preprocessing())
    foreign(folder)
    write_json(tmp_path / "one.json", [{"prompt": LINES, "completion": answer}])
    assert main(["evaluate", "--model", str(folder), "--test", str(tmp_path / "one.json"),
                 "--json", "--max-new-tokens", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == len(tokenizer.encode(answer).ids) + 1
    model, tokenizer, preprocessing = read_folder(folder)
    for options, read in ([], LINES), (["--clean", "spaces", "--separator", " ->"],
                                       " ".join(LINES.split()) + " ->"):
        assert main(["generate", "--model", str(folder), "--temperature", "0", "--max-new-tokens",
                     "4", *options, LINES]) == 0
        captured = capsys.readouterr()
        (new,) = generate(model, [np.array(tokenizer.encode(read).ids)], 4, Sampler(0))
        assert captured.out.removeprefix(LINES).strip("\n") == \
            tokenizer.decode(new.ids).strip("\n")
    assert "cleaning: spaces; ' ->' behind a prompt" in captured.err


def test_what_a_config_may_say_of_texts(tokenizer, tmp_path):
    write_folder(tmp_path, gpt2(tokenizer), tokenizer, Preprocessing(("tags",), 9, "tail"))
    (tmp_path / "minisft.json").unlink()
    assert read_preprocessing(tmp_path) == Preprocessing(("tags",), 9, "tail")
    for said, message in ("all", "expected an object"), ({"clean": "all"}, "clean is 'all'"):
        write_json(tmp_path / "config.json", read_json(tmp_path / "config.json")
                   | {"minisft": said})
        with pytest.raises(UserError, match=f"config.json: .*{message}"):
            read_preprocessing(tmp_path)


def test_no_bit_of_the_preprocessing_is_wrong_in_silence(tokenizer, tmp_path):
    """Every single one of minisft.json: refused, told, or read as before."""
    kept = Preprocessing(("tags", "spaces"), 9, "tail", " ->", True, Columns(("a", "b"), "c", "d"))
    write_folder(tmp_path, gpt2(tokenizer), tokenizer, kept)
    path = tmp_path / "minisft.json"
    whole, outcomes = path.read_bytes(), Counter()
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
            notes = []
            try:
                found = read_preprocessing(tmp_path, notes.append)
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                outcomes["refused"] += 1
                continue
            assert notes or found == kept
            outcomes["told" if notes else "the same"] += 1
    assert outcomes["told"] > 20 and outcomes["refused"] > 2000


def test_an_edited_preprocessing_is_told_and_used(tokenizer, tmp_path, capsys):
    """By every command that reads the folder, unless there is nothing to compare it with."""
    write_folder(tmp_path, gpt2(tokenizer), tokenizer, Preprocessing())
    assert main(["predict", "--model", str(tmp_path), "x"]) == 0
    assert "note" not in capsys.readouterr().err
    path = tmp_path / "minisft.json"
    write_json(path, read_json(path) | {"clean": []})
    assert main(["predict", "--model", str(tmp_path), "x"]) == 0
    said = capsys.readouterr().err
    assert f"note: {path}: clean is not as config.json has it" in said and "cleaning: none" in said
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"minisft": None})
    notes = []
    assert read_preprocessing(tmp_path, notes.append).clean == () and notes == []


def byte_level(*special):
    """A tokenizer whose special tokens come first, as many foreign ones have them."""
    tokenizer = train_tokenizer(TEXTS, 280)
    state = json.loads(tokenizer.to_str())
    vocabulary = [*special, *sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)]
    vocabulary.remove("<|endoftext|>")
    state["model"]["vocab"] = {token: i for i, token in enumerate(vocabulary)}
    state["added_tokens"] = [{"id": i, "content": token, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False, "special": True}
                             for i, token in enumerate(special)]
    return Tokenizer.from_str(json.dumps(state))


ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.mark.parametrize("files, expected", [
    # as ids, as tokens, or both; the last case: the ids of another vocabulary
    ({"config.json": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}}, (0, (2,), 1)),
    ({"tokenizer_config.json": ROLES}, (0, (2,), 1)),
    ({"special_tokens_map.json": {role: {"content": token} for role, token in ROLES.items()}},
     (0, (2,), 1)),
    ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": [7, 2]},
      "tokenizer_config.json": ROLES}, (0, (2, 7), 1)),
    ({"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": None}},
     (None, (2,), None)),
    ({"config.json": dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 50256),
      "tokenizer_config.json": ROLES}, (0, (2,), 1)),
    ({"config.json": {"eos_token_id": [True, "2", -1, 2.0]}}, (None, (), None))])
def test_roles_are_what_the_files_say(tmp_path, files, expected):
    tokenizer = byte_level("<s>", "<pad>", "</s>", "<unk>")
    for name, settings in files.items():
        write_json(tmp_path / name, settings)
    roles = read_special_tokens(tmp_path, tokenizer)
    assert (roles.bos, roles.eos, roles.pad) == expected
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match="generation_config.json: holds a list"):
        read_special_tokens(tmp_path, tokenizer)


@pytest.fixture(scope="module")
def with_roles(tmp_path_factory):
    """The folder of a language model whose special tokens have names of their own."""
    folder = tmp_path_factory.mktemp("roles")
    tokenizer = byte_level("<s>", "<pad>", "</s>", "<unk>")
    model = gpt2(tokenizer, labels=None)
    model.special_tokens = SpecialTokens(0, (2, 9), 1, ROLES)
    write_folder(folder, model, tokenizer, Preprocessing(clean=()))
    foreign(folder)
    return folder


@pytest.mark.parametrize("task", ["classify", "complete"])
def test_roles_outlive_a_fine_tuning(with_roles, tmp_path, task):
    rows = [{"text": f"a film {i}", "label": "ab"[i % 2], "prompt": f"film {i}", "completion": "a"}
            for i in range(20)]
    write_json(tmp_path / "train.json", rows)
    assert main(["finetune", "--model", str(with_roles), "--task", task, "--train",
                 str(tmp_path / "train.json"), "--epochs", "1", "--compare", "none", "--quiet",
                 "--max-length", "12", "--truncate", "tail",
                 *(["--max-new-tokens", "2"] if task == "complete" else []),
                 "--out", str(tmp_path / "run")]) == 0
    folder = tmp_path / "run" / "model"
    ids = {"bos_token_id": 0, "eos_token_id": [2, 9], "pad_token_id": 1}
    assert ids.items() <= read_json(folder / "config.json").items()
    settings = read_json(folder / "tokenizer_config.json")
    assert (ROLES | {"model_max_length": 12, "truncation_side": "left"}).items() <= settings.items()
    if task == "complete":
        assert read_json(folder / "generation_config.json") == ids | {"max_length": 32}
    else:
        assert not (folder / "generation_config.json").exists()


def test_generation_stops_at_any_end(with_roles, tmp_path, capsys):
    """Each id of the list ends a text, and what <|endoftext|> is called elsewhere does not."""
    model, tokenizer, _ = read_folder(with_roles)
    prompt = np.array(tokenizer.encode("a film").ids)
    (free,) = generate(model, [prompt], 6, Sampler(0))
    for place in 1, 3:
        write_folder(tmp_path, model, tokenizer, Preprocessing(clean=()))
        end = free.ids[place]
        write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, end]})
        capsys.readouterr()
        assert main(["generate", "--model", str(tmp_path), "--temperature", "0",
                     "--max-new-tokens", "6", "a film"]) == 0
        kept = free.ids[:free.ids.index(end)]
        assert capsys.readouterr().out == f"a film{tokenizer.decode(kept)}\n"


@pytest.mark.parametrize("stored, options, kept", [
    (("pos", "neg"), [], True), (("NEG", "POS"), [], False),
    (("NEG", "POS"), ["--label-map", "POS=pos", "NEG=neg"], True),
    (None, ["--label-map", "LABEL_1=neg", "LABEL_0=pos"], True), (None, [], False)])
def test_a_trained_head_is_kept_by_its_labels(tokenizer, tmp_path, capsys, stored, options, kept):
    """None: a config without names. The rate is 1e-30, so that what was loaded is written."""
    write_folder(tmp_path / "model", gpt2(tokenizer, stored or ("LABEL_0", "LABEL_1")), tokenizer,
                 Preprocessing())
    settings = read_json(tmp_path / "model" / "config.json")
    if stored is None:
        del settings["id2label"], settings["label2id"]
        write_json(tmp_path / "model" / "config.json", settings)
    rows = [{"text": f"film {i % 7}", "label": ("neg", "pos")[i % 2]} for i in range(30)]
    write_json(tmp_path / "train.json", rows)
    assert main(["finetune", "--model", str(tmp_path / "model"), "--train",
                 str(tmp_path / "train.json"), "--epochs", "1", "--lr", "1e-30", "--compare",
                 "none", "--quiet", "--out", str(tmp_path / "run"), *options]) == 0
    out = capsys.readouterr().out
    before, _, _ = read_folder(tmp_path / "model")
    after, _, _ = read_folder(tmp_path / "run" / "model")
    assert after.label_names == ("neg", "pos")
    first = before.label_names.index("NEG") if stored == ("NEG", "POS") else 1
    columns = [first, 1 - first]
    assert np.array_equal(after.store["score.weight"].value,
                          before.store["score.weight"].value[:, columns]) == kept
    assert ("a new head" in out) != kept
    if kept:
        assert main(["evaluate", "--model", str(tmp_path / "model"), "--test",
                     str(tmp_path / "train.json"), "--json", *options]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert {row["name"] for row in figures["per_class"]} == {"neg", "pos"}
    else:
        assert "; if they mean the same, label_map" in out


def test_labels_that_differ_in_case_only_are_named(tmp_path, capsys):
    rows = [{"text": f"film {i % 7}", "label": ("neg", "pos", "NEG")[i % 3]} for i in range(30)]
    write_json(tmp_path / "train.json", rows)
    assert main(["finetune", "--model", "scratch", "--layers", "1", "--width", "8", "--heads", "2",
                 "--vocab-size", "300", "--train", str(tmp_path / "train.json"), "--epochs", "1",
                 "--compare", "none", "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert "the labels 'NEG' and 'neg' are different classes" in " ".join(
        capsys.readouterr().out.split())      # long lines are wrapped
    for wrong in ["a"], ["a="], ["=a"], ["a=b", "a=c"], ["a=c", "b=c"]:
        assert main(["finetune", "--model", str(tmp_path / "run" / "model"), "--train",
                     str(tmp_path / "train.json"), "--label-map", *wrong]) == 2
        assert f"--label-map {wrong[-1]!r}: expected NAME=NEW" in capsys.readouterr().err


def test_a_changed_tokenizer_is_told(tmp_path):
    """Its letters may be others, and all texts with them."""
    model, tokenizer, preprocessing = read_folder(hub.BUNDLED / "minisft-gpt2")
    folder = tmp_path / "model"
    write_folder(folder, model, tokenizer, preprocessing)
    said: list[str] = []
    read_folder(folder, say=said.append)
    assert said == []
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        path, said = folder / name, []
        kept = path.read_text()
        path.write_text(kept + " ")
        read_folder(folder, say=said.append)
        assert said == [f"note: {path}: is not as it was saved with the weights"]
        path.unlink()
        if name != "tokenizer.json":
            said = []
            read_folder(folder, say=said.append)
            assert said == [f"note: {path}: is not as it was saved with the weights"]
        path.write_text(kept)
