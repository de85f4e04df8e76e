"""The task `translate` from files to a folder that translates, and every door to it."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from minisft.cli import main
from minisft.data.pairs import TextPairs
from minisft.evaluation import decoding, translation
from minisft.io.model_folder import read_folder
from minisft.jobs import translate
from minisft.models.seq2seq import EncoderDecoder
from minisft.training.config import FinetuneConfig

SMALL = ["--task", "translate", "--model", "scratch", "--layers", "1", "--width", "32", "--heads",
         "2", "--vocab-size", "300", "--batch-tokens", "400", "--context-length", "40", "--quiet",
         "--lr", "5e-3"]
WORDS = {"one": "un", "two": "deux", "red": "rouge", "blue": "bleu", "cat": "chat", "dog": "chien",
         "sees": "voit", "likes": "aime"}


def sentences(rng, n):
    """A language whose translation puts the colour behind the noun."""
    rows = []
    for _ in range(n):
        a, x, v, b, y = (str(rng.choice(pair)) for pair in (
            ("one", "two"), ("cat", "dog"), ("sees", "likes"), ("red", "blue"), ("cat", "dog")))
        rows.append(([a, x, v, b, y], [a, x, v, y, b]) if rng.random() < 0.5 else
                    ([b, x, v, y], [x, b, v, y]))
    return [(" ".join(source), " ".join(map(WORDS.get, target))) for source, target in rows]


def write(path, rows):
    path.write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in rows))
    return str(path)


def write_lines(folder, name, rows):
    for side, texts in zip(("en", "fr"), zip(*rows, strict=True), strict=True):
        (folder / f"{name}.{side}").write_text("".join(f"{text}\n" for text in texts))
    return str(folder / f"{name}.en"), str(folder / f"{name}.fr")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its folder and the test pairs."""
    folder, rng = tmp_path_factory.mktemp("translate"), np.random.default_rng(3)
    train, test = sentences(rng, 200), sentences(rng, 30)
    paths = write(folder / "a.csv", train), write(folder / "b.csv", test)
    write_lines(folder, "b", test)
    assert main(["finetune", *SMALL, "--train", paths[0], "--test", paths[1], "--epochs", "20",
                 "--out", str(folder / "run")]) == 0
    return folder / "run", test


def test_a_run_learns_and_leaves_everything(run):
    folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    assert results["token_accuracy"] > 0.9 and results["n"] == 30 and results["beam_size"] == 4
    assert {path.name for path in folder.iterdir()} >= {
        "report.md", "report.html", "attention.png", "curves.png", "config.json", "model"}
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings["label_smoothing"] == 0.1 and settings["dropout"] == 0.1
    model, _, preprocessing = read_folder(folder / "model")
    assert isinstance(model, EncoderDecoder)
    assert preprocessing.columns.target_column == "target"


def test_bleu_and_the_baselines_are_in_the_report(run):
    pytest.importorskip("sacrebleu")
    folder, _ = run
    results, report = (json.loads((folder / "results.json").read_text()),
                       (folder / "report.md").read_text())
    assert results["bleu_low"] <= results["bleu"] <= results["bleu_high"]
    assert results["word_for_word"]["bleu"] > results["copied_source"]["bleu"]
    for words in ("tok:13a", "IBM model 1", "The worst mistakes", "(attention.png)"):
        assert words in report


