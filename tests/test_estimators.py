"""TextClassifier and CompletionModel: their parameters, data in memory, folders, same bits."""

import copy
import csv
import dataclasses
import inspect
import pickle
import signal

import numpy as np
import pytest

import minisft
from minisft.cli import main
from minisft.data import toy_news
from minisft.data.pairs import PairDataset
from minisft.errors import UserError
from minisft.estimators import CompletionModel, TextClassifier
from minisft.models.config import Seq2SeqConfig
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.training.config import DataConfig, FinetuneConfig, ModelConfig, TrainingConfig

TEXTS, LABELS = (list(part[:60]) for part in toy_news.generate("train"))
PROMPTS, COMPLETIONS = TEXTS[:30], [f"It is {label}." for label in LABELS[:30]]
SMALL = {"model": "scratch", "layers": 1, "width": 16, "heads": 2, "vocab_size": 300,
         "context_length": 64, "epochs": 1, "quiet": True}
FLAGS = [part for name, value in SMALL.items() if name != "quiet"
         for part in (f"--{name.replace('_', '-')}", str(value))] + ["--quiet"]

# What a command needs and an estimator does not: files and their columns, and what is written.
OF_FILES = {"task", "train", "test", "valid", "train_texts", "text_column", "label_column",
            "label_map", "pair_column", "prompt_column", "completion_column", "no_header",
            "encoding", "delimiter", "skip_bad_rows", "max_compression_ratio", "seeds", "compare",
            "max_new_tokens", "out", "overwrite", "word_column", "tag_column", "source_column",
            "target_column", "train_target", "test_target", "valid_target", "max_answer_length"}
OF_CLASSES = {"pooling", "adapt_epochs", "class_weights", "label_smoothing", "token_dropout",
              "token_swap"}


@pytest.fixture(scope="module")
def classifier():
    return TextClassifier(**SMALL).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def writer():
    return CompletionModel(**SMALL).fit(PROMPTS, COMPLETIONS)


def write_csv(path, columns, *values):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*values, strict=True)])
    return str(path)


def assert_same_tensors(model, other):
    for p in model.store:
        np.testing.assert_array_equal(other.store[p.name].value, p.value, err_msg=p.name)


@pytest.mark.parametrize("kind, absent", [
    (TextClassifier, OF_FILES | {"separator"}),
    (CompletionModel, OF_FILES | OF_CLASSES)])
def test_parameters_are_the_options_of_finetune(kind, absent):
    options = {f.name: f.default for group in (DataConfig, ModelConfig, TrainingConfig)
               for f in dataclasses.fields(group)} | {"quiet": False}
    parameters = inspect.signature(kind).parameters
    assert parameters.keys() == options.keys() - absent
    for name, parameter in parameters.items():
        assert parameter.default == options[name], name
        assert parameter.kind is parameter.KEYWORD_ONLY or name == "model"
    assert options.keys() - parameters.keys() <= FinetuneConfig().options().keys()


def test_the_same_bits_as_the_command(classifier, tmp_path):
    path = write_csv(tmp_path / "train.csv", ("text", "label"), TEXTS, LABELS)
    assert main(["finetune", "--train", path, *FLAGS, "--compare", "none",
                 "--out", str(tmp_path / "run")]) in (0, None)
    loaded = TextClassifier.load(tmp_path / "run" / "model")
    assert_same_tensors(classifier.model_, loaded.model_)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert loaded.get_params()["model"] == str(tmp_path / "run" / "model")


def test_the_same_bits_as_the_command_for_completions(writer, tmp_path):
    path = write_csv(tmp_path / "train.csv", ("prompt", "completion"), PROMPTS, COMPLETIONS)
    assert main(["finetune", "--task", "complete", "--train", path, *FLAGS, "--max-new-tokens",
                 "4", "--out", str(tmp_path / "run")]) in (0, None)
    assert_same_tensors(writer.model_, CompletionModel.load(tmp_path / "run" / "model").model_)


