"""A recorded training step has the bits of the same step as it is, whatever is trained on."""

import numpy as np
import pytest

from minisft.backend import array
from minisft.backend.constants import IGNORE
from minisft.backend.gpu import emulator, graph
from minisft.backend.gpu.launch import dropout
from minisft.backend.random import Stream
from minisft.data.buckets import bucket_of, filled
from minisft.data.dataset import TokenizedDataset
from minisft.errors import DivergedError
from minisft.models.adapters import LoraConfig
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel
from minisft.models.token_heads import TokenClassifier
from minisft.training import loop, recorded
from minisft.training.config import TrainingConfig
from minisft.training.loss_scale import LossScale
from minisft.training.optim import SGD, AdamW
from minisft.training.state import State
from tests import standin_cublaslt

pytestmark = pytest.mark.skipif(emulator.compiler() is None,
                                reason="no C++ compiler to emulate CUDA kernels")
CONFIG = GPT2Config(97, 100, 32, 2, 2).with_dropout(0.1)
BERT = BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                  intermediate_size=64, max_position_embeddings=100)
KINDS = {"classifier": (Classifier, {"weights": np.float32([1, 0.5, 2]), "smoothing": 0.1}),
         "language model": (LanguageModel, {}),
         "token classifier": (TokenClassifier, {"weights": np.float32([1, 0.5, 2])}),
         "BERT": (BertClassifier, {"smoothing": 0.1})}
SETTINGS = TrainingConfig(micro_tokens=10**9, max_grad_norm=0.5)
STEPS = 12
LONG = 5     # every so many steps one has longer texts, and so another bucket


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def card(request, monkeypatch):
    monkeypatch.delenv("MINISFT_CUDA_GRAPHS", raising=False)
    monkeypatch.delenv("MINISFT_CUDA", raising=False)
    monkeypatch.setenv("MINISFT_COMPILED", "off")
    with standin_cublaslt.card_or_stand_in(request.param):
        yield


def made(kind, precision="bfloat16"):
    names = () if kind is LanguageModel else ("abc",)
    config = BERT if kind is BertClassifier else CONFIG
    return kind(config, *names, seed=1).to("cuda", precision)


