"""The task `complete`: where the loss is taken, what a run leaves, and `minisft generate`."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from minisft.cli import main
from minisft.cli.generate import Stream
from minisft.data.batch import pack
from minisft.data.read import read_prompts
from minisft.data.special_tokens import default_special_tokens
from minisft.data.text import train_tokenizer
from minisft.evaluation.answering import token_f1
from minisft.evaluation.metrics import exact_match
from minisft.io.model_folder import read_folder
from minisft.jobs import complete
from minisft.models.generate import Sampler, generate
from minisft.ops.cross_entropy import IGNORE, log_softmax

TINY = ["--model", "scratch", "--layers", "1", "--width", "16", "--heads", "2",
        "--vocab-size", "300", "--context-length", "64", "--batch-tokens", "256",
        "--max-new-tokens", "5", "--quiet"]
COLUMNS = ["--task", "complete", "--prompt-column", "question", "hint", "--completion-column",
           "answer"]
ROWS = [{"question": f"Say {i % 7}", "hint": "" if i % 2 else "now", "answer": "ja" if i % 3 else
         "no"} for i in range(40)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def run(pairs):
    """The folder of a finished run, tested on its own training file, learnt by heart."""
    out = pairs.parent / "run"
    assert main(["finetune", *COLUMNS, "--train", str(pairs), "--test", str(pairs), "--out",
                 str(out), *TINY, "--epochs", "12", "--lr", "0.02", "--dropout", "0"]) == 0
    return out


def test_the_end_token_in_a_text_is_refused_or_parsed(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    command = ["finetune", "--task", "complete", "--train", str(path), *TINY, "--epochs", "1"]
    for key in ("prompt", "completion"):
        rows = [{"prompt": f"Say {i}", "completion": str(i)} for i in range(20)]
        rows[2][key] += "<|endoftext|>"
        path.write_text("\n".join(map(json.dumps, rows)))
        assert main([*command, "--out", str(tmp_path / "no")]) == 2
        assert (f"pairs.jsonl, line 3: the {key} holds <|endoftext|>" in
                (err := capsys.readouterr().err)) and "--parse-special" in err
        assert main([*command, "--parse-special", "--out", str(tmp_path / key)]) == 0
    model = tmp_path / "prompt" / "model"
    loaded, tokenizer, preprocessing = read_folder(model)
    assert preprocessing.parse_special
    prompts = read_prompts(path, ["prompt"], "completion")
    end = tokenizer.token_to_id("<|endoftext|>")
    ids = complete.encode(tokenizer, prompts, preprocessing, loaded)[0].ids
    assert [list(x).count(end) for x in ids] == [1] * 20 and all(x[-1] == end for x in ids)
    prompts = dataclasses.replace(prompts, prompts=[f"<|endoftext|>{p}" for p in prompts.prompts])
    ids = complete.encode(tokenizer, prompts, preprocessing, loaded)[0].ids
    assert all(x[0] == x[-1] == end for x in ids)
    assert main(["evaluate", "--model", str(model), "--test", str(path)]) == 0
    capsys.readouterr()
    assert main(["generate", "--model", str(model), "a<|endoftext|>b"]) == 0
    assert "read as its characters" not in capsys.readouterr().err


def test_a_prompt_with_a_special_token_is_told(run, capsys):
    assert main(["generate", "--model", str(run / "model"), "a<|endoftext|>b"]) == 0
    assert "prompt 1 holds <|endoftext|>, read as its characters" in capsys.readouterr().err


@pytest.mark.parametrize("n_prompt, n_answer, most", [
    (5, 3, 20), (5, 3, 9), (5, 3, 8), (5, 3, 4), (5, 9, 6), (1, 3, 9), (5, 9, 2)])
def test_join_counts_the_completion_only(n_prompt, n_answer, most):
    prompt, answer = list(range(10, 10 + n_prompt)), list(range(50, 50 + n_answer))
    while len(prompt) + len(answer) + 1 > most and len(prompt) > 1:
        prompt = prompt[1:]
    answer = [*answer, 7][:most - len(prompt)]
    counted = []      # position, next token
    for position in range(len(prompt) + len(answer) - 1):
        if position >= len(prompt) - 1:
            counted.append((position, [*prompt, *answer][position + 1]))

    ids, labels, cut = complete.join(np.arange(10, 10 + n_prompt), np.arange(50, 50 + n_answer), 7,
                                     most)
    assert ids.tolist() == prompt + answer
    assert [(i, n) for i, n in enumerate(labels) if n != IGNORE] == counted and counted
    assert cut == (n_prompt + n_answer + 1 > most)


def test_results_are_those_of_the_saved_model(run):
    """Loss by a loop over the tokens of every completion, exact match by generating."""
    found = json.loads((run / "results.json").read_text())
    model, tokenizer, preprocessing = read_folder(run / "model")
    assert preprocessing.separator == "\n\n" and preprocessing.clean == ()
    losses, answers = [], []
    for row in ROWS:
        prompt = "\n".join(x for x in (row["question"], row["hint"]) if x) + "\n\n"
        prompt, answer = (tokenizer.encode(text).ids for text in (prompt, row["answer"]))
        ids = np.array([*prompt, *answer, default_special_tokens(tokenizer).end])
        logp = log_softmax(model.forward(pack([ids])).astype(np.float64))
        losses += [-logp[i - 1, ids[i]] for i in range(len(prompt), len(ids))]
        new = generate(model, [np.array(prompt)], 5, Sampler(0),
                       default_special_tokens(tokenizer).end)[0]
        answers.append(tokenizer.decode(new.ids))
    assert found["tokens"] == len(losses)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found["exact_match"] == exact_match([row["answer"] for row in ROWS],
                                               answers)["exact_match"]
    assert found["f1"] == pytest.approx(np.mean([
        token_f1(row["answer"], answer) for row, answer in zip(ROWS, answers, strict=True)]))
    assert found["exact_match"] > 0.3 and found["n_test"] == 40
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.jsonl", "model", "results.json", "curves.png",
        "report.md", "report.html"}
    assert '"\\\\n\\\\n"' in (run / "report.md").read_text()


def test_evaluate_gives_the_figures_of_the_run(run, pairs, capsys):
    kept = json.loads((run / "results.json").read_text())
    command = ["evaluate", "--model", str(run / "model"), "--test", str(pairs), *COLUMNS[2:],
               "--max-new-tokens", "5"]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(kept["loss"], rel=1e-5)
    assert [found[k] for k in ("exact_match", "n", "tokens")] == [
        kept[k] for k in ("exact_match", "n", "tokens")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{kept['exact_match']:.1%} of 40 test completions equal the expected")
    assert f", loss {kept['loss']:.4f} (perplexity " in out


def test_a_sample_is_shown_before_the_run(pairs, tmp_path, capsys):
    assert main(["finetune", *COLUMNS, "--train", str(pairs), "--test", str(pairs), "--out",
                 str(tmp_path / "run"), *TINY, "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert out.index("no loss: 'Say ") < out.index("the best epoch")
    assert "<|endoftext|>'" in out and "completions equal the expected one" in out
    assert "40 test texts also stand in the training file" in out


def test_generate_equals_the_library(run, capsys):
    model, tokenizer, _ = read_folder(run / "model")
    prompts = ["Say 3\nnow", "Say 5", ""]
    assert main(["generate", "--model", str(run / "model"), *prompts, "--temperature", "0",
                 "--max-new-tokens", "4"]) == 0
    ids = [np.array(tokenizer.encode(p + "\n\n").ids) for p in prompts]     # the separator comes in
    found = generate(model, ids, 4, Sampler(0), default_special_tokens(tokenizer).end)
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{p}\n{tokenizer.decode(f.ids)}\n"
                                   for p, f in zip(prompts, found, strict=True))
    assert captured.err.startswith("minisft: cleaning: none; ") and captured.err.count("\n") == 1
    for options in (["--seed", "5"], ["--seed", "5"], ["--seed", "6"]):
        assert main(["generate", "--model", str(run / "model"), "Say", "--temperature", "9",
                     *options]) == 0
    first, again, other = capsys.readouterr().out.split("Say\n")[1:]
    assert first == again != other


def test_one_prompt_is_continued_on_the_terminal_as_the_tokens_come(run, monkeypatch, capsys):
    pieces, write = [], sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: (pieces.append(text), write(text))[1])
    options = ["--temperature", "9", "--max-new-tokens", "40", "--seed", "3"]
    assert main(["generate", "--model", str(run / "model"), "Say", *options]) == 0
    one = capsys.readouterr().out
    assert len(pieces) > 10 and "".join(pieces) == one
    assert main(["generate", "--model", str(run / "model"), "Say", "Say", *options]) == 0
    assert capsys.readouterr().out.startswith(one)     # of several each is shown whole


def test_half_a_character_waits_for_the_other_half(capsys):
    tokenizer = train_tokenizer(["a"], 257)      # a token is a byte
    stream, shown = Stream(tokenizer), []
    for token in tokenizer.encode("aé!").ids:
        stream(0, token)
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "é", "!"]
    stream.end(stream.ids)
    assert capsys.readouterr().out == "\n"
    stream = Stream(tokenizer)
    stream.end(tokenizer.encode("é").ids[:1])     # nothing follows
    assert capsys.readouterr().out == "\ufffd\n"


def test_generate_with_next_to_no_temperature_is_greedy(run, capsys):
    for temperature in ("0", "1e-320"):
        assert main(["generate", "--model", str(run / "model"), "Say 3", "--temperature",
                     temperature]) == 0
    out = capsys.readouterr().out
    assert out[:len(out) // 2] == out[len(out) // 2:]


@pytest.mark.parity
def test_transformers_opens_the_folder(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    model, tokenizer, _ = read_folder(run / "model")
    ids = np.array(tokenizer.encode("Say 3 <|endoftext|>\n\n").ids)
    assert peer_tokenizer("Say 3 <|endoftext|>\n\n")["input_ids"] == ids.tolist()
    with torch.no_grad():
        expected = peer(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(model.forward(pack([ids])), expected, atol=1e-4)


def test_instruction_data(shared_data, tmp_path):
    assert main(["finetune", "--task", "complete", "--train",
                 str(shared_data / "instruction" / "instruction-data.json"), "--prompt-column",
                 "instruction", "input", "--completion-column", "output", "--out",
                 str(tmp_path / "run"), *TINY, "--epochs", "1", "--max-new-tokens", "2"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["n_test"] > 90


def test_generation_is_given_what_the_loss_saw(run):
    model, tokenizer, preprocessing = read_folder(run / "model")
    prompts = read_prompts(run.parent / "pairs.jsonl", ["question", "hint"], "answer")
    for most in (64, 6):
        sequences, starts, cut = complete.encode(
            tokenizer, prompts, dataclasses.replace(preprocessing, max_length=most),
            model)
        for ids, labels, start in zip(sequences.ids, sequences.labels, starts, strict=True):
            assert start.tolist() == ids[:len(ids) - (labels != IGNORE).sum()].tolist()
        assert (cut == 0) == (most == 64)