def test_a_validation_part_of_ones_own(classifier):
    heard = []
    other = TextClassifier(**SMALL).fit(TEXTS[:40], LABELS[:40], callback=heard.append,
                                        validation=(TEXTS[40:], LABELS[40:]))
    (epoch,) = other.history_["epochs"]
    assert epoch["valid_accuracy"] == pytest.approx(other.score(TEXTS[40:], LABELS[40:]))
    assert heard == other.history_["steps"] + other.history_["epochs"]


def test_fitting_shows_progress(capsys):
    TextClassifier(**SMALL | {"quiet": False}).fit(TEXTS, LABELS)
    shown = capsys.readouterr()
    assert "parameters" in shown.out and "valid loss" in shown.out + shown.err
    assert "--" not in shown.out
    TextClassifier(**SMALL).fit(TEXTS, LABELS)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [tuple, np.array, lambda x: np.array(x, dtype=object),
                                  lambda x: pytest.importorskip("pandas").Series(x)])
def test_lists_arrays_and_series_are_alike(kind, classifier):
    other = TextClassifier(**SMALL).fit(kind(TEXTS), kind(LABELS))
    np.testing.assert_array_equal(other.predict_proba(kind(TEXTS)),
                                  classifier.predict_proba(TEXTS))
    assert other.predict(kind(TEXTS)).tolist() == classifier.predict(TEXTS).tolist()


@pytest.mark.parametrize("values", [
    ["no", "yes", "maybe"], [3, 10, 9], [False, True], [2.0, 10.0], ["10", "9", "8"],
    np.array([5, 6], dtype=np.int8), [np.str_("b"), np.str_("a")]], ids=str)
def test_labels_keep_their_type(values, tmp_path):
    labels = [values[i % len(values)] for i in range(len(TEXTS))]
    fitted = TextClassifier(**SMALL).fit(TEXTS, labels)
    np.testing.assert_array_equal(fitted.classes_, np.unique(labels))
    assert fitted.classes_.dtype == np.array(labels).dtype
    answers = fitted.predict(TEXTS)
    assert answers.dtype == fitted.classes_.dtype and set(answers) <= set(labels)
    assert fitted.score(TEXTS, labels) == np.mean(answers == np.array(labels))
    fitted.save(tmp_path / "model")
    loaded = TextClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.classes_, fitted.classes_)
    assert loaded.classes_.dtype == fitted.classes_.dtype
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_what_is_no_label():
    fit = TextClassifier(**SMALL).fit
    for labels, message in [
            ([*LABELS[:-1], None], r"labels\[59\] is None, expected a str"),
            ([*LABELS[:-1], float("nan")], r"labels\[59\] is nan"),
            ([0.0, float("nan")] * 30, r"labels\[1\] is nan"), ([1j] * 60, "is 1j, expected"),
            (np.zeros((60, 2)), r"labels\[0\] is array"), ([0, 2**70] * 30, "beyond 64 bits"),
            ([*LABELS[:-1], 3], r"labels\[59\] is 3, but labels\[0\] is 'economy'|labels\[59\]"),
            ([*LABELS[:-1], " "], r"labels\[59\] is empty"),
            ([i / 7 for i in range(60)], "Unknown label type"),
            ([(1, 2)] * 60, "expected a str, an int, a bool"),
            (["a"] * 60, "a classifier needs two or more"),
            (LABELS[:-1], "60 texts but 59 labels"), ([], "no labels"),
            ("economy", "labels is a str, expected a list"), (3, "labels is a int")]:
        with pytest.raises(UserError, match=message):
            fit(TEXTS, labels)
    with pytest.raises(UserError, match=r"validation labels\[0\] is 'x', expected one of economy"):
        fit(TEXTS, LABELS, validation=(["a text"], ["x"]))


