"""Calls of the tokenizers library: what it raises is one line, and which ids no token has."""

import re
from pathlib import Path

import numpy as np
import pytest

import minisft
from minisft.data.text import encode_all, train_tokenizer
from minisft.data.tokenizer import decode, library_errors, unused_token_ids
from minisft.errors import UserError


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize("error", [Exception("no\nunknown token"), Panic("no unknown token")])
def test_whatever_the_library_raises_is_one_line(error):
    with pytest.raises(UserError, match="^the tokenizer fails: no unknown token$"):
        with library_errors("the tokenizer fails"):
            raise error


def test_an_interruption_stays_one():
    with pytest.raises(KeyboardInterrupt):
        with library_errors("the tokenizer fails"):
            raise KeyboardInterrupt


def test_the_library_is_called_in_one_place():
    calls = re.compile(r"tokenizer_?\.(encode|decode)\w*\(|encode_batch_fast\(")
    package = Path(minisft.__file__).parent
    assert {path.relative_to(package).as_posix() for path in package.rglob("*.py")
            if calls.search(path.read_text(encoding="utf-8"))} == {"data/tokenizer.py"}


def test_ids_that_no_token_has():
    tokenizer = train_tokenizer(["the cat sat"] * 3, 262)
    size = tokenizer.get_vocab_size()
    assert unused_token_ids(tokenizer, size).tolist() == []
    assert unused_token_ids(tokenizer, size + 3).tolist() == [size, size + 1, size + 2]
    assert unused_token_ids(tokenizer, size - 2).tolist() == []
    tokenizer.add_tokens(["covid19"])
    assert unused_token_ids(tokenizer, size + 3).tolist() == [size + 1, size + 2]
    (ids,), _ = encode_all(tokenizer, ["the covid19"])
    assert ids[-1] == size and decode(tokenizer, ids) == "the covid19"
    assert ids.dtype == np.int64
