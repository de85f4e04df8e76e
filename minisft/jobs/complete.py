"""The task `complete`: prompts and completions in, a language model that answers out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from minisft.data.dataset import TokenizedDataset
from minisft.data.in_memory import training_parts, without_unreadable
from minisft.data.read import Prompts, read_prompts, shared_texts
from minisft.data.sequences import leading_ids, require_readable, unreadable
from minisft.data.text import END_OF_TEXT, encode_all
from minisft.data.tokenizer import decode
from minisft.errors import UserError, setting
from minisft.evaluation import metrics, report
from minisft.evaluation.answering import token_f1
from minisft.evaluation.evaluate import completion_loss, generate_completions, validate
from minisft.evaluation.figures import Verdict, count, interval, percent
from minisft.io.checkpoint import load
from minisft.io.model_folder import Preprocessing, special_tokens_of
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training.config import FinetuneConfig


def join(prompt_ids: np.ndarray, completion_ids: np.ndarray, end: int,
         max_length: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Ids of a prompt (its separator included) and a completion -> ids (T,), labels (T,), cut.

    The loss counts the completion and the end token only. What is too long loses the beginning of
    its prompt first, then the end of its completion.
    """
    answer = np.append(completion_ids, end)
    cut = len(prompt_ids) + len(answer) > max_length
    answer = answer[:max_length - 1]
    prompt_ids = prompt_ids[len(prompt_ids) - min(len(prompt_ids), max_length - len(answer)):]
    ids = np.concatenate([prompt_ids, answer])
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    first = len(prompt_ids) - 1      # the prompt's last token predicts the completion's first
    labels[first:-1] = ids[first + 1:]
    return ids, labels, cut


def encode(tokenizer: Tokenizer, prompts: Prompts, preprocessing: Preprocessing,
           model: LanguageModel) -> tuple[TokenizedDataset, list[np.ndarray], int]:
    """Prompts -> dataset, the prompts' token ids to generate from, how many were cut.

    Generation is given the same part of the prompt as the loss; it ends at the model's length.

    Raises UserError for a tokenizer or a length that cannot do it, and for a text that the model
    cannot read.
    """
    starts, answers, end, reasons = _tokens(tokenizer, prompts, preprocessing, model)
    if reasons:
        raise UserError(f"{prompts.place(min(reasons))}: {reasons[min(reasons)]}")
    leading = leading_ids(tokenizer)
    joined = [join(np.concatenate([leading, p]), a, end, preprocessing.max_length)
              for p, a in zip(starts, answers, strict=True)]
    # the first label that counts stands at the prompt's last token
    kept = [ids[:np.flatnonzero(labels != IGNORE)[0] + 1] for ids, labels, _ in joined]
    return (TokenizedDataset([ids for ids, _, _ in joined], [labels for _, labels, _ in joined]),
            kept, sum(cut for _, _, cut in joined))


def unreadable_rows(prompts: Prompts, tokenizer: Tokenizer, preprocessing: Preprocessing,
                    model: LanguageModel) -> dict[int, str]:
    """-> why the model cannot read or learn some of the rows, by index; raises as `encode`."""
    return _tokens(tokenizer, prompts, preprocessing, model)[-1]


def _tokens(tokenizer, prompts, preprocessing, model):
    """-> ids of the prompts and of the completions, the end token, why some cannot be read."""
    config, special_tokens = model.trunk.config, special_tokens_of(model, tokenizer)
    end = special_tokens.end
    if end is None:
        raise UserError(f"the tokenizer has no {END_OF_TEXT} and no eos_token, which ends a "
                        "completion")
    if preprocessing.max_length < 2:
        raise UserError(f"at most {preprocessing.max_length} token for prompt and completion, "
                        f"expected 2 or more: see {setting('max_length')} and "
                        f"{setting('context_length')}")
    require_readable([np.array([end])], tokenizer, config, lambda n: "the end of a completion")
    parse_special, reasons = preprocessing.parse_special, {}
    if not parse_special:
        reasons = _end_tokens(prompts, [tokenizer.id_to_token(i) for i in special_tokens.eos])
    starts, _ = encode_all(tokenizer,
                           [p + (preprocessing.separator or "") for p in prompts.prompts],
                           parse_special=parse_special)
    answers, _ = encode_all(tokenizer, prompts.completions, parse_special=parse_special)
    # the end is added to every completion, also to one that spells it
    answers = [x[:-1] if len(x) > 1 and x[-1] == end else x for x in answers]
    for what, ids in ("prompt", starts), ("completion", answers):
        reasons = unreadable(ids, tokenizer, config, what=what) | reasons
    return starts, answers, end, reasons


