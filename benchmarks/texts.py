"""The texts of the tables: real ones where they are at hand, the bundled toy-news where not."""

import os
from pathlib import Path

import numpy as np

from minisft.backend import random
from minisft.data import toy_news
from minisft.data.dataset import TokenizedDataset
from minisft.data.read import read_examples
from minisft.data.text import encode_all, load_tokenizer, train_tokenizer

KNOWN = {"AG News": "ag_news/train.csv", "SMS Spam": "sms_spam/train.csv"}
TOKENIZER = "gpt2_bpe"
GROUPED = 50     # batches that are sorted together, as the Trainer of `transformers` does


def shared():
    """-> the folder with real data sets, or None."""
    place = os.environ.get("MINISFT_SHARED")
    return Path(place) / "data" if place else None


def read(options, known="AG News", most=None):
    """Options, name of the data -> TokenizedDataset, names of the classes, what to say of them."""
    path = options.texts
    if path is None and shared() is not None and (shared() / KNOWN[known]).is_file():
        path = shared() / KNOWN[known]
    if path is None:
        texts, classes = toy_news.generate("train", options.seed)
        names = tuple(sorted(set(classes)))
        labels = [names.index(c) for c in classes]
        said = f"bundled toy-news ({known} was not at hand)"
    else:
        found = read_examples(path, list(options.text_column), options.label_column)
        texts, labels, names = found.texts, found.labels, found.label_names
        said = known if options.texts is None else Path(path).name
    if most is not None:
        texts, labels = texts[:most], labels[:most]
    tokenizer, told = _tokenizer(options, texts)
    ids, cut = encode_all(tokenizer, texts, options.context_length)
    mean = np.mean([len(x) for x in ids])
    said += f", {len(ids)} texts of {mean:.1f} tokens on average, {told}"
    return TokenizedDataset(ids, labels), names, said + (f", {cut} cut" if cut else "")


def _tokenizer(options, texts):
    """-> a tokenizer whose ids leave the last of the vocabulary free for padding, its name."""
    folder = options.tokenizer
    if folder is None and shared() is not None and (shared() / TOKENIZER).is_dir():
        folder = shared() / TOKENIZER
    if folder is not None:
        found = load_tokenizer(folder)
        if found.get_vocab_size() <= options.vocab:     # GPT-2's last id stands in no text
            return found, "its own tokenizer" if options.tokenizer else "GPT-2's tokenizer"
    most = min(options.vocab - 1, 8192)
    return train_tokenizer(texts, most), f"a tokenizer trained on them ({most} tokens at most)"


def batches(n, size, steps, seed=0):
    """n texts -> that many lists of `size` text numbers, in random order, beginning anew at need.
    """
    order, epoch = np.empty(0, dtype=np.int64), 0
    while len(order) < size * steps:
        order = np.concatenate([order, random.permutation(n, seed, epoch)])
        epoch += 1
    return [order[i * size:(i + 1) * size] for i in range(steps)]


def grouped(lengths, size, steps, seed=0):
    """The same, texts of like length together: sorted within every GROUPED batches."""
    lengths = np.asarray(lengths)
    order = random.permutation(len(lengths), seed, 0)
    many = size * GROUPED
    sorted_ = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in (
        order[i:i + many] for i in range(0, len(order), many))])
    cut = [sorted_[i:i + size] for i in range(0, len(sorted_) - size + 1, size)] or [sorted_]
    chosen = random.permutation(len(cut), seed, 1)
    return [cut[chosen[i % len(cut)]] for i in range(steps)]


def equal(sequences, length, n):
    """Texts joined and cut -> n texts of that length each; beginning anew at need."""
    stream = np.concatenate(sequences.ids)
    return np.resize(stream, (n, length))
