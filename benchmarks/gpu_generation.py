"""Greedy generation of GPT-2 124M on a card, beside transformers: tokens a second.

    python -m benchmarks.gpu_generation                  one prompt, and eight, in bfloat16
    python -m benchmarks.gpu_generation --peers          ours alone, in seconds
    python -m benchmarks.gpu_generation --profile        and its launches, by torch.profiler
    python -m benchmarks.gpu_generation --dry-run        tiny, on the emulator

The peers are `generate` of transformers as it is (eager), and with a static cache, whose steps it
compiles by torch.compile with CUDA graphs (static); their weights are bfloat16 throughout. All
sides have the same random weights and go on from the same prompts, by turns. A time is that of a
whole call, reading the prompts included. Without transformers ours runs alone.
"""

import argparse
import os
import sys
import time
import warnings
from functools import partial
from importlib.util import find_spec
from statistics import median

import numpy as np

from minisft.backend import array
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel

PEERS = "eager", "static"
OURS = "minisft"
DRAWN = 1_048_583     # numbers, which the weights repeat: drawing 124 million takes long

say = partial(print, flush=True)


def random_model(config):
    """-> LanguageModel; initial values of a usual size, made quickly."""
    model = LanguageModel(config, seed=None)
    drawn = np.random.default_rng(0).standard_normal(DRAWN, dtype=np.float32)
    for p in model.store:
        p.value[...] = p.fill + p.scale * np.resize(drawn, p.shape)
    return model


class Peer:
    """`generate` of transformers, with the weights of one of our models."""

    def __init__(self, model, device, precision, static):
        import torch
        import transformers

        self.torch, self.device, config = torch, device, model.trunk.config
        self.model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd,
            n_layer=config.n_layer, n_head=config.n_head, bos_token_id=0, eos_token_id=0))
        lacks = self.model.load_state_dict(
            {f"transformer.{p.name}": torch.tensor(array.to_cpu(p.value)) for p in model.store},
            strict=False)
        if lacks.unexpected_keys:
            raise RuntimeError(f"transformers has no {lacks.unexpected_keys}")
        self.model.tie_weights()
        self.model.to(device, getattr(torch, precision)).eval()
        self.options = {"cache_implementation": "static"} if static else {}
        if static and not hasattr(self.model, "get_compiled_call"):     # newer ones compile it
            self.model.forward = torch.compile(self.model.forward, mode="reduce-overhead")

    def tokens(self, prompts, new):
        """Prompts of one length (B,T) -> `new` tokens for each (B,new)."""
        ids = self.torch.from_numpy(prompts).to(self.device)
        with self.torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new,
                min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0,
                **self.options)
        return found[:, prompts.shape[1]:].cpu().numpy()


def peers(args, model):
    """-> {name: tokens(prompts, new)} of the peers; says when there are none."""
    if args.peers and not (find_spec("transformers") and find_spec("torch")):
        say("transformers is not there: ours runs alone")
        return {}
    if args.peers:
        say("importing torch and transformers")
    return {f"transformers {name}": Peer(model, "cpu" if args.dry_run else "cuda", args.precision,
                                         name == "static").tokens for name in args.peers}


def measure(case, sides, prompts, args):
    """Prints the tokens a second of each side, the sides by turns."""
    say(case)
    first = {}
    for name, tokens in sides.items():
        started = time.perf_counter()
        first[name] = tokens(prompts, args.new_tokens)
        said = "" if name == OURS else \
            f", {np.mean(first[name] == first[OURS]):.0%} of the tokens as ours"
        say(f"  {name}: first call {time.perf_counter() - started:.1f} s{said}")
    found = {name: [] for name in sides}
    for turn in range(args.rounds):
        for name in list(sides) if turn % 2 else reversed(sides):
            started = time.perf_counter()
            sides[name](prompts, args.new_tokens)
            found[name].append(len(prompts) * args.new_tokens / (time.perf_counter() - started))
    for name, speeds in found.items():
        beside = "" if name == OURS else f"  ours is x{median(found[OURS]) / median(speeds):.2f}"
        say(f"  {name:<20} {median(speeds):10,.0f} tokens/s "
            f"({min(speeds):,.0f} to {max(speeds):,.0f}){beside}")


def profile(tokens, prompts, few=8, many=72):
    """Prints what the card does for a token: the difference of two calls."""
    import torch
    spent = {}
    for new in (few, many):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            tokens(prompts, new)
            torch.cuda.synchronize()
        for row in found.key_averages():
            if row.device_type == torch.autograd.DeviceType.CUDA:
                sign = 1 if new == many else -1
                time_, count = spent.get(row.key, (0, 0))
                spent[row.key] = (time_ + sign * row.self_device_time_total,
                                  count + sign * row.count)
    per = many - few
    rows = sorted(spent.items(), key=lambda item: -item[1][0])
    say(f"  {len(prompts)} prompts: busy {sum(t for _, (t, _) in rows) / per:.1f} us a token in "
        f"{sum(n for _, (_, n) in rows) / per:.1f} launches")
    for name, (time_, count) in rows:
        if count > 0:
            say(f"    {time_ / per:8.1f} us {count / per:6.1f} x {name[:100]}")


def main(argv=None):
    """Arguments -> exit code: 0, 2 without a card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", choices=("bfloat16", "float16", "float32"),
                        default="bfloat16")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8], help="of a case (1 8)")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--profile", action="store_true", help="the launches of ours; PyTorch")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the emulator")
    args = parser.parse_args(argv)
    if args.dry_run:
        os.environ["MINISFT_CUDA"] = "emulate"
    elif not array.gpu_available():
        print("benchmarks.gpu_generation: no CUDA card that CuPy can use, expected one (or "
              "--dry-run)", file=sys.stderr)
        return 2
    config = GPT2Config(97, 64, 32, 2, 2) if args.dry_run else GPT2Config.size("gpt2")
    model = random_model(config).to("cpu" if args.dry_run else "cuda", args.precision)

    def ours(prompts, new):
        return np.array([g.ids for g in generate(model, list(prompts), new, Sampler(0))])

    cases = {f"{n} prompt{'s' * (n > 1)}, {args.new_tokens} new tokens, {args.precision}":
             np.random.default_rng(n).integers(0, config.vocab_size, (n, args.prompt_tokens))
             for n in args.prompts}
    for case, prompts in cases.items():
        measure(case, {OURS: ours}, prompts, args)
    if args.profile:
        for prompts in cases.values():
            profile(ours, prompts)
    beside = peers(args, model)
    if beside:
        for case, prompts in cases.items():
            measure(case, {OURS: ours} | beside, prompts, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
