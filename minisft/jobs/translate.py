"""The task `translate`: texts with their translations in, an encoder-decoder and its BLEU out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from minisft.data.in_memory import training_parts, without_unreadable
from minisft.data.pairs import (
    PairDataset,
    TextPairs,
    read_pairs,
    require_kinds,
    require_table,
)
from minisft.data.read import shared_texts
from minisft.data.sequences import unreadable
from minisft.data.special_tokens import END_OF_TEXT, SpecialTokens
from minisft.data.text import encode_all
from minisft.data.tokenizer import decode
from minisft.errors import UserError, setting
from minisft.evaluation import plots, report, translation_report
from minisft.evaluation.answering import token_f1
from minisft.evaluation.decoding import attention_of_one, token_loss, translate
from minisft.evaluation.evaluate import validate
from minisft.evaluation.figures import Verdict, count
from minisft.evaluation.translation import has_sacrebleu, sentence_chrf, translation
from minisft.evaluation.word_translation import WordTranslator
from minisft.io.checkpoint import load
from minisft.io.model_folder import Preprocessing
from minisft.models.config import GPT2Config, Seq2SeqConfig
from minisft.models.seq2seq import EncoderDecoder
from minisft.training.config import FinetuneConfig

# Which `transformers` puts behind shorter texts, and no text of ours has; its positions begin
# behind the number of this token, so that is 0.
PAD = "<pad>"


@dataclass(frozen=True)
class EncodedPairs:
    """The parts as token ids, and how many texts were cut."""

    train: PairDataset
    valid: PairDataset
    test: PairDataset | None
    cut_train: int
    cut_test: int


@dataclass(frozen=True)
class Samples:
    """What the report shows of the test set: translations, and where one looks in its source."""

    first: list[dict[str, str]]
    worst: list[dict[str, str]]
    attention: tuple[list[str], list[str], np.ndarray] | None


@dataclass(frozen=True)
class Translation:
    """Texts with their translations and what is done with them; no method writes to it."""

    config: FinetuneConfig
    train: TextPairs
    valid: TextPairs
    test: TextPairs | None = None

    pad_token = PAD     # of a tokenizer that is trained

    @classmethod
    def read(cls, config: FinetuneConfig, clean: Sequence[str]) -> Self:
        """-> the task with the texts of the config's files; raises UserError.

        Pairs with the same source are held out together.
        """
        data = config.data
        require_table(config.given(), (data.train, data.valid, data.test))
        train, valid, test = (_read(data, name, clean) for name in ("train", "valid", "test"))
        train, valid = training_parts(train, valid, "sources", data.train_texts,
                                      data.valid_fraction, config.training.seed)
        return cls(config, train, valid, test)

    @property
    def texts(self) -> list[str]:
        """-> all training texts, of both languages."""
        return self.train.sources + self.train.targets

    def load(self, folder: Path) -> EncoderDecoder:
        """A checkpoint's folder -> EncoderDecoder."""
        return load(folder, task="translate", seed=self.config.training.seed,
                    dropout=self.config.model.dropout)

    def scratch(self, config: GPT2Config, tokenizer: Tokenizer) -> EncoderDecoder:
        """-> EncoderDecoder from random weights, with as many blocks of either side; raises
        UserError for a tokenizer or a width that cannot be."""
        end, pad = (tokenizer.token_to_id(token) for token in (END_OF_TEXT, PAD))
        if end is None or pad is None or pad >= config.n_positions:
            raise UserError(f"{setting('tokenizer')}: expected one with {END_OF_TEXT} and, among "
                            f"its first tokens, {PAD}, as a run of {setting('task', 'translate')} "
                            "leaves it")
        shape = Seq2SeqConfig(
            vocab_size=config.vocab_size, d_model=config.n_embd,
            encoder_layers=config.n_layer, decoder_layers=config.n_layer,
            encoder_attention_heads=config.n_head, decoder_attention_heads=config.n_head,
            encoder_ffn_dim=4 * config.n_embd, decoder_ffn_dim=4 * config.n_embd,
            max_position_embeddings=config.n_positions, dropout=config.resid_pdrop,
            attention_dropout=config.attn_pdrop, pad_token_id=pad, decoder_start_token_id=end,
            eos_token_id=end)
        shape.require_sound(f"{setting('width')}, {setting('heads')}")
        model = EncoderDecoder(shape, seed=self.config.training.seed)
        model.special_tokens = SpecialTokens(end, (end,), pad, {
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
            "pad_token": PAD})
        return model

    def encode(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
               model: EncoderDecoder) -> EncodedPairs:
        """-> the token ids of all pairs; UserError for one that the model cannot read."""
        (train, cut_train), (valid, cut_valid), (test, cut_test) = (
            (None, 0) if part is None else encode(tokenizer, part, preprocessing, model)
            for part in (self.train, self.valid, self.test))
        return EncodedPairs(train, valid, test, cut_train + cut_valid, cut_test)

    def readable(self, tokenizer: Tokenizer, preprocessing: Preprocessing,
                 model: EncoderDecoder) -> Self:
        """-> the task without the rows that the model cannot read; UserError if none is left."""
        return replace(self, **{
            name: without_unreadable(part, unreadable_rows(part, tokenizer, preprocessing, model))
            for name, part in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if part is not None})

    def loss_options(self) -> dict:
        """-> what the model's loss takes beside the batch."""
        return {"smoothing": self.config.training.label_smoothing or 0.0}

    def sample(self, tokenizer: Tokenizer, encoded: EncodedPairs) -> list[str]:
        """-> lines that show the first pair as the model reads it."""
        source, target = encoded.train.ids[0], encoded.train.targets[0]
        return [f"the first pair, {len(source)} and {len(target)} tokens:",
                f"  source: {decode(tokenizer, source.tolist())!r}",
                f"  target: {decode(tokenizer, target.tolist())!r}"]

    def validate(self, model: EncoderDecoder, valid: PairDataset) -> dict:
        """-> figures of the validation part, with the score that chooses the best epoch."""
        training = self.config.training
        return validate(model, valid, self.config.tokens_at_once, training.select)

    def finished(self, model: EncoderDecoder, encoded: EncodedPairs,
                 preprocessing: Preprocessing) -> Preprocessing:
        """-> the Preprocessing that goes with the trained model."""
        return preprocessing

    def describe(self, encoded: EncodedPairs) -> dict:
        """-> what the report says of the data."""
        data, test = self.config.data, self.test
        return {
            **{f"{name}_path": _files(data, name) for name in ("train", "valid", "test")},
            "n_train": len(self.train.sources), "n_valid": len(self.valid.sources),
            "n_test": None if test is None else len(test.sources),
            "cleaned": dict(self.train.cleaned),
            "shared_with_training": None if test is None else shared_texts(
                self.train.sources + self.valid.sources, test.sources),
            "cut_train": encoded.cut_train, "cut_test": encoded.cut_test}

    def evaluate(self, model: EncoderDecoder, tokenizer: Tokenizer,
                 encoded: EncodedPairs) -> tuple[dict, Samples, list[str]]:
        """Scores the test set once (without one: the validation part) -> figures, samples for the
        report, the translations."""
        part, pairs, output = self.valid, encoded.valid, self.config.output
        if self.test is not None:
            part, pairs = self.test, encoded.test
        baselines = {}
        if output.compare != "none" and has_sacrebleu():
            dictionary = WordTranslator(self.train.sources, self.train.targets)
            baselines = {"word_for_word": dictionary.translate(part.sources),
                         "copied_source": part.sources}
        results, texts = measure(model, tokenizer, pairs, part.targets,
                                 self.config.tokens_at_once, output.beam_size,
                                 output.length_penalty, not output.quiet, baselines)
        return results, samples(model, tokenizer, pairs, part, texts), texts

    def write(self, folder: Path, results: dict, samples: Samples, description: dict,
              settings: report.Settings, history: dict) -> None:
        """The picture first: the report shows it where it is there."""
        if samples.attention is not None:
            plots.attention(*samples.attention, folder / "attention.png")
        report.write(folder, translation_report.blocks(
            results, description, settings, history, samples.first, samples.worst))

    def headlines(self, results: dict) -> list[str]:
        """-> the figures for the terminal, the verdict first."""
        return headlines("validation" if self.test is None else "test", results)


