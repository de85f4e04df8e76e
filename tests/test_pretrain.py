"""Pretraining: documents and their borders, bits per byte, exact resume, the folder it leaves."""

import gzip
import json
import math
import os
import signal

import numpy as np
import pytest

from minisft.cli import main
from minisft.data.batch import pack
from minisft.data.documents import encode_documents, read_documents
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from minisft.io import metrics_log
from minisft.io.model_folder import read_folder
from minisft.jobs import pretrain
from minisft.ops.cross_entropy import log_softmax
from minisft.training.loop import Interrupted

WORDS = "the cat sat on a mat and the dog ran to its house by the river".split()
TINY = ["--layers", "1", "--width", "16", "--heads", "2", "--context-length", "16", "--vocab-size",
        "280", "--batch-tokens", "300", "--validate-every", "3", "--lr", "0.02"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """120 documents of a few words each, with borders."""
    rng = np.random.default_rng(0)
    found = [" ".join(rng.choice(WORDS, rng.integers(2, 30))) for _ in range(120)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(found))
    return path


@pytest.fixture(scope="module")
def run(text):
    out = text.parent / "run"
    assert main(["pretrain", "--text", str(text), "--out", str(out), "--quiet", "--epochs", "3",
                 "--source", "Words of our own: MIT", *TINY]) == 0
    return out


def test_documents_end_at_border_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n<|endoftext|>\n\ntwo <|endof text|>\r\n<|endoftext|> \n")
    assert read_documents(path) == ["one", "two <|endof text|>"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_documents(tmp_path / "a.txt.gz") == read_documents(path)


@pytest.mark.parametrize("content, line", [
    ("one<|endoftext|>two<|endoftext|>", 1), ("one\n<|endoftext|>\ntwo<|endoftext|>\n", 3),
    ("one\r\n\r\n <|endoftext|>two\r\n", 3)])
def test_the_end_marker_within_a_line_is_refused_or_parsed(tmp_path, capsys, content, line):
    path = tmp_path / "a.txt"
    path.write_text(content, newline="")
    with pytest.raises(UserError, match=rf"a.txt, line {line}: <\|endoftext\|> stands within a "
                                        "line .* or parse_special$"):
        read_documents(path)
    assert read_documents(path, parse_special=True) == ["one", "two"]
    path.write_text("one<|endoftext|>two<|endoftext|>" * 20)
    command = ["pretrain", "--text", str(path), "--out", str(tmp_path / "run"), *TINY, "--quiet"]
    assert main(command) == 2 and "or --parse-special" in capsys.readouterr().err
    assert main([*command, "--parse-special"]) == 0
    assert main(["pretrain", "--text", str(tmp_path / "a.txt"), "--valid", str(path), *TINY]) == 2


def test_a_file_without_borders_is_divided_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    paragraphs = [f"paragraph {i} " + "x" * 3000 for i in range(10)]
    path.write_text("\n\n".join(paragraphs))
    found = read_documents(path)
    assert len(found) == 4 and "\n\n".join(found) == "\n\n".join(paragraphs)
    path.write_text("<|endoftext|>\n \n")
    with pytest.raises(UserError, match="a.txt: holds no text"):
        read_documents(path)


def test_each_token_but_the_first_is_predicted_once():
    tokenizer = train_tokenizer(["some words of a text"], 300)
    texts = ["some words of a text, and more words", "of"]
    end = tokenizer.token_to_id("<|endoftext|>")
    ids, labels = encode_documents(tokenizer, texts, end, 5)
    assert max(map(len, ids)) <= 5 and all(len(x) == len(y) for x, y in zip(ids, labels,
                                                                          strict=True))
    assert np.concatenate(labels).tolist() == [
        token for text in texts for token in [*tokenizer.encode(text).ids, end]]
    assert ids[0][0] == end and ids[-1].tolist()[0] == end


def test_borders_are_not_crossed(run, text):
    model, tokenizer, _ = read_folder(run / "model", dtype=np.float64)
    end = tokenizer.token_to_id("<|endoftext|>")
    ids, labels = encode_documents(tokenizer, read_documents(text)[:5], end, 16)
    losses = [model.loss(pack([x], [y]))[0] for x, y in zip(ids, labels, strict=True)]
    assert model.loss(pack(ids, labels))[0] == pytest.approx(sum(losses), rel=1e-12)


def test_results_are_those_of_the_saved_folder(run, text):
    found = json.loads((run / "results.json").read_text())
    train, valid = pretrain._texts(pretrain.PretrainDataConfig(text=(str(text),)), 0)
    assert len(valid) == 2 and len(train) == 118
    model, tokenizer, preprocessing = read_folder(run / "model")
    assert preprocessing.clean == ()
    nats = 0.0
    end = tokenizer.token_to_id("<|endoftext|>")
    for ids, labels in zip(*encode_documents(tokenizer, valid, end, 16), strict=True):
        logp = log_softmax(model.forward(pack([ids])).astype(np.float64))
        nats -= sum(row[label] for row, label in zip(logp, labels, strict=True))
    n_bytes = sum(len(t.encode()) for t in valid)
    # the folder is float16
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=2e-3)
    assert found["valid_perplexity"] == pytest.approx(math.exp(found["valid_loss"]))
    assert found["xz_bits_per_byte"] > 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert all("sample" in line for line in lines if "valid_loss" in line)


def test_of_a_small_text_the_end_of_the_longest_document_is_held_out(tmp_path, capsys):
    path = tmp_path / "prose.txt"
    paragraphs = [f"paragraph {i} " + "x" * 300 for i in range(40)]
    path.write_text("\n\n".join(paragraphs))       # two documents, of 8,000 characters and the rest
    config = pretrain.PretrainDataConfig(text=(str(path),))
    train, valid = pretrain._texts(config, 0)
    assert len(train) == 2 and len(valid) == 1
    held = valid[0].split("\n\n")
    assert len(held) == 5 and set(held) < set(paragraphs)       # a tenth of the text
    assert sorted(held + [p for text in train for p in text.split("\n\n")]) == sorted(paragraphs)
    path.write_text("one line\nand another")
    assert pretrain._texts(config, 0) == (["one line"], ["and another"])
    path.write_text("one line")
    command = ["pretrain", "--text", str(path), *TINY, "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "no line break; expected one, or a file for --valid\n" in capsys.readouterr().err
    assert main([*command, "--valid-fraction", "0"]) == 2
    assert "--valid-fraction is 0.0, expected more, or a file for" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_small_text_is_read_several_times_and_validated_five(tmp_path, capsys):
    path, out = tmp_path / "a.txt", tmp_path / "run"
    rng = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(rng.choice(WORDS, 8)) for _ in range(60)))
    shape = TINY[:TINY.index("--batch-tokens")]
    assert main(["pretrain", "--text", str(path), "--out", str(out), *shape]) == 0
    shown = capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["epochs"] == 20 and "epochs" not in config["given"]
    assert config["given"]["width"] == 16 and "20 epochs, so that there are steps" in shown
    assert "validation 5 of 5: " in shown and "stretch" not in shown
    assert "minisft finetune --model" in shown and "bits per byte of the held-out text, " in shown
    assert max(map(len, shown.split("to use the model")[0].splitlines())) < 100
    assert "--epochs 20" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize("ours, words", [(1.9, "better than xz, 2.000"),
                                         (2.1, "worse than xz: more epochs or more text may help")])
