"""Which token speaks for a word: every word is asked once, whatever tokenizer and length."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from minisft.data.text import train_tokenizer
from minisft.data.word_pieces import first_tokens, windows
from minisft.errors import UserError

SENTENCES = [["Unbelievably", "good", "news", ",", "10 000", "of", "them"], ["\u4e2d\u6587", "!"],
             ["a"], ["na\u00efve", "re-enter", "'s"] * 9]


def word_pieces():
    """A WordPiece of single letters, with [CLS] and [SEP]; it has no token for `!` alone."""
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    for letter in "abcdefghijklmnopqrstuvwxyzU,-'10\u00ef\u4e2d\u6587":
        vocab[letter] = len(vocab)
        vocab["##" + letter] = len(vocab)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return tokenizer


TOKENIZERS = {"byte-level": lambda: train_tokenizer(["good news of them"] * 5, 300),
              "WordPiece": word_pieces}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [3, 4, 5, 8, 21, 1000])
def test_every_word_is_asked_once(name, length):
    found = windows(TOKENIZERS[name](), SENTENCES, length)
    assert max(map(len, found.ids)) <= length and found.silent == 0
    for n, words in enumerate(SENTENCES):
        asked = np.concatenate([w[w >= 0] for w, s in zip(found.words, found.sentences,
                                                          strict=True) if s == n])
        assert sorted(asked) == list(range(len(words)))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_labels_and_answers_find_their_words(name):
    lengths = [len(words) for words in SENTENCES]
    tags = [[100 * n + w for w in range(length)] for n, length in enumerate(lengths)]
    for length in (5, 1000):
        found = windows(TOKENIZERS[name](), SENTENCES, length)
        labels = found.labels(tags, -100)
        assert [len(row) for row in labels] == [len(row) for row in found.ids]
        back = found.of_words([np.stack([row, -row], axis=1) for row in labels], lengths)
        for row, expected in zip(back, tags, strict=True):
            assert row[:, 0].tolist() == expected and row[:, 1].tolist() == [-t for t in expected]


def test_the_first_token_of_a_word_speaks_for_it():
    tokenizer = word_pieces()
    found = windows(tokenizer, [["good", "of"]], 100)
    tokens = [tokenizer.id_to_token(int(i)) for i in found.ids[0]]
    assert tokens == ["[CLS]", "g", "##o", "##o", "##d", "o", "##f", "[SEP]"]
    assert found.words[0].tolist() == [-1, 0, -1, -1, -1, 1, -1, -1]


def test_a_word_is_asked_where_it_has_most_text_around_it():
    tokenizer = word_pieces()
    found = windows(tokenizer, [list("abcdefghij")], 6)     # four letters in a window
    seen = ["".join(tokenizer.id_to_token(int(i)) for i in ids[1:-1]) for ids in found.ids]
    asked = ["".join("abcdefghij"[w] for w in words if w >= 0) for words in found.words]
    assert seen == ["abcd", "cdef", "efgh", "ghij"]
    assert asked == ["abc", "de", "fg", "hij"]


def test_a_word_without_a_token_takes_the_answer_before_it():
    offsets = [(2, 3), (6, 7)]
    assert first_tokens(["a", "b", "c", "d"], offsets).tolist() == [-1, 0, -1, 1]
    # a token that holds two words speaks for the first
    assert first_tokens(["a", "b", "c"], [(0, 3), (4, 5)]).tolist() == [0, -1, 1]
    tokenizer = TOKENIZERS["byte-level"]()
    found = windows(tokenizer, [["a", "b", "c"]], 10)
    for silent, expected in (([0], [1, 1, 2]), ([1], [0, 0, 2]), ([0, 1], [2, 2, 2])):
        words = np.where(np.isin(found.words[0], silent), -1, found.words[0])
        values = np.maximum(words, 0)[:, None].astype(float)
        rows = type(found)(found.ids, None, [0], [words], len(silent)).of_words([values], [3])
        assert rows[0][:, 0].tolist() == expected


def test_a_length_without_room_is_refused():
    with pytest.raises(UserError, match="leaves no room for a word besides the 2 special"):
        windows(word_pieces(), [["a"]], 2)
