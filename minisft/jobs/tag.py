"""The task `tag`: sentences with a tag for each word in, a tagger and its honest figures out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from minisft.data.dataset import TokenizedDataset
from minisft.data.in_memory import training_parts
from minisft.data.read import shared_texts
from minisft.data.sequences import require_readable
from minisft.data.tagged import TaggedSentences, is_bio, read_tagged
from minisft.data.word_pieces import Windows, windows
from minisft.errors import UserError
from minisft.evaluation import metrics, plots, report, token_reports
from minisft.evaluation.evaluate import token_logits
from minisft.evaluation.figures import Verdict, count, interval, percent
from minisft.evaluation.tagging import MostFrequentTag, clustered_interval, tagging
from minisft.io.checkpoint import load
from minisft.io.model_folder import Preprocessing
from minisft.jobs.classify import parse_label_map
from minisft.models.gpt2 import GPT2Config
from minisft.models.token_heads import TokenClassifier
from minisft.ops.cross_entropy import IGNORE, log_softmax
from minisft.training.config import FinetuneConfig


@dataclass(frozen=True)
class EncodedWords:
    """The parts as windows of token ids, and the windows of what is scored."""

    train: TokenizedDataset
    valid: TokenizedDataset
    test: TokenizedDataset | None
    scored: Windows
    windows: int         # more than there are sentences: those are too long for one
    silent: int          # words of all parts of which the tokenizer makes no token


@dataclass(frozen=True)
class Tagging:
    """Tagged sentences and what is done with them; no method writes to it."""

    config: FinetuneConfig
    train: TaggedSentences
    valid: TaggedSentences
    test: TaggedSentences | None = None

    @classmethod
    def read(cls, config: FinetuneConfig, clean: Sequence[str]) -> Self:
        """-> the task with the sentences of the config's files; raises UserError."""
        data = config.data
        train = _read(data, data.train, None)
        names, parts = train.label_names, []
        for path in (data.test, data.valid):     # rare tags may be missing in training
            parts.append(None if path is None else _read(data, path, names))
            names = names if path is None else parts[-1].label_names
        train, test, valid = (None if part is None else replace(part, label_names=names)
                              for part in (train, *parts))
        train, valid = training_parts(train, valid, "texts", data.train_texts,
                                      data.valid_fraction, config.training.seed)
        return cls(config, train, valid, test)

    @property
    def label_names(self) -> tuple[str, ...]:
        """-> the tags, in the order of their numbers."""
        return self.train.label_names or ()

    @property
    def texts(self) -> list[str]:
        """-> the training sentences."""
        return self.train.texts

    def load(self, folder: Path) -> TokenClassifier:
        """A checkpoint's folder -> TokenClassifier with these tags."""
        return load(folder, task="tag", label_names=self.label_names,
                    seed=self.config.training.seed, dropout=self.config.model.dropout,
                    label_map=parse_label_map(self.config.data.label_map))

    def scratch(self, config: GPT2Config, tokenizer: Tokenizer) -> TokenClassifier:
        """-> TokenClassifier from random weights."""
        return TokenClassifier(config, self.label_names, seed=self.config.training.seed)

    def encode(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
               model: TokenClassifier) -> EncodedWords:
        """-> the windows of all sentences; UserError for one that the model cannot read."""
        found = [None if part is None else sentence_windows(part, tokenizer, preprocessing, model)
                 for part in (self.train, self.valid, self.test)]
        train, valid, test = (
            None if cut is None else TokenizedDataset(cut.ids, cut.labels(part.tags, IGNORE),
                                                      cut.types)
            for part, cut in zip((self.train, self.valid, self.test), found, strict=True))
        there = [cut for cut in found if cut is not None]
        return EncodedWords(train, valid, test, there[-1], sum(len(cut.ids) for cut in there),
                            sum(cut.silent for cut in there))

    def readable(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
                 model: TokenClassifier) -> Self:
        """-> the task: sentences that cannot be read are refused."""
        return self

    def loss_options(self) -> dict:
        """-> what the model's loss takes beside the batch."""
        return {}

    def sample(self, tokenizer: Tokenizer, encoded: EncodedWords) -> list[str]:
        """-> lines that show which tokens of the first sentence are asked."""
        ids, labels = encoded.train.ids[0], encoded.train.labels[0]
        shown = [f"{tokenizer.id_to_token(int(i))}" + (
            "" if label == IGNORE else f"/{self.label_names[label]}")
            for i, label in list(zip(ids, labels, strict=True))[:20]]
        lines = ["the first sentence as the model reads it, with the tags that it learns:",
                 "  " + " ".join(shown) + (" ..." if len(ids) > 20 else "")]
        if encoded.silent:
            lines.append(f"note: the tokenizer makes no token of {count(encoded.silent, 'word')}, "
                         "which get the tag of the word before")
        return lines

    def validate(self, model: TokenClassifier, valid: TokenizedDataset) -> dict:
        """-> figures of the validation part, with the score that chooses the best epoch."""
        training = self.config.training
        logits = np.concatenate(token_logits(model, valid, self.config.tokens_at_once))
        labels = np.concatenate(valid.labels)
        figures = metrics.classification(
            labels[labels != IGNORE],
            log_softmax(logits[labels != IGNORE].astype(np.float64)), self.label_names)
        first = -figures["loss"] if training.select == "loss" else figures[
            "accuracy" if training.select == "last" else training.select]
        return {"score": [first, -figures["loss"]], "valid_loss": figures["loss"],
                "valid_accuracy": figures["accuracy"], "valid_macro_f1": figures["macro_f1"]}

    def finished(self, model: TokenClassifier, encoded: EncodedWords,
                 preprocessing: Preprocessing) -> Preprocessing:
        """-> the Preprocessing that goes with the trained model."""
        return preprocessing

    def describe(self, encoded: EncodedWords) -> dict:
        """-> what the report says of the data."""
        data, test = self.config.data, self.test
        tags = np.concatenate([np.asarray(row) for row in self.train.tags or []])
        sentences = sum(len(part.words) for part in (self.train, self.valid, test) if part)
        return {
            "train_path": data.train, "test_path": None if test is None else data.test,
            "n_train": len(self.train.words), "n_valid": len(self.valid.words),
            "n_test": None if test is None else len(test.words),
            "words_train": self.train.n_words,
            "labels": list(self.label_names), "cleaned": {},
            "shared_with_training": None if test is None else shared_texts(
                self.train.texts + self.valid.texts, test.texts),
            "majority": float(np.bincount(tags).max() / len(tags)), "cut_train": 0, "cut_test": 0,
            "more_windows": encoded.windows - sentences or None,
            "silent_words": encoded.silent or None}

    def evaluate(self, model: TokenClassifier, tokenizer: Tokenizer,
                 encoded: EncodedWords) -> tuple[dict, list, list[np.ndarray]]:
        """Scores the test set once (without one: the validation part) -> figures, mistakes for
        the report, log-probabilities of each sentence's words."""
        part, output = self.valid if self.test is None else self.test, self.config.output
        results, logp = measure(model, part, encoded.scored, self.config.tokens_at_once,
                                None if output.quiet else "evaluating")
        if output.compare != "none":
            results["most_frequent_tag"] = compared(
                part, logp, MostFrequentTag(self.train.words, self.train.tags or [],
                                            len(self.label_names)))
        return results, worst_words(part, logp, self.label_names), logp

    def write(self, folder: Path, results: dict, mistakes: list, description: dict,
              settings: report.Settings, history: dict) -> None:
        """Pictures first: the report shows those that are there."""
        plots.confusion(results["confusion"], list(self.label_names), folder / "confusion.png",
                        title=f"{percent(results['accuracy'])} of {count(results['n'], 'word')} "
                              "are right")
        report.write(folder, token_reports.tagging(results, description, settings, history,
                                                   mistakes))

    def headlines(self, results: dict) -> list[str]:
        """-> the figures for the terminal, the verdict first."""
        return headlines("validation" if self.test is None else "test", results)


