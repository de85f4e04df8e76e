"""The task `answer`: questions with contexts in, a model that finds answers and its figures out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from minisft.data.answer_windows import (
    MAX_ANSWER_LENGTH,
    Answer,
    AnswerWindows,
    answer_windows,
)
from minisft.data.dataset import TokenizedDataset
from minisft.data.questions import Questions, read_questions
from minisft.data.read import stratified_subset, train_valid_split
from minisft.data.sequences import require_readable
from minisft.errors import UserError
from minisft.evaluation import report, token_reports
from minisft.evaluation.answering import answering, best_threshold, scores, sliding_window
from minisft.evaluation.evaluate import token_logits
from minisft.evaluation.figures import Verdict, count, interval, percent
from minisft.io.checkpoint import load
from minisft.io.model_folder import Preprocessing
from minisft.models.gpt2 import GPT2Config
from minisft.models.token_heads import SpanClassifier
from minisft.ops import span_cross_entropy
from minisft.training.config import FinetuneConfig


@dataclass(frozen=True)
class AnswerDataset(TokenizedDataset):
    """Windows with the tokens of their answers, and what they are windows of."""

    windows: AnswerWindows | None = None
    questions: Questions | None = None
    max_answer_length: int = MAX_ANSWER_LENGTH


@dataclass(frozen=True)
class EncodedQuestions:
    """The parts as windows of token ids."""

    train: AnswerDataset
    valid: AnswerDataset
    test: AnswerDataset | None


@dataclass(frozen=True)
class Answering:
    """Questions with their contexts and what is done with them; no method writes to it."""

    config: FinetuneConfig
    train: Questions
    valid: Questions
    test: Questions | None = None

    @classmethod
    def read(cls, config: FinetuneConfig, clean: Sequence[str]) -> Self:
        """-> the task with the questions of the config's files; raises UserError.

        What is held out for validation are whole contexts: their questions give one another away.
        """
        data, seed = config.data, config.training.seed
        train, valid, test = (None if path is None else read_questions(
            path, data.encoding, data.max_compression_ratio)
            for path in (data.train, data.valid, data.test))
        if data.train_texts is not None:
            train = train.subset(stratified_subset(train.path, None, len(train.ids),
                                                   data.train_texts, seed))
        if valid is None:
            kept, held_out = train_valid_split(None, train.contexts, data.valid_fraction, seed)
            train, valid = train.subset(kept), train.subset(held_out)
        if not any(train.answerable):
            raise UserError(f"{train.path}: no question has an answer, expected some to learn from")
        return cls(config, train, valid, test)

    @property
    def texts(self) -> list[str]:
        """-> all training texts."""
        return self.train.questions + list(dict.fromkeys(self.train.contexts))

    def load(self, folder: Path) -> SpanClassifier:
        """A checkpoint's folder -> SpanClassifier."""
        return load(folder, task="answer", seed=self.config.training.seed,
                    dropout=self.config.model.dropout)

    def scratch(self, config: GPT2Config, tokenizer: Tokenizer) -> SpanClassifier:
        """-> SpanClassifier from random weights."""
        return SpanClassifier(config, seed=self.config.training.seed)

    def encode(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
               model: SpanClassifier) -> EncodedQuestions:
        """-> the windows of all questions; UserError for one that the model cannot read."""
        return EncodedQuestions(*(
            None if part is None else question_windows(part, tokenizer, preprocessing, model)
            for part in (self.train, self.valid, self.test)))

    def readable(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
                 model: SpanClassifier) -> Self:
        """-> the task: questions that cannot be read are refused."""
        return self

    def loss_options(self) -> dict:
        """-> what the model's loss takes beside the batch."""
        return {}

    def sample(self, tokenizer: Tokenizer, encoded: EncodedQuestions) -> list[str]:
        """-> lines on what is learnt from the first question."""
        train = encoded.train
        first, last = train.labels[0]
        tokens = [tokenizer.id_to_token(int(i)) for i in train.ids[0][first:last + 1]]
        return [f"the first question, {self.train.questions[0][:80]!r}: the answer is "
                + (f"its tokens {first} to {last}: {' '.join(map(str, tokens[:12]))}" if last else
                   "the first token, which says that this window has none")]

    def validate(self, model: SpanClassifier, valid: AnswerDataset) -> dict:
        """-> figures of the validation part, with the score that chooses the best epoch."""
        training = self.config.training
        results, _, loss = measure(model, valid, self.config.tokens_at_once)
        first = -loss if training.select == "loss" else results["f1"]
        return {"score": [first, -loss], "valid_loss": loss,
                "valid_accuracy": results["exact_match"], "valid_f1": results["f1"]}

    def finished(self, model: SpanClassifier, encoded: EncodedQuestions,
                 preprocessing: Preprocessing) -> Preprocessing:
        """-> the Preprocessing that goes with the trained model: the margin below which it gives
        no answer, which is best on the validation part."""
        results, _, _ = measure(model, encoded.valid, self.config.tokens_at_once)
        return replace(preprocessing, no_answer_margin=results["threshold"])

    def describe(self, encoded: EncodedQuestions) -> dict:
        """-> what the report says of the data."""
        data, test = self.config.data, self.test
        parts = (encoded.train, encoded.valid, encoded.test)
        cut = [0 if part is None else part.windows.cut_questions for part in parts]
        return {
            "train_path": data.train, "test_path": None if test is None else data.test,
            "n_train": len(self.train.ids), "n_valid": len(self.valid.ids),
            "n_test": None if test is None else len(test.ids), "cleaned": {},
            "shared_with_training": None if test is None else sum(
                context in {*self.train.contexts, *self.valid.contexts}
                for context in test.contexts),
            "cut_train": cut[0] + cut[1], "cut_test": cut[2]}

    def evaluate(self, model: SpanClassifier, tokenizer: Tokenizer,
                 encoded: EncodedQuestions) -> tuple[dict, list, list[Answer]]:
        """Scores the test set once (without one: the validation part) -> figures, mistakes for
        the report, the answers."""
        output = self.config.output
        chosen, _, _ = measure(model, encoded.valid, self.config.tokens_at_once)
        part = encoded.valid if encoded.test is None else encoded.test
        results, answers, loss = measure(
            model, part, self.config.tokens_at_once, chosen["threshold"],
            None if output.quiet else "evaluating")
        results["loss"] = loss
        questions = part.questions
        if output.compare != "none":
            results["sliding_window"] = baseline(questions)
        return results, worst_answers(questions, answers, results["threshold"]), answers

    def write(self, folder: Path, results: dict, samples: list, description: dict,
              settings: report.Settings, history: dict) -> None:
        """The report; its picture of the curves is there already."""
        report.write(folder, token_reports.answering(results, description, settings, history,
                                                     samples))

    def headlines(self, results: dict) -> list[str]:
        """-> the figures for the terminal, the verdict first."""
        return headlines("validation" if self.test is None else "test", results)


