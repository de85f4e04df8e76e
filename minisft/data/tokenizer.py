"""The one place that asks the tokenizers library for something it may fail at.

The library raises bare `Exception`, and a panic of its Rust code is no `Exception` at all. Both
become a UserError here.
"""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from minisft.data.json_file import JSONFileError
from minisft.errors import UserError

_STDERR = threading.Lock()


@contextmanager
def without_panic_reports() -> Iterator[None]:
    """What the library's Rust code prints at a panic does not reach stderr: the error says it.

    All of the process prints elsewhere meanwhile. Without a panic it is shown at the end.
    """
    with _STDERR, ExitStack() as files:
        try:
            sink = files.enter_context(tempfile.TemporaryFile())
            saved = os.dup(2)
        except OSError:     # there is none, or no place for the file
            yield
            return
        panicked = False
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(sink.fileno(), 2)
            yield
        except BaseException as error:
            panicked = type(error).__name__ == "PanicException"     # pyo3 exports no class
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            if not panicked and (printed := sink.read()):
                os.write(2, printed)


@contextmanager
def _quietly(what):
    """As `library_errors`; where no other thread could print, also without reports of panics."""
    # a process that another thread starts meanwhile would keep the changed stderr for good
    alone = threading.active_count() == 1
    with library_errors(what), without_panic_reports() if alone else nullcontext():
        yield


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Calls of the tokenizers library -> UserError that begins with `what` for whatever it raises.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, JSONFileError):
        raise
    except BaseException as error:     # PanicException is none but that
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}: {reason[:300]}") from None


def encode(tokenizer: Tokenizer, *texts: str) -> Any:
    """A text, or two -> Encoding with special tokens; raises UserError."""
    with _quietly("the tokenizer fails"):
        return tokenizer.encode(*texts)


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str], parse_special: bool = False,
                 offsets: bool = False) -> list[Any]:
    """Texts -> Encodings without special tokens around them; raises UserError.

    With `offsets` they say where in its text each token stands, which takes longer.

    A literal <|endoftext|> or [SEP] in a text is those characters, with `parse_special` the token.
    """
    before = tokenizer.encode_special_tokens
    # said each time: a copy of a tokenizer, or a pickled one, forgets it
    tokenizer.encode_special_tokens = not parse_special
    try:
        with _quietly("the tokenizer fails"):
            encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
            return encode(texts, add_special_tokens=False)
    finally:
        tokenizer.encode_special_tokens = before


def special_tokens_note(tokenizer: Tokenizer, texts: Iterable[str]) -> str | None:
    """-> a line that says in how many texts special tokens stand as characters; None for none."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()
               if token.special and token.content]
    if not special:
        return None
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    found = [tokens for text in texts if (tokens := set(pattern.findall(text)))]
    if not found:
        return None
    tokens, one = sorted(set().union(*found)), len(found) == 1
    return (f"note: {len(found):,} text{'s' * (not one)} hold{'s' * one} {', '.join(tokens)}, read "
            f"as characters, not as {'that token' if len(tokens) == 1 else 'those tokens'}")


def require_no_panic(tokenizer: Tokenizer) -> None:
    """Encodes and decodes a little; raises what the library's Rust code panics at."""
    try:
        for texts in ("a \u0416\n\u4e2d",), ("a", "b"):
            ids = tokenizer.encode(*texts).ids
        tokenizer.decode(ids)
    except Exception:      # of these texts: others may do
        pass


def decode(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """Token ids -> text; raises UserError."""
    with _quietly("the tokenizer cannot decode"):
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """-> the size of a new model's vocabulary; raises UserError where the ids leave gaps."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    last = max(vocab, key=vocab.__getitem__)
    if vocab[last] >= len(vocab):
        raise UserError(f"the token {last!r} has the id {vocab[last]}, but the tokenizer has "
                        f"{len(vocab)} tokens, expected ids from 0 without gaps")
    return len(vocab)


def unused_token_ids(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """-> the ids below `vocab_size` that no token has, sorted: rows that only round up a table."""
    used = np.zeros(vocab_size, bool)
    ids = np.fromiter(tokenizer.get_vocab(with_added_tokens=True).values(), np.int64)
    used[ids[ids < vocab_size]] = True
    return np.flatnonzero(~used)
