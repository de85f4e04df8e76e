"""What each idea brings, switched on one at a time, and how near the products' own speed we come.

python -m benchmarks.ideas

Our side alone. Every variant computes the same logits (checked); they take turns on every batch.
The roofline is NumPy's own matrix products of the same shapes, into arrays that are there already:
a step takes at least that long.
"""

import copy
import sys
from contextlib import contextmanager, nullcontext

import numpy as np

from benchmarks import harness, sides, texts
from benchmarks.frozen import Some
from minisft.backend.cpu import jit, row_blocks
from minisft.data.batch import pack
from minisft.data.dataset import TokenizedDataset
from minisft.dispatch import attention_key_blocks, only
from minisft.models.heads import Classifier
from minisft.planning import operations
from minisft.planning.memory import Step
from minisft.training.frozen_features import with_features

NEVER = 2**62     # a size that nothing reaches: the idea is off
PRODUCTS = "products alone"


class WholeLastBlock(Classifier):
    """The same model without the pruned last block; `real` are the lengths before padding."""

    def __init__(self, model):
        vars(self).update(vars(model))
        self.real = None

    def forward(self, batch, stream=None):
        """Batch -> logits (B,K), read at the last real token of each text."""
        hidden = self.trunk.forward(batch, stream)
        self.pooled_rows = (batch.last if self.real is None else
                            batch.cu_seqlens[:-1] + self.real - 1)
        self.shape = hidden.shape
        return self.score.forward(hidden[self.pooled_rows])

    def backward(self, dlogits):
        """dlogits (B,K) -> gradient of the embedded tokens (N,C)."""
        dhidden = np.zeros(self.shape, dtype=dlogits.dtype)
        dhidden[self.pooled_rows] = self.score.backward(dlogits)
        return self.trunk.backward(dhidden)


class Variant:
    """Our side with some ideas off."""

    def __init__(self, ours, padded=False, whole=False, block=None, plain=False, compiled=False):
        self.ours, self.padded, self.block, self.plain = copy.copy(ours), padded, block, plain
        self.compiled = compiled
        if whole:
            self.ours.model = WholeLastBlock(ours.model)

    def step(self, item):
        """(ids, labels) -> one optimizer step."""
        ids, labels = item
        with self._switched():
            self.ours.step(self._texts(ids), labels)

    def logits(self, ids):
        """Token ids of B texts -> logits (B,K)."""
        with self._switched():
            found = self.ours.model.forward(pack(self._texts(ids)))
        self.ours.model.clear_cache()
        return found

    def _texts(self, ids):
        if not self.padded:
            return ids
        lengths = np.array([len(x) for x in ids])
        self.ours.model.real = lengths
        return [np.resize(x, lengths.max()) for x in ids]     # what stands there is never read

    @contextmanager
    def _switched(self):
        kept = row_blocks.BLOCK
        row_blocks.BLOCK = self.block or kept
        plain = only("formula", operations=("attention",)) if self.plain else nullcontext()
        try:
            with jit.compiled(self.compiled), plain:
                yield
        finally:
            row_blocks.BLOCK = kept