def _end_tokens(prompts, tokens):
    """-> why texts in which a token that ends a completion is spelled cannot be learnt."""
    return {n: f"the {what} holds {token}, which would be learnt as characters; leave it out (the "
               f"end of a completion is learnt without it), or see {setting('parse_special')}"
            for what, texts in (("completion", prompts.completions), ("prompt", prompts.prompts))
            for n, text in enumerate(texts) for token in tokens if token in text}


def measure(model: LanguageModel, tokenizer: Tokenizer, sequences: TokenizedDataset,
            starts: Sequence[np.ndarray], expected: Sequence[str], batch_tokens: int,
            max_new_tokens: int, show_progress: bool) -> tuple[dict, list[str]]:
    """-> loss, perplexity, exact match and F1 of words (as SQuAD counts them) as a dict, and the
    generated completions."""
    results = completion_loss(model, sequences, batch_tokens,
                              "evaluating" if show_progress else None)
    answers = generate_completions(model, tokenizer, starts, max_new_tokens,
                                   special_tokens_of(model, tokenizer).eos,
                                   "generating" if show_progress else None)
    end = tokenizer.id_to_token(special_tokens_of(model, tokenizer).end)
    references = [text.removesuffix(end) for text in expected]
    f1 = np.mean([token_f1(*pair) for pair in zip(references, answers, strict=True)])
    return results | metrics.exact_match(references, answers) | {"f1": float(f1)}, answers


def headlines(part: str, results: dict) -> list[str]:
    """"test" or "validation", the figures -> lines for the terminal, the verdict first."""
    return [Verdict(f"{percent(results['exact_match'])} of "
                    f"{count(results['n'], f'{part} completion')} equal the expected one"),
            f"  {interval(results['exact_match_low'], results['exact_match_high'])}, F1 of words "
            f"{percent(results['f1'])}, loss {results['loss']:.4f} (perplexity "
            f"{results['perplexity']:.2f}) over {count(results['tokens'], 'token')}"]


@dataclass(frozen=True)
class EncodedPrompts:
    """The parts as token ids, the prompts to generate from, and how many were cut."""

    train: TokenizedDataset
    valid: TokenizedDataset
    test: TokenizedDataset | None
    valid_prompts: list[np.ndarray]
    test_prompts: list[np.ndarray]
    cut_train: int
    cut_test: int