def _read(data, name, clean):
    """-> the pairs of the file that an option names, or None."""
    path, target = getattr(data, name), getattr(data, f"{name}_target")
    if path is None:
        return None
    require_kinds(path, target, f"{name}_target")
    return read_pairs(path, data.source_column, data.target_column, target, clean, data.encoding,
                      not data.no_header, data.delimiter, data.skip_bad_rows,
                      data.max_compression_ratio)


def _files(data, name):
    """-> what the report calls the files that an option names, or None."""
    files = getattr(data, name), getattr(data, f"{name}_target")
    return None if files[0] is None else " and ".join(filter(None, files))


def encode_sources(tokenizer: Tokenizer, texts: Sequence[str], preprocessing: Preprocessing,
                   model: EncoderDecoder) -> tuple[list[np.ndarray], int]:
    """Texts -> token ids with the end token behind each, how many were cut to the model's length.
    """
    room = _room(preprocessing, model)
    rows, cut = encode_all(tokenizer, texts, room, preprocessing.truncate,
                           preprocessing.parse_special)
    return [np.append(row, model.trunk.config.eos_token_id) for row in rows], cut


def encode(tokenizer: Tokenizer, pairs: TextPairs, preprocessing: Preprocessing,
           model: EncoderDecoder) -> tuple[PairDataset, int]:
    """Pairs -> data set, how many texts were cut to the model's length; UserError for one that the
    model cannot read."""
    if reasons := unreadable_rows(pairs, tokenizer, preprocessing, model):
        raise UserError(f"{pairs.place(min(reasons))}: {reasons[min(reasons)]}")
    config = model.trunk.config
    sources, cut = encode_sources(tokenizer, pairs.sources, preprocessing, model)
    targets, cut_targets = encode_all(tokenizer, pairs.targets, _room(preprocessing, model),
                                      preprocessing.truncate, preprocessing.parse_special)
    return PairDataset(sources, [], targets=targets, start=config.decoder_start_token_id,
                       end=config.eos_token_id), cut + cut_targets


