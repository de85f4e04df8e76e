"""The two sides of a comparison, from one folder of weights: minisft, and torch with transformers.

Each does a whole training step: batch, forward, loss, backward, clipping, AdamW. The peer is set
up as the Trainer of `transformers` sets it up: scaled-dot-product attention, fused AdamW, padding
to the longest text, no key/value cache in training.
"""

import os
import warnings
import zlib
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np

from benchmarks import harness
from minisft.backend.cpu import allocator
from minisft.backend.cpu.processor import why_not_bfloat16
from minisft.backend.random import Stream
from minisft.data.batch import pack
from minisft.data.dataset import TokenizedDataset
from minisft.data.special_tokens import SpecialTokens
from minisft.dispatch import FORMATS
from minisft.io import checkpoint, hub
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training.config import TrainingConfig
from minisft.training.loop import train_step
from minisft.training.optim import AdamW

RATE = 1e-5


def config(options):
    """-> the shape of the model that the options ask for."""
    found = GPT2Config(vocab_size=options.vocab, n_positions=options.context_length,
                       n_embd=options.width, n_layer=options.layers,
                       n_head=options.heads or max(1, options.width // 64))
    found.require_sound("options")
    return found


def weights(options, task, names=("0", "1", "2", "3")):
    """-> a folder with the weights that both sides load, made once and kept.

    Random weights of the shape that the options ask for, or those of --model.
    """
    shape = config(options)
    key = f"{shape.n_layer}x{shape.n_embd}x{shape.n_head}-{shape.vocab_size}-{shape.n_positions}"
    if options.model:
        place = hub.resolve(options.model).resolve()
        key = f"{place.name}-{zlib.crc32(str(place).encode()):08x}"
    kind = f"classify-{len(names)}" if task == "classify" else task
    folder = Path(options.models) / f"{key}-{kind}-{options.seed}"
    if (folder / checkpoint.CONFIG).is_file():
        return folder
    if options.model:
        model = checkpoint.load(hub.resolve(options.model), task=task, seed=options.seed,
                                label_names=names if task == "classify" else None)
    elif task == "classify":
        model = Classifier(shape, names, seed=options.seed)
    else:
        model = LanguageModel(shape, seed=options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    end = model.trunk.config.vocab_size - 1
    checkpoint.save(model, folder, special_tokens=SpecialTokens(end, (end,), end))
    return folder


class Ours:
    """Our side: a model, its optimizer and the step of the training loop.

    Memory is kept from step to step as the loop keeps it. That counts for the whole process: the
    peer, whose users do without, gains by it too.
    """

    def __init__(self, folder, dropout=0.0, train_layers="all"):
        self.memory = ExitStack()
        self.memory.enter_context(allocator.reused())
        self.model = checkpoint.load(folder, dropout=dropout)
        self.model.train_layers(train_layers)
        self.optimizer = AdamW(self.model.store)
        self.config = TrainingConfig(micro_tokens=10**9)
        self.dropout = dropout

    def step(self, ids, labels, features=None, precision="float32"):
        """Token ids and labels of B texts -> mean loss, after one optimizer step."""
        self.model.store.set_compute_dtype(FORMATS[precision])
        sequences = TokenizedDataset(ids, labels, features=features)
        stream = Stream(0, self.optimizer.t) if self.dropout else None
        return train_step(self.model, sequences, np.arange(len(ids)), self.optimizer, RATE,
                          self.config, stream, {})[0]

    def logits(self, ids):
        """Token ids of B texts -> logits, without dropout."""
        found = self.model.forward(pack(ids))
        self.model.clear_cache()
        return found


class Peer:
    """The other side: the model of `transformers` on PyTorch's CPU build."""

    def __init__(self, folder, dropout=0.0, train_layers="all"):
        self.torch, transformers = packages()
        harness.set_threads()
        classifies = "classify" in Path(folder).name
        kind = (transformers.GPT2ForSequenceClassification if classifies else
                transformers.GPT2LMHeadModel)
        self.model = kind.from_pretrained(
            folder, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout, use_cache=False)
        self.pad = self.model.config.vocab_size - 1
        freeze(self.model, train_layers)
        self.model.train()
        live = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.torch.optim.AdamW(live, lr=RATE, weight_decay=0.01, fused=True)
        self.live = live

    def batch(self, ids, labels=None):
        """Token ids and labels of B texts -> the model's arguments, padded to the longest."""
        longest = max(len(x) for x in ids)
        padded = np.full((len(ids), longest), self.pad)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for row, text in enumerate(ids):
            padded[row, :len(text)], mask[row, :len(text)] = text, 1
        made = {"input_ids": padded, "attention_mask": mask}
        if labels is not None and np.ndim(labels[0]):
            made["labels"] = np.where(mask, padded, IGNORE)     # the model shifts them itself
        elif labels is not None:
            made["labels"] = np.asarray(labels)
        return {name: self.torch.from_numpy(a) for name, a in made.items()}

    def step(self, ids, labels, precision="float32"):
        """Token ids and labels of B texts -> mean loss, after one optimizer step."""
        with self.autocast(precision):
            loss = self.model(**self.batch(ids, labels)).loss
        return self.update(loss)

    def autocast(self, precision):
        """-> bfloat16 where PyTorch holds it safe, or nothing at all."""
        if precision == "float32":
            return nullcontext()
        return self.torch.autocast("cpu", dtype=self.torch.bfloat16)

    def update(self, loss):
        """A loss -> its value, after backward, clipping and one step of AdamW."""
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.live, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def logits(self, ids):
        """Token ids of B texts -> logits (B,K), or of all their tokens, without dropout."""
        made = self.batch(ids)
        self.model.eval()
        with self.torch.no_grad():
            found = self.model(**made).logits
        self.model.train()
        return (found if found.ndim == 2 else found[made["attention_mask"].bool()]).numpy()


def packages():
    """-> torch and transformers, imported late and quietly."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def freeze(model, train_layers):
    """Leaves gradients to the last K blocks, the last LayerNorm and the head, as ours."""
    if train_layers == "all":
        return
    trunk = model.transformer
    blocks = trunk.h[len(trunk.h) - int(train_layers.removeprefix("last:")):]
    model.requires_grad_(False)
    for part in (*blocks, trunk.ln_f, model.score):
        part.requires_grad_(True)


def pair(folder, options, dropout=0.0, train_layers="all"):
    """-> our side, and the peer's or None."""
    return (Ours(folder, dropout, train_layers),
            None if options.alone else Peer(folder, dropout, train_layers))


def steps(ours, peer, precisions):
    """-> {name: step((ids, labels))} for `harness.alternate`."""
    made = harness.forms(lambda item: ours.step(*item))
    if not why_not_bfloat16():
        made[harness.LOW] = lambda item: ours.step(*item, precision="bfloat16")
    if peer is not None:
        for precision in precisions:
            made[f"torch {precision}"] = lambda item, p=precision: peer.step(*item, p)
    return made


def require_equal(ours, peer, ids):
    """Raises UserError unless ours gives the peer's logits, with the compiled loops and without."""
    theirs = peer.logits(ids)
    for logits in harness.forms(ours.logits).values():
        harness.require_equal(logits(ids), theirs)


def training_case(case, folder, items, options, dropout=0.0):
    """Items (ids, labels) -> rows of the table, after a check that both sides agree."""
    ours, peer = pair(folder, options, dropout)
    if peer is not None:
        require_equal(ours, peer, items[0][0])
    seconds = harness.alternate(steps(ours, peer, options.precision), items, options.warmup)
    tokens = [sum(len(x) for x in ids) for ids, _ in items]
    return harness.compared(case, seconds, tokens)