@dataclass(frozen=True)
class Completion:
    """Prompts with completions and what is done with them; no method writes to it."""

    config: FinetuneConfig
    train: Prompts
    valid: Prompts
    test: Prompts | None = None

    @classmethod
    def read(cls, config: FinetuneConfig, clean: Sequence[str]) -> Self:
        """-> the task with the texts of the config's files; raises UserError."""
        data = config.data
        if data.train is None:
            raise UserError(f"{setting('task', 'complete')} needs {setting('train')}, a file of "
                            "prompts and completions")
        train, valid, test = (None if path is None else read_prompts(
            path, list(data.prompt_column), data.completion_column, clean, data.encoding,
            not data.no_header, data.delimiter, data.skip_bad_rows, data.max_compression_ratio)
            for path in (data.train, data.valid, data.test))
        train, valid = training_parts(train, valid, "prompts", data.train_texts,
                                      data.valid_fraction, config.training.seed)
        return cls(config, train, valid, test)

    @property
    def texts(self) -> list[str]:
        """-> all training texts."""
        return self.train.prompts + self.train.completions

    def load(self, folder: Path) -> LanguageModel:
        """A checkpoint's folder -> LanguageModel."""
        return load(folder, task="complete", seed=self.config.training.seed,
                    dropout=self.config.model.dropout)

    def scratch(self, config: GPT2Config, tokenizer: Tokenizer) -> LanguageModel:
        """-> LanguageModel from random weights."""
        return LanguageModel(config, seed=self.config.training.seed)

    def encode(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
               model: LanguageModel) -> EncodedPrompts:
        """-> the token ids of all prompts and completions; raises UserError as `encode`."""
        (train, _, cut_train), (valid, valid_prompts, cut_valid), (test, test_prompts, cut_test) = (
            (None, [], 0) if part is None else encode(tokenizer, part, preprocessing, model)
            for part in (self.train, self.valid, self.test))
        return EncodedPrompts(train, valid, test, valid_prompts, test_prompts,
                              cut_train + cut_valid, cut_test)

    def readable(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
                 model: LanguageModel) -> Self:
        """-> the task without the rows that the model cannot read; UserError if none is left."""
        return replace(self, **{
            name: without_unreadable(part, unreadable_rows(part, tokenizer, preprocessing, model))
            for name, part in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if part is not None})

    def loss_options(self) -> dict:
        """-> what the model's loss takes beside the batch."""
        return {}

    def sample(self, tokenizer: Tokenizer, encoded: EncodedPrompts) -> list[str]:
        """-> lines that show on the first text where the loss is taken."""
        ids, labels = encoded.train.ids[0], encoded.train.labels[0]
        counted = int((labels != IGNORE).sum())
        prompt, answer = ids[:len(ids) - counted], labels[labels != IGNORE]
        return [f"the first sample, {len(ids)} tokens; the loss counts the last {counted} only:",
                f"  no loss: {decode(tokenizer, prompt.tolist())!r}",
                f"  loss:    {decode(tokenizer, answer.tolist(), skip_special_tokens=False)!r}"]

    def validate(self, model: LanguageModel, valid: TokenizedDataset) -> dict:
        """-> figures of the validation part, with the score that chooses the best epoch."""
        training = self.config.training
        return validate(model, valid, self.config.tokens_at_once, training.select)

    def finished(self, model: LanguageModel, encoded: EncodedPrompts,
                 preprocessing: Preprocessing) -> Preprocessing:
        """-> the Preprocessing that goes with the trained model."""
        return preprocessing

    def describe(self, encoded: EncodedPrompts) -> dict:
        """-> what the report says of the data."""
        data, test = self.config.data, self.test
        return {
            "train_path": data.train, "test_path": None if test is None else data.test,
            "n_train": len(self.train.prompts), "n_valid": len(self.valid.prompts),
            "n_test": None if test is None else len(test.prompts),
            "cleaned": dict(self.train.cleaned),
            "shared_with_training": None if test is None else shared_texts(
                self.train.prompts + self.valid.prompts, test.prompts),
            "cut_train": encoded.cut_train, "cut_test": encoded.cut_test}

    def evaluate(self, model: LanguageModel, tokenizer: Tokenizer,
                 encoded: EncodedPrompts) -> tuple[dict, list, list[str]]:
        """Scores the test set once (without one: the validation part) -> figures, samples for the
        report, the completions."""
        part, sequences, prompts = (
            (self.valid, encoded.valid, encoded.valid_prompts) if self.test is None else
            (self.test, encoded.test, encoded.test_prompts))
        output = self.config.output
        results, answers = measure(model, tokenizer, sequences, prompts, part.completions,
                                   self.config.tokens_at_once, output.max_new_tokens,
                                   not output.quiet)
        samples = [{"prompt": p, "expected": c, "generated": a} for p, c, a in
                   zip(part.prompts[:20], part.completions, answers, strict=False)]
        return results, samples, answers

    def write(self, folder: Path, results: dict, samples: list, description: dict,
              settings: report.Settings, history: dict) -> None:
        """The report; its picture of the curves is there already."""
        report.write(folder, report.completion(results, description, settings, history, samples))

    def headlines(self, results: dict) -> list[str]:
        """-> the figures for the terminal."""
        return headlines("validation" if self.test is None else "test", results)
