"""Fine-tuning from files to a run folder, and the commands that use the folder afterwards."""

import csv
import gzip
import json
import time

import numpy as np
import pytest

from minisft.cli import main
from minisft.data import toy_news
from minisft.data.read import read_examples
from minisft.data.text import encode_all, load_tokenizer
from minisft.evaluation import baselines
from minisft.io import run_folder
from minisft.io.checkpoint import load
from minisft.io.model_folder import Columns, read_folder, read_preprocessing
from minisft.models.heads import Classifier

TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2",
        "--vocab-size", "300", "--epochs", "2", "--batch-tokens", "256", "--quiet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """train.csv and test.csv, 80 texts each, with a second column and a title."""
    folder = tmp_path_factory.mktemp("files")
    for part in ("train", "test"):
        texts, labels = toy_news.generate(part)
        with open(folder / f"{part}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "text", "label"])
            writer.writerows([i, t, k] for i, (t, k) in enumerate(
                zip(texts[:80], labels[:80], strict=True)))
    return folder


@pytest.fixture(scope="module")
def trained(files):
    """The folder of one finished run."""
    out = files / "run"
    assert main(["finetune", "--train", str(files / "train.csv"), "--test",
                 str(files / "test.csv"), "--out", str(out), *TINY]) == 0
    return out


def results(folder):
    return run_folder.read_results(folder)


def timeless(found):
    return {k: v for k, v in found.items() if k not in ("train_seconds", "tokens_per_second")}


def test_run_folder_holds_what_the_readme_says(trained):
    assert {p.name for p in trained.iterdir()} == {
        "config.json", "metrics.jsonl", "model", "results.json", "curves.png",
        "confusion.png", "report.md", "report.html"}
    found = results(trained)
    assert {"accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss", "train_seconds",
            "tokens_per_second", "n_test"} <= found.keys()
    assert found["n_test"] == 80 and 0 <= found["accuracy_low"] <= found["accuracy"] <= 1
    config = json.loads((trained / "config.json").read_text())
    assert config["settings"]["width"] == 16 and config["versions"]["numpy"] == np.__version__
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "valid_loss" in line] == [1, 2]
    for name in ("curves.png", "confusion.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    text = (trained / "report.md").read_text()
    assert "The worst mistakes" in text and "| naive Bayes, which only counts words |" in text
    assert found["naive_bayes"]["accuracy"] > 0.3     # 0.25 by chance
    assert "Compared on the same texts" in text
    for key in ("majority_class", "naive_bayes"):
        test = found[key]["mcnemar"]
        assert (test["only_model"] - test["only_baseline"]) / 80 == pytest.approx(
            found["accuracy"] - found[key]["accuracy"])


def test_without_scikit_learn_a_line_says_what_is_left_out(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    assert main(["finetune", "--train", str(files / "train.csv"), "--out", str(tmp_path / "run"),
                 *TINY]) == 0
    said = "TF-IDF with logistic regression is left out: scikit-learn is not installed"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "run" / "report.md").read_text()
    assert "tfidf" not in results(tmp_path / "run")


def test_evaluate_gives_the_same_figures(trained, files, capsys):
    assert main(["evaluate", "--model", str(trained / "model"), "--test",
                 str(files / "test.csv"), "--json"]) == 0
    found, kept = json.loads(capsys.readouterr().out), results(trained)
    assert found["confusion"] == kept["confusion"]
    assert found["loss"] == pytest.approx(kept["loss"], rel=1e-6)
    assert main(["evaluate", "--model", str(trained / "model"), "--test",
                 str(files / "test.csv")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{kept['accuracy']:.1%} of 80 texts are right\n  95% interval ")
    assert f"macro F1 {kept['macro_f1']:.1%}, loss {kept['loss']:.4f}\n" in out
    assert "economy" in out


def test_predict_keeps_the_other_columns(trained, files, tmp_path, capsys):
    model = str(trained / "model")
    assert main(["predict", "--model", model, "--file", str(files / "test.csv"), "--out",
                 str(tmp_path / "out.csv")]) == 0
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted(toy_news.CLASSES)
    assert list(rows[0]) == ["number", "text", "label", "predicted_label",
                             *(f"p_{name}" for name in names)]
    right = sum(row["label"] == row["predicted_label"] for row in rows)
    assert right / 80 == results(trained)["accuracy"]
    for row in rows:
        p = {name: float(row[f"p_{name}"]) for name in names}
        assert max(p, key=p.get) == row["predicted_label"]
        assert sum(p.values()) == pytest.approx(1, abs=1e-5)

    assert main(["predict", "--model", model, "--file", str(files / "test.csv"), "--out",
                 str(tmp_path / "out.jsonl")]) == 0
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["predicted_label"] for r in again] == [r["predicted_label"] for r in rows]
    capsys.readouterr()
    assert main(["predict", "--model", model, rows[0]["text"], "Another, with a comma"]) == 0
    shown = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert shown[0]["label"] == rows[0]["predicted_label"] and len(shown) == 2


def test_same_command_gives_the_same_results(trained, files, tmp_path):
    out = tmp_path / "again"
    arguments = ["finetune", "--train", str(files / "train.csv"), "--test",
                 str(files / "test.csv"), "--out", str(out), *TINY]
    assert main(arguments) == 0
    assert timeless(results(out)) == timeless(results(trained))
    assert (out / "model" / "model.safetensors").read_bytes() == (
        trained / "model" / "model.safetensors").read_bytes()
    assert main([*arguments, "--overwrite", "--seed", "1"]) == 0
    assert timeless(results(out)) != timeless(results(trained))


def test_a_trained_folder_can_be_trained_again(trained, files, tmp_path, capsys):
    arguments = ["finetune", "--model", str(trained / "model"), "--epochs", "1", "--quiet"]
    assert main([*arguments, "--train", str(files / "train.csv"), "--train-layers", "head",
                 "--out", str(tmp_path / "same")]) == 0
    out = capsys.readouterr().out
    assert "new head" not in out and "64 of them trained" in out
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "".join(f"text number {i},{'ab'[i % 2]}\n"
                                              for i in range(30)))
    assert main([*arguments, "--train", str(other), "--out", str(tmp_path / "other")]) == 0
    assert "a new head for the 2 labels" in capsys.readouterr().out


@pytest.mark.parametrize("options", [
    ["--class-weights", "balanced"], ["--class-weights", "sport=2,economy=0.5"],
    ["--label-smoothing", "0.1"], ["--select", "loss"], ["--optimizer", "sgd", "--lr", "0.1"],
    ["--schedule", "cosine"], ["--layer-decay", "0.8"], ["--truncate", "tail", "--max-length", "9"],
    ["--early-stopping", "1"], ["--micro-tokens", "64"], ["--clean", "none"],
    ["--select", "last", "--average", "0.5"],
    ["--compare", "none"], ["--gradient-checkpointing"],
    ["--train-layers", "head", "--feature-memory", "0"]])
def test_every_option_runs(files, tmp_path, options, capsys):
    assert main(["finetune", "--train", str(files / "train.csv"), "--out", str(tmp_path / "run"),
                 *TINY, *options]) == 0
    captured = capsys.readouterr()
    assert "validation texts are right" in captured.out and captured.err == ""
    assert "without a test file the figures at the end" in captured.out
    assert "epoch 1 " not in captured.out
    assert "optimistic" in (tmp_path / "run" / "report.md").read_text()
    assert ("naive Bayes" in captured.out) == ("--compare" not in options)
    if "--max-length" in options:
        assert "cut 80 training and validation texts to 9 tokens" in captured.out


def test_the_last_epoch_and_early_stopping_exclude_each_other(files, tmp_path, capsys):
    assert main(["finetune", "--train", str(files / "train.csv"), "--out", str(tmp_path / "run"),
                 *TINY, "--select", "last", "--early-stopping", "2"]) == 2
    assert "--early-stopping waits for a better epoch" in capsys.readouterr().err
    assert main(["finetune", "--train", str(files / "train.csv"), "--out", str(tmp_path / "run"),
                 *TINY, "--average", "0.5", "--early-stopping", "2"]) == 2
    assert "before --average begins" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_the_options_change(files, tmp_path):
    """The first step's loss by hand: weights and smoothing reach it, and `--select` the choice."""
    arguments = ["finetune", "--train", str(files / "train.csv"), *TINY, "--dropout", "0",
                 "--batch-tokens", "100000"]
    for name, options in {"plain": [], "smooth": ["--label-smoothing", "0.5"],
                          "one": ["--class-weights", "sport=1000"],
                          "loss": ["--select", "loss"], "head": ["--train-layers", "head"]}.items():
        assert main([*arguments, *options, "--out", str(tmp_path / name)]) == 0
    first = {name: json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
             for name in ("plain", "smooth", "one")}
    assert len({entry["loss"] for entry in first.values()}) == 3
    # every class weighs one but sport, whose texts alone count: its gradient is larger
    assert first["one"]["grad_norm"] > 1.5 * first["plain"]["grad_norm"]
    epochs = [json.loads(line) for line in (tmp_path / "loss" / "metrics.jsonl").read_text()
              .splitlines() if "valid_loss" in line]
    assert results(tmp_path / "loss")["best_epoch"] == min(
        epochs, key=lambda e: e["valid_loss"])["epoch"]
    model = load(tmp_path / "head" / "model")
    untrained = Classifier(model.trunk.config, model.label_names, seed=0).store
    changed = {p.name for p in model.store if (p.value != untrained[p.name].value).any()}
    assert changed == {"score.weight"}


