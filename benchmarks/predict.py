"""Table (j): texts a second of a classifier, for many texts of real lengths.

python -m benchmarks.predict --model minisft-gpt2 --texts inbox.csv

Ours is what `minisft predict` does between reading and writing: token ids, batches of like length,
probabilities. The peers: the pipeline of `transformers`, 32 texts at a time as they come (it does
not sort), and ONNX Runtime in float32 and in int8 (`quantize_dynamic`), 32 texts of like length at
a time, padded to the longest. They are exported by `optimum` (docs/how-to/onnx.md), in whose
environment this runs; what is not installed is left out and named. In float32 all sides must give
the same probabilities within 1e-4.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import harness, sides, texts
from minisft.backend.cpu import row_blocks
from minisft.backend.cpu.processor import why_not_bfloat16
from minisft.data.batch import BATCH_TOKENS
from minisft.data.read import read_texts
from minisft.data.sequences import encode_sequences
from minisft.data.text import load_tokenizer
from minisft.data.toy_news import generate
from minisft.dispatch import FORMATS
from minisft.errors import UserError
from minisft.evaluation.evaluate import log_probabilities
from minisft.io import checkpoint, hub
from minisft.io.files import read_json
from minisft.io.model_folder import Preprocessing, write_folder

AT_ONCE = 32
NAMES = "0", "1", "2", "3"


def run(options):
    """Writes the table."""
    found, about = read(options)
    found = [found[n % len(found)] for n in range(options.count)]
    place = hub.resolve(options.model or "minisft-gpt2").resolve()
    folder = Path(options.models) / f"predict-{place.name}-{options.seed}"
    model = checkpoint.load(place, task="classify", seed=options.seed, label_names=NAMES)
    write_folder(folder, model, load_tokenizer(place), Preprocessing())
    steps = ours(model, load_tokenizer(folder), options.max_tokens)
    sides_here = harness.forms(steps["float32"])
    if not why_not_bfloat16():
        sides_here[harness.LOW] = steps["bfloat16"]
    peers, missing = ({}, []) if options.alone else others(folder, options)
    wanted = steps["float32"](found[:2 * AT_ONCE])
    for name, step in peers.items():
        if "int8" not in name:
            harness.require_equal(wanted, step(found[:2 * AT_ONCE]))
    items = [[found[n] for n in part] for part in
             np.array_split(np.arange(options.count), options.steps)]
    for step in (sides_here | peers).values():     # once, untimed, on a few
        step(found[:AT_ONCE])
    seconds = harness.alternate(sides_here | peers, items, options.warmup)
    made = harness.compared(f"{place.name}, {options.count:,} texts", seconds,
                            [len(item) for item in items])
    for row in made:
        row["columns"] = {"side": row["side"], "texts/s": f"{row['tokens_per_second']:,.0f}"}
        if "peer" in row:
            rate = options.count / sum(row["peer_seconds"])
            row["columns"] |= {"peer": row["peer"], "peer, texts/s": f"{rate:,.0f}",
                               "ratio": f"**{row['ratio_of_sums']:.2f}**"}
    harness.write(f"predict-{place.name}", "Texts a second of a classifier", made, options,
                  "; ".join([about, *(f"{name} is not installed" for name in missing)]))


def read(options):
    """Options -> texts, what to say of them."""
    if options.texts:
        _, found = read_texts(options.texts, list(options.text_column), ())
        return found.texts, Path(options.texts).name
    if texts.shared() is not None and (place := texts.shared() / texts.KNOWN["AG News"]).is_file():
        return read_texts(place, ["text"], ())[1].texts, "AG News"
    return generate("train", options.seed)[0], "bundled toy-news (AG News was not at hand)"


def ours(model, tokenizer, max_tokens):
    """-> {precision: step(texts) -> probabilities (M,K)}."""
    def step(precision):
        def probabilities(found):
            model.store.set_compute_dtype(FORMATS[precision])
            ids, types, _ = encode_sequences(tokenizer, found, max_tokens)
            return np.exp(log_probabilities(model, ids, BATCH_TOKENS["cpu"], types=types))
        return probabilities
    return {precision: step(precision) for precision in harness.PRECISIONS}


def others(folder, options):
    """A folder -> {name: step} of the peers that are installed, names of those that are not."""
    made, missing = {}, []
    if find_spec("transformers") and find_spec("torch"):
        made["transformers pipeline"] = pipeline(folder, options.max_tokens)
    else:
        missing.append("transformers")
    if find_spec("onnxruntime") and find_spec("optimum"):
        for name, path in exported(folder):
            made[f"onnxruntime {name}"] = onnx(folder, path, options.max_tokens)
    else:
        missing.append("onnxruntime with optimum")
    if not made:
        raise UserError(f"no peer is installed: {', '.join(missing)}; --alone times our side")
    return made, missing


def pipeline(folder, max_tokens):
    """-> step(texts) -> probabilities (M,K)."""
    _, transformers = sides.packages()
    harness.set_threads()
    run = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)

    def step(found):
        rows = run(found, batch_size=AT_ONCE, truncation=True, max_length=max_tokens)
        return np.array([[row["score"] for row in sorted(rows_of, key=lambda r: r["label"])]
                         for rows_of in rows])
    return step


def exported(folder):
    """-> (name, file) of the model in ONNX, float32 and int8; made once."""
    to = folder / "onnx"
    if not (to / "model.int8.onnx").is_file():
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from optimum.exporters.onnx import main_export
        main_export(str(folder), to, task="text-classification")
        quantize_dynamic(to / "model.onnx", to / "model.int8.onnx", weight_type=QuantType.QInt8)
    return [("float32", to / "model.onnx"), ("int8", to / "model.int8.onnx")]


def onnx(folder, path, max_tokens):
    """-> step(texts) -> probabilities (M,K)."""
    import onnxruntime
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = row_blocks.threads()
    session = onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
    wanted = [each.name for each in session.get_inputs()]
    tokenizer = load_tokenizer(folder)
    pad = read_json(folder / checkpoint.CONFIG).get("pad_token_id") or 0

    def step(found):
        ids, types, _ = encode_sequences(tokenizer, found, max_tokens)
        types = types or [0 * row for row in ids]
        logits = np.empty((len(ids), len(NAMES)), np.float32)
        order = np.argsort([len(row) for row in ids], kind="stable")
        for part in np.array_split(order, range(AT_ONCE, len(order), AT_ONCE)):
            shape = len(part), max(len(ids[n]) for n in part)
            made = {"input_ids": np.full(shape, pad), "attention_mask": np.zeros(shape, np.int64),
                    "token_type_ids": np.zeros(shape, np.int64)}
            for row, n in enumerate(part):
                length = len(ids[n])
                made["input_ids"][row, :length], made["attention_mask"][row, :length] = ids[n], 1
                made["token_type_ids"][row, :length] = types[n]
            (logits[part],) = session.run(["logits"], {name: made[name] for name in wanted})
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)
    return step


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, steps=4, warmup=0)
    parser.add_argument("--count", type=int, default=10_000, help="texts; fewer are repeated")
    parser.add_argument("--max-tokens", type=int, default=256, help="texts are cut to so many")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
