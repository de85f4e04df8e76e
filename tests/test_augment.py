"""Tokens dropped and swapped: how many, which never, and that a text's fate is its own."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minisft.backend.random import Stream
from minisft.cli import main
from minisft.data import toy_news
from minisft.data.augment import Augmentation
from minisft.data.dataset import TokenizedDataset
from minisft.data.sequences import special_ids
from minisft.data.text import train_tokenizer
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.training.frozen_features import with_features

CLS, SEP = 101, 102
STREAM = Stream(seed=3, step=9)


def changed(ids, types=None, stream=STREAM, text=5, **options):
    ids, types = Augmentation(special=(CLS, SEP), **options).apply(
        np.array(ids), None if types is None else np.array(types), stream, text)
    return ids.tolist(), None if types is None else types.tolist()


def test_nothing_asked_nothing_changed():
    ids = np.arange(50)
    same, types = Augmentation().apply(ids, None, STREAM, 0)
    assert np.array_equal(same, ids) and types is None


def test_rates():
    n = 20_000
    ids = np.arange(1000, 1000 + n)
    dropped, _ = changed(ids, drop=0.3)
    assert len(dropped) / n == pytest.approx(0.7, abs=0.01)
    assert dropped == sorted(dropped)
    swapped, _ = changed(ids, swap=0.2)
    moved = np.array(swapped) - ids
    assert sorted(swapped) == ids.tolist() and set(moved) == {-1, 0, 1}
    # a chosen neighbour pair starts where the one before did not: p / (1 + p) of the places
    assert (moved == 1).sum() / n == pytest.approx(0.2 / 1.2, abs=0.01)


def test_both_at_once_and_arguments_untouched():
    ids = np.arange(1000, 1200)
    ids.flags.writeable = False
    both, _ = changed(ids, drop=0.2, swap=0.2)
    assert 130 < len(both) < 190 and set(both) < set(ids.tolist()) and both != sorted(both)


def test_special_tokens_and_types_stay():
    ids = [CLS, *range(20), SEP, *range(50, 60), SEP]
    types = [0] * 22 + [1] * 11
    for step in range(200):
        new, kinds = changed(ids, types, Stream(0, step), drop=0.5, swap=0.5)
        assert len(new) == len(kinds)
        middle = new.index(SEP)
        assert new[0] == CLS and new[-1] == SEP and new.count(SEP) == 2
        assert kinds == [0] * (middle + 1) + [1] * (len(new) - middle - 1)
        assert set(new[1:middle]) <= set(range(20)) and 1 <= middle - 1
        assert set(new[middle + 1:-1]) <= set(range(50, 60)) and len(new) - middle > 2


@pytest.mark.parametrize("ids, least", [([CLS, 7, SEP], 3), ([7], 1), ([CLS, SEP], 2),
                                        ([CLS, 7, 8, 9, SEP], 3)])
def test_no_text_is_lost(ids, least):
    for step in range(100):
        new, _ = changed(ids, stream=Stream(0, step), drop=0.99, swap=0.5)
        assert len(new) >= least and set(new) <= set(ids)


def test_no_text_of_a_pair_is_lost():
    for step in range(100):
        _, types = changed([CLS, 7, 8, SEP, 9, 10, SEP], [0, 0, 0, 0, 1, 1, 1], Stream(0, step),
                           drop=0.9)
        assert types.count(0) >= 3 and types.count(1) >= 2


def test_a_text_s_fate_is_its_own():
    ids = list(range(40))
    same = [changed(ids, drop=0.3, swap=0.3)[0] for _ in range(2)]
    assert same[0] == same[1]
    others = [changed(ids, drop=0.3, swap=0.3, **other)[0] for other in (
        {"text": 6}, {"stream": Stream(3, 10)}, {"stream": Stream(4, 9)})]
    assert len({tuple(x) for x in [same[0], *others]}) == 4
    # what stands behind does not matter to what is in front
    longer = changed([*ids, *range(500, 600)], drop=0.3, swap=0.3)[0]
    assert longer[:20] == same[0][:20]


def test_only_in_training_and_the_same_in_any_company():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 99, n) for n in (30, 12, 40)]
    types = [np.arange(len(row)) // 20 for row in ids]
    sequences = TokenizedDataset(ids, [0, 1, 0], types, augmentation=Augmentation(0.3, 0.3))
    assert np.array_equal(sequences.batch([2, 0]).ids, np.concatenate([ids[2], ids[0]]))
    both, alone = sequences.batch([2, 0], STREAM), sequences.batch([0], STREAM)
    assert np.array_equal(both.ids[both.cu_seqlens[1]:], alone.ids)
    assert np.array_equal(both.types[both.cu_seqlens[1]:], alone.types)
    assert len(alone.ids) < 30 and both.labels.tolist() == [0, 0]


def test_the_options_reach_the_texts(tmp_path, capsys):
    """Other losses from the first step on, the same again with the same seed."""
    texts, labels = toy_news.generate("train")
    (tmp_path / "train.jsonl").write_text("".join(
        json.dumps({"text": t, "label": k}) + "\n" for t, k in zip(texts[:40], labels[:40],
                                                                   strict=True)))
    arguments = ["finetune", "--train", str(tmp_path / "train.jsonl"), "--model", "scratch",
                 "--layers", "1", "--width", "16", "--heads", "2", "--vocab-size", "300",
                 "--epochs", "1", "--dropout", "0", "--quiet"]
    losses = {}
    for name, options in {"plain": [], "drop": ["--token-dropout", "0.2"],
                          "swap": ["--token-swap", "0.2"],
                          "again": ["--token-dropout", "0.2"]}.items():
        assert main([*arguments, *options, "--out", str(tmp_path / name)]) == 0
        first = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]
        losses[name] = json.loads(first)["loss"]
    assert losses["drop"] == losses["again"]
    assert len({losses[name] for name in ("plain", "drop", "swap")}) == 3
    capsys.readouterr()
    assert main([*arguments, "--token-dropout", "0.95"]) == 2
    assert main([*arguments, "--task", "complete", "--token-swap", "0.1"]) == 2
    err = capsys.readouterr().err
    assert "--token-dropout is 0.95" in err and "--token-swap is for --task classify" in err


def test_frozen_layers_see_the_texts_of_the_step(rng):
    """What they made of the text as it stands in the file must not be taken for it."""
    model = Classifier(GPT2Config(11, 40, 4, 2, 2), "ab")
    model.train_layers("head")
    plain = TokenizedDataset([rng.integers(0, 11, 30) for _ in range(2)], [0, 1])
    kept = with_features(plain, model, 100, 10**6)
    assert kept.batch([0], STREAM).hidden is not None
    changed = with_features(replace(plain, augmentation=Augmentation(0.5)), model, 100, 10**6)
    batch = changed.batch([0, 1], STREAM)
    assert batch.hidden is None and len(batch.ids) < 50
    assert model.forward(batch).shape == (2, 2)


def test_special_ids():
    assert special_ids(train_tokenizer(["a"], 257)) == ()
