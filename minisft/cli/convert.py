"""`minisft convert`: a checkpoint of another form becomes a model's folder."""

import argparse
from pathlib import Path

from minisft.cli.arguments import add_download, say
from minisft.cli.terminal import show
from minisft.data.special_tokens import read_special_tokens
from minisft.data.text import load_tokenizer
from minisft.errors import UserError
from minisft.io.hub import resolve
from minisft.io.model_folder import (
    Preprocessing,
    notes_of,
    read_folder,
    require_vocab_fits,
    write_folder,
)
from minisft.io.nanogpt import character_tokenizer, read_nanogpt

EXAMPLES = ("minisft convert out/ckpt.pt models/mine --tokenizer gpt2",
            "minisft convert old-folder models/mine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is read, and where the folder goes."""
    parser.add_argument("source", help="ckpt.pt of nanoGPT; or a folder, or a model's name")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="a folder or a model's name with the "
                        "tokenizer, such as gpt2; of nanoGPT also the meta.pkl of its "
                        "character-level data (default: that of the folder)")
    parser.add_argument("--activation", choices=("gelu", "gelu_new"), default="gelu",
                        help="nanoGPT: the exact GELU, or the one by tanh that it had before June "
                        "2023; the file does not say which")
    add_download(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the folder."""
    out = Path(args.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already, expected a new folder")
    read = _nanogpt if Path(args.source).is_file() else _folder
    model, tokenizer, preprocessing = read(args)
    write_folder(out, model, tokenizer, preprocessing)
    show(f"{out}: {model!r}")


def _folder(args):
    """-> model, tokenizer and Preprocessing of a folder."""
    tokenizer = None if args.tokenizer is None else _place(args)
    return read_folder(args.source, args.download, say=say, tokenizer=tokenizer,
                       revision=args.revision, allow_http=args.allow_http)


def _nanogpt(args):
    """-> model, tokenizer and Preprocessing of a ckpt.pt."""
    if args.tokenizer is None:
        raise UserError(f"{args.source}: nanoGPT saves no tokenizer; give one with --tokenizer, a "
                        "folder or a name such as gpt2, or the meta.pkl of its characters")
    place = _place(args)
    model = read_nanogpt(args.source, args.activation)
    tokenizer = character_tokenizer(place) if place.suffix == ".pkl" else load_tokenizer(place, say)
    require_vocab_fits(tokenizer, model.trunk.config, place)
    model.special_tokens = read_special_tokens(place, tokenizer)
    for note in notes_of(model):
        say(f"note: {note}")
    say(f"its GELU is read as {args.activation}; --activation names the other one")
    return model, tokenizer, Preprocessing(clean=())


def _place(args):
    """-> where the tokenizer is."""
    place = Path(args.tokenizer)
    return place if place.exists() else resolve(args.tokenizer, args.download,
                                                      allow_http=args.allow_http)
