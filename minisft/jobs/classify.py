"""The task `classify`: labelled texts in, a classifier and its honest figures out."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from minisft.data import toy_news
from minisft.data.augment import Augmentation
from minisft.data.dataset import TokenizedDataset
from minisft.data.in_memory import training_parts, without_unreadable
from minisft.data.read import Examples, read_examples, shared_texts
from minisft.data.sequences import (
    encode_sequences,
    require_readable,
    special_ids,
    unreadable,
)
from minisft.errors import UserError, setting
from minisft.evaluation import baselines, comparison, metrics, plots, report
from minisft.evaluation.evaluate import log_probabilities, validate
from minisft.evaluation.figures import Verdict, count, interval, percent
from minisft.io.checkpoint import load
from minisft.io.model_folder import Preprocessing
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.training.config import FinetuneConfig

# What is reported of a model beside the one that was trained
COMPARED = "accuracy", "accuracy_low", "accuracy_high", "macro_f1"
# Of a class weight; beyond them float32 has 0, numbers of a few bits, or infinity.
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class EncodedTexts:
    """The parts as token ids, and how many texts were cut to the maximum sequence length."""

    train: TokenizedDataset
    valid: TokenizedDataset
    test: TokenizedDataset | None
    cut_train: int
    cut_test: int


@dataclass(frozen=True)
class Classification:
    """Labelled texts and what is done with them; no method writes to it."""

    config: FinetuneConfig
    train: Examples
    valid: Examples
    test: Examples | None = None

    @classmethod
    def read(cls, config: FinetuneConfig, clean: Sequence[str]) -> Self:
        """-> the task with the texts of the config's files, or of toy-news; raises UserError."""
        data = config.data
        if data.train is None:
            for name in ("test", "valid"):
                if getattr(data, name) is not None:
                    raise UserError(f"{setting(name)} without {setting('train')}: the bundled "
                                    "toy-news has its own parts, expected a file for both")
            train, test = (_toy(part) for part in ("train", "transfer"))
            valid = None
        else:
            train = _read(data.train, None, data, clean)
            test, valid = (None if path is None else _read(path, train.label_names, data, clean)
                           for path in (data.test, data.valid))
        train, valid = training_parts(train, valid, "texts", data.train_texts,
                                      data.valid_fraction, config.training.seed)
        return cls(config, train, valid, test)

    @property
    def label_names(self) -> tuple[str, ...]:
        """-> the names of the classes, in the order of their numbers."""
        return self.train.label_names

    @property
    def texts(self) -> list[str]:
        """-> the training texts."""
        return self.train.texts

    def load(self, folder: Path) -> Classifier:
        """A checkpoint's folder -> Classifier with these labels."""
        return load(folder, task="classify", label_names=self.label_names,
                    seed=self.config.training.seed, dropout=self.config.model.dropout,
                    pooling=self.config.model.pooling,
                    label_map=parse_label_map(self.config.data.label_map))

    def scratch(self, config: GPT2Config, tokenizer: Tokenizer) -> Classifier:
        """-> Classifier from random weights."""
        return Classifier(config, self.label_names, seed=self.config.training.seed)

    def encode(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
               model: Classifier) -> EncodedTexts:
        """-> the token ids of all texts; UserError for one that the model cannot read."""
        def encoded(part):
            if part is None:
                return None, 0
            ids, types, cut = _encoded(part, tokenizer, preprocessing)
            require_readable(ids, tokenizer, model.trunk.config, part.place, types)
            return TokenizedDataset(ids, part.labels, types), cut

        (train, cut_train), (valid, cut_valid), (test, cut_test) = map(
            encoded, (self.train, self.valid, self.test))
        training = self.config.training
        if training.token_dropout or training.token_swap:
            train = replace(train, augmentation=Augmentation(
                training.token_dropout, training.token_swap, special_ids(tokenizer)))
        return EncodedTexts(train, valid, test, cut_train + cut_valid, cut_test)

    def readable(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
                 model: Classifier) -> Self:
        """-> the task without the texts that the model cannot read; UserError if none is left."""
        return replace(self, **{
            name: without_unreadable(part, unreadable_rows(part, tokenizer, preprocessing, model))
            for name, part in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if part is not None})

    def loss_options(self) -> dict:
        """-> what the model's loss takes beside the batch; raises UserError for weights that
        cannot be."""
        return {"weights": class_weights(self.config.training.class_weights, self.label_names,
                                         self.train.labels),
                "smoothing": self.config.training.label_smoothing or 0.0}

    def sample(self, tokenizer: Tokenizer, encoded: EncodedTexts) -> list[str]:
        """-> lines that show what is learnt from one text; nothing to explain here."""
        return []

    def validate(self, model: Classifier, valid: TokenizedDataset) -> dict:
        """-> figures of the validation part, with the score that chooses the best epoch."""
        training = self.config.training
        return validate(model, valid, self.config.tokens_at_once, training.select)

    def finished(self, model: Classifier, encoded: EncodedTexts,
                 preprocessing: Preprocessing) -> Preprocessing:
        """-> the Preprocessing that goes with the trained model."""
        return preprocessing

    def describe(self, encoded: EncodedTexts) -> dict:
        """-> what the report says of the data."""
        data, test = self.config.data, self.test
        # of the training file: what is held out for validation is a part of it
        labels = self.train.labels + ([] if data.valid else self.valid.labels)
        return {
            "train_path": data.train or "bundled toy-news",
            "test_path": None if test is None else data.test or "bundled toy-news",
            "n_train": len(self.train.texts), "n_valid": len(self.valid.texts),
            "n_test": None if test is None else len(test.texts), "labels": list(self.label_names),
            "cleaned": dict(self.train.cleaned),
            "shared_with_training": None if test is None else shared_texts(
                self.train.full_texts + self.valid.full_texts, test.full_texts),
            "majority": max(labels.count(k) for k in set(labels)) / len(labels),
            "cut_train": encoded.cut_train, "cut_test": encoded.cut_test}

    def evaluate(self, model: Classifier, tokenizer: Tokenizer,
                 encoded: EncodedTexts) -> tuple[dict, list, np.ndarray]:
        """Scores the test set once (without one: the validation part) -> figures, mistakes for
        the report, the labels that the model gives."""
        part = self._scored
        logp = self._log_probabilities(model, encoded)
        answers = logp.argmax(axis=1)
        results = metrics.classification(part.labels, logp, self.label_names)
        if self.config.output.compare != "none":
            fitted = baselines.fit_all(self.train.full_texts, self.train.labels,
                                       self.valid.full_texts, self.valid.labels,
                                       len(self.label_names))
            results |= {key: self._compared(baseline.log_probabilities(part.full_texts), answers)
                        for key, baseline in fitted.items()}
            if why := baselines.missing_for_tfidf(self.train.full_texts, self.train.labels):
                results["left_out"] = comparison.skipped_message(why)
        mistakes = report.worst_mistakes(part.full_texts, part.lines, part.labels, logp,
                                         self.label_names)
        return results, mistakes, answers

    def compare(self, model: Classifier, encoded: EncodedTexts, answers: np.ndarray) -> dict:
        """-> accuracy with interval and macro F1 of another model on the texts that `evaluate`
        scored, and McNemar's test against the answers."""
        return self._compared(self._log_probabilities(model, encoded), answers)

    @property
    def _scored(self):
        return self.valid if self.test is None else self.test

    def _log_probabilities(self, model, encoded):
        part = encoded.valid if encoded.test is None else encoded.test
        return log_probabilities(model, part.ids, self.config.tokens_at_once,
                                 None if self.config.output.quiet else "evaluating", part.types)

    def _compared(self, logp, answers):
        labels = self._scored.labels
        figures = metrics.classification(labels, logp, self.label_names)
        return {key: figures[key] for key in COMPARED} | {
            "mcnemar": metrics.mcnemar(labels, answers, logp.argmax(axis=1))}

    def write(self, folder: Path, results: dict, mistakes: list, description: dict,
              settings: report.Settings, history: dict) -> None:
        """Pictures first: the report shows those that are there."""
        plots.confusion(results["confusion"], list(self.label_names), folder / "confusion.png",
                        title=f"{percent(results['accuracy'])} of "
                              f"{count(results['n'], 'text')} are right")
        report.write(folder, report.classification(results, description, settings, history,
                                                   mistakes))

    def headlines(self, results: dict) -> list[str]:
        """-> the figures for the terminal, the verdict first."""
        part = "validation" if self.test is None else "test"
        stands = comparison.verdict(results)
        lines = [Verdict(f"{percent(results['accuracy'])} of {count(results['n'], f'{part} text')} "
                         "are right" + (f": {stands}" if stands else "")),
                 f"  {interval(results['accuracy_low'], results['accuracy_high'])}, macro F1 "
                 f"{percent(results['macro_f1'])}, loss {results['loss']:.4f}"
                 + ("" if stands else "; always the most frequent class: "
                    f"{percent(results['majority'])}")]
        if (note := report.absent_classes_note(results)) is not None:
            lines.append(f"note: {note}")
        lines += comparison.terminal_lines(results)
        if self.config.data.train is None:
            lines.append("toy-news is made to show what pretraining carries over: no topic word "
                         "of its test texts stands in a training text")
        return lines


