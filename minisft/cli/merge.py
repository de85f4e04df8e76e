"""`minisft merge`: an adapter and its base, made one model."""

import argparse
from pathlib import Path

from minisft.cli.arguments import add_download, say
from minisft.errors import UserError
from minisft.io import hub
from minisft.io.model_folder import read_folder, write_folder

EXAMPLES = ("minisft merge runs/mine/adapter --out merged",
            "minisft merge someone/an-adapter --download --out merged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The adapter, and where the model goes."""
    parser.add_argument("adapter", metavar="ADAPTER",
                        help="folder of an adapter, by finetune --adapter or by PEFT; its config "
                        "names the base")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the model")
    add_download(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the folder."""
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already, expected a new folder")
    folder = hub.resolve(args.adapter, args.download, args.revision, args.allow_http)
    if not hub.is_adapter(folder):
        raise UserError(f"{folder}: holds a model, expected an adapter with its {hub.ADAPTER}")
    model, tokenizer, preprocessing = read_folder(folder, say=say)
    write_folder(out, model, tokenizer, preprocessing)
    print(f"the adapter {folder} and its base {hub.base_of(folder)} are one model in {out}")