def texts_of(rng, kind, t, n=7):
    """-> texts of a step: few of very different lengths, and in some steps more."""
    ids = [rng.integers(0, 97, n) for n in rng.integers(2, 90 if t % LONG == 1 else 14, n)]
    types = None
    if kind is BertClassifier and t % 2:
        types = [np.arange(len(row)) // 5 % 2 for row in ids]
    if kind in (Classifier, BertClassifier):
        labels = rng.integers(0, 3, len(ids)).tolist()
    elif kind is LanguageModel:
        labels = [np.append(np.where(np.arange(1, len(row)) < 2, IGNORE, row[1:]), IGNORE)
                  for row in ids]
    else:
        labels = [np.where(rng.random(len(row)) < 0.5, row % 3, IGNORE) for row in ids]
    return TokenizedDataset(ids, labels, types)


def as_it_is(model, batch, stream, scale, options, first, meanwhile=None):
    """As `recorded.loss_and_gradients`: the same bucket, and nothing of what recording needs."""
    bucket = bucket_of(batch.batch, CONFIG.n_positions, isinstance(model, LanguageModel))
    loss, denominator = model.loss_and_gradients(filled(
        batch.batch, bucket, not isinstance(model, (Classifier, BertClassifier))), stream, scale,
                                                 **options)
    return float(loss), float(denominator), None


def trained(kind, options, steps, precision="bfloat16", settings=SETTINGS, model=None, scale=None,
            optimizer=None):
    """-> (losses and norms of each step, values at the end), model, optimizer."""
    model = model or made(kind, precision)
    optimizer, found = optimizer or AdamW(model.store, weight_decay=0.1), []
    for t in steps:
        texts = texts_of(np.random.default_rng(t), kind, t)
        found.append(loop.train_step(model, texts, range(len(texts)), optimizer, 1e-2 / (t + 1),
                                     settings, Stream(3, t), options, scale))
    return (found, array.to_cpu(model.store.values)), model, optimizer


def same(ours, theirs):
    return ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("precision", ["float32", *(
    pytest.param(other, marks=pytest.mark.slow) for other in ("bfloat16", "tf32", "float16"))])
@pytest.mark.parametrize("name", KINDS)
def test_twelve_steps_have_the_bits_of_steps_as_they_are(card, monkeypatch, name, precision):
    kind, options = KINDS[name]
    scales = [LossScale(2.0**4, 1994) if precision == "float16" else None for _ in range(2)]
    ours, model, _ = trained(kind, options, range(STEPS), precision, scale=scales[0])
    recorder = recorded.steps_of(model).recorder
    # of each bucket the first step is run, the others are replayed
    assert recorder.replays == STEPS - len(recorder.graphs) and 2 <= len(recorder.graphs) <= 8
    monkeypatch.setattr(recorded, "loss_and_gradients", as_it_is)
    theirs, _, _ = trained(kind, options, range(STEPS), precision, scale=scales[1])
    assert same(ours, theirs)
    assert max(norm for _, norm in ours[0]) > SETTINGS.max_grad_norm     # so some are clipped


def test_texts_of_one_token_are_recorded(card, monkeypatch):
    """As many tokens as texts: labels are still those of tokens."""
    found = []
    for way in (recorded.loss_and_gradients, as_it_is):
        monkeypatch.setattr(recorded, "loss_and_gradients", way)
        model = made(TokenClassifier)
        texts = TokenizedDataset([np.array([5]), np.array([7])], [np.array([1]), np.array([2])])
        found.append(loop.train_step(model, texts, range(2), AdamW(model.store), 1e-2, SETTINGS,
                                     Stream(3, 0), {}))
    assert found[0] == found[1]


def test_an_adapter_is_recorded_in_16_bits(card, monkeypatch):
    found = []
    for way in (recorded.loss_and_gradients, as_it_is):
        monkeypatch.setattr(recorded, "loss_and_gradients", way)
        model = made(Classifier)
        model.add_adapter(LoraConfig(r=8, lora_dropout=0.1))
        found.append(trained(Classifier, {}, range(6), model=model)[0])
        if way is not as_it_is:
            assert recorded.steps_of(model).recorder.replays >= 3
    assert same(*found)


def test_pieces_add_up_in_recorded_steps(card, monkeypatch):
    settings = TrainingConfig(micro_tokens=30)
    ours, model, _ = trained(Classifier, {}, range(6), settings=settings)
    assert recorded.steps_of(model).recorder.replays > 10
    monkeypatch.setattr(recorded, "loss_and_gradients", as_it_is)
    assert same(ours, trained(Classifier, {}, range(6), settings=settings)[0])


def test_a_run_that_goes_on_elsewhere_has_the_same_bits(card):
    whole, _, _ = trained(LanguageModel, {}, range(8))
    first, model, optimizer = trained(LanguageModel, {}, range(3))
    again = made(LanguageModel)
    again.store.values[...] = model.store.values
    again.store.refresh()
    state = AdamW(again.store, weight_decay=0.1)
    state.restore(*optimizer.state())
    second, _, _ = trained(LanguageModel, {}, range(3, 8), model=again, optimizer=state)
    assert same(whole, (first[0] + second[0], second[1]))


def test_more_buckets_than_are_recorded_have_the_same_bits(card, monkeypatch):
    ours, model, _ = trained(Classifier, {}, range(8))
    few = made(Classifier)
    recorded._steps[few] = steps = recorded.Steps()
    steps.recorder.most = 1
    theirs, _, _ = trained(Classifier, {}, range(8), model=few)
    assert same(ours, theirs)
    assert 0 < steps.recorder.replays < recorded.steps_of(model).recorder.replays


def test_values_that_are_rounded_anew_stay_where_they_are(card):
    """As a validation with averaged values does."""
    ours, _, _ = trained(Classifier, {}, range(6))
    first, model, optimizer = trained(Classifier, {}, range(3))
    kept, generation = model.store.values.copy(), model.store.generation
    for values in (kept * 2, kept):
        model.store.values[...] = values
        model.store.refresh()
    assert model.store.generation == generation
    second, _, _ = trained(Classifier, {}, range(3, 6), model=model, optimizer=optimizer)
    assert same(ours, (first[0] + second[0], second[1]))


def test_what_is_trained_may_change(card, monkeypatch):
    found = []
    for way in (recorded.loss_and_gradients, as_it_is):
        monkeypatch.setattr(recorded, "loss_and_gradients", way)
        _, model, _ = trained(Classifier, {}, range(3))
        for part in ("last:1", "head", "all"):
            model.train_layers(part)
            result, _, _ = trained(Classifier, {}, range(3), model=model)
            found.append((result[0], array.to_cpu(model.store.values)))
    for ours, theirs in zip(found[:3], found[3:], strict=True):
        assert same(ours, theirs)


@pytest.mark.parametrize("optimizer", [SGD])
def test_another_optimizer_takes_the_same_gradients(card, monkeypatch, optimizer):
    found = []
    for way in (recorded.loss_and_gradients, as_it_is):
        monkeypatch.setattr(recorded, "loss_and_gradients", way)
        model = made(Classifier)
        found.append(trained(Classifier, {}, range(4), model=model,
                             optimizer=optimizer(model.store))[0])
    assert same(*found)


def _step_as_it_was(monkeypatch):
    monkeypatch.setattr(dropout, "step_of", lambda xp, stream: dropout._step(xp, stream.step))


def _key_without_first(monkeypatch):
    run = graph.Recorder.run
    monkeypatch.setattr(graph.Recorder, "run", lambda self, key, work: run(
        self, tuple(part for part in key if not isinstance(part, bool)), work))


def _ids_of_the_first_batch(monkeypatch):
    parts, ids = recorded._parts, {}

    def forget(batch, step):
        made = parts(batch, step)
        made["example_ids"] = ids.setdefault(len(batch.example_ids), made["example_ids"])
        return made

    monkeypatch.setattr(recorded, "_parts", forget)


def _longest_of_the_first_batch(monkeypatch):
    init = recorded.Place.__init__
    monkeypatch.setattr(recorded.Place, "__init__", lambda self, example, longest: init(
        self, example, 16))


def test_what_is_forgotten_is_found(card, monkeypatch):
    settings = TrainingConfig(micro_tokens=300)
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "loss_and_gradients", as_it_is)
        theirs, _, _ = trained(Classifier, {}, range(8), settings=settings)
    assert same(trained(Classifier, {}, range(8), settings=settings)[0], theirs)
    for plant in (_step_as_it_was, _key_without_first, _ids_of_the_first_batch,
                  _longest_of_the_first_batch):
        with monkeypatch.context() as patch:
            plant(patch)
            try:
                ours, _, _ = trained(Classifier, {}, range(8), settings=settings)
            except DivergedError:     # what is not written is whatever was there
                continue
        assert not same(ours, theirs), plant.__name__


