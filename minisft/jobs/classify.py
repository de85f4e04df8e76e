"""The task `classify`: labelled texts in, a classifier and its honest figures out."""

from dataclasses import replace

import numpy as np

from minisft.data import toy_news
from minisft.data.augment import Augmentation
from minisft.data.dataset import TokenizedDataset
from minisft.data.read import Examples, draw, read_examples, shared_texts, split
from minisft.data.sequences import encode_sequences, special_ids
from minisft.errors import UserError
from minisft.evaluation import baselines, comparison, metrics, plots, report
from minisft.evaluation.evaluate import log_probabilities
from minisft.io.checkpoint import load
from minisft.models.heads import Classifier

# What is told of a model beside the one that was trained
COMPARED = "accuracy", "accuracy_low", "accuracy_high", "macro_f1"


class Classification:
    """Reads and checks all data when it is made; nothing is written before it has been."""

    def __init__(self, settings, clean):
        self.settings = settings
        if settings.train is None:
            for name in ("test", "valid"):
                if getattr(settings, name) is not None:
                    raise UserError(f"--{name} without --train: the bundled toy-news has its own "
                                    f"parts, expected --train FILE beside it")
            train, test = (_toy(part) for part in ("train", "transfer"))
            self.label_names = train.label_names
            valid = None
        else:
            train = self._read(settings.train, None, clean)
            self.label_names = train.label_names
            test, valid = (None if path is None else self._read(path, self.label_names, clean)
                           for path in (settings.test, settings.valid))
        if settings.train_texts is not None:
            train = _part(train, draw(train.path, train.labels, len(train.texts),
                                      settings.train_texts, settings.seed))
        self.cleaned, self.test, self.valid_path = train.cleaned, test, settings.valid
        self.train_labels = train.labels
        if valid is None:
            kept, held_out = split(train.labels, train.texts, settings.valid_fraction,
                                   settings.seed)
            self.train, self.valid = _part(train, kept), _part(train, held_out)
        else:
            self.train, self.valid = train, valid
        self.weights = class_weights(settings.class_weights, self.label_names, self.train.labels)

    def _read(self, path, label_names, clean):
        s = self.settings
        return read_examples(path, list(s.text_column), s.label_column, label_names, clean,
                             s.encoding, not s.no_header, s.pair_column)

    @property
    def texts(self):
        """-> the training texts."""
        return self.train.texts

    def load(self, folder, seed, dropout):
        """A checkpoint's folder -> Classifier with these labels."""
        return load(folder, task="classify", label_names=self.label_names, seed=seed,
                    dropout=dropout, pooling=self.settings.pooling)

    def scratch(self, config, seed):
        """-> Classifier from random weights."""
        return Classifier(config, self.label_names, seed=seed)

    def encode(self, tokenizer, preprocessing):
        """Turns all texts into token ids."""
        def encoded(part):
            if part is None:
                return None, 0
            ids, types, cut = encode_sequences(tokenizer, part.texts, preprocessing.max_length,
                                               preprocessing.truncate, part.pairs)
            return TokenizedDataset(ids, part.labels, types), cut

        self.train_ids, cut_train = encoded(self.train)
        s = self.settings
        if s.token_dropout or s.token_swap:
            self.train_ids = replace(self.train_ids, augmentation=Augmentation(
                s.token_dropout, s.token_swap, special_ids(tokenizer)))
        self.valid_ids, cut_valid = encoded(self.valid)
        self.test_ids, cut_test = encoded(self.test)
        self.cut = {"cut_train": cut_train + cut_valid, "cut_test": cut_test}

    def loss_options(self):
        """-> what the model's loss is told beside the batch."""
        return {"weights": self.weights, "smoothing": self.settings.label_smoothing}

    def sample(self):
        """-> lines that show what is learnt from one text; nothing to explain here."""
        return []

    def validate(self, model):
        """-> figures of the validation part, with the score that chooses the best epoch."""
        logp = log_probabilities(model, self.valid_ids.ids, self.settings.micro_tokens,
                                 types=self.valid_ids.types, features=self.valid_ids.features)
        found = metrics.classification(self.valid.labels, logp, self.label_names)
        # for the last epoch the score decides nothing, and is there to be read
        first = -found["loss"] if self.settings.select == "loss" else found[
            "accuracy" if self.settings.select == "last" else self.settings.select]
        # equal accuracy is common on a small part: the loss then decides
        return {"score": [first, -found["loss"]], "valid_loss": found["loss"],
                "valid_accuracy": found["accuracy"], "valid_macro_f1": found["macro_f1"]}

    def data(self):
        """-> what the report says of the data."""
        s, test = self.settings, self.test
        return {
            "train_path": s.train or "bundled toy-news",
            "test_path": None if test is None else s.test or "bundled toy-news",
            "n_train": len(self.train.texts), "n_valid": len(self.valid.texts),
            "n_test": None if test is None else len(test.texts), "labels": list(self.label_names),
            "cleaned": dict(self.cleaned),
            "shared_with_training": None if test is None else shared_texts(
                self.train.wholes + self.valid.wholes, test.wholes),
            "majority": max(self.train_labels.count(k) for k in set(self.train_labels))
            / len(self.train_labels), **self.cut}

    def evaluate(self, model):
        """Reads the test set once (without one: the validation part) -> results, worst mistakes."""
        part = self._scored()[0]
        logp = self._log_probabilities(model)
        results = metrics.classification(part.labels, logp, self.label_names)
        self.answers = logp.argmax(axis=1)
        if self.settings.compare != "none":
            fitted = baselines.fit_all(self.train.wholes, self.train.labels, self.valid.wholes,
                                       self.valid.labels, len(self.label_names))
            results |= {key: self._short(baseline.log_probabilities(part.wholes))
                        for key, baseline in fitted.items()}
            if why := baselines.missing_for_tfidf(self.train.wholes, self.train.labels):
                results["left_out"] = comparison.left_out(why)
        mistakes = report.worst_mistakes(part.wholes, part.lines, part.labels, logp,
                                         self.label_names)
        return results, mistakes

    def figures(self, model):
        """-> accuracy with interval, macro F1 and McNemar's test of another model, same texts."""
        return self._short(self._log_probabilities(model))

    def _scored(self):
        return (self.valid, self.valid_ids) if self.test is None else (self.test, self.test_ids)

    def _log_probabilities(self, model):
        ids = self._scored()[1]
        return log_probabilities(model, ids.ids, self.settings.micro_tokens,
                                 None if self.settings.quiet else "evaluating", ids.types)

    def _short(self, logp):
        labels = self._scored()[0].labels
        found = metrics.classification(labels, logp, self.label_names)
        return {key: found[key] for key in COMPARED} | {
            "mcnemar": metrics.mcnemar(labels, self.answers, logp.argmax(axis=1))}

    def write(self, folder, results, mistakes, settings, history):
        """Pictures first: the report links those that are there."""
        plots.confusion(results["confusion"], list(self.label_names), folder / "confusion.png",
                        title=f"{results['accuracy']:.1%} of {results['n']:,} texts are right")
        report.write_report(folder / "report.md", results, self.data(), settings, history, mistakes)

    def headline(self, results):
        """-> the figures for the terminal."""
        where = "validation" if self.test is None else "test"
        lines = [f"{where} accuracy {results['accuracy']:.4f} (95% interval "
                 f"{results['accuracy_low']:.4f} to {results['accuracy_high']:.4f}), macro F1 "
                 f"{results['macro_f1']:.4f}, loss {results['loss']:.4f}, {results['n']} texts; "
                 f"the largest class of them alone would give {results['majority']:.4f}"]
        lines += comparison.headlines(results)
        if self.settings.train is None:
            lines.append("toy-news is made to show what pretraining carries over: no topic word "
                         "of its test texts stands in a training text")
        return "\n".join(lines)


