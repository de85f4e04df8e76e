"""`minisft plan`: memory and work of a training step, before it is taken."""

import argparse
import re
from typing import Any

from minisft.cli.arguments import add_model, add_table, require_file, say, whole
from minisft.cli.tables import chosen_columns, pairs_of, table_options
from minisft.cli.terminal import show
from minisft.data.answer_windows import answer_windows
from minisft.data.questions import read_questions
from minisft.data.read import read_texts
from minisft.data.sequences import encode_sequences
from minisft.data.tagged import read_tagged
from minisft.data.text import CLEANING_STEPS, encode_all, load_tokenizer, parse_cleaning_steps
from minisft.data.word_pieces import windows
from minisft.errors import UserError, as_flag
from minisft.evaluation.figures import Verdict, count
from minisft.io.architectures import family_of
from minisft.io.files import read_json
from minisft.io.hub import CONFIG, base_of, resolve
from minisft.io.model_folder import read_preprocessing
from minisft.models.adapters import ALL, LoraConfig
from minisft.models.config import SIZES, BertConfig, GPT2Config, Seq2SeqConfig
from minisft.planning.memory import ITEM, Plan, Step, largest_of, plan
from minisft.training.defaults import default_batch_tokens, default_cleaning

EXAMPLES = ("minisft plan --model gpt2 --batch-tokens 2048",
            "minisft plan --model minisft-gpt2 --texts mine.csv --train-layers last:2")
BASIC = ("model", "task", "classes", "batch_tokens", "lengths", "texts", "train_layers",
         "gradient_checkpointing")
FILE_OPTION = "--texts"
OF_TEXTS = ("text_column", "pair_column", "source_column", "target_column", "texts_target",
            "no_header", "encoding", "delimiter", "clean", "max_compression_ratio", "max_length",
            "seed")
