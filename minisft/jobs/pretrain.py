"""Pretraining from plain text: a vocabulary, a language model, a folder with a model card."""

import dataclasses
import hashlib
import lzma
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from minisft.backend import random
from minisft.backend.array import DEVICES, device_name
from minisft.backend.constants import ceil_div
from minisft.data.dataset import TokenizedDataset
from minisft.data.documents import PARAGRAPH, encode_documents, read_documents
from minisft.data.special_tokens import default_special_tokens
from minisft.data.text import TOKENIZER, load_tokenizer, train_tokenizer
from minisft.data.tokenizer import decode, vocab_size_of
from minisft.dispatch import PRECISIONS, resolve_precision
from minisft.errors import DivergedError, UserError, setting, short_repr, tell
from minisft.evaluation import plots
from minisft.evaluation.document import one_line
from minisft.evaluation.evaluate import completion_loss
from minisft.evaluation.figures import Use, Verdict, count
from minisft.evaluation.model_card import write_card
from minisft.io import provenance, run_folder
from minisft.io.model_folder import Preprocessing, save_tokenizer, write_folder
from minisft.jobs.finetune import Say
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.training import divergence
from minisft.training.changes import changes_of_run, with_changes
from minisft.training.config import (
    INITIALIZER_HELP,
    PRECISION_HELP,
    TrainingConfig,
    max_compression_ratio_option,
    require_device,
)
from minisft.training.loop import (
    BatchPlan,
    Interrupted,
    begin,
    fit_in,
    load_or_init_state,
    make_optimizer,
)
from minisft.training.optim import SCHEDULES, Optimizer
from minisft.training.options import Config, config_of_run, option, require_in_range
from minisft.training.saving import SAVE_EVERY_HELP, parse_save_every
from minisft.training.state import State

FIGURES = "valid_loss", "valid_perplexity", "bits_per_byte"     # of the held-out text
FEW_STEPS = 200     # fewer teach nothing that could be read
VALIDATIONS = 5     # at least, however few steps there are


@dataclass(frozen=True)
class PretrainDataConfig:
    """The texts, and what the model card says of them."""

    text: tuple[str, ...] = option(
        (), "text files, plain or .gz; a line <|endoftext|> ends a document",
        nargs="+", metavar="FILE")
    valid: str | None = option(
        None, "held-out text (default: a part of the documents)", metavar="FILE")
    valid_fraction: float = option(
        0.02, "part of the documents held out", within=(0, 0.9), type=float)
    encoding: str = option("utf-8", "encoding of the files", metavar="NAME")
    max_compression_ratio: int = max_compression_ratio_option()
    parse_special: bool = option(
        False, "<|endoftext|> ends a document within a line too", action="store_true")
    source: tuple[str, ...] = option(
        (), "lines for the model card: where the text comes from and its licence",
        nargs="+", metavar="LINE")


@dataclass(frozen=True)
class PretrainModelConfig:
    """The model, from random weights, and its vocabulary."""

    layers: int = option(6, "number of blocks", within=(1, 1000), type=int)
    width: int = option(192, "number of channels", within=(1, 100_000), type=int)
    heads: int = option(6, "number of heads", within=(1, None), type=int)
    context_length: int = option(
        256, "maximum sequence length in tokens; a longer document is cut into "
             "pieces", within=(2, 1_000_000), type=int)
    vocab_size: int = option(
        8192, "tokens of the vocabulary that is trained", within=(257, 1_000_000), type=int)
    dropout: float = option(0.0, "dropout everywhere", within=(0, 0.99), type=float)
    initializer_range: float = option(0.02, INITIALIZER_HELP, within=(0, 1), type=float)
    device: str = option(
        "cpu", "where the model computes", type=device_name, choices=DEVICES)
    precision: str = option(
        "float32", PRECISION_HELP, choices=PRECISIONS)