def unreadable_rows(pairs: TextPairs, tokenizer: Tokenizer, preprocessing: Preprocessing,
                    model: EncoderDecoder) -> dict[int, str]:
    """-> why the model cannot read or learn some of the rows, by index; raises as `encode`."""
    reasons: dict[int, str] = {}
    for texts in (pairs.sources, pairs.targets):
        ids, _ = encode_all(tokenizer, texts, None, preprocessing.truncate,
                            preprocessing.parse_special)
        reasons = unreadable(ids, tokenizer, model.trunk.config) | reasons
    return reasons


def _room(preprocessing, model):
    """-> tokens of a text beside the one that begins or ends it."""
    positions = model.trunk.config.n_positions
    room = min(preprocessing.max_length or positions, positions) - 1
    if room < 1:
        raise UserError(f"at most {room + 1} token for a text and its end, expected 2 or more: see "
                        f"{setting('max_length')} and {setting('context_length')}")
    return room


def measure(model: EncoderDecoder, tokenizer: Tokenizer, pairs: PairDataset,
            references: Sequence[str], batch_tokens: int, beam_size: int, length_penalty: float,
            show_progress: bool, baselines: dict[str, Sequence[str]] | None = None,
            ) -> tuple[dict, list[str]]:
    """-> loss, token accuracy and, with sacrebleu, BLEU and chrF as a dict, the translations."""
    results: dict[str, Any] = token_loss(model, pairs, batch_tokens,
                                         "evaluating" if show_progress else None)
    texts = translate(model, tokenizer, pairs.ids, beam_size, length_penalty,
                      "translating" if show_progress else None)
    results |= {"n": len(texts), "beam_size": beam_size}
    if has_sacrebleu():
        results |= translation(references, texts, baselines)
    return results, texts


def samples(model: EncoderDecoder, tokenizer: Tokenizer, pairs: PairDataset, part: TextPairs,
            texts: Sequence[str], k: int = 10) -> Samples:
    """-> the first translations, the worst by chrF (or F1 of words), one's attention."""
    rows = [{"line": f"{line}", "source": source, "expected": expected, "translation": text}
            for line, source, expected, text in zip(part.lines, part.sources, part.targets, texts,
                                                    strict=True)]
    scores = (sentence_chrf(part.targets, texts) if has_sacrebleu() else
              np.array([100 * token_f1(*pair) for pair in zip(part.targets, texts, strict=True)]))
    worst = np.argsort(scores, kind="stable")[:k]
    return Samples(rows[:k], [rows[n] | {"score": f"{scores[n]:.0f}"} for n in worst],
                   attention_of_one(model, tokenizer, pairs, texts))


def headlines(part: str, results: dict) -> list[str]:
    """"test" or "validation", the figures -> lines for the terminal, the verdict first."""
    loss = (f"loss {results['loss']:.4f} (perplexity {results['perplexity']:.2f}), "
            f"{results['token_accuracy']:.1%} of {count(results['tokens'], 'token')} right where "
            "those before are")
    if "bleu" not in results:
        return [Verdict(f"{loss}, on {count(results['n'], f'{part} text')}"),
                f"  {translation_report.NO_BLEU}"]
    lines: list[str] = [
        Verdict(f"BLEU {results['bleu']:.1f} on {count(results['n'], f'{part} text')}"),
        f"  95% interval {results['bleu_low']:.1f} to {results['bleu_high']:.1f} by sentences, "
        f"chrF {results['chrf']:.1f}, beam of {results['beam_size']}", f"  {loss}"]
    for key, words in translation_report.BASELINES.items():
        if key in results:
            lines.append(f"  {words}: BLEU {results[key]['bleu']:.1f}")
    return [*lines, f"  BLEU is {results['bleu_signature']}"]
