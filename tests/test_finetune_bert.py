"""A BERT folder through the commands: finetune, evaluate, predict; `transformers` afterwards."""

import csv
import json
import pickle

import numpy as np
import pytest

from minisft.cli import main
from minisft.data import toy_news
from minisft.data.batch import pack
from minisft.data.sequences import encode_sequences
from minisft.estimators import TextClassifier
from minisft.io.checkpoint import save
from minisft.io.files import read_json, write_json
from minisft.io.model_folder import read_folder
from minisft.models.bert import BertConfig
from minisft.models.heads import BertClassifier

OPTIONS = ["--epochs", "2", "--batch-tokens", "256", "--lr", "3e-3", "--quiet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """train.csv and test.csv of single texts, pairs.csv, and `base`, a BERT without a head."""
    folder = tmp_path_factory.mktemp("bert")
    words = set()
    for part in "train", "test":
        texts, labels = toy_news.generate(part)
        rows = list(zip(texts[:60], labels[:60], strict=True))
        words |= {word.strip(".,").lower() for text, _ in rows for word in text.split()}
        with open(folder / f"{part}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    with open(folder / "pairs.csv", "w", newline="") as file:
        # does the second repeat the first?
        halves = [(text, (text if i % 2 else rows[i - 1][0]), "no yes".split()[i % 2])
                  for i, (text, _) in enumerate(rows)]
        csv.writer(file).writerows([("text", "other", "label"), *halves])
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *sorted(words)]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2,
                        num_attention_heads=2, intermediate_size=24, max_position_embeddings=48)
    (folder / "base").mkdir()
    model = BertClassifier(config, "ab")
    # so wide that every text has logits of its own
    wide = np.random.default_rng(0).standard_normal(model.store.size)
    model.store.values += 0.3 * wide.astype(np.float32)
    save(model, folder / "base")
    settings = read_json(folder / "base" / "config.json")
    for key in "id2label", "label2id", "num_labels":
        settings.pop(key)
    write_json(folder / "base" / "config.json",
               settings | {"architectures": ["BertForPreTraining"]})
    (folder / "base" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return folder


def finetune(files, out, *options, train="train.csv"):
    return main(["finetune", "--model", str(files / "base"), "--train", str(files / train),
                 "--out", str(out), *OPTIONS, *options])


@pytest.fixture(scope="module")
def trained(files):
    """The model's folder of one finished run."""
    assert finetune(files, files / "run", "--test", str(files / "test.csv")) == 0
    return files / "run" / "model"


def test_what_is_said(files, tmp_path, capsys):
    assert finetune(files, tmp_path / "run", "--epochs", "1") == 0
    out = capsys.readouterr().out
    assert "a new head for the 4 labels" in out and "BERT of 2 layers, width 16" in out
    assert "the classifier reads the first token, through the pooler" in out
    assert "| pooling | first |" in (tmp_path / "run" / "report.md").read_text()     # the default


def test_evaluate_and_predict(trained, files, capsys):
    kept = json.loads((files / "run" / "results.json").read_text())
    assert main(["evaluate", "--model", str(trained), "--test", str(files / "test.csv"),
                 "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["confusion"] == kept["confusion"]
    assert found["loss"] == pytest.approx(kept["loss"], rel=1e-6)
    texts = ["A goal on Monday", "A GOAL on Mónday"]     # case and accents: the folder's own way
    assert main(["predict", "--model", str(trained), *texts]) == 0
    first, second = csv.DictReader(capsys.readouterr().out.splitlines())
    assert {k: v for k, v in first.items() if k != "text"} == {
        k: v for k, v in second.items() if k != "text"}
    model, tokenizer, _ = read_folder(trained)
    (ids,), _, _ = encode_sequences(tokenizer, texts[:1])
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == \
        "[CLS] a goal on monday [SEP]"
    z = model.forward(pack([ids])).astype(np.float64)[0]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    assert [float(first[f"p_{name}"]) for name in model.label_names] == \
        pytest.approx(list(p), abs=1e-6)


def test_a_second_text(files, tmp_path, capsys):
    assert finetune(files, tmp_path / "run", "--pair-column", "other", train="pairs.csv") == 0
    model = str(tmp_path / "run" / "model")
    for command in ["evaluate", "--test"], ["predict", "--file"]:
        capsys.readouterr()
        arguments = [command[0], "--model", model, command[1], str(files / "pairs.csv")]
        assert main([*arguments, "--pair-column", "other"]) == 0
        both = capsys.readouterr().out
        assert main(arguments) == 0
        assert capsys.readouterr().out == both     # the column is remembered
        assert main([*arguments, "--pair-column", "text"]) == 0
        assert capsys.readouterr().out != both     # it is read
        assert main([*arguments, "--pair-column", "third"]) == 2
        assert "no column 'third'" in capsys.readouterr().err
    assert main(["predict", "--model", model, "a text", "--pair-column", "other"]) == 2
    assert "--pair-column is for --file" in capsys.readouterr().err


def test_the_mean_of_the_tokens(files, tmp_path, capsys):
    assert finetune(files, tmp_path / "run", "--pooling", "mean") == 0
    assert "the mean of the tokens: transformers has no such class" in capsys.readouterr().out
    model, settings = tmp_path / "run" / "model", tmp_path / "run" / "model" / "config.json"
    assert "transformers has no such class" in json.loads(settings.read_text())["note"]
    assert main(["predict", "--model", str(model), "A goal"]) == 0
    capsys.readouterr()
    again = ["finetune", "--model", str(model), "--train", str(files / "train.csv"), *OPTIONS]
    assert main([*again, "--train-layers", "head", "--out", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert "| pooling | mean |" in (tmp_path / "again" / "report.md").read_text()
    assert "new head" not in out and "the mean of the tokens" in out      # as the model has it
    assert main([*again, "--pooling", "first", "--out", str(tmp_path / "first")]) == 0
    assert "new head" in capsys.readouterr().out


@pytest.mark.parametrize("options, words", [
    (["--task", "complete"], "holds a BERT, which writes no text"),
    (["--max-length", "2"], "leaves no room"),
    (["--pooling", "last"], None),
    (["--pair-column", "label"], "cannot be both text and label"),
    (["--model", "scratch", "--pooling", "mean"], "--pooling is for a BERT"),
    (["--task", "complete", "--pair-column", "x"], "--pair-column is for --task classify")])
def test_refused_in_one_line(files, tmp_path, options, words, capsys):
    if words is None:
        with pytest.raises(SystemExit):
            finetune(files, tmp_path / "run", *options)
        return
    if options[1] == "complete":
        (tmp_path / "p.jsonl").write_text("".join(
            f'{{"prompt": "text {i}", "completion": "b"}}\n' for i in range(9)))
        options = [*options, "--train", str(tmp_path / "p.jsonl")]
    assert finetune(files, tmp_path / "run", *options) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_gpt2_has_one_way_of_reading(files, tmp_path, capsys):
    tiny = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2",
            "--vocab-size", "300", "--quiet", "--epochs", "1", "--train"]
    assert main(["finetune", *tiny, str(files / "train.csv"), "--out", str(tmp_path / "gpt2")]) == 0
    capsys.readouterr()
    model = ["finetune", "--model", str(tmp_path / "gpt2" / "model"), "--quiet", "--train"]
    assert main([*model, str(files / "train.csv"), "--pooling", "mean"]) == 2
    assert "pooling mean is for BERT" in capsys.readouterr().err
    assert main([*model, str(files / "pairs.csv"), "--pair-column", "other"]) == 2
    assert "nothing between two texts" in capsys.readouterr().err
    assert main(["generate", "--model", str(files / "base"), "a"]) == 2
    assert "writes no text" in capsys.readouterr().err


@pytest.mark.parity
def test_transformers_opens_the_folder(trained):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(trained).eval()
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    model, tokenizer, _ = read_folder(trained)
    assert [peer.config.id2label[i] for i in range(4)] == list(model.label_names)
    texts = ["A goal on Monday", "The treaty, he [SEP] said, was a LÀW", "x"]
    for pairs in None, ["a law", "a goal on a Monday", "treaty"]:
        ids, types, _ = encode_sequences(tokenizer, texts, pairs=pairs)
        batch = peer_tokenizer(texts, pairs, padding=True, return_tensors="pt")
        assert [row[:len(x)] for row, x in zip(batch["input_ids"].tolist(), ids, strict=True)] == \
            [x.tolist() for x in ids]
        with torch.no_grad():
            expected = peer(**batch).logits.numpy()
        np.testing.assert_allclose(model.forward(pack(ids, types=types)), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 5e-3
    pipe = transformers.pipeline("text-classification", model=peer, tokenizer=peer_tokenizer)
    ids, _, _ = encode_sequences(tokenizer, texts)
    assert [p["label"] for p in pipe(texts)] == [
        model.label_names[k] for k in model.forward(pack(ids)).argmax(axis=1)]


def test_pairs_in_memory_have_the_bits_of_the_command(files, tmp_path):
    assert finetune(files, tmp_path / "run", "--pair-column", "other", "--pooling", "mean",
                    "--compare", "none", train="pairs.csv") == 0
    with open(files / "pairs.csv", newline="") as file:
        _, *rows = csv.reader(file)
    pairs, labels = [(text, other) for text, other, _ in rows], [label for *_, label in rows]
    classifier = TextClassifier(files / "base", epochs=2, batch_tokens=256, lr=3e-3, quiet=True,
                                pooling="mean").fit(pairs, labels)
    loaded = TextClassifier.load(tmp_path / "run" / "model")
    assert loaded.model_.pooling == "mean"
    np.testing.assert_array_equal(loaded.predict_proba(pairs), classifier.predict_proba(pairs))
    np.testing.assert_array_equal(classifier.predict_proba(np.array(pairs)),
                                  classifier.predict_proba(pairs))
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(pairs), classifier.predict_proba(pairs))