@dataclass(frozen=True)
class PretrainTrainingConfig:
    """What pretraining varies of the training loop's options, with defaults of its own."""

    epochs: int | None = option(
        None, "passes over the documents (default: 1, more where that is fewer than 200 steps, at "
        "most 20)", within=(1, 100_000), type=int)
    batch_tokens: int = option(
        4096, "maximum tokens of an optimizer step", within=(1, 10**12), type=int)
    micro_tokens: int = option(
        8192, "maximum tokens computed at once; a larger step is accumulated",
        within=(1, 10**12), type=int)
    lr: float = option(2e-3, "highest learning rate", within=(0, None), type=float)
    schedule: str = option("cosine", "how the learning rate falls", choices=SCHEDULES)
    warmup_ratio: float = option(
        0.02, "part of all steps over which the learning rate rises", within=(0, 1), type=float)
    beta2: float = option(
        0.95, "AdamW: decay of the mean of squared gradients", within=(0, 0.999999), type=float)
    weight_decay: float = option(
        0.1, "decay of matrices and tables, not of biases and norms", within=(0, None), type=float)
    max_grad_norm: float = option(
        1.0, "largest norm of the gradient (0: any)", within=(0, None), type=float)
    seed: int = option(
        0, "seed of initial values, order, dropout and samples", within=(0, 2**32 - 1), type=int)

    def of_the_loop(self) -> TrainingConfig:
        """-> the config of the training loop."""
        return TrainingConfig(**asdict(self), select="loss")


@dataclass(frozen=True)
class PretrainOutputConfig:
    """How often the held-out text is scored; what is written and shown."""

    validate_every: int = option(
        200, "optimizer steps between two validations, each with a sample",
        within=(1, None), type=int)
    out: str | None = option(
        None, "run folder (default: the first free of runs/pretrained, ...)", metavar="DIR")
    overwrite: bool = option(
        False, f"replace what an earlier run left in {setting('out')}", action="store_true")
    save_every: str = option(
        "10m", SAVE_EVERY_HELP, metavar="N|Nm")
    keep_state: bool = option(
        False, "keep training_state/ of a run that has finished: values, best values and "
        "the optimizer's moments", action="store_true")
    quiet: bool = option(False, "no progress bar and no samples", action="store_true")


@dataclass(frozen=True)
class PretrainConfig(Config):
    """One pretraining run."""

    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    model: PretrainModelConfig = field(default_factory=PretrainModelConfig)
    training: PretrainTrainingConfig = field(default_factory=PretrainTrainingConfig)
    output: PretrainOutputConfig = field(default_factory=PretrainOutputConfig)


def pretrain(config: PretrainConfig, resume: str | Path | None = None, say: Say = tell,
             changes: Mapping[str, Any] | None = None) -> dict:
    """Config -> results, with all files of the run in its folder.

    `resume`: the folder of an interrupted run, whose own config then counts, but for `changes`:
    the options that are others from here on. Raises UserError before a file is written,
    loop.Interrupted, and DivergedError: the last good model is then in the folder.
    """
    kept = None
    if resume is not None:
        kept = run_folder.read_interrupted_run(resume)
        config = with_changes(config_of_run(PretrainConfig, kept, resume), changes)
    require_in_range(config)
    parse_save_every(config.output.save_every)
    data = config.data
    if not data.text:
        raise UserError(f"{setting('text')} is missing, expected one text file or more")
    require_device(config.model.device, config.model.precision)
    config = config.replace(
        precision=resolve_precision(config.model.precision, config.model.device))
    if resume is None and config.output.out is not None:
        run_folder.check_output_folder(
            config.output.out, config.output.overwrite,
            [*(("text", path) for path in data.text), ("valid", data.valid)])
    train, valid = _texts(data, config.training.seed)
    files = {path: provenance.file_sha256(path)
             for path in (*data.text, *([data.valid] if data.valid else []))}
    for path, checksum in files.items():
        if kept is not None and kept["files"].get(path) != checksum:
            raise UserError(f"{path}: has changed since the run {resume} began")
    out = resume or config.output.out
    with run_folder.FolderLock(out or "runs/pretrained", say, unnamed=out is None) as folder:
        return _pretrain(config, folder, kept, changes, files, train, valid, say)