def class_weights(text, label_names, labels):
    """none | balanced | NAME=W,... -> weights (K,) float32 or None; raises UserError.

    Balanced: texts / (classes * texts of the class), so that every class counts alike.
    """
    if text == "none":
        return None
    if text == "balanced":
        counts = np.bincount(labels, minlength=len(label_names))
        if counts.min() == 0:
            raise UserError("--class-weights balanced: no training text of "
                            f"{label_names[counts.argmin()]}")
        return (len(labels) / (len(label_names) * counts)).astype(np.float32)
    weights = {}
    for pair in text.split(","):
        name, _, number = pair.rpartition("=")
        if name not in label_names:
            raise UserError(f"--class-weights {pair!r}: expected NAME=W with NAME one of "
                            f"{', '.join(label_names)}")
        if name in weights:
            raise UserError(f"--class-weights {pair!r}: {name} has a weight already")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = -1.0
        if not 0 < weights[name] < float("inf"):
            raise UserError(f"--class-weights {pair!r}: expected a number above 0")
    return np.array([weights.get(name, 1.0) for name in label_names], dtype=np.float32)


def _toy(part):
    texts, classes = toy_news.generate(part)
    label_names = tuple(sorted(set(classes)))
    return Examples(path="bundled toy-news", texts=texts,
                    labels=[label_names.index(c) for c in classes], label_names=label_names,
                    lines=list(range(1, len(texts) + 1)), cleaned={})


def _part(examples, indices):
    return Examples(path=examples.path, texts=[examples.texts[n] for n in indices],
                    labels=[examples.labels[n] for n in indices], label_names=examples.label_names,
                    lines=[examples.lines[n] for n in indices], cleaned=examples.cleaned,
                    pairs=examples.pairs and [examples.pairs[n] for n in indices])