OF_TASKS = {
    "classes": ("classify", "tag"), "adapter": ("classify", "complete", "tag", "answer"),
    **dict.fromkeys(("text_column", "pair_column"), ("classify", "complete")),
    **dict.fromkeys(("no_header", "delimiter"), ("classify", "complete", "translate")),
    **dict.fromkeys(("source_column", "target_column", "texts_target"), ("translate",))}
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the batch, and what is trained."""
    parser.usage = "minisft plan [--model NAME] [options]"
    add_model(parser, f"folder or name of a GPT-2 or BERT; of {', '.join(SIZES)} the shape is "
              "known here (default: the bundled small GPT-2)", default="minisft-gpt2")
    parser.add_argument("--task", choices=("classify", "complete", "tag", "answer", "translate"),
                        default="classify", help="what is learnt, as in finetune")
    parser.add_argument("--classes", type=whole(2), default=2, metavar="N",
                        help="classify and tag: number of classes")
    parser.add_argument("--lengths", type=whole(1), default=None, metavar="N",
                        help="tokens of each text, for translate of both sides (default: 128, or "
                        "those of --texts)")
    parser.add_argument("--texts", metavar="FILE", help="a file of texts: of the batches of an "
                        "epoch the one that takes most memory is shown")
    parser.add_argument("--texts-target", metavar="FILE", help="translate: file whose lines are "
                        "the translations of the lines of --texts")
    parser.add_argument("--source-column", metavar="NAME", help="translate: column of the text "
                        "(default: as in training; source)")
    parser.add_argument("--target-column", metavar="NAME", help="translate: column of its "
                        "translation (default: as in training; target)")
    parser.add_argument("--clean", metavar="STEPS", help="cleaning of --texts, as in finetune: "
                        f"all, none, or some of {','.join(CLEANING_STEPS)} (default: all; "
                        "complete: none)")
    parser.add_argument("--max-length", type=whole(1), default=None, metavar="N",
                        help="tokens to which --texts are cut (default: the model's)")
    parser.add_argument("--train-layers", default="all", metavar="WHICH",
                        help="what is trained: all, head, last:K, or bias")
    parser.add_argument("--adapter", choices=("lora",), help="low-rank adapters are trained in the "
                        "place of matrices, in all blocks or the last K")
    parser.add_argument("--rank", type=whole(1, 10_000), default=None, metavar="N",
                        help="--adapter lora: rows of each adapter's A (default: 8)")
    parser.add_argument("--adapter-targets", nargs="+", default=(), metavar="NAME",
                        help="--adapter lora: ends of the names of the linear maps that have one "
                        "(default: all linear maps of the blocks)")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="keep only the input of each block")
    parser.add_argument("--dropout", type=float, default=None, metavar="X",
                        help="dropout everywhere (default: the model's)")
    parser.add_argument("--feature-memory", type=whole(0), default=1024, metavar="N",
                        help="0: frozen layers are computed anew in every step")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N",
                        help="seed of the order of --texts")
    add_table(parser, help="maximum tokens of an optimizer step (default: as "
              "in finetune, 2048, or an eighth of --texts if that is less)")


def run(args: argparse.Namespace) -> None:
    """Prints the plan."""
    if args.dropout is not None and not 0 <= args.dropout < 1:
        raise UserError(f"--dropout is {args.dropout}, expected a number in [0, 1)")
    require_file(args, OF_TEXTS, "texts")
    for name, tasks in OF_TASKS.items():
        if name in args.changed and args.task not in tasks:
            raise UserError(f"{as_flag(name)} is for " + " or ".join(
                f"--task {task}" for task in tasks))
    if args.adapter is None and (args.rank is not None or args.adapter_targets):
        raise UserError("--rank and --adapter-targets are for --adapter lora")
    if args.adapter is not None and args.train_layers in ("head", "bias"):
        raise UserError(f"--train-layers {args.train_layers} beside --adapter: expected all or "
                        "last:K")
    folder, config = _shape(args)
    if args.task == "translate" and args.train_layers != "all":
        raise UserError(f"--train-layers is {args.train_layers}, expected all: a translator is "
                        "trained as a whole")
    if args.task == "complete" and isinstance(config, BertConfig):
        raise UserError(f"--task complete: {args.model} is a BERT, expected a GPT-2")
    if isinstance(config, BertConfig):
        for flag, value in (("--adapter", args.adapter), ("--train-layers", args.train_layers)):
            if value == "bias" or flag == "--adapter" and value is not None:
                raise UserError(f"{flag} {value}: is planned of a GPT-2 alone, {args.model} is a "
                                "BERT")
    options = {"task": args.task, "classes": args.classes, "train_layers": args.train_layers,
               "gradient_checkpointing": args.gradient_checkpointing, "dropout": args.dropout,
               "features": args.feature_memory > 0,
               "adapter": None if args.adapter is None else LoraConfig(
                   args.rank or 8, target_modules=tuple(args.adapter_targets) or ALL)}
    try:
        if args.texts is None:
            lengths = _equal(args, config)
            step = Step(config, lengths, **options,
                        sources=lengths if args.task == "translate" else ())
            planned = plan(step)
        else:
            lengths, sources = _lengths(args, folder, config)
            tokens = sum(lengths) + sum(sources or ())
            step, planned = largest_of(
                lengths, args.batch_tokens or default_batch_tokens(tokens), args.seed, config,
                sources, **options)
    except UserError:
        raise
    except ValueError as error:      # --train-layers that the model does not have
        raise UserError(str(error)) from None
    first, *rest = lines(args.model, step, planned)
    show(Verdict(first))
    print("\n".join(rest))


def _shape(args):
    """-> the model's folder or None, and its config."""
    if args.model in SIZES and args.texts is None and args.task != "translate":
        return None, GPT2Config.size(args.model)
    folder = base_of(resolve(args.model, args.download, args.revision, args.allow_http))
    settings = read_json(folder / CONFIG)
    family = family_of(settings, folder / CONFIG)
    if (family.config is Seq2SeqConfig) != (args.task == "translate"):
        raise UserError(f"--task {args.task}: {args.model} holds an encoder-decoder, expected "
                        "a GPT-2 or a BERT" if args.task != "translate"
                        else f"--task translate: {args.model} holds a {family.config.TITLE}, "
                        "expected an encoder-decoder, as finetune --task translate leaves it")
    return folder, family.config.from_dict(settings, folder / CONFIG)


