"""Pretraining from plain text: a vocabulary, a language model, a folder with a model card."""

import dataclasses
import lzma
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from minisft.backend import random
from minisft.data.batch import token_budget_batches
from minisft.data.dataset import TokenizedDataset
from minisft.data.documents import documents, encode
from minisft.data.text import load_tokenizer, save_tokenizer, train_tokenizer
from minisft.dispatch import FORMATS
from minisft.errors import UserError
from minisft.evaluation import plots
from minisft.evaluation.evaluate import completion_loss
from minisft.evaluation.model_card import write_card
from minisft.io import run_folder
from minisft.io.files import write_json
from minisft.io.model_folder import END, Preprocessing, end_token, write_folder
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from minisft.training.config import kept_settings, option, require_device, require_in_range
from minisft.training.loop import (
    Interrupted,
    begin,
    fit_in,
    load_or_init_state,
    make_optimizer,
)
from minisft.training.optim import SCHEDULES


@dataclass(frozen=True)
class PretrainSettings:
    """One pretraining run."""

    text: tuple = option((), "text files, plain or .gz; a line <|endoftext|> ends a "
                         "document", nargs="+", metavar="FILE")
    valid: str = option(None, "held-out text (default: a part of the documents)", metavar="FILE")
    valid_fraction: float = option(0.02, "part of the documents held out", type=float)
    encoding: str = option("utf-8", "encoding of the files", metavar="NAME")
    source: tuple = option((), "lines for the model card: where the text comes from and its "
                           "licence", nargs="+", metavar="LINE")
    layers: int = option(6, "number of blocks", type=int)
    width: int = option(192, "number of channels", type=int)
    heads: int = option(6, "number of heads", type=int)
    context_length: int = option(256, "longest piece of a document, in tokens", type=int)
    vocab_size: int = option(8192, "tokens of the vocabulary that is trained", type=int)
    dropout: float = option(0.0, "dropout everywhere", type=float)
    epochs: int = option(1, "passes over the documents", type=int)
    batch_tokens: int = option(4096, "most tokens of an optimizer step", type=int)
    micro_tokens: int = option(8192, "most tokens computed at once; a larger step is accumulated",
                               type=int)
    lr: float = option(2e-3, "highest learning rate", type=float)
    schedule: str = option("cosine", "how the learning rate falls", choices=SCHEDULES)
    warmup_ratio: float = option(0.02, "part of all steps over which the learning rate rises",
                           type=float)
    beta2: float = option(0.95, "AdamW: decay of the mean of squared gradients", type=float)
    weight_decay: float = option(0.1, "decay of matrices and tables, not of biases and norms",
                                 type=float)
    max_grad_norm: float = option(1.0, "largest norm of the gradient (0: any)", type=float)
    seed: int = option(0, "seed of initial values, order, dropout and samples", type=int)
    device: str = option("cpu", "where the model computes", choices=("cpu", "gpu"))
    precision: str = option("float32", "of matrix products; weights, sums and all else stay "
                            "float32. 16 bits are for --device gpu", choices=tuple(FORMATS))
    validate_every: int = option(200, "optimizer steps between two validations, each with a "
                                 "sample and a save", type=int)
    out: str = option(None, "run folder (default: the first free of runs/pretrained, ...)",
                      metavar="DIR")
    overwrite: bool = option(False, "replace what an earlier run left in --out",
                             action="store_true")
    quiet: bool = option(False, "no progress bar and no samples", action="store_true")

    # What the loop asks for and pretraining does not vary
    optimizer: ClassVar = "adamw"
    layer_decay: ClassVar = 1.0
    early_stopping: ClassVar = 0
    select: ClassVar = "loss"
    average: ClassVar = 0.0
    STRETCH: ClassVar = "stretch"
    GROUPS: ClassVar = {"text": "text", "layers": "model", "epochs": "training",
                        "validate_every": "output"}
    RANGES: ClassVar = (
        ("valid_fraction", 0, 0.9), ("layers", 1, 1000), ("width", 1, 100_000), ("heads", 1, None),
        ("context_length", 2, 1_000_000), ("vocab_size", 257, 1_000_000), ("dropout", 0, 0.99),
        ("epochs", 1, 100_000), ("batch_tokens", 1, 10**12), ("micro_tokens", 1, 10**12),
        ("lr", 0, None), ("warmup_ratio", 0, 1), ("beta2", 0, 0.999999), ("weight_decay", 0, None),
        ("max_grad_norm", 0, None), ("seed", 0, 2**32 - 1), ("validate_every", 1, None))


def pretrain(settings, resume=None, say=print):
    """Settings -> results (dict), with all files of the run in its folder.

    `resume`: the folder of an interrupted run, whose own settings then count. Raises UserError
    before a file is written, and train.Interrupted.
    """
    config = None
    if resume is not None:
        config = run_folder.unfinished(resume)
        settings = kept_settings(PretrainSettings, config, resume)
    require_in_range(settings)
    if not settings.text:
        raise UserError("--text FILE is missing, expected one text file or more")
    require_device(settings)
    if resume is None and settings.out is not None:
        run_folder.require_free(settings.out, settings.overwrite)
    train, valid = _texts(settings)
    files = {path: run_folder.fingerprint(path) for path in _files(settings)}
    for path, found in files.items():
        if config is not None and config["files"].get(path) != found:
            raise UserError(f"{path}: has changed since the run {resume} began")
    folder = Path(resume or settings.out or run_folder.first_free("runs", "pretrained"))
    tokenizer = (load_tokenizer(folder / "model") if (folder / "model").is_dir() and resume
                 else train_tokenizer(train, settings.vocab_size))
    pretraining = Pretraining(settings, tokenizer, train, valid, say)
    optimizer = make_optimizer(pretraining.model, settings)
    begin(folder, resume, {"settings": dataclasses.asdict(settings), "files": files},
          pretraining.model, say)
    progress = load_or_init_state(folder, resume, pretraining.model, optimizer, say)
    if not resume:
        (folder / "model").mkdir()
        save_tokenizer(tokenizer, folder / "model", settings.context_length, END)
    try:
        return pretraining.run(folder, optimizer, progress)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(folder) from None