def test_what_is_no_text(classifier, writer):
    for texts, message in [
            ("one text", "texts is a str, expected a list"), (5, "texts is a int"),
            (["a", 3], r"texts\[1\] is 3, expected a str"), ([], "no texts"),
            (["a", " <br> "], r"texts\[1\] is empty after cleaning"),
            ([("a", "b"), "c"], r"texts\[1\] is 'c'|texts\[1\] is c"),
            ([("a", "b", "c")], r"texts\[0\] is")]:
        with pytest.raises(UserError, match=message):
            classifier.predict(texts)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match="texts is a DataFrame"):
        classifier.predict(pandas.DataFrame({"text": TEXTS}))
    with pytest.raises(UserError, match=r"prompts\[0\] is 3, expected a str$"):
        writer.perplexity([3], ["a"])
    with pytest.raises(UserError, match="2 prompts but 1 completions"):
        writer.perplexity(["a", "b"], ["a"])


@pytest.mark.parametrize("params, message", [
    ({"epochs": 0}, "epochs is 0, expected"), ({"lr": -1.0}, "lr is -1.0"),
    ({"model": "no such model"}, "no such"), ({"heads": 3}, "heads"), ({"clean": "x"}, "clean"),
    ({"train_layers": "x"}, "train_layers"), ({"class_weights": "x=2"}, "class_weights"),
    ({"truncate": "middle"}, "truncate"), ({"device": "tpu"}, "device"),
    ({"valid_fraction": 0}, "validation"), ({"precision": "float16"}, "precision")])
def test_errors_name_parameters_and_no_flags(params, message):
    fit = TextClassifier(**SMALL | params).fit
    with pytest.raises(UserError, match=message) as error:
        fit(TEXTS, LABELS)
    assert "--" not in str(error.value)


@pytest.mark.parametrize("kind", [TextClassifier, CompletionModel])
def test_not_fitted(kind, tmp_path):
    for call in ("predict", "predict_proba", "generate", "save"):
        if hasattr(kind, call):
            with pytest.raises(ValueError, match="is not fitted yet: call fit") as error:
                getattr(kind(), call)(tmp_path if call == "save" else ["a"])
            assert isinstance(error.value, AttributeError)


def test_numbers_of_numpy_as_parameters(classifier, tmp_path):
    params = {name: np.array([value])[0] if isinstance(value, int) else value
              for name, value in SMALL.items()}
    other = TextClassifier(**params).fit(TEXTS, LABELS)
    assert_same_tensors(classifier.model_, other.model_)
    other.save(tmp_path / "model")
    assert TextClassifier.load(tmp_path / "model").get_params() == classifier.get_params()


def test_parameters_are_kept_as_they_are():
    path = "somewhere"
    estimator = TextClassifier(path, epochs=2, lr=1e-3)
    assert repr(estimator) == "TextClassifier(model='somewhere', epochs=2, lr=0.001)"
    assert estimator.get_params()["model"] is path and estimator.set_params(epochs=3) is estimator
    assert estimator.get_params() == TextClassifier(path, epochs=3, lr=1e-3).get_params()
    with pytest.raises(ValueError, match="Invalid parameter 'epoch' for TextClassifier"):
        estimator.set_params(epoch=3)
    with pytest.raises(TypeError, match="epoch"):
        TextClassifier(epoch=3)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_answers_the_same(duplicate, classifier, writer):
    again = duplicate(classifier)
    assert again.get_params() == classifier.get_params()
    np.testing.assert_array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert duplicate(writer).generate("a", seed=3) == writer.generate("a", seed=3)


