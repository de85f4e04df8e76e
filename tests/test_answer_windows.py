"""Windows over contexts: every answer can be given, and is given back as it stands."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from minisft.data.answer_windows import answer_windows
from minisft.data.questions import Questions
from minisft.data.text import train_tokenizer
from minisft.errors import UserError
from tests.test_word_pieces import word_pieces

CONTEXT = "ada wrote the first program and bob read it on a train that went north at ten"
TOKENIZERS = {"byte-level": lambda: train_tokenizer([CONTEXT] * 3, 290), "WordPiece": word_pieces}


def questions(answers, context=CONTEXT, question="who wrote"):
    return Questions(Path("q"), [f"q{i}" for i in range(len(answers))], [question] * len(answers),
                     [context] * len(answers), ["t"] * len(answers),
                     [[] if text is None else [(text, context.index(text))] for text in answers])


def logits_of(windows):
    """Logits that point at the labels of each window."""
    found = [np.zeros((len(ids), 2)) for ids in windows.ids]
    for z, (first, last) in zip(found, windows.labels, strict=True):
        z[first, 0] = z[last, 1] = 5
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [24, 40, 300])
def test_what_the_labels_point_at_is_the_answer(name, length):
    texts = [" ".join(CONTEXT.split()[i:i + n]) for i in range(15) for n in (1, 2)]
    texts = [text for text in texts if CONTEXT.count(text) == 1]
    asked = questions([*texts, None])
    found = answer_windows(TOKENIZERS[name](), asked, length)
    assert max(map(len, found.ids)) <= length
    answers = found.best(logits_of(found), asked.contexts)
    room = length - 5 - min(9, (length - 3) // 2)
    for text, answer in zip(texts, answers, strict=False):
        if len(text) < room / 2:     # then some window holds it whole
            assert answer.text == text and CONTEXT[answer.start:].startswith(text)
    assert answers[-1].margin < 0 < min(answer.margin for answer in answers[:1])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [24, 31, 300])
def test_every_token_may_begin_an_answer_once(name, length):
    found = answer_windows(TOKENIZERS[name](), questions(["ada"]), length)
    places = np.concatenate([o[b] for o, b in zip(found.offsets, found.may_begin, strict=True)])
    everywhere = np.unique(np.concatenate(found.offsets), axis=0)[1:]     # without -1
    assert np.array_equal(np.sort(places, axis=0), np.sort(everywhere, axis=0))


def test_sequences_are_those_of_a_pair():
    tokenizer = word_pieces()
    found = answer_windows(tokenizer, questions(["bob"], "bob ran", "who"), 30)
    pair = tokenizer.encode("who", "bob ran")
    assert (found.ids[0].tolist(), found.types[0].tolist()) == (pair.ids, pair.type_ids)
    tokens = pair.tokens
    first, last = found.labels[0]
    assert tokens[first:last + 1] == ["b", "##o", "##b"]


def test_no_answer_is_the_first_token():
    found = answer_windows(word_pieces(), questions([None]), 300)
    assert found.labels.tolist() == [[0, 0]] and not found.may_begin[0][0]


def test_a_long_question_leaves_half_of_the_room():
    found = answer_windows(word_pieces(), questions(["ada"], question="who " * 50), 40)
    assert found.cut_questions == 1 and (found.offsets[0][:, 0] >= 0).sum() >= 18


def test_an_answer_has_its_length_and_its_order(rng):
    """The best span of a slow search, over random logits."""
    asked = questions(["ada"])
    found = answer_windows(word_pieces(), asked, 50)
    for longest in (1, 3, 30):
        logits = [rng.standard_normal((len(ids), 2)) for ids in found.ids]
        best = max((z[i, 0] + z[j, 1], offsets[i, 0], offsets[j, 1])
                   for z, offsets, begins in zip(logits, found.offsets, found.may_begin,
                                                 strict=True)
                   for i in np.flatnonzero(begins)
                   for j in range(i, min(i + longest, len(z))) if offsets[j, 0] >= 0)
        (answer,) = found.best(logits, asked.contexts, longest)
        assert answer.text == CONTEXT[best[1]:best[2]].strip()
        none = min(z[0].sum() for z in logits)
        assert answer.margin == pytest.approx(best[0] - none)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="leaves no room for a question and its context"):
        answer_windows(word_pieces(), questions(["ada"]), 6)
    tokenizer = word_pieces()
    tokenizer.normalizer = normalizers.Replace("x", "")
    with pytest.raises(UserError, match="q0: nothing is left of the question"):
        answer_windows(tokenizer, questions(["ada"], question="x"), 50)