def unreadable_rows(examples: Examples, tokenizer: Tokenizer, preprocessing: Preprocessing,
                    model: Classifier) -> dict[int, str]:
    """-> why the model cannot read some of the texts, by index."""
    ids, types, _ = _encoded(examples, tokenizer, preprocessing)
    return unreadable(ids, tokenizer, model.trunk.config, types)


def _encoded(examples, tokenizer, preprocessing):
    return encode_sequences(tokenizer, examples.texts, preprocessing.max_length,
                            preprocessing.truncate, examples.pairs, preprocessing.parse_special)


def parse_label_map(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=NEW, ... -> the new name of each label of a folder; raises UserError."""
    label_map: dict[str, str] = {}
    for pair in pairs:
        name, _, new = pair.partition("=")
        if not name or not new or name in label_map or new in label_map.values():
            raise UserError(f"{setting('label_map')} {pair!r}: expected NAME=NEW, each name once")
        label_map[name] = new
    return label_map


def class_weights(text: str, label_names: Sequence[str],
                  labels: Sequence[int]) -> np.ndarray | None:
    """none | balanced | NAME=W,... | {"NAME": W} -> weights (K,) float32 or None; raises UserError.

    Balanced: texts / (classes * texts of the class), so that every class counts alike.
    """
    if text == "none":
        return None
    if text == "balanced":
        counts = np.bincount(labels, minlength=len(label_names))
        if counts.min() == 0:
            raise UserError(f"{setting('class_weights', 'balanced')}: no training text of "
                            f"{label_names[counts.argmin()]}")
        return (len(labels) / (len(label_names) * counts)).astype(np.float32)
    weights = {}
    for name, number in _named_weights(text):
        shown = f"{setting('class_weights')} {f'{name}={number}'!r}"
        if name not in label_names:
            raise UserError(f"{shown}: expected NAME=W with NAME one of {', '.join(label_names)}"
                            + ("; a name with a comma stands in quotes: '\"A, B\"=2'" if any(
                                "," in label for label in label_names) else ""))
        if name in weights:
            raise UserError(f"{shown}: {name} has a weight already")
        try:
            weights[name] = float(number)
        except (TypeError, ValueError):
            weights[name] = -1.0
        if not SMALLEST <= weights[name] <= LARGEST:
            raise UserError(f"{shown}: expected a number above 0, from {SMALLEST:.1e} to "
                            f"{LARGEST:.1e}")
    return np.array([weights.get(name, 1.0) for name in label_names], dtype=np.float32)


def _named_weights(text):
    """NAME=W,... quoted as in CSV, or a JSON object -> (name, weight as it is written) of each."""
    if text.startswith("{") and text.endswith("}"):
        try:
            return json.loads(text, object_pairs_hook=list)
        except ValueError:
            pass      # a class may be called so
    try:
        pairs = next(csv.reader([text])) or [text]
    except csv.Error:      # a line break: no option names a class so
        pairs = [text]
    return [(name, number) for name, _, number in (pair.rpartition("=") for pair in pairs)]


def _read(path, label_names, data, clean):
    return read_examples(path, list(data.text_column), data.label_column, label_names, clean,
                         data.encoding, not data.no_header, data.pair_column, data.delimiter,
                         data.skip_bad_rows, data.max_compression_ratio)


def _toy(part):
    texts, classes = toy_news.generate(part)
    label_names = tuple(sorted(set(classes)))
    return Examples(path="bundled toy-news", texts=texts,
                    labels=[label_names.index(c) for c in classes], label_names=label_names,
                    lines=list(range(1, len(texts) + 1)), cleaned={})
