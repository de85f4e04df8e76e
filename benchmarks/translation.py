"""A translator's training step, beside PyTorch's own nn.Transformer of the same size and weights.

python -m benchmarks.translation

The peer is what PyTorch's users build: nn.Transformer, pre-norm, padded to the longest text of the
batch, logits of the real tokens alone, fused AdamW, clipping. The weights are ours, copied, and
both give the same logits before anything is timed.
"""

import os
import sys
import warnings
from contextlib import ExitStack
from math import sqrt
from pathlib import Path

import numpy as np

from benchmarks import harness, sides
from minisft.backend.cpu import allocator
from minisft.backend.cpu.processor import why_not_bfloat16
from minisft.backend.random import Stream
from minisft.data.batch import token_budget_batches
from minisft.data.pairs import PairDataset, read_pairs
from minisft.data.text import encode_all, train_tokenizer
from minisft.data.tokenizer import vocab_size_of
from minisft.dispatch import FORMATS
from minisft.errors import UserError
from minisft.jobs.translate import PAD
from minisft.models.config import Seq2SeqConfig
from minisft.models.seq2seq import EncoderDecoder, sinusoids
from minisft.training.config import TrainingConfig
from minisft.training.loop import train_step
from minisft.training.optim import AdamW

SMOOTHING = 0.1


def read(options):
    """-> the pairs as token ids, the size of the vocabulary, what the table says of them."""
    source, target = options.source, options.target
    if source is None:
        folder = os.environ.get("MINISFT_SHARED")
        if folder is None:
            raise UserError("--source and --target: expected two files of aligned lines, or "
                            "MINISFT_SHARED with data/translation")
        source, target = (Path(folder) / "data/translation" / f"multi30k_train.{side}.gz"
                          for side in ("en", "fr"))
    pairs = read_pairs(source, "source", "target", target)
    tokenizer = train_tokenizer(pairs.sources + pairs.targets, options.vocab, PAD)
    vocab = vocab_size_of(tokenizer)
    end = vocab - 1
    ids = [encode_all(tokenizer, texts, options.context_length - 1)[0]
           for texts in (pairs.sources, pairs.targets)]
    return (PairDataset([np.append(row, end) for row in ids[0]], [], targets=ids[1], start=end,
                        end=end), vocab,
            f"{len(ids[0]):,} pairs of {Path(source).name}, {vocab:,} tokens in the vocabulary")