def test_what_is_not_recorded_is_run(card, monkeypatch):
    models = [BertClassifier(BERT, "abc", pooling="mean").to("cuda"),
              made(Classifier, "float32"), made(Classifier)]
    models[1].add_adapter(LoraConfig(r=2))
    wide = Classifier(GPT2Config(97, 100, 144, 1, 1), "abc").to("cuda")
    for model in (*models[:2], wide):
        trained(Classifier, {}, range(2), model=model)
        assert recorded.steps_of(model) is None
    monkeypatch.setenv("MINISFT_CUDA_GRAPHS", "off")
    trained(Classifier, {}, range(2), model=models[2])
    assert recorded.steps_of(models[2]) is None


def test_a_wrong_batch_is_refused(card):
    model = made(Classifier)
    for ids, labels, expected in (([97], [0], "token id 97"), ([1] * 101, [0], "101 tokens"),
                                  ([1], [3], "labels from 3")):
        with pytest.raises(ValueError, match=expected):
            loop.train_step(model, TokenizedDataset([np.array(ids)], labels), [0],
                            AdamW(model.store), 0.1, SETTINGS, None, {})


def test_the_next_batch_is_made_while_the_card_computes(card, monkeypatch):
    model, texts, seen = made(Classifier), texts_of(np.random.default_rng(0), Classifier, 0, 40), []
    batch, step = TokenizedDataset.batch, AdamW.step
    monkeypatch.setattr(TokenizedDataset, "batch", lambda *args: (seen.append("batch"),
                                                                  batch(*args))[1])
    monkeypatch.setattr(AdamW, "step", lambda *args: (seen.append("update"), step(*args))[1])
    settings = TrainingConfig(epochs=2, batch_tokens=60, micro_tokens=1000, lr=1e-3, seed=3)

    def run(model):
        told, state = [], State()
        loop.fit(model, texts, settings, None, state, AdamW(model.store), show_progress=False,
                 log=lambda entry: told.append(entry["loss"] if "loss" in entry else None))
        return told, array.to_cpu(model.store.values)

    found, n = run(model), len(loop.BatchPlan(texts, settings)[0])
    assert seen == (["batch"] + ["batch", "update"] * (n - 1) + ["update"]) * 2
    monkeypatch.setattr(recorded.Ahead, "make", lambda self: None)
    assert same(found, run(made(Classifier)))


def test_a_run_frees_what_it_recorded(card):
    model, texts = made(Classifier), texts_of(np.random.default_rng(0), Classifier, 0, 30)
    settings, seen = TrainingConfig(epochs=3, batch_tokens=100, micro_tokens=1000, lr=1e-3), []
    loop.fit(model, texts, settings, None, State(), AdamW(model.store), show_progress=False,
             log=lambda entry: seen.append(recorded.steps_of(model).recorder.replays))
    assert seen[-1] > 0 and recorded.steps_of(model) is None


@pytest.mark.parametrize("left, stays", [(999, False), (1000, True)])
def test_a_validation_gets_memory_that_recorded_steps_hold(card, monkeypatch, left, stays):
    ours, model, optimizer = trained(Classifier, {}, range(4))
    with monkeypatch.context() as patch:
        patch.setattr(graph.Recorder, "total_bytes", lambda self: 1000)
        patch.setattr(array.cupy.cuda.runtime, "memGetInfo", lambda: (left, 2000), raising=False)
        recorded.make_room(model)
    assert (recorded.steps_of(model) is not None) == stays
    again, _, _ = trained(Classifier, {}, range(4, 8), model=model, optimizer=optimizer)
    whole, _, _ = trained(Classifier, {}, range(8))
    assert same(whole, (ours[0] + again[0], again[1]))
