"""BLEU and chrF through sacrebleu, BLEU's interval, and the dictionary of IBM model 1."""

import itertools
import sys

import numpy as np
import pytest

from minisft.errors import UserError
from minisft.evaluation import translation
from minisft.evaluation.translation import tokenizer_for
from minisft.evaluation.word_translation import WordTranslator, words

FRENCH = ["Un homme porte un chapeau orange.", "Une femme lit.",
          "Deux chiens courent dans l'herbe."]


@pytest.mark.parametrize("texts, name", [
    (FRENCH, "13a"), (["他走了。", "我不知道 OK 吗？"], "zh"),
    (["彼は行った。", "これは本です。"], "char"),
    (["ฉันรักเธอ"], "char"), (["Она ушла."], "13a"), (["!", "1 2"], "13a"),
    (["The word 人 is Chinese."], "13a")])
def test_each_language_has_its_tokenizer(texts, name):
    assert tokenizer_for(texts) == name


def test_without_sacrebleu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(translation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need sacrebleu.*minisft\[translate\]"):
        translation.translation(FRENCH, FRENCH)


def test_figures_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    found = ["Un homme porte un chapeau.", "Une femme lit un livre.", "Deux chiens courent."]
    figures = translation.translation(FRENCH, found, {"same": found, "right": FRENCH})
    assert figures["bleu"] == sacrebleu.corpus_bleu(found, [FRENCH]).score
    assert figures["chrf"] == sacrebleu.corpus_chrf(found, [FRENCH]).score
    assert "tok:13a" in figures["bleu_signature"] and "case:mixed" in figures["bleu_signature"]
    assert figures["bleu_low"] < figures["bleu"] < figures["bleu_high"]
    same, right = figures["same"], figures["right"]
    assert same["better_by"] == same["better_low"] == same["better_high"] == 0
    assert right["bleu"] == pytest.approx(100) and right["better_high"] < 0
    chinese = translation.translation(["他走了。"], ["他走。"])
    assert "tok:zh" in chinese["bleu_signature"]


@pytest.mark.parametrize("kept", [0.9, 0.2])     # of so few words no four stand in a row
def test_the_interval_resamples_sentences(kept):
    """From the counts of sentences as from the sentences themselves, one sample after another."""
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = np.random.default_rng(5)
    vocabulary = ["un", "une", "le", "chat", "chien", "dort", "court", "."]
    references = [" ".join(rng.choice(vocabulary, 8)) for _ in range(30)]
    found = [" ".join(word for word in text.split() if rng.random() < kept) for text in references]
    weights = translation._resamples(30)[:20]
    assert (weights.sum(axis=1) == 30).all()
    metric = sacrebleu.BLEU()
    expected = []
    for row in weights:
        chosen = list(itertools.chain.from_iterable([n] * k for n, k in enumerate(row)))
        expected.append(metric.corpus_score([found[n] for n in chosen],
                                            [[references[n] for n in chosen]]).score)
    samples = translation._resampled(metric, references, found, weights)
    np.testing.assert_allclose(samples, expected, rtol=1e-12)
    assert np.std(expected) > 0.1


def test_model_1_is_brute_force_over_alignments():
    """(2) is the expectation over every alignment, written out (Brown et al. 1993, eq. 8)."""
    pairs = [("a b", "x y"), ("b", "y"), ("a c", "z x")]
    es, fs = ["", "a", "b", "c"], ["x", "y", "z"]
    t = {(e, f): 1 / 3 for e in es for f in fs}
    for _ in range(3):
        counts = dict.fromkeys(t, 0.0)
        for source, target in pairs:
            e, f = ["", *source.split()], target.split()
            alignments = list(itertools.product(e, repeat=len(f)))
            p = np.array([np.prod([t[pair] for pair in zip(a, f, strict=True)])
                          for a in alignments])
            for a, share in zip(alignments, p / p.sum(), strict=True):
                for pair in zip(a, f, strict=True):
                    counts[pair] += share
        t = {(e, f): counts[e, f] / sum(counts[e, g] for g in fs) for e, f in t}
    model = WordTranslator(*zip(*pairs, strict=True), rounds=3)
    for (e, f), value in t.items():
        if e:
            assert model.probability(e, f) == pytest.approx(value, abs=1e-12)
    assert np.all(np.diff(model.log_likelihood) > 0)
    assert model.translate(["A b b q."]) == ["X y y q."]


def test_words_of_languages():
    assert words("L'homme a 2 chiens, là!") == ["l'", "homme", "a", "2", "chiens", ",", "là", "!"]
    assert words("他走了。") == ["他", "走", "了", "。"]
    model = WordTranslator(["the man", "he left"], ["l'homme", "他走了。"])
    assert len(model.translate(["the man", "he left ."])) == 2


def test_the_dictionary_spells_words_as_they_stand_within_sentences():
    model = WordTranslator(["dog", "dog sleeps", "a dog", "sleeps"],
                           ["Hund", "Hund schläft", "ein Hund", "Schläft"])
    assert model.translate(["sleeps DOG", "Zermatt dog sleeps"]) == [
        "Schläft Hund", "Zermatt Hund schläft"]