def _read(data, path, label_names):
    return read_tagged(path, data.word_column, data.tag_column, label_names, data.encoding,
                       max_compression_ratio=data.max_compression_ratio,
                       more_labels=label_names is not None)


def sentence_windows(sentences: TaggedSentences, tokenizer: Tokenizer,
                     preprocessing: Preprocessing, model: TokenClassifier) -> Windows:
    """-> the windows that the model reads of them; UserError for one that it cannot read."""
    positions = model.trunk.config.n_positions
    found = windows(tokenizer, sentences.words, min(preprocessing.max_length or positions,
                                                    positions))
    spoken = {n for n, words in zip(found.sentences, found.words, strict=True)
              if (words >= 0).any()}
    for n in range(len(sentences.words)):
        if n not in spoken:
            raise UserError(f"{sentences.place(n)}: nothing is left of the sentence, the tokenizer "
                            "has no token for any of its words")
    require_readable(found.ids, tokenizer, model.trunk.config,
                     lambda w: sentences.place(found.sentences[w]), found.types, "sentence")
    return found


def log_probabilities(model: TokenClassifier, sentences: TaggedSentences, found: Windows,
                      batch_tokens: int, progress: str | None = None) -> list[np.ndarray]:
    """-> log-probabilities of each sentence's words (W,K), float64."""
    logits = token_logits(model, TokenizedDataset(found.ids, [], found.types), batch_tokens,
                          progress)
    return found.of_words([log_softmax(z.astype(np.float64)) for z in logits],
                          [len(words) for words in sentences.words])


