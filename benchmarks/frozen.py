"""Table (e): only the last blocks are trained, a whole run over SMS Spam.

python -m benchmarks.frozen

Three sides with equal batches: ours, with the compiled loops and without, computes the frozen
blocks once for each text; the peer as its users run it goes through them in every epoch; the peer
with features computes them once too. The time of an epoch that fills the features counts.
"""

import sys

import numpy as np

from benchmarks import harness, sides, texts
from minisft.backend.constants import ceil_div
from minisft.training.frozen_features import with_features

AS_USED, CACHED = "torch as used", "torch with features"
MEMORY = 2**30     # bytes of features that our side may hold in memory


class CachedPeer(sides.Peer):
    """The peer on the outputs of its frozen blocks, kept for each text."""

    def __init__(self, folder, dropout, train_layers):
        super().__init__(folder, dropout, train_layers)
        trunk, nn = self.model.transformer, self.torch.nn
        split = len(trunk.h) - int(train_layers.removeprefix("last:"))
        self.frozen_forward, self.above, self.ln_f = trunk.h[:split], trunk.h[split:], trunk.ln_f
        self.no_positions = nn.Embedding.from_pretrained(
            self.torch.zeros(trunk.wpe.weight.shape))     # they are in the features already
        self.rows = None

    def fill(self, ids, size):
        """Token ids of all texts -> what the frozen blocks make of them, texts of like length
        computed together; from then on the model is what lies above."""
        trunk, identity = self.model.transformer, self.torch.nn.Identity()
        trunk.h, trunk.ln_f = self.frozen_forward, identity
        self.rows = [None] * len(ids)
        order = np.argsort([len(x) for x in ids], kind="stable")
        self.model.eval()
        with self.torch.no_grad():
            for numbers in (order[i:i + size] for i in range(0, len(order), size)):
                found = trunk(**self.batch([ids[n] for n in numbers])).last_hidden_state
                for n, row in zip(numbers, found, strict=True):
                    self.rows[n] = row[:len(ids[n])].clone()
        trunk.h, trunk.ln_f = self.above, self.ln_f
        trunk.wpe, trunk.drop = self.no_positions, identity
        self.model.train()

    def cached_logits(self, numbers):
        """Numbers of texts (B,) -> logits (B,K)."""
        torch = self.torch
        kept = [self.rows[n] for n in numbers]
        ends = torch.tensor([len(row) for row in kept])
        embedded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
        mask = (torch.arange(embedded.shape[1]) < ends[:, None]).long()
        hidden = self.model.transformer(
            inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        return self.model.score(hidden[torch.arange(len(kept)), ends - 1])

    def cached_step(self, numbers, labels):
        """Numbers of texts (B,), their labels -> mean loss, after one optimizer step."""
        loss = self.torch.nn.functional.cross_entropy(
            self.cached_logits(numbers), self.torch.tensor(labels))
        return self.update(loss)


class Some:
    """The features of some texts, asked for by their place among these."""

    def __init__(self, features, numbers):
        self.features, self.numbers = features, numbers

    def of(self, places):
        return self.features.of([self.numbers[p] for p in places])


class Run:
    """The epochs of one side; `losses` are those of its last epoch."""

    def __init__(self, begin, step, batches):
        self.begin, self.step, self.batches, self.losses = begin, step, batches, []

    def epoch(self, number):
        """Trains one epoch; the first begins with what is to be computed once."""
        if number == 0:
            self.begin()
        self.losses = [self.step(numbers) for numbers in self.batches[number]]


def ours_run(options, folder, sequences, batches, of):
    """-> our Run, from fresh weights."""
    ours = sides.Ours(folder, options.dropout[0], options.train_layers)
    kept = []

    def fill():
        tokens = options.batch[0] * int(max(sequences.lengths))
        kept.append(with_features(sequences, ours.model, tokens, MEMORY).features)

    return Run(fill, lambda numbers: ours.step(*of(numbers), Some(kept[0], numbers)), batches)


def runs(options, folder, sequences, batches):
    """-> {name: Run} from fresh weights, after a check that all agree."""
    size, rate = options.batch[0], options.dropout[0]

    def of(numbers):
        return [sequences.ids[n] for n in numbers], [sequences.labels[n] for n in numbers]

    made = {name: ours_run(options, folder, sequences, batches, of)
            for name in harness.our_sides()}
    if options.alone:
        return made
    ours, peer = sides.pair(folder, options, rate, options.train_layers)
    cached = CachedPeer(folder, rate, options.train_layers)
    first = batches[0][0]
    sides.require_equal(ours, peer, of(first)[0])
    wanted = ours.logits(of(first)[0])
    del ours
    cached.fill([sequences.ids[n] for n in first], size)
    cached.model.eval()
    with cached.torch.no_grad():
        harness.require_equal(wanted, cached.cached_logits(range(len(first))).numpy())
    cached = CachedPeer(folder, rate, options.train_layers)
    made[AS_USED] = Run(lambda: None, lambda numbers: peer.step(*of(numbers)), batches)
    made[CACHED] = Run(lambda: cached.fill(sequences.ids, size),
                       lambda numbers: cached.cached_step(numbers, of(numbers)[1]), batches)
    return made


def run(options):
    """Writes the table: total seconds of all epochs, for each repeat."""
    sequences, names, said = texts.read(options, "SMS Spam", options.most)
    folder = sides.weights(options, "classify", names)
    a_pass = ceil_div(len(sequences), options.batch[0])
    numbers = texts.batches(len(sequences), options.batch[0], a_pass * options.epochs,
                            options.seed)
    batches = [numbers[i * a_pass:(i + 1) * a_pass] for i in range(options.epochs)]
    totals, tokens = {}, []
    for _ in range(options.repeats):
        of_side = runs(options, folder, sequences, batches)
        seconds = harness.alternate(
            {name: harness.without_loops(side.epoch) if name == harness.OURS else side.epoch
             for name, side in of_side.items()}, list(range(options.epochs)), warmup=0)
        for name, found in seconds.items():
            totals.setdefault(name, []).append(sum(found))
            print(f"{name}: seconds of each epoch {', '.join(f'{s:.3g}' for s in found)}; mean "
                  f"loss of the last {np.mean(of_side[name].losses):.4f}")
        tokens.append(sum(int(sequences.lengths[b].sum()) for epoch in batches for b in epoch))
    made = harness.compared(f"{options.train_layers}, {options.epochs} epochs", totals, tokens)
    harness.write("frozen", f"A whole run that trains {options.train_layers}", made, options, said)


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__)
    parser.add_argument("--train-layers", default="last:2", help="last:K, the blocks to train")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the texts")
    parser.add_argument("--repeats", type=int, default=1, help="whole runs of each side")
    parser.add_argument("--most", type=int, default=None, help="texts taken (None: all)")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