class Pretraining:
    """The model, its pieces of text and what is said of them."""

    def __init__(self, settings, tokenizer, train, valid, say):
        self.settings, self.tokenizer, self.say = settings, tokenizer, say
        config = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(), n_positions=settings.context_length,
            n_embd=settings.width, n_layer=settings.layers, n_head=settings.heads,
            embd_pdrop=settings.dropout, attn_pdrop=settings.dropout, resid_pdrop=settings.dropout)
        config.require_sound("--width, --heads")
        self.end = end_token(tokenizer)
        self.train, self.valid = (
            TokenizedDataset(*encode(tokenizer, part, self.end, settings.context_length))
            for part in (train, valid))
        self.valid_bytes = sum(len(text.encode()) for text in valid)
        self.valid_text = "\n".join(valid)
        self.tokens = int(self.train.lengths.sum())
        self.model = LanguageModel(config, seed=settings.seed).to(settings.device,
                                                                     settings.precision)
        say(f"{len(train):,} documents of {self.tokens:,} tokens to learn from, {len(valid):,} "
            f"held out ({self.valid_bytes:,} bytes)")
        say(f"GPT-2 of {config.n_layer} layers, width {config.n_embd}, {config.vocab_size:,} "
            f"tokens of vocabulary: {self.model.store.size:,} parameters")

    def plan(self):
        """-> the batches of all epochs, in stretches of validate_every steps."""
        s, lengths = self.settings, self.train.lengths
        batches = [batch for epoch in range(s.epochs) for batch in token_budget_batches(
            lengths, random.permutation(len(lengths), s.seed, epoch), s.batch_tokens)]
        return [batches[i:i + s.validate_every] for i in range(0, len(batches), s.validate_every)]

    def validate(self, model):
        """-> loss, perplexity and bits per byte of the held-out text, and a sample."""
        found = completion_loss(model, self.valid, self.settings.micro_tokens)
        nats = found["loss"] * found["tokens"]
        report = {"score": [-found["loss"]], "valid_loss": found["loss"],
                  "valid_perplexity": found["perplexity"],
                  "bits_per_byte": nats / math.log(2) / self.valid_bytes,
                  "sample": self.samples(1)[0]}
        if not self.settings.quiet:
            tqdm.write(f"sample: {report['sample'][:300]!r}")
        return report

    def samples(self, n, tokens=80):
        """-> n texts that the model writes from nothing, temperature 0.8."""
        start = [np.array([self.end])] * n
        most = min(tokens, self.settings.context_length - 1)
        found = generate(self.model, start, most, Sampler(0.8, seed=self.settings.seed), self.end)
        return [self.tokenizer.decode(generated.ids).strip() for generated in found]

    def run(self, folder, optimizer, progress):
        """Trains, evaluates and writes everything into the folder; -> results."""
        history = fit_in(folder, self.model, self.train, self.settings, self.validate, progress,
                         optimizer, plan=self.plan())
        best = progress.best
        results = {key: best[key] for key in ("valid_loss", "valid_perplexity", "bits_per_byte")}
        results |= {"xz_bits_per_byte": xz_bits_per_byte(self.valid_text),
                    "tokens_seen": progress.tokens, "train_seconds": progress.seconds,
                    "tokens_per_second": progress.tokens / progress.seconds,
                    "steps": progress.step, "parameters": self.model.store.size}
        # fine-tuning sees few texts many times, so the folder asks for GPT-2's own dropout
        self.model.trunk.config = dataclasses.replace(
            self.model.trunk.config, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
        write_folder(folder / "model", self.model, self.tokenizer, Preprocessing(clean=()),
                     dtype=np.float16)
        for place in (folder, folder / "model"):      # the card shows them too
            plots.curves(history, place / "curves.png", best_step=best["step"])
        write_card(folder / "model" / "README.md", self.settings, results, self.samples(3),
                   run_folder.machine())
        write_json(folder / "results.json", results)
        self.say(f"held-out loss {results['valid_loss']:.4f}, perplexity "
                 f"{results['valid_perplexity']:.1f}, {results['bits_per_byte']:.3f} bits per byte "
                 f"(xz: {results['xz_bits_per_byte']:.3f})")
        self.say(f"trained {progress.tokens:,} tokens in {progress.seconds:.0f} s "
                 f"({results['tokens_per_second']:,.0f} a second); everything is in {folder}")
        return results


def xz_bits_per_byte(text):
    """-> what the best general compressor makes of the same text, for scale."""
    data = text.encode()
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


def _files(settings):
    return [*settings.text, *([settings.valid] if settings.valid else [])]


def _texts(settings):
    """-> documents to learn from, documents held out."""
    train = [text for path in settings.text for text in documents(
        path, settings.encoding)]
    if settings.valid:
        return train, documents(settings.valid, settings.encoding)
    order = random.permutation(len(train), settings.seed, 0)
    n = round(settings.valid_fraction * len(train))
    if not 0 < n < len(train):
        raise UserError(f"{settings.text[0]}: cannot hold out {settings.valid_fraction:g} of "
                        f"{len(train)} documents, expected --valid FILE or more documents")
    held = set(order[:n].tolist())
    return ([text for i, text in enumerate(train) if i not in held],
            [text for i, text in enumerate(train) if i in held])
