"""Arguments that several commands share."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from os.path import realpath
from pathlib import Path
from typing import Any

from minisft.backend.array import DEVICES, device_name
from minisft.backend.gpu import cuda
from minisft.cli.terminal import show
from minisft.data.batch import BATCH_TOKENS
from minisft.data.encoding import COMPRESSION_RATIO_HELP, MAX_COMPRESSION_RATIO
from minisft.data.text import CLEANING_STEPS, parse_cleaning_steps
from minisft.dispatch import PRECISIONS
from minisft.errors import UserError, as_flag, render, shown
from minisft.io.files import lies_in
from minisft.io.hub import ALLOW_HTTP_HELP, DOWNLOAD_HELP, REVISION_HELP
from minisft.io.model_folder import read_folder
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.token_heads import SpanClassifier, TokenClassifier
from minisft.training.config import PRECISION_HELP, require_device
from minisft.training.loop import Interrupted
from minisft.training.options import Config

METAVARS = {int: "N", float: "X"}


class _Store(argparse.Action):
    """Keeps the value, and in `given` that there was one: it may equal the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def add_config(parser: argparse.ArgumentParser, kind: type[Config],
               beside_resume: Sequence[str] = ()) -> None:
    """One option for each option of a config, in its groups, and --resume.

    `beside_resume`: names of the options that may be given again when a run goes on.
    """
    names = [as_flag(name) for name in beside_resume if name in kind.option_fields()]
    may_change = f"; beside it these may be others: {', '.join(names)}" if names else ""
    for part in fields(kind):
        group = parser.add_argument_group(part.name)
        for setting in fields(part.default_factory):
            options = {"help": render(setting.metadata["help"], as_flag),
                       **setting.metadata["argparse"]}
            if options.get("action") != "store_true":
                options |= {"default": setting.default, "action": _Store}
            if options.get("type") in METAVARS:
                options["metavar"] = METAVARS[options["type"]]
            group.add_argument(as_flag(setting.name), **options)
    group.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, with the "
                       f"settings that it began with{may_change}")
    add_kernels(group)


def run_with_config(args: argparse.Namespace, kind: type[Config], command: str,
                    job: Callable[[Any, str | None, Callable[[str], None], dict[str, Any]], Any],
                    beside_resume: Sequence[str] = ()) -> int:
    """Calls job(config, resume, show, options given beside --resume); -> exit code, 130 after an
    interruption.

    `beside_resume` as in `add_config`.
    """
    values = {name: getattr(args, name) for name in kind.option_fields()}
    given: dict[str, Any] = {}
    if args.resume is not None:
        given = {name: value for name, value in values.items()
                 if name in getattr(args, "given", ()) or value is True}
        for name in given:
            if name not in beside_resume:
                expected = [as_flag(n) for n in beside_resume if n in values]
                raise UserError(f"{as_flag(name)} beside --resume: expected " + (
                    f"some of {', '.join(expected)}; the other settings of the run go on"
                    if expected else "no other option, the settings of the run go on"))
    try:
        job(kind.from_options(**values), args.resume, show, given)
    except Interrupted as stopped:
        say(f"interrupted; to go on: minisft {command} --resume {shlex.quote(str(stopped))}")
        return 130
    return 0


def add_model(parser: argparse.ArgumentParser, help: str, default: str | None = None) -> None:
    """--model, what says where it comes from, --device and --precision."""
    parser.add_argument("--model", required=default is None, default=default, metavar="NAME",
                        help=help)
    add_download(parser)
    add_device(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help=PRECISION_HELP)


def add_download(parser: argparse.ArgumentParser) -> None:
    """--download, --revision and --allow-http."""
    parser.add_argument("--download", action="store_true", help=DOWNLOAD_HELP)
    parser.add_argument("--revision", metavar="NAME", help=REVISION_HELP)
    parser.add_argument("--allow-http", action="store_true", help=ALLOW_HTTP_HELP)


def read_model(args: argparse.Namespace, **options: Any) -> tuple[Any, Any, Any]:
    """What `add_model` adds -> model, tokenizer, Preprocessing; options as `checkpoint.load`."""
    require_device(args.device, args.precision)
    if getattr(args, "batch_tokens", 0) is None:
        args.batch_tokens = BATCH_TOKENS[args.device]
    return read_folder(args.model, args.download, args.device, say, args.precision,
                       revision=args.revision, allow_http=args.allow_http, **options)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device and --kernels."""
    parser.add_argument("--device", type=device_name, choices=DEVICES, default="cpu",
                        help="where the model computes")
    add_kernels(parser)


def add_kernels(parser: Any) -> None:
    """--kernels."""
    parser.add_argument("--kernels", choices=cuda.VERSIONS, default=cuda.VERSIONS[0],
                        help="on a GPU, or with MINISFT_CUDA=emulate: which CUDA kernels compute")


def whole(low: int, high: int = 10**12) -> Callable[[str], int]:
    """-> a reader of an option's text: a whole number from low to high."""
    def read(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from {low} to "
                                             f"{high}")
        return int(text)
    return read