@pytest.mark.parametrize("name, content, options", [
    ("a.tsv", "{k}\t{t}\n", ["--no-header", "--text-column", "2", "--label-column", "1"]),
    ("a.json.gz", '{{"text": "{t}", "label": "{k}"}}\n', []),
    ("a.jsonl", '{{"title": "{t}", "body": "{t}", "topic": "{k}"}}\n',
     ["--text-column", "title", "body", "--label-column", "topic"]),
    ("a.csv", '"{t} \xe9",{k}\n', ["--no-header", "--text-column", "1", "--label-column", "2",
                                   "--encoding", "latin-1"]),
])
def test_forms_of_files(tmp_path, name, content, options):
    rows = zip(*toy_news.generate("train"), strict=True)
    text = "".join(content.format(t=t, k=k) for t, k in list(rows)[:40])
    if name == "a.json.gz":
        text = "[" + text.strip().replace("\n", ",\n") + "]"
    data = text.encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert main(["finetune", "--train", str(tmp_path / name), "--out", str(tmp_path / "run"),
                 *TINY, *options]) == 0
    found = results(tmp_path / "run")
    assert [row["name"] for row in found["per_class"]] == sorted(toy_news.CLASSES)


def test_classes_that_the_test_file_lacks(files, trained, tmp_path, capsys):
    lines = (files / "test.csv").read_text().splitlines(keepends=True)
    some = tmp_path / "some.csv"
    some.write_text(lines[0] + "".join(line for line in lines if line.strip().endswith(
        sorted(toy_news.CLASSES)[0])))
    assert main(["evaluate", "--model", str(trained / "model"), "--test", str(some)]) == 0
    assert "counts 0 for the 3 of which there is no text here" in " ".join(
        capsys.readouterr().out.split())


