"""No command clears or replaces what it reads, by whatever path it is named."""

import shutil

import pytest

from minisft.cli import main
from minisft.data.text import train_tokenizer
from minisft.io import hub, run_folder
from minisft.io.files import lies_in, write_json
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.config import GPT2Config, Seq2SeqConfig
from minisft.models.heads import LanguageModel
from minisft.models.seq2seq import EncoderDecoder

TEXTS = "text,label\n" + "some words,a\nother words,b\nmore of them,a\n" * 4


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with all that a run leaves, which is what the commands read; -> its bytes."""
    run, tokenizer = tmp_path / "run", train_tokenizer(["some words to learn"], 260)
    shape = GPT2Config(vocab_size=260, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    write_folder(run / "model", LanguageModel(shape), tokenizer, Preprocessing())
    shutil.copytree(run / "model", run / "seed-0" / "model")
    write_json(run / "adapter" / hub.ADAPTER, {"base_model_name_or_path": str(run / "model")})
    write_json(run / "config.json", {})
    for path in (run / "model" / "a.csv", tmp_path / "a.csv"):
        path.write_text(TEXTS)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "direct").symlink_to(run / "model")
    (tmp_path / "adapter").mkdir()
    write_json(tmp_path / "adapter" / hub.ADAPTER, {"base_model_name_or_path": "run/model"})
    monkeypatch.chdir(tmp_path)
    return run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FINETUNE = ["finetune", "--train", "a.csv", "--epochs", "1", "--quiet"]
SCRATCH = ["--model", "scratch"]


@pytest.mark.parametrize("out", ["run", "link", "run/../link/.", "run/seed-0/.."])
@pytest.mark.parametrize("command, named", [
    ([*FINETUNE, "--model", "run/model"], "--model run/model"),
    ([*FINETUNE, "--model", "link/model"], "--model link/model"),
    ([*FINETUNE, "--model", "direct"], "--model direct"),
    ([*FINETUNE, "--model", "run/seed-0/model"], "--model run/seed-0/model"),
    ([*FINETUNE, "--model", "run/adapter"], "--model run/adapter"),
    ([*FINETUNE, "--model", "adapter"], "--model run/model"),
    ([*FINETUNE, "--model", "run/model", "--seeds", "2"], "--model run/model"),
    ([*FINETUNE, *SCRATCH, "--tokenizer", "run/model"], "--tokenizer run/model"),
    ([*FINETUNE, *SCRATCH, "--valid", "run/model/a.csv"], "--valid run/model/a.csv"),
    (["curve", *FINETUNE[1:], "--test", "a.csv", "--sizes", "4", "--model", "run/model"],
     "--model run/model"),
    (["pretrain", "--text", "a.csv", "run/model/a.csv"], "--text run/model/a.csv"),
    (["pretrain", "--text", "a.csv", "--valid", "run/config.json"], "--valid run/config.json")])
def test_a_run_clears_nothing_that_it_reads(run, capsys, command, named, out):
    before = contents(run)
    assert main([*command, "--out", out, "--overwrite"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"minisft: {named}: lies in ") and error.endswith(
        "which --overwrite clears before the run begins; expected another --out")
    assert contents(run) == before and not (run / run_folder.LOCK).exists()


def test_a_run_beside_what_it_reads_is_none_of_it(run, tmp_path):
    assert main([*FINETUNE, "--model", "run/model", "--out", "other"]) == 0
    before = contents(run)
    assert main([*FINETUNE, "--model", "run/model", "--out", "other", "--overwrite"]) == 0
    assert contents(run) == before
    # of a link within the folder the link alone would go
    (tmp_path / "other" / "report.html").unlink()
    (tmp_path / "other" / "report.html").symlink_to(tmp_path / "a.csv")
    command = [*FINETUNE[:2], "other/report.html", *FINETUNE[3:], "--model", "run/model"]
    assert not lies_in("other/report.html", "other") and lies_in("other", "other")
    assert main([*command, "--out", "other", "--overwrite"]) == 2     # is no table
    assert (tmp_path / "a.csv").read_text() == TEXTS


def test_an_answer_replaces_no_file_of_the_model(run, tmp_path, capsys):
    tokenizer = train_tokenizer(["some words"], 260, "<pad>")
    shape = Seq2SeqConfig(
        vocab_size=260, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=0,
        max_position_embeddings=32, decoder_start_token_id=259, eos_token_id=259)
    write_folder(tmp_path / "translator", EncoderDecoder(shape), tokenizer, Preprocessing())
    before = contents(tmp_path / "translator")
    for name in ("translator/config.json", "translator/../translator/model.safetensors"):
        assert main(["translate", "--model", "translator", "x", "--out", name,
                     "--overwrite"]) == 2
        assert capsys.readouterr().err == (
            f"minisft: --out {name}: lies in the folder of --model, expected a file elsewhere\n")
    assert main(["predict", "--model", "run/model", "x", "--out", "run/model/a.csv",
                 "--overwrite"]) == 2
    assert "lies in the folder of --model" in capsys.readouterr().err
    assert contents(tmp_path / "translator") == before and TEXTS == (
        run / "model" / "a.csv").read_text()


@pytest.mark.parametrize("words", [["merge", "adapter", "--out"], ["convert", "run/model"]])
@pytest.mark.parametrize("out", ["run/model", "link/model", "run", "adapter"])
def test_merge_and_convert_write_to_a_new_folder_alone(run, tmp_path, capsys, words, out):
    before = contents(tmp_path)
    assert main([*words, out]) == 2
    error = capsys.readouterr().err
    assert "is there already, expected a new folder" in error and error.count("\n") == 1
    assert contents(tmp_path) == before