def test_save_and_load(classifier, writer, tmp_path, capsys):
    for estimator in classifier, writer:
        folder = tmp_path / type(estimator).__name__
        estimator.save(folder)
        with pytest.raises(UserError, match="is not empty.*overwrite=True"):
            estimator.save(folder)
        estimator.save(folder, overwrite=True)
        loaded = type(estimator).load(folder)
        assert loaded.get_params() == estimator.get_params()
        assert_same_tensors(estimator.model_, loaded.model_)
    with pytest.raises(UserError, match="is a file"):
        classifier.save(tmp_path / "TextClassifier" / "config.json")
    with pytest.raises(UserError, match="holds a language model"):
        TextClassifier.load(tmp_path / "CompletionModel")
    with pytest.raises(UserError, match="holds a classifier"):
        CompletionModel.load(tmp_path / "TextClassifier")
    # the commands read the same folder
    capsys.readouterr()
    main(["predict", "--model", str(tmp_path / "TextClassifier"), TEXTS[0]])
    assert f",{classifier.predict(TEXTS[:1])[0]}," in capsys.readouterr().out
    main(["generate", "--model", str(tmp_path / "CompletionModel"), "a", "--max-new-tokens", "5",
          "--temperature", "0"])
    told = capsys.readouterr().out
    assert told == "a\n" + writer.generate("a", max_new_tokens=5, temperature=0) + "\n"


def test_names_given_to_numbers_afterwards_are_the_classes(tmp_path):
    TextClassifier(**SMALL).fit(TEXTS, [i % 2 for i in range(60)]).save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"0": "0"', '"0": "bad"'))
    assert TextClassifier.load(tmp_path / "model").classes_.tolist() == ["1", "bad"]


def test_a_saved_file_of_another_kind(classifier, tmp_path):
    classifier.save(tmp_path / "model")
    (tmp_path / "model" / "estimator.json").write_text('{"params": {"epoch": 3}}')
    with pytest.raises(UserError, match="estimator.json: not what save of this version writes"):
        TextClassifier.load(tmp_path / "model")


def test_completions(writer):
    one, (first, second) = writer.generate(PROMPTS[0]), writer.generate(PROMPTS[:2])
    assert isinstance(one, str) and isinstance(second, str) and first == one
    assert writer.generate("a", seed=1) != writer.generate("a", seed=2)
    loss = -writer.score(PROMPTS, COMPLETIONS)
    assert writer.perplexity(PROMPTS, COMPLETIONS) == pytest.approx(np.exp(loss))
    with pytest.raises(ValueError, match="temperature"):
        writer.generate("a", temperature=-1)
    with pytest.raises(UserError, match="max_new_tokens"):
        writer.generate("a", max_new_tokens=0)


def test_pairs_of_texts_need_a_model_that_parts_them():
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    with pytest.raises(UserError, match="between two texts"):
        TextClassifier(**SMALL).fit(pairs, LABELS)


def test_load_gives_model_and_tokenizer(classifier, tmp_path):
    model, tokenizer = minisft.load("minisft-gpt2", task="complete")
    assert isinstance(model, minisft.LanguageModel)
    assert tokenizer.get_vocab_size() <= model.trunk.config.vocab_size
    model, _ = minisft.load("minisft-gpt2", label_names=["a", "b"])
    assert isinstance(model, minisft.Classifier) and model.newly_initialized
    classifier.save(tmp_path / "model")
    model, _ = minisft.load(tmp_path / "model")
    assert_same_tensors(classifier.model_, model)


def dataset(model, n=20):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 300, 7) for _ in range(n)]
    labels = [i % 2 for i in range(n)] if isinstance(model, minisft.Classifier) else [
        np.append(row[1:], 0) for row in ids]
    return minisft.TokenizedDataset(ids, labels)


@pytest.mark.parametrize("kind", [minisft.Classifier, minisft.LanguageModel])
def test_train(kind):
    config = minisft.GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = kind(config, ["a", "b"]) if kind is minisft.Classifier else kind(config)
    before, heard = model.store.values.copy(), []
    history = minisft.train(model, dataset(model), minisft.TrainingConfig(epochs=2, lr=1e-3),
                            validation=dataset(model, 6), callback=heard.append,
                            show_progress=False)
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
    assert "valid_loss" in history["epochs"][0] and len(heard) == len(history["steps"]) + 2
    assert not np.array_equal(before, model.store.values)
    # every default is chosen; without a validation part the last epoch counts
    assert len(minisft.train(model, dataset(model), show_progress=False)["epochs"]) >= 3
    with pytest.raises(UserError, match="token_dropout is for TextClassifier"):
        minisft.train(model, dataset(model), minisft.TrainingConfig(token_dropout=0.1))