def config(options, vocab, dropout):
    """-> the shape of the model that the options ask for."""
    width, heads = options.width, options.heads or max(1, options.width // 32)
    return Seq2SeqConfig(
        vocab_size=vocab, d_model=width, encoder_layers=options.layers,
        decoder_layers=options.layers, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        max_position_embeddings=options.context_length, dropout=dropout,
        attention_dropout=dropout, pad_token_id=0, decoder_start_token_id=vocab - 1,
        eos_token_id=vocab - 1)


class Ours:
    """Our side: the step of the training loop."""

    def __init__(self, shape, pairs, seed):
        self.memory = ExitStack()     # as sides.Ours
        self.memory.enter_context(allocator.reused())
        self.model, self.pairs = EncoderDecoder(shape, seed=seed), pairs
        self.optimizer = AdamW(self.model.store)
        self.config = TrainingConfig(micro_tokens=10**9)

    def step(self, numbers, precision="float32"):
        """Numbers of the pairs -> mean loss, after one optimizer step."""
        self.model.store.set_compute_dtype(FORMATS[precision])
        stream = Stream(0, self.optimizer.t) if self.model.trunk.config.drops else None
        return train_step(self.model, self.pairs, numbers, self.optimizer, sides.RATE, self.config,
                          stream, {"smoothing": SMOOTHING})[0]

    def logits(self, numbers):
        """Numbers of the pairs -> logits of all target tokens (N,V), without dropout."""
        found = self.model.forward(self.pairs.batch(numbers))
        self.model.clear_cache()
        return found


class Peer(sides.Peer):
    """The other side: nn.Transformer with our weights."""

    def __init__(self, model, pairs):
        self.torch = torch = sides.packages()[0]
        harness.set_threads()
        shape, nn = model.trunk.config, torch.nn
        self.pairs, self.scale = pairs, sqrt(shape.d_model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of nested tensors, which are for inference
            self.inner = nn.Transformer(
                shape.d_model, shape.encoder_attention_heads, shape.encoder_layers,
                shape.decoder_layers, shape.encoder_ffn_dim, shape.dropout,
                lambda x: nn.functional.gelu(x, approximate="tanh"), batch_first=True,
                norm_first=True)
        self.table = nn.Embedding(shape.vocab_size, shape.d_model)
        self.drop = nn.Dropout(shape.dropout)
        first = shape.pad_token_id + 1
        self.positions = torch.from_numpy(sinusoids(
            first + shape.max_position_embeddings, shape.d_model)[first:].astype(np.float32))
        with torch.no_grad():
            for name, p in [*self.inner.named_parameters(), ("shared.weight", self.table.weight)]:
                p.copy_(torch.from_numpy(_ours(model.store, name)))
        self.live = [*self.inner.parameters(), *self.table.parameters()]
        self.optimizer = torch.optim.AdamW(self.live, lr=sides.RATE, weight_decay=0.01, fused=True)

    def hidden(self, numbers):
        """Numbers of the pairs -> the decoder's output at all real tokens (N,C), their labels."""
        end = self.pairs.end
        source, mask = self._padded([self.pairs.ids[n] for n in numbers])
        targets = [self.pairs.targets[n] for n in numbers]
        target, real = self._padded([np.append(end, row) for row in targets])
        labels = self.torch.from_numpy(np.concatenate([np.append(row, end) for row in targets]))
        causal = self.torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        found = self.inner(self._embedded(source), self._embedded(target), tgt_mask=causal,
                           src_key_padding_mask=~mask, memory_key_padding_mask=~mask,
                           tgt_is_causal=True)
        return found[real], labels

    def step(self, numbers, precision="float32"):
        """Numbers of the pairs -> mean loss, after one optimizer step."""
        with self.autocast(precision):
            hidden, labels = self.hidden(numbers)
            loss = self.torch.nn.functional.cross_entropy(
                hidden @ self.table.weight.T, labels, label_smoothing=SMOOTHING)
        return self.update(loss)

    def logits(self, numbers):
        """Numbers of the pairs -> logits of all target tokens (N,V), without dropout."""
        self.inner.eval()
        with self.torch.no_grad():
            found = (self.hidden(numbers)[0] @ self.table.weight.T).numpy()
        self.inner.train()
        return found

    def _padded(self, rows):
        padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros(padded.shape, dtype=bool)
        for i, row in enumerate(rows):
            padded[i, :len(row)], mask[i, :len(row)] = row, True
        return self.torch.from_numpy(padded), self.torch.from_numpy(mask)

    def _embedded(self, ids):
        x = self.table(ids) * self.scale + self.positions[:ids.shape[1]]
        return self.drop(x) if self.inner.training else x


def _ours(store, name):
    """A parameter of nn.Transformer -> our value, as (out, in) where it is a matrix."""
    if name == "shared.weight":
        return store[name].value
    name = name.replace("decoder.norm.", "decoder.layer_norm.").replace(
        "encoder.norm.", "encoder.layer_norm.").replace("linear", "fc")
    decoder = name.startswith("decoder")
    name = name.replace("norm1", "self_attn_layer_norm").replace(
        "norm2", "encoder_attn_layer_norm" if decoder else "final_layer_norm").replace(
        "norm3", "final_layer_norm").replace("multihead_attn", "encoder_attn")
    place, _, kind = name.rpartition(".in_proj_")
    if place:
        return np.concatenate([store[f"{place}.{part}_proj.{kind}"].value.T
                               for part in "qkv"])
    return np.ascontiguousarray(store[name].value.T)


def run(options):
    """Writes the table for batches of any lengths and of like lengths."""
    pairs, vocab, said = read(options)
    made = []
    for rate in options.dropout:
        ours = Ours(config(options, vocab, rate), pairs, options.seed)
        peer = None if options.alone else Peer(ours.model, pairs)
        if peer is not None:     # before a step, whose dropout differs
            harness.require_equal(ours.logits(range(16)), peer.logits(range(16)))
        rng = np.random.default_rng(options.seed)
        for words, order in (("any lengths", rng.permutation(len(pairs))),
                             ("like lengths", np.argsort(pairs.lengths, kind="stable"))):
            batches = token_budget_batches(pairs.lengths, order, options.tokens)
            items = [batches[i] for i in rng.permutation(len(batches))[:options.steps]]
            seconds = harness.alternate(_steps(ours, peer, options.precision), items,
                                        options.warmup)
            made += harness.compared(f"{words}, dropout {rate:g}", seconds,
                                     [pairs.lengths[item].sum() for item in items])
    harness.write("translation", f"A translator's training step, {options.layers} + "
                  f"{options.layers} layers of width {options.width}", made, options,
                  f"{said}; {options.tokens:,} tokens a step, of both languages")


def _steps(ours, peer, precisions):
    """-> {name: step(numbers)} for `harness.alternate`."""
    made = harness.forms(ours.step)
    if not why_not_bfloat16():
        made[harness.LOW] = lambda numbers: ours.step(numbers, "bfloat16")
    for precision in precisions if peer is not None else ():
        made[f"torch {precision}"] = lambda numbers, p=precision: peer.step(numbers, p)
    return made


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, layers=3, width=128, vocab=4096, context_length=512, steps=10,
                            dropout=[0.0, 0.1])
    parser.add_argument("--source", default=None, help="a file of lines (None: Multi30k's English "
                        "under MINISFT_SHARED)")
    parser.add_argument("--target", default=None, help="their translations, line by line")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step at most")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
