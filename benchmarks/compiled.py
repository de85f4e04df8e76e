"""What the compiled loops bring (extra `fast`): each operation, and whole steps, with and without.

python -m benchmarks.compiled

Our side alone. Both ways run the same calls by turns in one process; a ratio is the time of NumPy
over that of the compiled loops for the same call.
"""

import sys
import time
from functools import partial

import numpy as np

from benchmarks import harness, sides, small, texts
from minisft import dispatch
from minisft.backend import random
from minisft.backend.cpu import jit
from minisft.dispatch import cross_entropy, dropout, gelu, layer_norm, softmax
from minisft.errors import UserError
from minisft.nn.parameters import Parameter, Parameters
from minisft.training.optim import AdamW

PLAIN = "NumPy"
STREAM = random.Stream(0, 1)
WIDTHS = (2000, 192), (2000, 384), (1500, 768)
INNER = (2000, 768), (2000, 1536), (1500, 3072)
SCORES, LOGITS = (12, 256, 256), (256, 50257)
HEADS, CHANNELS, RATE = 12, 64, 0.1
AT_LEAST = 0.02     # seconds that one measurement of an operation takes


def normal(*shape):
    """-> normal values float32 of that shape."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def both(case, forward, backward, args, dy):
    """An operation -> {case: call} of its forward and its backward."""
    def kept():     # each way the cache of its own forward
        on = jit.enabled()
        if on not in caches:
            caches[on] = forward(*args)[1]
        return caches[on]

    caches = {}
    return {f"{case}, forward": lambda: forward(*args),
            f"{case}, backward": lambda: backward(dy, kept())}


def operations(options):
    """-> {case: call}: the operations at the sizes of real steps."""
    made = {}
    for n, width in WIDTHS:
        x, words = normal(n, width), tokens(n)
        made |= both(f"layer_norm ({n}, {width})", layer_norm.forward, layer_norm.backward,
                     (x, x[0], x[1]), x)
        made |= both(f"dropout ({n}, {width})", dropout.forward, dropout.backward,
                     (x, words, RATE), x)
    for n, width in INNER:
        for form in ("tanh", "erf"):
            x = normal(n, width)
            made |= both(f"gelu {form} ({n}, {width})", gelu.forward, gelu.backward, (x, form), x)
    s, z = normal(*SCORES), normal(*LOGITS)
    made |= both(f"softmax {s.shape}", softmax.forward, softmax.backward, (s,), s)
    labels, dz = np.arange(len(z)), np.empty_like(z)
    made |= both(f"cross_entropy {z.shape}", cross_entropy.forward,
                 partial(cross_entropy.backward, out=dz), (z, labels), 1.0)
    made |= attention(options)
    return made | {f"AdamW, {options.values / 1e6:.0f} million": optimizer(options.values)}


def tokens(n):
    """-> what makes the random words of n tokens."""
    return random.Tokens(STREAM, 1, random.MLP_OUT, np.arange(n) // 60, np.arange(n) % 60)


def attention(options):
    """-> {case: call} of the attention of 32 texts of real lengths, products included."""
    sequences, _, _ = texts.read(options, most=32)
    cu_seqlens = np.concatenate([[0], np.cumsum(sequences.lengths)])
    q, k, v, dy = normal(4, cu_seqlens[-1], HEADS, CHANNELS)
    words = random.Scores(STREAM, 1, np.arange(len(sequences)), cu_seqlens, HEADS)
    made = {}
    for causal in (True, False):
        for drop in (None, (RATE, words)):
            case = (f"attention, {HEADS} heads of {CHANNELS}, {'causal' if causal else 'all keys'}"
                    f"{', dropout' if drop else ''}")
            made |= both(case, dispatch.attention.forward, dispatch.attention.backward,
                         (q, k, v, cu_seqlens, cu_seqlens[:-1], sequences.lengths, causal, drop),
                         dy)
    return made


def optimizer(values):
    """-> a call that does one step of AdamW over so many values."""
    store = Parameters([Parameter("w", (values,), 0, decays=True)])
    store.grads[...] = 1e-3
    return partial(AdamW(store).step, 1e-5, 0.5)


def measured(case, call, options):
    """-> a row of the table, from calls by turns, each repeated for AT_LEAST seconds."""
    seconds, clock = {harness.FAST: [], PLAIN: []}, clock_of(options)
    repeats = {}
    for turn in range(options.repeats + 1):     # the first compiles, and says how often to repeat
        for name in sorted(seconds, reverse=bool(turn % 2)):
            with jit.compiled(name == harness.FAST):
                if turn == 0:
                    call()
                    started = time.perf_counter()
                    call()
                    passed = time.perf_counter() - started
                    repeats[name] = max(1, round(AT_LEAST / passed))
                    continue
                started = clock()
                for _ in range(repeats[name]):
                    call()
                seconds[name].append((clock() - started) / repeats[name])
    return row(case, seconds)


def row(case, seconds):
    """-> a row of the table: medians in milliseconds, and the ratio of each turn."""
    ours, plain = (np.array(seconds[name]) for name in (harness.FAST, PLAIN))
    found = harness.compared(case, {harness.FAST: list(ours), PLAIN: list(plain)}, [1] * len(ours))
    ratio = found[0]["ratio"]
    return found[0] | {"columns": {
        "NumPy, ms": f"{1e3 * np.median(plain):.3g}",
        "compiled, ms": f"{1e3 * np.median(ours):.3g}",
        "ratio": f"**{ratio['median']:.2f}**",
        "range": f"{ratio['range'][0]:.2f}-{ratio['range'][1]:.2f}"}}


def clock_of(options):
    """-> the function that tells the time."""
    return time.process_time if options.processor_time else time.perf_counter


def steps(options):
    """-> rows of the table: whole training steps of small models."""
    made = []
    for name, chosen in small.models(options).items():
        sequences, names, _ = texts.read(chosen)
        folder = sides.weights(chosen, "classify", names)
        for rate in options.dropout:
            ours = sides.Ours(folder, rate)
            seconds, clock = {harness.FAST: [], PLAIN: []}, clock_of(options)
            chosen_texts = texts.batches(len(sequences), options.batch[0], options.steps + 1,
                                         options.seed)
            for turn, numbers in enumerate(chosen_texts):
                item = ([sequences.ids[n] for n in numbers],
                        [sequences.labels[n] for n in numbers])
                for side in sorted(seconds, reverse=bool(turn % 2)):
                    with jit.compiled(side == harness.FAST):
                        started = clock()
                        ours.step(*item)
                        if turn:     # the first compiles
                            seconds[side].append(clock() - started)
            made.append(row(f"step: {name}, {options.batch[0]} texts, dropout {rate:g}", seconds))
    return made


def run(options):
    """Writes the table; raises UserError where nothing is compiled."""
    if not jit.enabled():
        raise UserError("no compiled loops here: expected the extra `fast`, and MINISFT_COMPILED "
                        "not off")
    made = []
    for case, call in operations(options).items():
        if not options.only or any(word in case for word in options.only):
            made.append(measured(case, call, options))
    if not options.only or "step" in options.only:
        made += steps(options)
    harness.write("compiled", "NumPy's time over that of the compiled loops", made, options,
                  texts.read(options, most=32)[2])


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, layers=6, width=384, vocab=30522, steps=10, alone=True,
                            dropout=[0.0, 0.1])
    parser.add_argument("--repeats", type=int, default=15, help="measurements of an operation")
    parser.add_argument("--values", type=int, default=124_000_000, help="of the optimizer")
    parser.add_argument("--only", nargs="+", default=None, metavar="WORD",
                        help="cases with one of these in their name; step: whole steps")
    parser.add_argument("--processor-time", action="store_true",
                        help="of the process, for one thread on a machine that does other work")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
