"""Every setting of a run: name, default, meaning. The command line is made from them."""

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar

from minisft.backend.array import require_gpu
from minisft.backend.gpu.cuda import emulated
from minisft.dispatch import FORMATS
from minisft.errors import UserError
from minisft.training.optim import OPTIMIZERS, SCHEDULES


def option(default, help, **argparse):
    """A field whose metadata are what argparse needs."""
    return field(default=default, metadata={"help": help, **argparse})


@dataclass(frozen=True)
class Settings:
    """One fine-tuning run. None stands for "depends": the help text says on what."""

    task: str = option("classify", "what to learn: a class for each text, or to complete prompts",
                       choices=("classify", "complete"))
    train: str = option(None, "training file: .csv, .tsv, .jsonl or .json, plain or .gz "
                        "(default: the bundled toy-news)", metavar="FILE")
    test: str = option(None, "test file, read once, at the end", metavar="FILE")
    valid: str = option(None, "validation file (default: a part of the training file)",
                        metavar="FILE")
    valid_fraction: float = option(0.1, "part of the training texts held out for validation",
                                   type=float)
    train_texts: int = option(None, "use so many of the training texts, drawn by --seed with the "
                              "classes' shares kept; the draw of a smaller number is part of that "
                              "of a larger one (default: all)", type=int)
    text_column: tuple = option(("text",), "column of the text; several are joined by a space",
                                nargs="+", metavar="NAME")
    label_column: str = option("label", "column of the label", metavar="NAME")
    pair_column: str = option(None, "classify: column of a second text, which BERT reads behind "
                              "the first", metavar="NAME")
    prompt_column: tuple = option(("prompt",), "complete: column of the prompt; several are "
                                  "joined by a line break", nargs="+", metavar="NAME")
    completion_column: str = option("completion", "complete: column of the completion",
                                    metavar="NAME")
    separator: str = option("\n\n", "complete: what stands between prompt and completion "
                            "(default: an empty line)", metavar="TEXT")
    no_header: bool = option(False, "the file has no header: columns are named 1, 2, ...",
                             action="store_true")
    encoding: str = option("utf-8", "encoding of the files", metavar="NAME")
    clean: str = option(None, "cleaning: all, none, or some of entities,tags,backslashes,control,"
                        "spaces (default: all; complete: none)", metavar="STEPS")
    max_length: int = option(None, "most tokens of a text (default: as many as the model takes)",
                             type=int)
    truncate: str = option("head", "what is kept of a longer text", choices=("head", "tail"))
    model: str = option("minisft-gpt2", "a folder, a name in the local Hugging Face cache such as "
                        "gpt2, or scratch: a small GPT-2 from random weights (default: the "
                        "bundled small GPT-2)", metavar="NAME")
    download: bool = option(False, "allow a model that is not here to be downloaded",
                            action="store_true")
    tokenizer: str = option(None, "folder of a tokenizer (default: the model's; scratch: one is "
                            "trained on the training texts)", metavar="DIR")
    layers: int = option(2, "scratch: number of blocks", type=int)
    width: int = option(128, "scratch: number of channels", type=int)
    heads: int = option(4, "scratch: number of heads", type=int)
    context_length: int = option(512, "scratch: most tokens of a text", type=int)
    vocab_size: int = option(4096, "scratch: tokens of the vocabulary that is trained", type=int)
    dropout: float = option(None, "dropout everywhere (default: the model's; scratch: 0.3)",
                            type=float)
    pooling: str = option(None, "BERT: what its classifier reads, the first token through the "
                          "pooler or the mean of the tokens, which transformers has no class for "
                          "(default: as the model has it; first)", choices=("first", "mean"))
    train_layers: str = option("all", "what is trained: all, head, or last:K (the last K blocks "
                               "and the head; the matrix that a language model shares with its "
                               "token table is trained with all only)", metavar="WHICH")
    feature_memory: int = option(1024, "with frozen layers: MB of memory for what they make of the "
                                 "texts, computed once; more goes to a temporary file (0: compute "
                                 "it anew in every epoch)", type=int)
    epochs: int = option(None, "passes over the training texts (default: 3, more where that is "
                         "fewer than 120 steps, at most 20; scratch: 15)", type=int)
    adapt_epochs: int = option(0, "classify: passes of next-token training over the training texts "
                               "before the classifier learns", type=int)
    batch_tokens: int = option(None, "most tokens of an optimizer step (default: 2048, or an "
                               "eighth of the training texts if that is less)", type=int)
    micro_tokens: int = option(8192, "most tokens computed at once; a larger step is accumulated",
                               type=int)
    gradient_checkpointing: bool = option(
        False, "keep only the input of each block and compute the block anew for the backward: "
        "less memory, a third more work", action="store_true")
    lr: float = option(None, "highest learning rate (default: 5e-5 * (768 / width) ** 1.5, "
                       "less for batches of few texts; scratch, and --train-layers head: 1e-3; "
                       "sgd: a hundred times that)", type=float)
    schedule: str = option("linear", "how the learning rate falls", choices=SCHEDULES)
    warmup_ratio: float = option(0.1, "part of all steps over which the learning rate rises",
                                 type=float)
    optimizer: str = option("adamw", "the optimizer", choices=tuple(OPTIMIZERS))
    momentum: float = option(0.9, "momentum of sgd", type=float)
    beta2: float = option(0.999, "adamw and adam: decay of the mean of squared gradients",
                          type=float)
    weight_decay: float = option(0.01, "decay of matrices and tables, not of biases and norms",
                                 type=float)
    layer_decay: float = option(1.0, "factor of the learning rate from each layer to the one below",
                                type=float)
    max_grad_norm: float = option(1.0, "largest norm of the gradient (0: any)", type=float)
    class_weights: str = option("none", "weights of the classes in the loss: none, balanced, or "
                                "NAME=W,NAME=W,...", metavar="WEIGHTS")
    label_smoothing: float = option(0.0, "part of the target spread over all classes", type=float)
    token_dropout: float = option(0.0, "classify: part of its tokens that a training text loses, "
                                 "others in each step", type=float)
    token_swap: float = option(0.0, "classify: part of its tokens that change places with the next "
                              "one, others in each step", type=float)
    average: float = option(0.0, "part of all steps, the last ones, over whose values the mean is "
                            "taken, in place of the values themselves; sure to count with "
                            "--select last (0: none)", type=float)
    early_stopping: int = option(0, "stop after this many epochs without a better one (0: never)",
                                 type=int)
    select: str = option("accuracy", "which epoch counts: the best on the validation part, "
                         "classify by this figure and complete by the loss, or the last",
                         choices=("accuracy", "macro_f1", "loss", "last"))
    seed: int = option(0, "seed of initial values, order, dropout and split", type=int)
    seeds: int = option(1, "how many seeds are trained with: --seed, the next one, ..., each in a "
                        "folder of its own below --out, with the mean and its interval beside them",
                        type=int)
    device: str = option("cpu", "where the model computes", choices=("cpu", "gpu"))
    precision: str = option("float32", "of matrix products; weights, sums and all else stay "
                            "float32. 16 bits are for --device gpu", choices=tuple(FORMATS))
    compare: str = option(None, "classify: what is measured beside the model on the same texts: "
                          "random (the same architecture from random weights, and baselines), "
                          "baselines (the most frequent class, naive Bayes and, where "
                          "scikit-learn is installed, TF-IDF with logistic regression) or none "
                          "(default: random with toy-news, otherwise baselines)",
                          choices=("random", "baselines", "none"))
    max_new_tokens: int = option(128, "complete: longest completion when testing", type=int)
    out: str = option(None, "run folder (default: the first free of runs/NAME, runs/NAME-2, ...)",
                      metavar="DIR")
    overwrite: bool = option(False, "replace what an earlier run left in --out",
                             action="store_true")
    quiet: bool = option(False, "no progress bar and no line for each epoch", action="store_true")

    # What must hold of the numbers: (name, lowest, highest), both allowed. The highest of a size is
    # beyond any use and keeps a slip of the finger from filling the memory.
    RANGES: ClassVar = (("valid_fraction", 0, 0.9), ("train_texts", 2, None),
              ("max_length", 1, None), ("layers", 1, 1000), ("width", 1, 100_000),
              ("heads", 1, None), ("context_length", 1, 1_000_000),
              ("vocab_size", 257, 1_000_000), ("dropout", 0, 0.99), ("epochs", 1, 100_000),
              ("feature_memory", 0, 10**9), ("adapt_epochs", 0, 100_000),
              ("batch_tokens", 1, 10**12), ("micro_tokens", 1, 10**12), ("lr", 0, None),
              ("warmup_ratio", 0, 1), ("momentum", 0, 1), ("beta2", 0, 0.999999),
              ("weight_decay", 0, None),
              ("layer_decay", 0, 1), ("max_grad_norm", 0, None), ("label_smoothing", 0, 1),
              ("token_dropout", 0, 0.9), ("token_swap", 0, 0.9),
              ("average", 0, 1), ("early_stopping", 0, None), ("max_new_tokens", 1, None),
              ("seed", 0, 2**32 - 1),
              ("seeds", 1, 1000))
    STRETCH: ClassVar = "epoch"     # what lies between two validations
    # The first setting of each group that `--help` shows.
    GROUPS: ClassVar = {"task": "data", "model": "model", "epochs": "training",
              "compare": "evaluation and output"}
    # What a pretrained model brings with it.
    SCRATCH: ClassVar = ("layers", "width", "heads", "context_length", "vocab_size")