def _pretrain(config, folder, kept, changes, files, train, valid, say):
    resume = kept is not None
    has_tokenizer = resume and (folder / "model" / TOKENIZER).is_file()
    tokenizer = (load_tokenizer(folder / "model") if has_tokenizer
                 else train_tokenizer(train, config.model.vocab_size))
    files["tokenizer"] = hashlib.sha256(tokenizer.to_str(pretty=True).encode()).hexdigest()
    if kept is not None and kept["files"].get("tokenizer") != files["tokenizer"]:
        raise UserError(f"{folder / 'model' / TOKENIZER}: is another tokenizer than the one that "
                        "the run began with")
    given = kept.get("given", {}) | dict(changes or {}) if resume else config.given()
    pretraining = Pretraining(config, tokenizer, train, valid, say)
    optimizer = make_optimizer(pretraining.model, pretraining.training)
    config = pretraining.config      # its defaults are resolved
    begin(folder, resume, {"given": given, "settings": config.options(), "files": files},
          pretraining.model, say)
    state = load_or_init_state(folder, resume, pretraining.model, optimizer, say)
    if state.best is not None and not set(FIGURES) <= state.best.keys():
        raise UserError("the saved state is not what a run writes: its best stretch lacks some of "
                        f"{', '.join(FIGURES)}")
    if not has_tokenizer:
        save_tokenizer(tokenizer, folder / "model", config.model.context_length)
    try:
        results = pretraining.run(folder, optimizer, state)
        if not config.output.keep_state:
            run_folder.remove_state(folder)
        return results
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(folder) from None
    except DivergedError as error:
        raise divergence.with_way_on(error) from None