def measure(model: TokenClassifier, sentences: TaggedSentences, found: Windows, batch_tokens: int,
            progress: str | None = None) -> tuple[dict, list[np.ndarray]]:
    """-> the figures, and the log-probabilities of each sentence's words."""
    logp = log_probabilities(model, sentences, found, batch_tokens, progress)
    names = list(model.label_names)
    return tagging(sentences.tags or [], logp, names, is_bio(names)), logp


def compared(sentences: TaggedSentences, logp: Sequence[np.ndarray],
             baseline: MostFrequentTag) -> dict[str, Any]:
    """-> accuracy of the baseline, and how much better the model is, with intervals by sentences.
    """
    tags = [np.asarray(row) for row in sentences.tags or []]
    sizes = [len(row) for row in tags]
    ours = np.array([(rows.argmax(axis=1) == row).sum()
                     for rows, row in zip(logp, tags, strict=True)])
    theirs = np.array([(np.asarray(found) == row).sum() for found, row in
                       zip(baseline.predict(sentences.words), tags, strict=True)])
    low, high = clustered_interval(theirs, sizes)
    better = clustered_interval(ours - theirs, sizes)
    return {"accuracy": float(theirs.sum() / sum(sizes)), "accuracy_low": low,
            "accuracy_high": high, "better_by": float((ours - theirs).sum() / sum(sizes)),
            "better_low": better[0], "better_high": better[1]}


def worst_words(sentences: TaggedSentences, logp: Sequence[np.ndarray], names: Sequence[str],
                k: int = 10) -> list[dict[str, Any]]:
    """-> the k most confident wrong tags, worst first, as `report.worst_mistakes`."""
    rows = []
    for n, (words, tags, p) in enumerate(zip(sentences.words, sentences.tags or [], logp,
                                             strict=True)):
        answers = p.argmax(axis=1)
        for w in np.flatnonzero(answers != np.asarray(tags)):
            marked = [*words[max(w - 8, 0):w], f"[{words[w]}]", *words[w + 1:w + 9]]
            rows.append({"text": " ".join(marked), "line": sentences.lines[n],
                         "truth": names[tags[w]], "prediction": names[answers[w]],
                         "p_truth": float(np.exp(p[w, tags[w]])),
                         "p_prediction": float(np.exp(p[w, answers[w]]))})
    return sorted(rows, key=lambda row: -row["p_prediction"])[:k]


def headlines(part: str, results: dict) -> list[str]:
    """"test" or "validation", the figures -> lines for the terminal, the verdict first."""
    words = count(results["n"], f"{part} word")
    lines: list[str] = [Verdict(f"{percent(results['accuracy'])} of {words} are tagged right")]
    entities = results.get("entities")
    lines.append(f"  {interval(results['accuracy_low'], results['accuracy_high'])} by sentences, "
                 f"{percent(results['whole_sentences'])} of "
                 f"{count(results['n_sentences'], 'sentence')} right as a whole, macro F1 "
                 f"{percent(results['macro_f1'])}, loss {results['loss']:.4f}")
    if entities:
        lines.append(f"  whole entities: F1 {percent(entities['f1'])}, precision "
                     f"{percent(entities['precision'])}, recall {percent(entities['recall'])}, "
                     f"{entities['entities']:,} of them in the file")
    if baseline := results.get("most_frequent_tag"):
        lines.append(f"  the tag that each word had most often in training: "
                     f"{percent(baseline['accuracy'])}; {token_reports.better_by(baseline)}")
    return lines


def words_of(texts: Sequence[str]) -> TaggedSentences:
    """Texts -> sentences whose words are what stands between spaces."""
    return TaggedSentences(Path("text"), [text.split() for text in texts], None, None,
                           list(range(1, len(texts) + 1)))