def spelled(name):
    """A setting's name -> its option on the command line."""
    return f"--{name.replace('_', '-')}"


def require_in_range(settings):
    """Raises UserError naming the first option whose number or choice cannot be."""
    for name, low, high in settings.RANGES:
        value = getattr(settings, name)
        if value is None:
            continue
        if not isinstance(value, int | float) or not low <= value <= (high or math.inf) or \
                value == math.inf:
            expected = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"{spelled(name)} is {value}, expected {expected}")
    if settings.lr == 0:
        raise UserError("--lr is 0.0, expected more: nothing would be learnt")
    for setting in fields(settings):
        value, choices = getattr(settings, setting.name), setting.metadata.get("choices")
        if choices and value not in (*choices, setting.default):
            raise UserError(f"{spelled(setting.name)} is {value!r}, expected one of "
                            f"{', '.join(choices)}")
        if value == "" and setting.name in ("train", "test", "valid", "model", "tokenizer", "out"):
            raise UserError(f"{spelled(setting.name)} is empty, expected a name")


def require_sound(settings):
    """Raises UserError naming the first option that cannot be."""
    require_in_range(settings)
    require_device(settings)
    if settings.valid_fraction == 0 and settings.valid is None:
        raise UserError("--valid-fraction is 0.0, expected more, or --valid FILE: every "
                        "epoch is scored on those texts")
    if settings.average and settings.early_stopping:
        raise UserError("--early-stopping may end the run before --average begins, expected one "
                        "of them")
    if settings.select == "last" and settings.early_stopping:
        raise UserError("--early-stopping waits for a better epoch, but --select last takes the "
                        "last one whatever it is")
    for name in ("pair_column", "token_dropout", "token_swap"):
        if settings.task != "classify" and getattr(settings, name):
            raise UserError(f"{spelled(name)} is for --task classify")
    if settings.pooling is not None and (settings.model == "scratch" or
                                         settings.task != "classify"):
        raise UserError("--pooling is for a BERT that classifies: see --model")
    for name in Settings.SCRATCH:
        if settings.model != "scratch" and getattr(settings, name) != getattr(Settings, name):
            raise UserError(f"{spelled(name)} is for --model scratch, {settings.model} has its own")
    if settings.adapt_epochs and settings.task != "classify":
        raise UserError("--adapt-epochs is for --task classify: completing is next-token training "
                        "already")


def require_device(settings):
    """Raises UserError unless the device is there and the precision of use on it."""
    if settings.device == "gpu":
        require_gpu()
    elif settings.precision != "float32" and not emulated():
        raise UserError(f"--precision {settings.precision} is for --device gpu, expected float32: "
                        "a CPU would only be slower (MINISFT_CUDA=emulate runs it all the same, "
                        "to be checked)")


def kept_settings(kind, config, folder):
    """The settings that config.json of a run keeps -> Settings of that kind; raises UserError."""
    values = config.get("settings")
    if not isinstance(values, dict) or values.keys() != {f.name for f in fields(kind)} or \
            not isinstance(config.get("files"), dict):
        raise UserError(f"{folder}/config.json: no settings of a run of this version")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
