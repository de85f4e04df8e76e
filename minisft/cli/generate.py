"""`minisft generate`: continue a prompt."""

import argparse

from tqdm import tqdm

from minisft.cli.arguments import (
    add_model,
    add_preprocessing,
    chosen_preprocessing,
    read_model,
    say,
    whole,
)
from minisft.cli.terminal import visible
from minisft.data.tokenizer import decode
from minisft.errors import UserError
from minisft.jobs.generate import generate_texts
from minisft.models.generate import Sampler

EXAMPLES = ('minisft generate --model runs/mine/model "It was"',
            'minisft generate --model gpt2 --temperature 0 --max-new-tokens 40 "The capital of"')
BASIC = ("prompt", "model", "max_new_tokens", "temperature", "top_k", "top_p", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt and how the next token is chosen."""
    add_model(parser, "folder or name of a language model")
    parser.add_argument("prompt", nargs="+", help="one text, or several, each continued")
    parser.add_argument("--max-new-tokens", type=whole(1), default=128, metavar="N",
                        help="longest continuation in tokens")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X",
                        help="0 takes the most probable token (greedy)")
    parser.add_argument("--top-k", type=whole(0), default=0, metavar="N",
                        help="most probable tokens kept (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="X",
                        help="fewest tokens kept that reach this probability together")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N",
                        help="seed of the choices")
    add_preprocessing(parser, separator=True)


def run(args: argparse.Namespace) -> None:
    """Prints each prompt's continuation."""
    try:
        sampler = Sampler(args.temperature, args.top_k, args.top_p, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    model, tokenizer, preprocessing = read_model(args, task="complete")
    preprocessing = chosen_preprocessing(args, preprocessing)
    say(str(preprocessing))
    ends = [prompt + ("\n" if preprocessing.separator else "") for prompt in args.prompt]
    stream = Stream(tokenizer) if len(ends) == 1 else None
    if stream:
        print(visible(ends[0]), end="", flush=True)
    with tqdm(unit="token", desc="generating", leave=False, dynamic_ncols=True,
              disable=True if stream else None) as bar:     # none where stderr is a file
        results = generate_texts(
            model, tokenizer, preprocessing, args.prompt, args.max_new_tokens, sampler, bar.update,
            say, stream)
    for prompt, generated in zip(ends, results, strict=True):
        if stream:
            stream.end(generated.ids)
        else:
            print(visible(prompt + decode(tokenizer, generated.ids)))
        if generated.finish_reason == "context":
            say(f"stopped there, the model has only {model.trunk.config.n_positions} positions "
                "for a prompt and its continuation")


class Stream:
    """Prints the text of one prompt while its tokens come."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.shown = tokenizer, [], ""

    def __call__(self, _, token):
        self.ids.append(token)
        text = decode(self.tokenizer, self.ids)
        # half a character, or a text that a later token has changed, waits for what follows
        if text.startswith(self.shown) and not text.endswith("\ufffd"):
            print(visible(text[len(self.shown):]), end="", flush=True)
            self.shown = text

    def end(self, ids):
        """Prints what is still missing of the whole."""
        text = decode(self.tokenizer, ids)
        print(visible(text[len(self.shown):] if text.startswith(self.shown) else f"\n{text}"))