PAIRS = {"vocab_size": 300, "d_model": 16, "max_position_embeddings": 16, "pad_token_id": 0,
         "decoder_start_token_id": 299, "eos_token_id": 299,
         **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (
             ("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}}


def pairs(n):
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 299, 5) for _ in range(n)]
    return PairDataset([np.append(row, 299) for row in ids], [], targets=ids, start=299, end=299)


def test_train_of_a_translator(monkeypatch):
    heard, loss = [], EncoderDecoder.loss
    monkeypatch.setattr(EncoderDecoder, "loss", lambda *args, **options: (
        heard.append(options), loss(*args, **options))[1])
    model = EncoderDecoder(Seq2SeqConfig(**PAIRS))
    epochs = minisft.train(model, pairs(40), minisft.TrainingConfig(epochs=3, lr=1e-2),
                           validation=pairs(8), show_progress=False)["epochs"]
    assert {"smoothing": 0.1} in heard and {} in heard     # training, and what is scored
    assert epochs[2]["valid_loss"] < epochs[0]["valid_loss"]
    for epoch in epochs:
        assert epoch["valid_perplexity"] == pytest.approx(np.exp(epoch["valid_loss"]))
        assert 0 <= epoch["valid_accuracy"] <= 1
    heard.clear()
    minisft.train(model, pairs(4), minisft.TrainingConfig(epochs=1, label_smoothing=0.0),
                  show_progress=False)
    assert heard == [{"smoothing": 0.0}] * len(heard) != []


@pytest.mark.parametrize("kind", [TokenClassifier, SpanClassifier])
def test_train_of_a_head_over_tokens_is_scored_by_its_loss(kind):
    config = minisft.GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = kind(config, ["a", "b"]) if kind is TokenClassifier else kind(config)
    words = dataset(model)
    data = minisft.TokenizedDataset(words.ids, [np.array(row[:len(row)] % 2) for row in words.ids]
                                    if kind is TokenClassifier else np.ones((20, 2), int))
    epochs = minisft.train(model, data, minisft.TrainingConfig(epochs=2, lr=1e-2),
                           validation=data, show_progress=False)["epochs"]
    assert epochs[1]["valid_loss"] < epochs[0]["valid_loss"] < 2
    assert epochs[1]["score"] == [-epochs[1]["valid_loss"]]


def test_train_refuses_what_does_not_go_with_the_model():
    shape = minisft.GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    language, translator = minisft.LanguageModel(shape), EncoderDecoder(Seq2SeqConfig(**PAIRS))
    words, of_pairs, smooth = dataset(language), pairs(4), {"label_smoothing": 0.1}
    balanced = {"class_weights": "balanced"}
    for model, data, valid, options, message in (
            (translator, words, None, {}, "dataset is a TokenizedDataset, expected a PairDataset"),
            (translator, of_pairs, words, {}, "validation is a TokenizedDataset, expected a Pair"),
            (language, of_pairs, None, {}, "dataset is a PairDataset, expected a TokenizedDataset"),
            (translator, of_pairs, None, balanced, "class_weights is for a Classifier"),
            (language, words, None, balanced, "class_weights is for a Classifier"),
            (language, words, None, smooth, "label_smoothing is for a Classifier or an Enc")):
        before = model.store.values.copy()
        with pytest.raises(UserError, match=message):
            minisft.train(model, data, minisft.TrainingConfig(**options), validation=valid,
                          show_progress=False)
        np.testing.assert_array_equal(before, model.store.values)


def test_an_interruption_is_a_keyboard_interrupt():
    estimator = TextClassifier(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(TEXTS, LABELS, callback=lambda entry: signal.raise_signal(signal.SIGINT))
    with pytest.raises(minisft.NotFittedError):
        estimator.predict(TEXTS)