def _equal(args, config):
    """-> the lengths of as many equal texts as the batch takes."""
    length = min(128, config.n_positions) if args.lengths is None else args.lengths
    if length > config.n_positions:
        raise UserError(f"--lengths is {length}, but the model takes {config.n_positions} tokens")
    if args.task == "complete" and length == 1:
        raise UserError("--lengths is 1, expected more: a single token has no next one")
    of_each = 2 * length if args.task == "translate" else length
    return (length,) * max(1, (args.batch_tokens or 2048) // of_each)


def _lengths(args, folder, config):
    """-> the lengths of the file's texts, treated as `finetune` would, those of sources or None."""
    if args.lengths is not None:
        raise UserError("--lengths beside --texts: expected one of the two")
    room = min(args.max_length or config.n_positions, config.n_positions)
    tokenizer, read = load_tokenizer(folder), (args.encoding, args.max_compression_ratio)
    if args.task in ("tag", "answer"):
        if args.clean not in (None, "none"):
            raise UserError(f"--clean is for texts, --task {args.task} takes what it reads as it "
                            "stands")
        found: Any = (
            answer_windows(tokenizer, read_questions(args.texts, *read), room)
            if args.task == "answer" else windows(tokenizer, read_tagged(
                args.texts, None, None, None, read[0], False, read[1]).words, room))
        return [len(ids) for ids in found.ids], None
    if args.task == "translate":
        return _pairs(args, tokenizer, folder, room)
    columns = chosen_columns(args, read_preprocessing(folder, say).columns)
    clean = parse_cleaning_steps(args.clean or default_cleaning(args.task))
    examples = read_texts(args.texts, columns.text_column, clean, pair_column=columns.pair_column,
                          **table_options(args))[1]
    return [len(x) for x in encode_sequences(tokenizer, examples.texts, room,
                                             pairs=examples.pairs)[0]], None


def _pairs(args, tokenizer, folder, room):
    """-> the lengths of the file's translations and of its texts, each with a token more."""
    pairs = pairs_of(args, args.texts, args.texts_target, "texts_target",
                     read_preprocessing(folder, say).columns,
                     parse_cleaning_steps(args.clean or default_cleaning(args.task)))
    return tuple([1 + min(len(row), room - 1) for row in encode_all(tokenizer, texts)[0]]
                 for texts in (pairs.targets, pairs.sources))


def lines(name: str, step: Step, planned: Plan) -> list[str]:
    """A model's name, its step and Plan -> the lines that show them."""
    c, shown = step.config, _range(step.lengths)
    task = {"classify": f"classify into {step.classes}",
            "tag": f"tag with {step.classes}"}.get(step.task, step.task)
    return [
        f"peak {_shown(planned.state + planned.above)} MiB: {_shown(planned.state)} of weights, "
        f"gradients and moments, {_shown(planned.above)} above them in a step",
        f"{name}: {c.TITLE} of {count(c.n_layer, 'layer')}, width {c.n_embd}, "
        f"{sum(planned.weights.values()):,} parameters; {task}, trains {step.train_layers}"
        + ("" if step.adapter is None else f" through adapters of rank {step.adapter.r}"),
        f"{count(len(step.lengths), 'text')} of {shown} tokens, {step.tokens:,} tokens at once"
        if not step.sources else
        f"{count(len(step.lengths), 'pair')} of {_range(step.sources)} and {shown} tokens, "
        f"{step.tokens + sum(step.sources):,} tokens at once", "",
        *_state(planned), "",
        f"{'kept for the backward':<34}{'MiB':>10}", *_parts(planned.kept), "",
        f"{'at the fullest moment':<34}{'MiB':>10}", *_parts(planned.at_peak),
        f"the largest temporary of all: {planned.largest[0]}, {_shown(planned.largest[1])} MiB", "",
        *_operations(planned.operations)]


def _range(lengths):
    short, long = min(lengths), max(lengths)
    return f"{short}" if short == long else f"{short} to {long}"


def _state(planned):
    """-> a line for each tensor: the layers' own together."""
    columns = [_grouped(part) for part in (planned.weights, planned.gradients, planned.moments)]
    head = f"{'tensor':<34}" + "".join(f"{n:>10}" for n in ("weight", "gradient", "moments"))
    rows = [f"{tensor:<34}" + "".join(_mib(part.get(tensor, 0)) for part in columns)
            for tensor in columns[0]]
    return [f"{head}  MiB", *rows,
            f"{'together':<34}" + "".join(_mib(sum(part.values())) for part in columns)]


def _parts(held):
    grouped = sorted(_grouped(held).items(), key=lambda entry: -entry[1])
    return [f"{name:<34}{_mib(n)}" for name, n in grouped if n] + [
        f"{'together':<34}{_mib(sum(held.values()))}"]


def _operations(operations):
    rows = sorted(operations.items(), key=lambda entry: -sum(entry[1]))
    rows.append(("together", [sum(each) for each in zip(*operations.values(), strict=True)]))
    return [f"{'operation':<34}{'forward':>10}{'backward':>10}  GFLOP",
            *(f"{name:<34}{forward / 1e9:>10.2f}{backward / 1e9:>10.2f}"
              for name, (forward, backward) in rows)]


def _grouped(values):
    """Values by name -> the same, those of all blocks under one name."""
    made = {}
    for name, n in values.items():
        name = re.sub(r"^(h|encoder\.layer|(?:en|de)coder\.layers)\.\d+\.", r"\1.*.", name)
        made[name] = made.get(name, 0) + n
    return made


def _mib(values):
    return f"{values * ITEM / MIB:>10,.2f}"


def _shown(values):
    return f"{values * ITEM / MIB:,.0f}" if values * ITEM >= 10 * MIB else _mib(values).strip()