def own_time(step, heads):
    """plan.Step -> a function that computes its products alone."""
    made, pool = [], {}

    def array(role, *shape):      # no result shares its memory with an operand
        if (role, shape) not in pool:
            pool[role, shape] = np.ones(shape, dtype=np.float32)
        return pool[role, shape]

    for p in operations.products(step, 0):
        batch = (heads,) if p.name.startswith("attention") else ()
        a, b, out = (array(role, *batch, *shape) for role, shape in (
            ("left", (p.m, p.k)), ("right", (p.k, p.n)), ("result", (p.m, p.n))))
        made += [(a, b, out)] * (p.times // heads if batch else p.times)

    def compute():
        for a, b, out in made:
            np.matmul(a, b, out=out)

    return compute


def ablation(case, variants, items, options):
    """{idea: Variant}, each with one idea more than the one before -> rows of the table."""
    logits = [variant.logits(items[0][0]) for variant in variants.values()]
    for other in logits[1:]:
        harness.require_equal(logits[0], other)
    seconds = harness.alternate({name: v.step for name, v in variants.items()}, items,
                                options.warmup)
    return shown(case, seconds)


def shown(case, seconds):
    """{idea: seconds} -> a row for each, beside the row before and the first."""
    made, found = [], {name: np.array(each) for name, each in seconds.items()}
    before = first = next(iter(found.values()))
    for name, each in found.items():
        low, high = np.percentile(each, [25, 75])
        made.append({"case": case, "idea": name, "seconds": seconds[name], "columns": {
            "idea": name, "s": f"{np.median(each):.3g} ({low:.3g}-{high:.3g})",
            "times faster than the row before": f"{np.median(before / each):.2f}",
            "than the first": f"{np.median(first / each):.2f}"}})
        before = each
    return made


def roofline(case, ours, items, config, classes, options):
    """-> the rows that set a step beside its matrix products alone."""
    planned = [Step(config, tuple(len(x) for x in ids), classes=classes) for ids, _ in items]
    work = np.array([sum(p.operations for p in operations.products(step, 0)) for step in planned])
    own = [own_time(step, config.n_head) for step in planned]
    seconds = harness.alternate(harness.forms(lambda i: ours.step(*items[i]))
                                | {PRODUCTS: lambda i: own[i]()},
                                list(range(len(items))), options.warmup)
    alone, made = np.array(seconds.pop(PRODUCTS)), []
    for side, found in seconds.items():
        step = np.array(found)
        made.append({"case": case, "idea": "roofline", "side": side, "seconds": found,
                     "products": list(alone), "columns": {
            "idea": f"roofline, {side}", "s": f"{np.median(step):.3g}",
            "GFLOP of products": f"{np.median(work) / 1e9:,.0f}",
            "GFLOP/s of the step": f"{np.median(work / step) / 1e9:.1f}",
            "of the products alone": f"{np.median(work / alone) / 1e9:.1f}",
            "reached": f"**{np.median(alone / step):.0%}**"}})
    return made


def frozen(items, folder, options):
    """-> rows: the last blocks trained, the others computed in every step, or once."""
    ours = sides.Ours(folder, 0.0, options.train_layers)
    sequences = TokenizedDataset([x for ids, _ in items for x in ids],
                          [y for _, labels in items for y in labels])
    kept = with_features(sequences, ours.model, 8192, NEVER).features
    size = options.batch[0]
    seconds = harness.alternate({
        name: harness.without_loops(step) for name, step in {
            "frozen blocks in every step": lambda i: ours.step(*items[i]),
            "+ frozen blocks once": lambda i: ours.step(
                *items[i], Some(kept, range(i * size, (i + 1) * size)))}.items()},
        list(range(len(items))), options.warmup)
    return shown(f"{options.train_layers}, {size} texts", seconds)


def run(options):
    """Writes all tables in one."""
    options.alone = True
    sequences, names, said = texts.read(options)
    folder, size = sides.weights(options, "classify", names), options.batch[0]
    ours = sides.Ours(folder)
    config = ours.model.trunk.config
    compiled = {"+ compiled loops": Variant(ours, compiled=True)} if jit.enabled() else {}
    items = [([sequences.ids[n] for n in b], [sequences.labels[n] for n in b])
             for b in texts.batches(len(sequences), size, options.steps, options.seed)]
    made = ablation(f"{size} texts", {
        "padded, last block whole, formulas as they stand": Variant(ours, True, True, NEVER, True),
        "+ packed": Variant(ours, False, True, NEVER, True),
        "+ last block pruned": Variant(ours, False, False, NEVER, True),
        "+ formulas in row blocks": Variant(ours, plain=True),
        "+ attention by groups of texts": Variant(ours)} | compiled, items, options)
    made += roofline(f"{size} texts", ours, items, config, len(names), options)
    for n, length in harness.shapes(options):
        equal = [(list(ids), list(np.resize(sequences.labels, n))) for ids in
                 texts.equal(sequences, length, n * options.steps).reshape(-1, n, length)]
        if length > attention_key_blocks.SHORT:
            made += ablation(f"{n}x{length}", {
                "attention as its formula stands, every score kept": Variant(ours, plain=True),
                "+ attention in blocks of keys": Variant(ours)} | compiled, equal, options)
        made += roofline(f"{n}x{length}", ours, equal, config, len(names), options)
    del ours
    made += frozen(items, folder, options)
    harness.write("ideas", "What each idea brings, and the roofline", made, options, said,
                  lambda axes: _draw(axes, [row for row in made if row["idea"] != "roofline"]))


def _draw(axes, made):
    places = np.arange(len(made))
    axes.barh(places, [np.median(row["seconds"]) for row in made], color="#4c78a8", height=0.6)
    axes.set_yticks(places, [f"{row['case']}: {row['idea']}" for row in made], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a step")


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__)
    harness.add_shapes(parser, "8x128", "4x512")
    parser.add_argument("--train-layers", default="last:2", help="last:K, for the frozen blocks")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