def test_without_sacrebleu_there_is_the_loss(run, monkeypatch, capsys):
    folder, _ = run
    monkeypatch.setattr(translation, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert main(["evaluate", "--model", str(folder / "model"), "--test",
                 str(folder.parent / "b.csv")]) == 0
    out = capsys.readouterr().out
    assert "minisft[translate]" in out and "perplexity" in out and "BLEU 0" not in out


def test_the_folder_evaluates_to_the_same_figures(run, capsys):
    folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    for options in (["--test", str(folder.parent / "b.csv")],
                    ["--test", str(folder.parent / "b.en"), "--test-target",
                     str(folder.parent / "b.fr")]):
        assert main(["evaluate", "--model", str(folder / "model"), *options, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        for key in ("loss", "token_accuracy", "tokens", "bleu", "bleu_signature", "chrf"):
            assert found.get(key) == pytest.approx(results.get(key)), key


def test_every_line_is_translated_in_its_place(run, tmp_path, monkeypatch, capsys):
    folder, test = run
    model = ["--model", str(folder / "model")]
    (tmp_path / "new.en").write_text("".join(f"{a}\n\n" for a, _ in test))
    out = tmp_path / "new.fr"
    assert main(["translate", *model, "--file", str(tmp_path / "new.en"), "--out", str(out)]) == 0
    lines = out.read_text().split("\n")
    assert len(lines) == 2 * len(test) + 1 and not any(lines[1::2])
    right = np.mean([line == b for line, (_, b) in zip(lines[::2], test, strict=False)])
    assert right > 0.6     # a line that is not in its place is right once in 20
    assert main(["translate", *model, "--file", str(folder.parent / "b.csv"), "--beam-size", "1",
                 "--out", str(out), "--overwrite"]) == 0
    assert len(out.read_text().splitlines()) == len(test)
    capsys.readouterr()
    assert main(["translate", *model, "one dog sees red cat", "red cat likes dog"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and all(set(line.split()) <= set(WORDS.values()) for line in told)
    monkeypatch.setattr("sys.stdin", io.StringIO("one dog\x0csees\u2028red cat\n\nred cat\n"))
    assert main(["translate", *model]) == 0
    told = capsys.readouterr().out.split("\n")
    assert len(told) == 4 and told[0] and told[1] == "" and told[2]


def test_aligned_files_give_the_same_bits_as_a_table(tmp_path, rng):
    rows = sentences(rng, 40)
    source, target = write_lines(tmp_path, "a", rows)
    table = write(tmp_path / "a.csv", rows)
    for out, options in (
            ("x", [word for name in ("train", "valid", "test") for word in (f"--{name}", table)]),
            ("y", [word for name in ("train", "valid", "test") for word in (
                f"--{name}", source, f"--{name}-target", target)])):
        assert main(["finetune", *SMALL, *options, "--epochs", "1", "--out",
                     str(tmp_path / out), "--beam-size", "1", "--compare", "none"]) == 0
    report = (tmp_path / "y" / "report.md").read_text()
    for kind in ("training", "validation", "test"):
        assert f"| {kind} file | {source} and {target} |" in report
    assert f"| training file | {tmp_path / 'a.csv'} |" in (tmp_path / "x" / "report.md").read_text()
    models = [read_folder(tmp_path / out / "model")[0] for out in "xy"]
    np.testing.assert_array_equal(*(model.store.values for model in models))


@pytest.mark.parametrize("options", [
    ["--seeds", "2"], ["--schedule", "inverse_sqrt", "--label-smoothing", "0"],
    ["--train-texts", "20", "--valid-fraction", "0.3", "--average", "0.5", "--select", "last"],
    ["--gradient-checkpointing", "--micro-tokens", "60"]])
def test_the_loops_options_work(tmp_path, rng, options):
    train, out = write(tmp_path / "a.csv", sentences(rng, 40)), tmp_path / "run"
    assert main(["finetune", *SMALL, "--train", train, "--epochs", "2", "--out", str(out),
                 "--beam-size", "2", *options]) == 0
    results = json.loads((out / "results.json").read_text())
    assert "loss" in results


def test_no_attention_is_drawn_of_a_translation_beyond_the_model(run):
    folder, _ = run
    model, tokenizer, preprocessing = read_folder(folder / "model")
    pairs = TextPairs(["one red cat sees two dogs"], ["un"], path=folder, lines=[1], cleaned={})
    dataset, _ = translate.encode(tokenizer, pairs, preprocessing, model)
    for text, drawn in (("z" * 24, True), ("z" * 25, False)):
        assert (decoding.attention_of_one(model, tokenizer, dataset, [text]) is not None) == drawn
    ids = [dataset.ids[0][:4]]
    model.trunk.config = replace(model.trunk.config, max_position_embeddings=8)
    for text, drawn in (("z" * 7, True), ("z" * 8, False)):
        found = decoding.attention_of_one(model, tokenizer, replace(dataset, ids=ids), [text])
        assert (found is not None) == drawn


def test_bad_rows_are_skipped_and_listed(tmp_path, rng, capsys):
    train, out = write(tmp_path / "a.csv", sentences(rng, 40)), tmp_path / "run"
    with open(train, "a") as file:
        file.write("one cat,\n")
    command = ["finetune", *SMALL, "--train", train, "--epochs", "1", "--out", str(out)]
    assert main(command) == 2
    assert "line 42: the target is empty" in capsys.readouterr().err
    assert main([*command, "--skip-bad-rows", "--beam-size", "1"]) == 0
    assert "42,the target is empty" in (out / "bad_rows.csv").read_text()


def test_a_curve_of_translators(tmp_path, rng, capsys):
    pytest.importorskip("sacrebleu")
    train = write(tmp_path / "a.csv", sentences(rng, 40))
    assert main(["curve", *SMALL, "--train", train, "--test", train, "--sizes", "10", "20",
                 "--epochs", "1", "--beam-size", "1", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "BLEU with 20 training texts" in out and "%" not in out.split("by number of")[1]
    assert "| 10 | 1 |" in (tmp_path / "run" / "report.md").read_text()
    for i, point in enumerate(json.loads((tmp_path / "run" / "curve.json").read_text())["points"]):
        folder = tmp_path / "run" / f"size-{point['size']}" / "seed-0"
        each = json.loads((folder / "results.json").read_text())
        for key, name in (("word_for_word", "a dictionary"), ("copied_source", "the source as")):
            assert point["baselines"][key]["values"] == [each[key]["bleu"]]
            line = next(line for line in out.splitlines() if line.startswith("  " + name))
            assert line.split()[i - 2] == f"{each[key]['bleu']:.1f}"


def test_a_run_goes_on_from_an_earlier_runs_folder(run, tmp_path, capsys):
    folder, test = run
    train = write(tmp_path / "a.csv", test)
    options = ["finetune", "--task", "translate", "--model", str(folder / "model"), "--train",
               train, "--test", train, "--epochs", "3", "--quiet"]
    assert main([*options, "--out", str(tmp_path / "more")]) == 0
    before = json.loads((folder / "results.json").read_text())
    after = json.loads((tmp_path / "more" / "results.json").read_text())
    assert after["loss"] <= before["loss"] * 1.2 and after["n"] == len(test)
    assert "new head" not in capsys.readouterr().out


def test_micro_steps_are_one_step(run):
    """A step in pieces has the gradient of the whole, and a pair's tokens are those of both."""
    folder, test = run
    model, tokenizer, preprocessing = read_folder(folder / "model")
    pairs = TextPairs(*map(list, zip(*test, strict=True)), path=folder, lines=list(range(30)),
                      cleaned={})
    dataset, cut = translate.encode(tokenizer, pairs, preprocessing, model)
    batch = dataset.batch([3, 5])
    assert dataset.lengths[[3, 5]].sum() == len(batch.ids) + len(batch.source.ids) and not cut
    whole = decoding.token_loss(model, dataset, 10**6)
    assert decoding.token_loss(model, dataset, 30) == pytest.approx(whole, rel=1e-5)
    config = FinetuneConfig.from_options(task="translate", label_smoothing=0.3)
    assert translate.Translation(config, pairs, pairs).loss_options() == {"smoothing": 0.3}
    weights = decoding.cross_attention(model, dataset, 3)
    assert weights.shape == (len(dataset.targets[3]) + 1, len(dataset.ids[3]))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-9)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, rng, monkeypatch, capsys):
    source, target = write_lines(tmp_path, "a", sentences(rng, 40))
    command = ["finetune", *SMALL, "--train", source, "--train-target", target, "--epochs", "3",
               "--beam-size", "2", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    calls, original = [], translate.Translation.validate

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:     # after the second epoch's steps
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(translate.Translation, "validate", interrupted)
        assert main([*command, str(tmp_path / "run")]) == 130
    kept = (tmp_path / "a.fr").read_bytes()
    (tmp_path / "a.fr").write_bytes(kept.replace(b"chat", b"chats", 1))
    capsys.readouterr()
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 2
    assert "expected the same for --train-target" in capsys.readouterr().err
    (tmp_path / "a.fr").write_bytes(kept)
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 0
    whole, run = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()


@pytest.mark.parametrize("options, message", [
    ([], "--task translate needs --train"),
    (["--train", "a.csv"], "expected --model scratch"),
    (["--train", "a.csv", "--model", "scratch", "--target-column", "x"], "no column 'x'"),
    (["--train", "a.txt", "--model", "scratch"], "--train-target"),
    (["--train", "a.csv", "--model", "scratch", "--test-target", "a.txt"],
     "--test-target is the file of translations beside --test"),
    (["--train", "a.csv", "--model", "scratch", "--train-layers", "head"], "expected all"),
    (["--train", "a.csv", "--model", "scratch", "--adapter", "lora"],
     "--adapter is for GPT-2 and BERT, expected none: a translator is trained as a whole\n"),
    (["--train", "a.csv", "--model", "scratch", "--initializer-range", "0.1"],
     "--initializer-range is for GPT-2"),
    (["--train", "a.csv", "--model", "scratch", "--adapt-epochs", "1"],
     "--adapt-epochs is for --task classify\n"),
    (["--train", "a.csv", "--model", "scratch", "--width", "33", "--heads", "3"],
     "--width, --heads: d_model is 33, expected an even number of 4 or more"),
    (["--train", "a.csv", "--model", "scratch", "--width", "2", "--heads", "1"], "4 or more"),
    (["--train", "a.csv", "--model", "scratch", "--max-length", "1"], "expected 2 or more")])
def test_what_cannot_be_is_one_line(tmp_path, rng, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", sentences(rng, 10))
    (tmp_path / "a.txt").write_text("one\n")
    assert main(["finetune", "--task", "translate", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options, message", [
    (["--source-column", "en"], "--source-column is for --task translate"),
    (["--beam-size", "2"], "--beam-size is for --task translate"),
    (["--task", "complete", "--label-smoothing", "0.1"],
     "--label-smoothing is for --task classify or --task translate")])
def test_its_options_are_refused_elsewhere(toy_file, capsys, options, message):
    assert main(["finetune", "--train", toy_file(20), *options]) == 2
    assert message in capsys.readouterr().err


def test_other_commands_say_what_a_translator_is_for(run, capsys):
    folder, _ = run
    model = ["--model", str(folder / "model")]
    for words in (["predict", *model, "x"], ["generate", *model, "x"],
                  ["translate", "--model", "minisft-gpt2", "x"],
                  ["translate", *model, "--length-penalty", "11", "x"],
                  ["translate", *model, "--file", "none.en"], ["translate", *model, " "]):
        code = main(words)
        if words[-1] != " ":
            assert code == 2 and capsys.readouterr().err.count("\n") == 1
    assert main(["translate", *model, "one", "--file", "x"]) == 2
    kept = (folder.parent / "b.en").read_bytes()
    capsys.readouterr()
    assert main(["translate", *model, "--file", str(folder.parent / "b.en"), "--overwrite",
                 "--out", str(folder.parent / "run" / ".." / "b.en")]) == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert (folder.parent / "b.en").read_bytes() == kept