def test_the_verdict_is_against_the_best_compressor(ours, words):
    first, _ = pretrain.headlines({"bits_per_byte": ours, "xz_bits_per_byte": 2.0,
                                   "valid_loss": 3.0, "valid_perplexity": 20.1})
    assert first.startswith(f"{ours:.3f} bits per byte of the held-out text, {words}")


def test_folder_and_card(run):
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.jsonl", "model", "results.json", "curves.png"}
    card = (run / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "\n---\n\n# A small" in card
    for words in ("Words of our own: MIT", "bits per byte of `xz -9e`", "What it cannot do",
                  "tokens seen", "| seed | 0 |", "](curves.png)",
                  "minisft pretrain --text text.txt --layers 1 --width 16 --heads 2"):
        assert words in card
    assert str(run.parent) not in card and (run / "model" / "curves.png").stat().st_size
    assert (run / "model" / "model.safetensors").stat().st_size < 2.2 * json.loads(
        (run / "results.json").read_text())["parameters"] + 4000


def test_resume_is_exact(run, text, tmp_path, monkeypatch):
    out, real = tmp_path / "again", metrics_log.MetricsLog.__call__
    config = pretrain.PretrainConfig.from_options(
        text=(str(text),), out=str(out), quiet=True, epochs=3, layers=1, width=16, heads=2,
        context_length=16, vocab_size=280, batch_tokens=300, validate_every=3, lr=0.02,
        source=("Words of our own: MIT",))

    def stop_at_five(log, entry):
        real(log, entry)
        if entry.get("step") == 5 and "loss" in entry:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(metrics_log.MetricsLog, "__call__", stop_at_five)
        with pytest.raises(Interrupted, match="again"):
            pretrain.pretrain(config, say=lambda line: None)
    assert main(["pretrain", "--resume", str(out)]) == 0
    timeless = [[{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"}
                 for line in (folder / "metrics.jsonl").read_text().splitlines()]
                for folder in (run, out)]
    assert timeless[0] == timeless[1]
    assert (out / "model" / "model.safetensors").read_bytes() == (
        run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("content, options, words", [
    (b"", [], ["bad.txt", "empty"]), (b"\xff\xfe", [], ["bad.txt", "line 1", "0xff"]),
    (b"one\n<|endoftext|>\n", [], ["bad.txt", "hold out", "--valid"]),
    (b"a\n<|endoftext|>\nb", ["--heads", "5"], ["--heads", "192", "5"]),
    (b"a\n<|endoftext|>\nb", ["--lr", "0"], ["--lr"]),
    (b"a\n<|endoftext|>\nb", ["--valid", "none.txt"], ["none.txt", "no such file"])])
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, content, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_bytes(content)
    assert main(["pretrain", "--text", "bad.txt", "--valid-fraction", "0.5", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minisft: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.txt"]


def test_no_text_is_one_line(capsys):
    assert main(["pretrain"]) == 2
    assert "--text is missing" in capsys.readouterr().err


@pytest.mark.parity
def test_transformers_opens_the_folder(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        run / "model", dtype=torch.float32).eval()
    model, tokenizer, _ = read_folder(run / "model")
    ids = np.array(tokenizer.encode("the cat sat").ids)
    with torch.no_grad():
        expected = peer(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(model.forward(pack([ids])), expected, atol=1e-4)
