"""An option that has no use is refused in one line; none is ignored in silence."""

import argparse

import pytest

from minisft.cli import arguments, main
from minisft.cli.parser import CommandParser
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.jobs.finetune import TASKS
from minisft.models.config import GPT2Config, Seq2SeqConfig
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.training.config import FinetuneConfig, require_sound

FIELDS = FinetuneConfig.option_fields()
OF_TASKS = {name: field.metadata["only"][1:] for name, field in FIELDS.items()
            if field.metadata["only"] and field.metadata["only"][0] == "task"}
MODELS = {"classify": {}, "complete": {}, "tag": {}, "answer": {}, "translate": {
    "model": "scratch"}}
SHAPE = GPT2Config(vocab_size=260, n_positions=32, n_embd=8, n_layer=1, n_head=2)
PAIRS = Seq2SeqConfig(
    vocab_size=260, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=32,
    pad_token_id=0, decoder_start_token_id=259, eos_token_id=259)
# Options of `evaluate` and `predict` that have a use beside every model.
COMMON = {"model", "download", "revision", "allow_http", "device", "kernels", "precision", "test",
          "text", "file", "out", "overwrite", "encoding", "max_compression_ratio", "batch_tokens",
          "json", "help", "help_all"}


def another(name):
    """-> a value of an option that is not its default."""
    field = FIELDS[name]
    choices = field.metadata["argparse"].get("choices")
    if choices:
        return next(value for value in choices if value != field.default)
    kind = field.type if isinstance(field.type, type) else str(field.type)
    return ("x",) if "tuple" in str(kind) else "x" if "str" in str(kind) else (
        0.5 if "float" in str(kind) else 7)


def options_of(command):
    return {action.dest for action in CommandParser(command)._actions}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", sorted(set(OF_TASKS) - {"compare"}))
def test_finetune_refuses_options_of_other_tasks(task, name):
    config = FinetuneConfig.from_options(task=task, train="a.csv", **MODELS[task],
                                         **{name: another(name)})
    if task in OF_TASKS[name]:
        try:
            require_sound(config)
        except UserError as error:      # it is another option that is missing
            assert f"{name} is for task=" not in str(error)
    else:
        with pytest.raises(UserError, match=f"^{name} is for task='{OF_TASKS[name][0]}'"):
            require_sound(config)


@pytest.mark.parametrize("options, message", [
    ({"task": "complete", "compare": "random"}, "compare='random' is for task='classify'"),
    ({"task": "tag", "no_header": True}, "no_header is for tables, not for task='tag'"),
    ({"task": "answer", "delimiter": ";"}, "delimiter is for tables, not for task='answer'"),
    ({"task": "tag", "truncate": "tail"}, "truncate is for texts that are cut"),
    ({"task": "answer", "parse_special": True}, "parse_special is for texts, not for"),
    ({"initializer_range": 0.1}, "initializer_range is for model='scratch'")])
def test_finetune_refuses_what_would_be_ignored(options, message):
    with pytest.raises(UserError) as error:
        require_sound(FinetuneConfig.from_options(train="a.csv", **options))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_each_option_is_known_to_be_used(command):
    assert options_of(command) - {"bad_rows"} <= {*arguments.USED_BY, *COMMON}


@pytest.mark.parametrize("kind", arguments.KINDS)
def test_options_of_other_models_are_refused(kind):
    model = kind.__new__(kind)
    for name, kinds in arguments.USED_BY.items():
        args = argparse.Namespace(model="a folder", changed={name, "model"})
        if kind in kinds:
            arguments.require_used(args, model)
        else:
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is for .*, a folder "
                                                f"is {arguments.KINDS[kind]}$"):
                arguments.require_used(args, model)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a model of each kind, a table, and two files of aligned lines."""
    place = tmp_path_factory.mktemp("models")
    for name, model in (("classifier", Classifier(SHAPE, "ab")), ("language", LanguageModel(SHAPE)),
                        ("tagger", TokenClassifier(SHAPE, "ab")), ("spans", SpanClassifier(SHAPE)),
                        ("translator", EncoderDecoder(PAIRS))):
        write_folder(place / name, model, train_tokenizer(["some words"], 260, "<pad>"),
                     Preprocessing())
    (place / "a.csv").write_text("text,label,source,target\nsome words,a,b,c\nwords,b,d,e\n")
    for side in ("en", "fr"):
        (place / f"a.{side}").write_text("some words\nwords\n")
    return place


LINES = ["--test", "a.en", "--test-target", "a.fr"]


@pytest.mark.parametrize("words, told", [
    (["evaluate", "--model", "translator", "--test", "a.csv", "--max-new-tokens", "3"],
     "--max-new-tokens is for a language model, translator is a translator"),
    (["evaluate", "--model", "translator", "--test", "a.csv", "--label-column", "label"],
     "--label-column is for a classifier of texts, translator is a translator"),
    (["evaluate", "--model", "classifier", "--test", "a.csv", "--beam-size", "1"],
     "--beam-size is for a translator, classifier is a classifier of texts"),
    (["evaluate", "--model", "spans", "--test", "a.json", "--skip-bad-rows"],
     "--skip-bad-rows is for a classifier of texts or a language model or a translator, spans is "
     "a model of answers"),
    (["evaluate", "--model", "translator", *LINES, "--source-column", "en"],
     "--source-column is for a table, a.en is plain lines of text"),
    (["evaluate", "--model", "translator", *LINES, "--delimiter", "tab"],
     "--delimiter is for a table, a.en is plain lines of text"),
    (["translate", "--model", "translator", "--file", "a.en", "--no-header"],
     "--no-header is for a table, a.en is plain lines of text"),
    (["translate", "--model", "translator", "words", "--source-column", "en"],
     "--source-column is for --file, which is not given"),
    (["predict", "--model", "tagger", "--file", "a.conllu", "--clean", "all"],
     "--clean is for a classifier of texts or a language model or a translator, tagger is a "
     "tagger"),
    (["predict", "--model", "classifier", "some words", "--text-column", "text"],
     "--text-column is for --file, which is not given"),
    (["plan", "--seed", "3"], "--seed is for --texts, which is not given"),
    (["plan", "--task", "complete", "--classes", "3"],
     "--classes is for --task classify or --task tag"),
    (["plan", "--task", "tag", "--texts", "a.conllu", "--delimiter", "tab"],
     "--delimiter is for --task classify or --task complete or --task translate"),
    (["finetune", "--task", "translate", "--model", "scratch", "--train", "a.en",
      "--train-target", "a.fr", "--target-column", "fr"],
     "--target-column is for a table, a.en is plain lines of text"),
    (["finetune", "--task", "translate", "--model", "scratch", "--train", "a.csv", "--separator",
      "x"], "--separator is for --task complete"),
    (["finetune", "--task", "complete", "--train", "a.csv", "--label-column", "source"],
     "--label-column is for --task classify")])
def test_the_commands_say_it_in_one_line(folders, monkeypatch, capsys, words, told):
    monkeypatch.chdir(folders)
    assert main(words) == 2
    assert capsys.readouterr().err == f"minisft: {told}\n"