def test_columns_are_remembered_with_the_model(files, tmp_path, capsys):
    text = (files / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("number,text,label", "kind,body,topic"))
    (tmp_path / "other.csv").write_text(text)
    assert main(["finetune", "--train", str(tmp_path / "train.csv"), "--text-column", "kind",
                 "body", "--label-column", "topic", "--out", str(tmp_path / "run"), *TINY]) == 0
    model, figures = str(tmp_path / "run" / "model"), []
    assert read_preprocessing(model).columns == Columns(("kind", "body"), None, "topic")
    for arguments in (["train.csv"], ["other.csv", "--text-column", "number", "text",
                                      "--label-column", "label"]):
        capsys.readouterr()
        assert main(["evaluate", "--model", model, "--test", str(tmp_path / arguments[0]),
                     *arguments[1:]]) == 0
        figures.append(capsys.readouterr().out)
    assert figures[0] == figures[1]
    assert main(["predict", "--model", model, "--file", str(tmp_path / "train.csv")]) == 0
    capsys.readouterr()
    for command in (["evaluate", "--test"], ["predict", "--file"]):
        assert main([*command, str(tmp_path / "other.csv"), "--model", model]) == 2
        assert capsys.readouterr().err.endswith(
            "no column 'kind'; the columns are: number, text, label (the model was trained with "
            "--text-column kind body, --label-column topic)\n")