def add_preprocessing(parser: argparse.ArgumentParser, separator: bool = False) -> None:
    """--clean, and --separator for a language model's prompts."""
    default = "(default: as the model's folder says, and none where it says nothing)"
    parser.add_argument("--clean", metavar="STEPS", help="cleaning: all, none, or some of "
                        f"{','.join(CLEANING_STEPS)} {default}")
    if separator:
        parser.add_argument("--separator", metavar="TEXT",
                            help=f"language model: what stands behind a prompt {default}")
    parser.add_argument("--parse-special", action="store_true", help="tokens with a role, such as "
                        "<|endoftext|> or [SEP], that stand in a text are read as those tokens, "
                        "not as characters (default: as in training)")


def chosen_preprocessing(args, preprocessing):
    """The folder's Preprocessing -> the one in force."""
    if args.clean is not None:
        preprocessing = replace(preprocessing, clean=parse_cleaning_steps(args.clean))
    if getattr(args, "separator", None) is not None:
        preprocessing = replace(preprocessing, separator=args.separator or None)
    if args.parse_special:
        preprocessing = replace(preprocessing, parse_special=True)
    return preprocessing


def lines_of_stdin() -> list[str]:
    """-> the lines of standard input; raises UserError where none holds something."""
    # a person who forgot the texts would wait for an end that only Ctrl-D brings
    text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        raise UserError("give texts or --file, or lines of text on standard input")
    # not splitlines, which a form feed or U+2028 within a text would break
    return text.removesuffix("\n").split("\n")


def say(line):
    """What is no result goes to stderr."""
    print(f"minisft: {shown(line)}", file=sys.stderr)


def add_table(parser: argparse.ArgumentParser, help: str = "maximum tokens computed at once "
              "(default: {cpu} on a CPU, {cuda} on a card)".format(**BATCH_TOKENS)) -> None:
    """How a file of texts is read; --batch-tokens with its help."""
    parser.add_argument("--text-column", nargs="+", metavar="NAME", help="column of the text; "
                        "several are joined by a space (default: as in training; text)")
    parser.add_argument("--pair-column", metavar="NAME", help="column of a second text, which "
                        "BERT reads behind the first (default: as in training; none)")
    parser.add_argument("--no-header", action="store_true",
                        help="the file has no header: columns are named 1, 2, ...")
    parser.add_argument("--encoding", default="utf-8", metavar="NAME",
                        help="encoding of the file")
    parser.add_argument("--delimiter", metavar="CHAR", help="what separates the fields: one "
                        "character, or the word tab (default: the comma of .csv, the tab of .tsv, "
                        "or what the rows plainly have)")
    parser.add_argument("--max-compression-ratio", type=whole(1), default=MAX_COMPRESSION_RATIO,
                        metavar="N", help=COMPRESSION_RATIO_HELP)
    parser.add_argument("--batch-tokens", type=whole(1), metavar="N", help=help)


# What a person calls the models that a folder may hold, and the options that some alone use.
KINDS = {Classifier: "a classifier of texts", LanguageModel: "a language model",
         TokenClassifier: "a tagger", SpanClassifier: "a model of answers",
         EncoderDecoder: "a translator"}
USED_BY = {
    **dict.fromkeys(("text_column", "pair_column", "label_column", "label_map"), (Classifier,)),
    **dict.fromkeys(("prompt_column", "completion_column", "max_new_tokens", "separator"),
                    (LanguageModel,)),
    **dict.fromkeys(("word_column", "tag_column"), (TokenClassifier,)),
    **dict.fromkeys(("source_column", "target_column", "test_target", "beam_size",
                     "length_penalty"), (EncoderDecoder,)),
    **dict.fromkeys(("no_header", "delimiter", "skip_bad_rows", "clean", "parse_special"),
                    (Classifier, LanguageModel, EncoderDecoder))}
# Those that say how a file is read.
OF_FILE = ("text_column", "pair_column", "word_column", "source_column", "no_header", "encoding",
           "delimiter", "max_compression_ratio", "skip_bad_rows")


def require_used(args: argparse.Namespace, model: Any) -> None:
    """Raises UserError for the first option that models of other kinds alone have a use for."""
    for name, kinds in USED_BY.items():
        if name in args.changed and not isinstance(model, kinds):
            (found,) = (words for kind, words in KINDS.items() if isinstance(model, kind))
            raise UserError(f"{as_flag(name)} is for {' or '.join(map(KINDS.get, kinds))}, "
                            f"{args.model} is {found}")


def require_file(args: argparse.Namespace, names: Sequence[str] = OF_FILE,
                 file: str = "file") -> None:
    """Raises UserError for the first option that has a use beside a file alone, which is missing.
    """
    for name in names:
        if name in args.changed and getattr(args, file) is None:
            raise UserError(f"{as_flag(name)} is for {as_flag(file)}, which is not given")


def output_file(args: argparse.Namespace) -> Path | None:
    """-> the path of --out, None without; raises UserError where writing there would lose a file.
    """
    out = None if args.out is None else Path(args.out)
    if args.overwrite and not out:
        raise UserError("--overwrite is for --out")
    if out and (out.exists() and not (args.overwrite and out.is_file()) or
                not out.parent.is_dir()):
        raise UserError(f"--out {out}: expected a new file in a folder that is there (or "
                        "--overwrite)")
    if out and args.file and realpath(out) == realpath(args.file):
        raise UserError(f"--out {out}: is the file that is read, expected another")
    if out and out.exists() and lies_in(out, args.model):
        raise UserError(f"--out {out}: lies in the folder of --model, expected a file elsewhere")
    return out
