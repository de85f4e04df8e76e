"""The grammar of made-up news: balance, no repeats, and topic words that alone tell the class."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from minisft.data import toy_news
from minisft.data.toy_news import CLASSES, PARTS, SEEN, UNSEEN, generate


def words_of(half, label):
    return {word for words in half[label].values() for word in words}


def tokens(text):
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def parts():
    return {part: generate(part) for part in PARTS}


def test_parts_are_balanced_and_share_no_text(parts):
    texts = [text for part in PARTS for text in parts[part][0]]
    assert len(texts) == len(set(texts)) == 1200
    for part in PARTS:
        assert Counter(parts[part][1]) == dict.fromkeys(CLASSES, 100)


def test_lexicon_halves_are_disjoint_across_all_classes():
    lists = [words for half in (SEEN, UNSEEN) for label in CLASSES
             for words in half[label].values()]
    words = [word for words in lists for word in words]
    assert len(words) == len(set(words))
    assert all(len(words_of(SEEN, label)) + len(words_of(UNSEEN, label)) >= 48 for label in CLASSES)
    seen = {word[:6] for label in CLASSES for word in words_of(SEEN, label) if len(word) > 5}
    assert not [word for label in CLASSES for word in words_of(UNSEEN, label) if word[:6] in seen]


def test_frames_and_names_hold_no_topic_word():
    topics = set().union(*(words_of(half, label) for half in (SEEN, UNSEEN) for label in CLASSES))
    frames = (*toy_news._FRAMES, *toy_news._DISTRACTORS, *toy_news._NOISE_FRAMES)
    shared = [word for words in toy_news._SHARED.values() for word in words]
    plain = tokens(re.sub(r"\{\w+\}", "", " ".join(frames))) + tokens(" ".join(shared))
    assert not topics & set(plain)


@pytest.mark.parametrize(("part", "half"), [("train", SEEN), ("test", SEEN), ("transfer", UNSEEN)])
def test_each_text_holds_its_own_topic_words_and_little_else(parts, part, half):
    other_half = UNSEEN if half is SEEN else SEEN
    noisy = 0
    for text, label in zip(*parts[part], strict=True):
        found = tokens(text)
        assert 12 <= len(text.split()) <= 35, text
        assert 1 <= len(re.findall(r"\.(?: |$)", text)) <= 3, text
        assert 2 <= sum(word in words_of(half, label) for word in found) <= 4, text
        foreign = sum(word in words_of(half, other) for word in found
                      for other in CLASSES if other != label)
        assert foreign <= 1, text
        noisy += foreign
        assert not any(word in words_of(other_half, other) for word in found for other in CLASSES)
        assert "{" not in text and not re.search(r"\b[Aa] [aeiou]", text), text
    assert 0.1 < noisy / len(parts[part][0]) < 0.3


def test_no_repeats_even_where_a_grammar_has_few_texts(monkeypatch):
    frame = "The {role} went to the {place} and spoke at length about the {thing} there."
    monkeypatch.setattr(toy_news, "_FRAMES", (frame,))
    monkeypatch.setattr(toy_news, "_DISTRACTORS", ("Nobody came.",))
    monkeypatch.setattr(toy_news, "NOISE", 0)
    texts = [text for part in PARTS for text in generate(part)[0]]
    assert len(texts) == len(set(texts)) == 1200


def test_shared_words_tell_nothing(parts):
    """A word that all classes share must not lean to one of them."""
    counts = {label: Counter() for label in CLASSES}
    for text, label in zip(*parts["train"], strict=True):
        counts[label].update(set(tokens(text)))
    for word in ("the", "on", "and", "had", "for", "was"):
        found = [counts[label][word] for label in CLASSES]
        assert max(found) < 1.5 * min(found) + 10, (word, found)


def test_same_seed_same_texts_whatever_the_hash_seed(parts):
    code = "from minisft.data.toy_news import generate; print(generate('test')[0][:50])"
    for seed in "12":
        run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed,
                             "PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True,
                             check=True)
        assert run.stdout.strip() == str(parts["test"][0][:50])
    assert generate("train", seed=1)[0] != parts["train"][0]


def test_unknown_part():
    with pytest.raises(ValueError, match="unknown part 'valid'; known: train, test, transfer"):
        generate("valid")
