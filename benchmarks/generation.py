"""Table (f): greedy generation against `generate` with its cache: 1 prompt, 8 equal, 8 mixed.

python -m benchmarks.generation
"""

import sys
import warnings

import numpy as np

from benchmarks import harness, sides, texts
from minisft.models.generate import Sampler, generate


def prompts(sequences, options):
    """-> {case: prompts}: one, several of equal length, several of lengths up to twice that."""
    n, length = options.batch[0], options.prompt_tokens
    equal = list(texts.equal(sequences, length, n))
    long = texts.equal(sequences, 2 * length, n)
    lengths = np.linspace(1, 2 * length, n).astype(int)
    return {"1 prompt": equal[:1], f"{n} of equal length": equal,
            f"{n} of mixed lengths": [row[:k] for row, k in zip(long, lengths, strict=True)]}


class Generator(sides.Peer):
    """`generate` with its key/value cache; shorter prompts are padded on the left."""

    def __init__(self, folder):
        super().__init__(folder)
        self.model.eval()
        self.model.config.use_cache = self.model.generation_config.use_cache = True

    def tokens(self, ids, new, precision="float32"):
        """Prompts -> exactly `new` tokens for each (B,new)."""
        torch, longest = self.torch, max(len(x) for x in ids)
        padded = torch.full((len(ids), longest), self.pad)
        mask = torch.zeros_like(padded)
        for row, text in enumerate(ids):
            padded[row, longest - len(text):] = torch.from_numpy(np.array(text))
            mask[row, longest - len(text):] = 1
        with torch.no_grad(), self.autocast(precision), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.model.generate(
                padded, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
                do_sample=False, eos_token_id=None, pad_token_id=self.pad)
        return found[:, longest:].numpy()


def run(options):
    """Writes the table; says which part of the tokens both sides chose alike."""
    sequences, _, said = texts.read(options)
    folder, new = sides.weights(options, "complete"), options.new_tokens
    ours = sides.Ours(folder)
    peer, made = None if options.alone else Generator(folder), []

    def ours_tokens(ids):
        return np.array([g.ids for g in generate(ours.model, ids, new, Sampler(temperature=0))])

    for case, ids in prompts(sequences, options).items():
        steps = harness.forms(ours_tokens)
        if peer is not None:
            sides.require_equal(ours, peer, ids)
            alike = np.mean(ours_tokens(ids) == peer.tokens(ids, new))
            print(f"{case}: {alike:.1%} of the tokens alike (a near tie may go either way)")
            for precision in options.precision:
                steps[f"torch {precision}"] = lambda x, p=precision: peer.tokens(x, new, p)
        seconds = harness.alternate(steps, [ids] * options.steps, options.warmup)
        made += harness.compared(case, seconds, [new * len(ids)] * options.steps)
    harness.write("generation", f"Greedy generation of {new} tokens", made, options, said)


def main(argv=None):
    """Arguments -> exit code."""
    parser = harness.parser(__doc__, batch=[8], steps=3)
    parser.add_argument("--new-tokens", type=int, default=256, help="tokens for each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32,
                        help="tokens of a prompt; mixed lengths go up to twice that")
    return harness.run(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
