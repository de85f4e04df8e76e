"""Fine-tuning from files to a run folder, and the commands that use the folder afterwards."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minisft import complete
from minisft.checkpoint import load
from minisft.cli import main
from minisft.data import toy_news
from minisft.folder import read_folder
from minisft.ops.cross_entropy import IGNORE

TINY = ["--layers", "1", "--width", "16", "--heads", "2", "--vocab-size", "300", "--epochs", "2",
        "--batch-tokens", "256", "--quiet"]
ROOT = Path(__file__).resolve().parents[1]


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
    with open(folder / "pairs.jsonl", "w") as file:
        for i in range(40):
            file.write(json.dumps({"question": f"Say {i % 7}", "hint": "" if i % 2 else "now",
                                   "answer": str(i % 7)}) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(files):
    """The folder of one finished run."""
    out = files / "run"
    assert main(["finetune", "--train", str(files / "train.csv"), "--test",
                 str(files / "test.csv"), "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def completer(files):
    """The folder of one finished run of the other task."""
    out = files / "pairs"
    assert main(["finetune", "--task", "complete", "--train", str(files / "pairs.jsonl"),
                 "--prompt-column", "question", "hint", "--completion-column", "answer",
                 "--out", str(out), "--max-new-tokens", "5", *TINY]) == 0
    return out


def results(folder):
    return json.loads((folder / "results.json").read_text())


def timeless(found):
    return {k: v for k, v in found.items() if k not in ("train_seconds", "tokens_per_second")}


def test_run_folder_holds_what_the_readme_says(trained):
    assert {p.name for p in trained.iterdir()} == {
        "config.json", "metrics.jsonl", "model", "training_state", "results.json", "curves.png",
        "confusion.png", "report.md"}
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
    assert "The worst mistakes" in (trained / "report.md").read_text()


def test_evaluate_gives_the_same_figures(trained, files, capsys):
    assert main(["evaluate", "--model", str(trained / "model"), "--test",
                 str(files / "test.csv"), "--json"]) == 0
    found, kept = json.loads(capsys.readouterr().out), results(trained)
    assert found["confusion"] == kept["confusion"]
    assert found["loss"] == pytest.approx(kept["loss"], rel=1e-6)
    assert main(["evaluate", "--model", str(trained / "model"), "--test",
                 str(files / "test.csv")]) == 0
    out = capsys.readouterr().out
    assert f"accuracy {kept['accuracy']:.4f}" in out and "economy" in out


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
    assert "new head" not in out and "64 trained" in out
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "".join(f"text number {i},{'ab'[i % 2]}\n"
                                              for i in range(30)))
    assert main([*arguments, "--train", str(other), "--out", str(tmp_path / "other")]) == 0
    assert "a new head for the labels a, b" in capsys.readouterr().out


@pytest.mark.parametrize("options", [
    ["--class-weights", "balanced"], ["--class-weights", "sport=2,economy=0.5"],
    ["--label-smoothing", "0.1"], ["--select", "loss"], ["--optimizer", "sgd", "--lr", "0.1"],
    ["--schedule", "cosine"], ["--layer-decay", "0.8"], ["--truncate", "tail", "--max-length", "9"],
    ["--early-stopping", "1"], ["--micro-tokens", "64"], ["--clean", "none"]])
def test_every_option_runs(files, tmp_path, options, capsys):
    assert main(["finetune", "--train", str(files / "train.csv"), "--out", str(tmp_path / "run"),
                 *TINY, *options]) == 0
    captured = capsys.readouterr()
    assert "validation accuracy" in captured.out and captured.err == ""
    assert "optimistic" in (tmp_path / "run" / "report.md").read_text()
    if "--max-length" in options:
        assert "cut 80 training and validation texts to 9 tokens" in captured.out


@pytest.mark.parametrize("name, content, options", [
    ("a.tsv", "{k}\t{t}\n", ["--no-header", "--text-column", "2", "--label-column", "1"]),
    ("a.jsonl", '{{"title": "{t}", "body": "{t}", "topic": "{k}"}}\n',
     ["--text-column", "title", "body", "--label-column", "topic"]),
    ("a.csv", '"{t} \xe9",{k}\n', ["--no-header", "--text-column", "1", "--label-column", "2",
                                   "--encoding", "latin-1"]),
])
def test_forms_of_files(tmp_path, name, content, options):
    rows = zip(*toy_news.generate("train"), strict=True)
    text = "".join(content.format(t=t, k=k) for t, k in list(rows)[:40])
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert main(["finetune", "--train", str(tmp_path / name), "--out", str(tmp_path / "run"),
                 *TINY, *options]) == 0
    assert set(results(tmp_path / "run")["confusion"][0]) <= set(range(5))


def test_a_text_of_a_million_characters_is_cut(files, tmp_path, capsys):
    with open(files / "train.csv", newline="") as file:
        rows = list(csv.reader(file))
    rows[7][1] = "goal " * 200_000
    with open(tmp_path / "long.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    started = time.perf_counter()
    assert main(["finetune", "--train", str(tmp_path / "long.csv"), "--out",
                 str(tmp_path / "run"), *TINY]) == 0
    assert "cut 1 training and validation texts to 512 tokens" in capsys.readouterr().out
    assert time.perf_counter() - started < 60     # a quadratic step anywhere would take hours


def test_completion_counts_the_completion_only():
    for n_prompt, n_answer, most in ((5, 3, 20), (5, 3, 8), (5, 3, 4), (5, 9, 6), (0, 3, 9)):
        prompt, answer = np.arange(10, 10 + n_prompt), np.arange(50, 50 + n_answer)
        if n_prompt == 0:
            prompt = np.array([99])
        ids, labels, cut = complete.join(prompt, answer, 7, most)
        assert len(ids) == len(labels) <= most
        assert cut == (len(prompt) + n_answer + 1 > most)
        counted = []
        for i, label in enumerate(labels):
            if label != IGNORE:
                assert label == ids[i + 1]
                counted.append(label)
        assert counted == [*answer, 7][:len(counted)] and counted
        if not cut:
            assert counted == [*answer, 7]


def test_complete_shows_a_sample_and_reports(completer, capsys):
    found = results(completer)
    assert {"loss", "perplexity", "exact_match", "exact_match_low", "n_test"} <= found.keys()
    assert not (completer / "confusion.png").exists()
    model, tokenizer, treatment = read_folder(completer / "model")
    assert treatment.separator == "\n\n" and treatment.clean == ()
    assert main(["generate", "--model", str(completer / "model"), "Say 3\nnow", "Say 5",
                 "--temperature", "0", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("Say 3\nnow\n")


def test_complete_prints_where_the_loss_is(files, tmp_path, capsys):
    assert main(["finetune", "--task", "complete", "--train", str(files / "pairs.jsonl"), "--test",
                 str(files / "pairs.jsonl"), "--prompt-column", "question", "hint",
                 "--completion-column", "answer", "--out", str(tmp_path / "run"), *TINY]) == 0
    out = capsys.readouterr().out
    assert "no loss: 'Say " in out and "<|endoftext|>'" in out
    assert "40 test texts also stand in the training file" in out


def test_ctrl_c_and_resume(files, trained, tmp_path):
    """A real process, a real signal; the resumed run equals the one that nobody interrupted."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "minisft", "finetune", "--train", str(files / "train.csv"),
               "--test", str(files / "test.csv"), "--out", str(out), *TINY]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 130
    assert stderr == f"minisft: interrupted; to go on: minisft finetune --resume {out}\n"
    assert main(["finetune", "--resume", str(out)]) == 0
    assert timeless(results(out)) == timeless(results(trained))
    whole, again = ((f / "metrics.jsonl").read_text().splitlines() for f in (trained, out))
    assert [json.loads(a)["epoch"] for a in whole] == [json.loads(a)["epoch"] for a in again]


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
    assert [peer.config.id2label[i] for i in range(4)] == list(model.names)
    texts = ["A goal on Monday", "The treaty, he said, was a law of the <|endoftext|>", "x"]
    ours = [tokenizer.encode(text).ids for text in texts]
    batch = peer_tokenizer(texts, padding=True, return_tensors="pt")
    assert [ids[:len(x)] for ids, x in zip(batch["input_ids"].tolist(), ours, strict=True)] == ours
    with torch.no_grad():
        expected = peer(**batch).logits.numpy()
    from minisft.batch import pack
    logits = model.forward(pack([np.array(x) for x in ours]))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()
    pipe = transformers.pipeline("text-classification", model=peer, tokenizer=peer_tokenizer)
    assert [p["label"] for p in pipe(texts)] == [model.names[k] for k in logits.argmax(axis=1)]
    # saved again by transformers, without our checksums, and loaded again
    peer.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).store.values, model.store.values)


@pytest.mark.parity
def test_transformers_opens_the_completer(completer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(completer / "model").eval()
    model, tokenizer, _ = read_folder(completer / "model")
    ids = np.array(tokenizer.encode("Say 3\n\n").ids)
    from minisft.batch import pack
    with torch.no_grad():
        expected = peer(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(model.forward(pack([ids])), expected, atol=1e-4)


@pytest.mark.parametrize("task", ["sms", "instruction"])
def test_real_data(shared_data, tmp_path, task):
    if task == "sms":
        options = ["--train", str(shared_data / "sms_spam" / "train.csv"), "--max-length", "16"]
    else:
        options = ["--task", "complete", "--train",
                   str(shared_data / "instruction" / "instruction-data.json"), "--prompt-column",
                   "instruction", "input", "--completion-column", "output", "--max-new-tokens", "2"]
    assert main(["finetune", *options, "--out", str(tmp_path / "run"), *TINY, "--epochs", "1"]) == 0
    assert results(tmp_path / "run")["n_test"] > 90