def test_bad_rows_lie_in_the_run_folder(files, tmp_path, capsys):
    for part in ("train", "test"):
        text = (files / f"{part}.csv").read_text()
        (tmp_path / f"{part}.csv").write_text(text.replace("2,", "2,,", 1) + "99, ,World\n")
    command = ["finetune", "--train", str(tmp_path / "train.csv"), "--test",
               str(tmp_path / "test.csv"), "--out", str(tmp_path / "run"), *TINY]
    assert main(command) == 2
    assert "train.csv, line " in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*command, "--skip-bad-rows"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("skipped 2 of 81 rows") == 2
    with open(tmp_path / "run" / "bad_rows.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [row["file"].rsplit("/", 1)[1] for row in kept] == ["train.csv"] * 2 + ["test.csv"] * 2
    assert "rows skipped, which cannot be read | 4" in (tmp_path / "run/report.md").read_text()
    assert main([*command, "--skip-bad-rows", "--overwrite"]) == 0


def test_a_validation_file(files, tmp_path, capsys):
    assert main(["finetune", "--train", str(files / "train.csv"), "--valid",
                 str(files / "test.csv"), "--out", str(tmp_path / "run"), *TINY]) == 0
    assert "80 training, 80 validation and no test texts" in capsys.readouterr().out
    assert results(tmp_path / "run")["n_test"] == 80


def test_a_text_of_a_million_characters_is_cut(files, tmp_path, capsys):
    with open(files / "train.csv", newline="") as file:
        rows = list(csv.reader(file))
    rows[7][1] = "goal " * 200_000
    with open(tmp_path / "long.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    started = time.perf_counter()
    assert main(["finetune", "--train", str(tmp_path / "long.csv"), "--out",
                 str(tmp_path / "run"), *TINY]) == 0
    assert "cut 1 training and validation text to 512 tokens" in capsys.readouterr().out
    assert time.perf_counter() - started < 60     # a quadratic step anywhere would take hours


def test_adaptation_lowers_the_loss_of_the_texts_and_reaches_the_classifier(files, tmp_path,
                                                                            capsys):
    arguments = ["finetune", "--train", str(files / "train.csv"), *TINY, "--lr", "0.01"]
    assert main([*arguments, "--out", str(tmp_path / "plain")]) == 0
    assert main([*arguments, "--adapt-epochs", "3", "--out", str(tmp_path / "adapted")]) == 0
    assert "adapted: the loss of the validation texts" in capsys.readouterr().out
    found = results(tmp_path / "adapted")["adaptation"]
    assert found["epochs"] == 3 and found["valid_loss"] < found["valid_loss_before"] - 0.5
    assert (tmp_path / "adapted" / "adaptation" / "metrics.jsonl").exists()
    first = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
             for name in ("plain", "adapted")]
    assert first[0] != first[1]
    assert main([*arguments, "--adapt-epochs", "1", "--task", "complete", "--overwrite", "--out",
                 str(tmp_path / "plain")]) == 2
    assert "--adapt-epochs is for --task classify" in capsys.readouterr().err


def test_random_weights_of_the_same_architecture_stand_beside(trained, files, tmp_path, capsys):
    arguments = ["finetune", "--model", str(trained / "model"), "--train",
                 str(files / "train.csv"), "--test", str(files / "test.csv"), "--epochs", "1",
                 "--quiet"]
    found = {}
    for compare in ("random", "baselines"):
        assert main([*arguments, "--compare", compare, "--out", str(tmp_path / compare)]) == 0
        told = capsys.readouterr().out
        assert ("  the same architecture from random weights " in told) == (compare == "random")
        found[compare] = results(tmp_path / compare)
        assert ("from random weights |" in (tmp_path / compare / "report.md").read_text()) == (
            compare == "random")
    twin = found["random"].pop("random_weights")
    told = (tmp_path / "random" / "report.md").read_text()
    assert (f"highest rate {twin['lr']:.2g}, dropout {twin['dropout']:g}, {twin['epochs_run']} of "
            f"at most {twin['epochs']} epochs, of which the validation part chose number "
            f"{twin['best_epoch']}.") in told
    assert "| pooling | not set |" in told     # a GPT-2 has none
    assert twin["epochs"] == 15 and 0.2 < twin["accuracy"] < 1
    assert timeless(found["random"]) == timeless(found["baselines"])     # the model is untouched


def test_default_run_needs_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", *TINY]) == 0
    assert main(["finetune", *TINY]) == 0     # the first is kept
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"toy-news-scratch",
                                                                "toy-news-scratch-2"}
    assert "400 test texts" in capsys.readouterr().out