class Pretraining:
    """The model, its pieces of text and what is reported of them."""

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer, train: Sequence[str],
                 valid: Sequence[str], say: Say):
        self.tokenizer, self.say, shape = tokenizer, say, config.model
        gpt2 = GPT2Config(
            vocab_size=vocab_size_of(tokenizer), n_positions=shape.context_length,
            n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
            embd_pdrop=shape.dropout, attn_pdrop=shape.dropout, resid_pdrop=shape.dropout,
            initializer_range=shape.initializer_range)
        gpt2.require_sound(f"{setting('width')}, {setting('heads')}")
        self.end = default_special_tokens(tokenizer).end
        self.train, self.valid = (
            TokenizedDataset(*encode_documents(tokenizer, part, self.end, shape.context_length))
            for part in (train, valid))
        self.valid_bytes = sum(len(text.encode()) for text in valid)
        self.valid_text = "\n".join(valid)
        self.tokens = int(self.train.lengths.sum())
        steps = ceil_div(self.tokens, config.training.batch_tokens)      # of an epoch
        self.config = config.replace(
            epochs=config.training.epochs or min(max(1, ceil_div(FEW_STEPS, steps)), 20))
        self.training = self.config.training.of_the_loop()
        self.model = LanguageModel(gpt2, seed=self.training.seed).to(shape.device,
                                                                     shape.precision)
        say(f"{count(len(train), 'document')} of {self.tokens:,} tokens to learn from, "
            f"{len(valid):,} held out ({self.valid_bytes:,} bytes)")
        say(f"GPT-2 of {count(gpt2.n_layer, 'layer')}, width {gpt2.n_embd}, {gpt2.vocab_size:,} "
            f"tokens of vocabulary: {self.model.store.size:,} parameters")
        if config.training.epochs is None and self.training.epochs > 1:
            say(f"the text is small: {self.training.epochs} epochs, so that there are steps enough")

    def validate(self, model: LanguageModel) -> dict:
        """-> loss, perplexity and bits per byte of the held-out text, and a sample."""
        figures = completion_loss(model, self.valid, self.training.micro_tokens)
        nats = figures["loss"] * figures["tokens"]
        report = {"score": [-figures["loss"]], "valid_loss": figures["loss"],
                  "valid_perplexity": figures["perplexity"],
                  "bits_per_byte": nats / math.log(2) / self.valid_bytes,
                  "sample": self.samples(1)[0]}
        if not self.config.output.quiet:
            tqdm.write(f"sample: {one_line(report['sample'], 90)}")
        return report

    def samples(self, n: int, tokens: int = 80) -> list[str]:
        """-> n texts that the model writes from nothing, temperature 0.8."""
        start = [np.array([self.end])] * n
        most = min(tokens, self.config.model.context_length - 1)
        texts = generate(self.model, start, most, Sampler(0.8, seed=self.training.seed), self.end)
        return [decode(self.tokenizer, generated.ids).strip() for generated in texts]

    def run(self, folder: Path, optimizer: Optimizer, state: State) -> dict:
        """Trains, evaluates and writes everything into the folder; -> results."""
        output = self.config.output
        plan = BatchPlan(self.train, self.training)
        plan = BatchPlan(self.train, self.training,
                         min(output.validate_every, ceil_div(plan.steps, VALIDATIONS)))
        try:
            history = fit_in(folder, self.model, self.train, self.training, self.validate, state,
                             optimizer, stretch="validation", plan=plan,
                             save_every=parse_save_every(output.save_every),
                             name_text=self._name_text, show_progress=not output.quiet)
        except DivergedError as error:
            raise divergence.keep_last_good(
                error, self.model, state, folder, lambda: self._write_model(folder),
                "validation") from None
        best = state.best
        results = {key: best[key] for key in FIGURES}
        results |= {"xz_bits_per_byte": xz_bits_per_byte(self.valid_text),
                    "tokens_seen": state.tokens, "train_seconds": state.seconds,
                    "tokens_per_second": state.tokens / state.seconds,
                    "steps": state.step, "parameters": self.model.store.size}
        self._write_model(folder)
        for place in (folder, folder / "model"):      # the card shows them too
            plots.curves(history, place / "curves.png", best_step=best["step"])
        write_card(folder / "model" / "README.md", self.config, results, self.samples(3),
                   provenance.environment(), changes_of_run(folder))
        run_folder.require_present(folder)
        run_folder.write_results(folder, results)
        for line in headlines(results):
            self.say(line)
        self.say(f"trained {state.tokens:,} tokens in {state.seconds:.0f} s "
                 f"({results['tokens_per_second']:,.0f} a second); everything is in {folder}")
        self.say(Use(folder / "model", "pretrain"))
        return results

    def _write_model(self, folder):
        # fine-tuning sees few texts many times, so the folder asks for GPT-2's own dropout
        self.model.trunk.config = dataclasses.replace(
            self.model.trunk.config, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
        write_folder(folder / "model", self.model, self.tokenizer, Preprocessing(clean=()),
                     dtype=np.float16)

    def _name_text(self, n):
        return short_repr(decode(self.tokenizer, self.train.ids[n]))


def headlines(results: dict) -> list[str]:
    """-> lines for the terminal: what the held-out text says, beside the best compressor."""
    ours, xz = results["bits_per_byte"], results["xz_bits_per_byte"]
    stands = ("better than xz" if ours < xz else
              "worse than xz: more epochs or more text may help; xz has")
    return [Verdict(f"{ours:.3f} bits per byte of the held-out text, {stands}, {xz:.3f}"),
            f"  loss {results['valid_loss']:.4f} a token, perplexity "
            f"{results['valid_perplexity']:.1f}"]


def xz_bits_per_byte(text: str) -> float:
    """-> what the best general compressor makes of the same text, for scale."""
    data = text.encode()
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


def _texts(data, seed):
    """-> documents to learn from, documents held out."""
    train = [text for path in data.text
             for text in read_documents(path, data.encoding, data.parse_special,
                                       data.max_compression_ratio)]
    if data.valid:
        return train, read_documents(data.valid, data.encoding, data.parse_special,
                                     data.max_compression_ratio)
    if data.valid_fraction == 0:
        raise UserError(f"{setting('valid_fraction')} is 0.0, expected more, or a file for "
                        f"{setting('valid')}: a part of the text has to be held out")
    n = round(data.valid_fraction * len(train))
    if not 0 < n < len(train):
        return _divided(train, data)
    held = set(random.permutation(len(train), seed, 0)[:n].tolist())
    return ([text for i, text in enumerate(train) if i not in held],
            [text for i, text in enumerate(train) if i in held])


def _divided(documents, data):
    """A small text of few documents -> the same without the end of the longest, that end.

    The part held out is as large as asked for, and at least a tenth of the text or 2,000
    characters. It begins at a border of paragraphs, else of lines.
    """
    total = sum(map(len, documents))
    wanted = max(data.valid_fraction * total, min(2000, total / 10))
    i = max(range(len(documents)), key=lambda i: len(documents[i]))
    for border, pattern in (("\n\n", PARAGRAPH), ("\n", re.compile(r"\n"))):
        parts = pattern.split(documents[i])
        if len(parts) > 1:
            n = len(parts) - 1
            while n > 1 and len(border.join(parts[n:])) < wanted:
                n -= 1
            return ([*documents[:i], border.join(parts[:n]), *documents[i + 1:]],
                    [border.join(parts[n:])])
    raise UserError(f"{data.text[0]}: cannot hold out a part of it, it has no line break; "
                    f"expected one, or a file for {setting('valid')}")
