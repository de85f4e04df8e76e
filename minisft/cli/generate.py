"""`minisft generate`: continue a prompt."""

import sys

import numpy as np
from tqdm import tqdm

from minisft.cli.arguments import add_model, at_least_one
from minisft.data.text import encode_all
from minisft.errors import UserError
from minisft.folder import end_token, read_folder
from minisft.generate import Sampler, generate

HELP = "continue a prompt with a language model"


def add_arguments(parser):
    """The prompt and how the next token is chosen."""
    add_model(parser, "folder or name of a language model")
    parser.add_argument("prompt", nargs="+", help="one text, or several, each continued")
    parser.add_argument("--max-new-tokens", type=at_least_one, default=128,
                        help="longest continuation")
    parser.add_argument("--temperature", type=float, default=0.8,
                        help="0 takes the most probable token (greedy)")
    parser.add_argument("--top-k", type=int, default=0, help="most probable tokens kept (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0,
                        help="fewest tokens kept that reach this probability together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices")


def run(args):
    """Prints each prompt's continuation."""
    try:
        sampler = Sampler(args.temperature, args.top_k, args.top_p, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    model, tokenizer, treatment = read_folder(args.model, args.download, task="complete")
    room = model.trunk.config.n_positions
    texts = [prompt + (treatment.separator or "") for prompt in args.prompt]
    ids, cut = encode_all(tokenizer, texts, room, "tail")
    if cut:
        print(f"minisft: {cut} prompts were longer than {room} tokens: their ends were kept",
              file=sys.stderr)
    end = end_token(tokenizer)
    # an empty prompt starts where the model's documents start
    if any(len(x) == 0 for x in ids) and end is None:
        raise UserError("an empty prompt, and the tokenizer has no token that starts a text")
    ids = [x if len(x) else np.array([end]) for x in ids]
    with tqdm(unit="token", desc="generating", leave=False, dynamic_ncols=True) as bar:
        found = generate(model, ids, args.max_new_tokens, sampler, end, bar.update)
    for prompt, generated in zip(args.prompt, found, strict=True):
        print(prompt + ("\n" if treatment.separator else "") + tokenizer.decode(generated.ids))
        if generated.stopped == "full":
            print(f"minisft: stopped, the model has no more than {room} positions",
                  file=sys.stderr)