@pytest.mark.parity
def test_transformers_opens_the_folder(trained, files, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = trained / "model"
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, tokenizer, _ = read_folder(folder)
    assert [peer.config.id2label[i] for i in range(4)] == list(model.label_names)
    texts = ["A goal on Monday", "The treaty, he said, was a law of the <|endoftext|>", "x"]
    ours = [tokenizer.encode(text).ids for text in texts]
    batch = peer_tokenizer(texts, padding=True, return_tensors="pt")
    assert [ids[:len(x)] for ids, x in zip(batch["input_ids"].tolist(), ours, strict=True)] == ours
    with torch.no_grad():
        expected = peer(**batch).logits.numpy()
    from minisft.data.batch import pack
    logits = model.forward(pack([np.array(x) for x in ours]))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()
    pipe = transformers.pipeline("text-classification", model=peer, tokenizer=peer_tokenizer)
    expected = [model.label_names[k] for k in logits.argmax(axis=1)]
    assert [p["label"] for p in pipe(texts)] == expected
    # saved again by transformers, without our checksums, and loaded again
    peer.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).store.values, model.store.values)


def test_sms_spam(shared_data, tmp_path):
    assert main(["finetune", "--train", str(shared_data / "sms_spam" / "train.csv"), "--max-length",
                 "16", "--out", str(tmp_path / "run"), *TINY, "--epochs", "1"]) == 0
    assert results(tmp_path / "run")["n_test"] > 90


def test_ag_news_in_the_published_vocabulary(shared_data):
    path, tokenizer = shared_data / "ag_news" / "test.csv", shared_data / "gpt2_bpe"
    examples = read_examples(path, ["text"], "label")
    assert len(examples.label_names) == 4
    tokenizer = load_tokenizer(tokenizer)
    ids, cut = encode_all(tokenizer, examples.texts, 1024)
    assert cut == 0 and tokenizer.get_vocab_size() == 50257
    for text, x in list(zip(examples.texts, ids, strict=True))[:500]:
        assert tokenizer.decode(x.tolist()) == text