def question_windows(questions: Questions, tokenizer: Tokenizer, preprocessing: Preprocessing,
                     model: SpanClassifier) -> AnswerDataset:
    """-> the windows that the model reads of them; UserError for one that it cannot read."""
    positions = model.trunk.config.n_positions
    found = answer_windows(tokenizer, questions, min(preprocessing.max_length or positions,
                                                     positions))
    require_readable(found.ids, tokenizer, model.trunk.config,
                     lambda w: questions.place(found.questions[w]), found.types, "question")
    return AnswerDataset(found.ids, found.labels, found.types, windows=found, questions=questions,
                         max_answer_length=preprocessing.max_answer_length or MAX_ANSWER_LENGTH)


def find_answers(model: SpanClassifier, dataset: AnswerDataset, batch_tokens: int,
                 progress: str | None = None) -> tuple[list[Answer], float]:
    """-> an Answer for each question, and the mean loss of the windows (nats)."""
    logits = token_logits(model, dataset, batch_tokens, progress)
    edges = np.concatenate([[0], np.cumsum([len(z) for z in logits])])
    (loss, n), _ = span_cross_entropy.forward(np.concatenate(logits).astype(np.float64), edges,
                                              np.asarray(dataset.labels))
    answers = dataset.windows.best(logits, dataset.questions.contexts, dataset.max_answer_length)
    return answers, float(loss / n)


def measure(model: SpanClassifier, dataset: AnswerDataset, batch_tokens: int,
            threshold: float | None | str = "best",
            progress: str | None = None) -> tuple[dict, list[Answer], float]:
    """-> figures, an Answer for each question, the mean loss of the windows.

    threshold: the margin below which no answer is given; None: one always is; "best": the one
    that suits these questions best.
    """
    answers, loss = find_answers(model, dataset, batch_tokens, progress)
    questions = dataset.questions
    if threshold == "best":
        f1 = scores([answer.text for answer in answers],
                    [[text for text, _ in right] for right in questions.answers])[:, 1]
        f1 = np.where(questions.answerable, f1, 0.0)
        threshold = best_threshold([answer.margin for answer in answers], f1, questions.answerable)
        if threshold == np.inf:     # none is ever given
            threshold = max(answer.margin for answer in answers)
        threshold = None if threshold == -np.inf else threshold
    results = answering(questions, answers, -np.inf if threshold is None else threshold)
    return results | {"threshold": threshold}, answers, loss


def baseline(questions: Questions) -> dict[str, float]:
    """-> exact match and F1 of the sliding window on the questions that have an answer."""
    found = [(sliding_window(question, context), [text for text, _ in right])
             for question, context, right in zip(questions.questions, questions.contexts,
                                                 questions.answers, strict=True) if right]
    if not found:
        return {"exact_match": 0.0, "f1": 0.0}
    exact, f1 = scores(*zip(*found, strict=True)).mean(axis=0)
    return {"exact_match": float(exact), "f1": float(f1)}


def worst_answers(questions: Questions, answers: Sequence[Answer], threshold: float | None,
                  k: int = 20) -> list[dict[str, Any]]:
    """-> the k wrong answers of which the model was most certain."""
    rows = []
    for question, answer, right in zip(questions.questions, answers, questions.answers,
                                       strict=True):
        given = answer.text if threshold is None or answer.margin > threshold else ""
        if not scores([given], [[text for text, _ in right]])[0, 1]:
            rows.append((-abs(answer.margin - (threshold or 0)), {
                "question": question, "expected": right[0][0] if right else "(none)",
                "answer": given or "(none)"}))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])[:k]]


def headlines(part: str, results: dict) -> list[str]:
    """"test" or "validation", the figures -> lines for the terminal, the verdict first."""
    lines: list[str] = [
        Verdict(f"F1 {percent(results['f1'])} over {count(results['n'], f'{part} question')}"),
        f"  {interval(results['f1_low'], results['f1_high'])} by "
        f"{count(results['articles'], 'article')}, exact match {percent(results['exact_match'])}"]
    for key, words in (("has_answer", "with an answer"), ("no_answer", "without")):
        if key in results:
            kind = results[key]
            lines.append(f"  {count(kind['n'], 'question')} {words}: F1 {percent(kind['f1'])}, "
                         f"exact match {percent(kind['exact_match'])}")
    if "sliding_window" in results:
        lines.append(f"  a sliding window finds F1 {percent(results['sliding_window']['f1'])} of "
                     "those with an answer; no answer at all would give "
                     f"{percent(results['always_empty'])} of all")
    return lines
