"""Every option of a fine-tuning run: name, default, meaning, and what must hold of them."""

from dataclasses import dataclass, field

from minisft.backend.array import DEVICES, device_name, require_gpu
from minisft.backend.cpu.processor import why_not_bfloat16
from minisft.backend.gpu.cuda import emulated
from minisft.backend.gpu.gemm import multiplies_bfloat16
from minisft.data.answer_windows import MAX_ANSWER_LENGTH
from minisft.data.batch import BATCH_TOKENS
from minisft.data.encoding import COMPRESSION_RATIO_HELP, MAX_COMPRESSION_RATIO
from minisft.dispatch import PRECISIONS
from minisft.errors import UserError, setting
from minisft.io import hub
from minisft.training.optim import OPTIMIZERS, SCHEDULES
from minisft.training.options import Config, option, require_in_range
from minisft.training.saving import SAVE_EVERY_HELP, parse_save_every

CLASSIFY, COMPLETE, TAG = ("task", "classify"), ("task", "complete"), ("task", "tag")
ANSWER = ("task", "answer")
TRANSLATE = ("task", "translate")

INITIALIZER_HELP = ("standard deviation of initial values; GPT-2's suits its width of 768, a "
                    "narrow model that has to look things up learns sooner with 0.1")
PRECISION_HELP = (
    "of matrix products; weights, sums and all else stay float32. On a CPU bfloat16 takes the "
    "extra fast and a processor with AMX or AVX512-BF16, float16 and tf32 are for "
    f"{setting('device', 'cuda')}; auto is bfloat16 where that is faster, else float32")


def max_compression_ratio_option() -> int:
    """-> the option, which pretraining has too."""
    return option(MAX_COMPRESSION_RATIO, COMPRESSION_RATIO_HELP, within=(1, None), type=int)


@dataclass(frozen=True)
class DataConfig:
    """The texts: which files, which columns, what is kept of a text."""

    task: str = option(
        "classify", "what to learn: a class for each text, to complete prompts, a tag for each "
        "word, where in a text the answer to a question stands, or to translate",
        choices=("classify", "complete", "tag", "answer", "translate"))
    train: str | None = option(
        None, "training file: .csv, .tsv, .jsonl or .json, plain or .gz (default: the bundled "
        "toy-news); tag: also .conllu or columns as CoNLL 2003; answer: JSON as SQuAD; translate: "
        f"also lines of text, with {setting('train_target')}", metavar="FILE")
    test: str | None = option(None, "test file, read once, at the end", metavar="FILE")
    valid: str | None = option(
        None, "validation file (default: a part of the training file)", metavar="FILE")
    valid_fraction: float = option(
        0.1, "part of the training texts held out for validation", within=(0, 0.9), type=float)
    train_texts: int | None = option(
        None, "use so many of the training texts, drawn by "
        f"{setting('seed')} with the classes' shares kept; "
        "the draw of a smaller number is part of that of a larger one (default: all)",
        within=(2, None), type=int)
    text_column: tuple[str, ...] = option(
        ("text",), "column of the text; several are joined by a space", nargs="+", metavar="NAME",
        only=CLASSIFY)
    label_column: str = option("label", "column of the label", metavar="NAME", only=CLASSIFY)
    label_map: tuple[str, ...] = option(
        (), "classify: what the file calls the labels of the model's folder, as LABEL_0=neg "
        "LABEL_1=pos; its head is kept where they are the same (default: the same names)",
        nargs="+", metavar="NAME=NEW", only=CLASSIFY)
    pair_column: str | None = option(
        None, "classify: column of a second text, which BERT reads behind the first",
        metavar="NAME", only=CLASSIFY)
    prompt_column: tuple[str, ...] = option(
        ("prompt",), "complete: column of the prompt; several are joined by a line break",
        nargs="+", metavar="NAME", only=COMPLETE)
    completion_column: str = option(
        "completion", "complete: column of the completion", metavar="NAME", only=COMPLETE)
    separator: str = option(
        "\n\n", "complete: what stands between prompt and completion (default: an empty line)",
        metavar="TEXT", only=COMPLETE)
    word_column: str | None = option(
        None, "tag: column of the word, a name or a number (default: FORM of .conllu, words of "
        ".jsonl, else the first)", metavar="NAME", only=TAG)
    tag_column: str | None = option(
        None, "tag: column of the tag (default: UPOS of .conllu, tags of .jsonl, else the last)",
        metavar="NAME", only=TAG)
    max_answer_length: int = option(
        MAX_ANSWER_LENGTH, "answer: tokens of the longest answer that is given; the folder "
        "remembers it", within=(1, None), type=int, only=ANSWER)
    source_column: str = option(
        "source", "translate: column of the text", metavar="NAME", only=TRANSLATE)
    target_column: str = option(
        "target", "translate: column of its translation", metavar="NAME", only=TRANSLATE)
    train_target: str | None = option(
        None, "translate: file whose lines are the translations of the training file's, which is "
        "then plain text, .gz or not", metavar="FILE", only=TRANSLATE)
    test_target: str | None = option(
        None, "translate: the same of the test file", metavar="FILE", only=TRANSLATE)
    valid_target: str | None = option(
        None, "translate: the same of the validation file", metavar="FILE", only=TRANSLATE)
    parse_special: bool = option(
        False, "tokens with a role, such as <|endoftext|> or [SEP], that stand in a text are read "
        "as those tokens, not as characters; a model's own added tokens always are",
        action="store_true")
    no_header: bool = option(
        False, "the file has no header: columns are named 1, 2, ...", action="store_true")
    encoding: str = option("utf-8", "encoding of the files", metavar="NAME")
    max_compression_ratio: int = max_compression_ratio_option()
    delimiter: str | None = option(
        None, "what separates the fields of the files: one character, or the word tab (default: "
        "the comma of .csv, the tab of .tsv, or what the rows plainly have)", metavar="CHAR")
    skip_bad_rows: bool = option(
        False, "leave out rows that cannot be read; bad_rows.csv of the run lists them",
        action="store_true")
    clean: str | None = option(
        None, "cleaning: all, none, or some of entities,tags,backslashes,control,spaces (default: "
        "all; other tasks: none)", metavar="STEPS")
    max_length: int | None = option(
        None, "maximum sequence length in tokens (default: the model's)",
        within=(1, None), type=int)
    truncate: str = option("head", "what is kept of a longer text", choices=("head", "tail"))


@dataclass(frozen=True)
class ModelConfig:
    """The model: which one, what of it is trained, where and in which format it computes."""

    model: str = option(
        "minisft-gpt2", "a folder, a name in the local Hugging Face cache such as gpt2, or "
        "scratch: a small GPT-2 from random weights (default: the bundled small GPT-2)",
        metavar="NAME")
    download: bool = option(False, hub.DOWNLOAD_HELP, action="store_true")
    revision: str | None = option(
        None, f"{hub.REVISION_HELP}; the run keeps which commit it was", metavar="NAME")
    allow_http: bool = option(False, hub.ALLOW_HTTP_HELP, action="store_true")
    tokenizer: str | None = option(
        None, "folder of a tokenizer (default: the model's; scratch: one is trained on the "
        "training texts)", metavar="DIR")
    layers: int = option(
        2, "scratch: number of blocks; translate: so many of the encoder, and of the decoder",
        within=(1, 1000), type=int)
    width: int = option(128, "scratch: number of channels", within=(1, 100_000), type=int)
    heads: int = option(4, "scratch: number of heads", within=(1, None), type=int)
    context_length: int = option(
        512, "scratch: maximum sequence length in tokens", within=(1, 1_000_000), type=int)
    vocab_size: int = option(
        4096, "scratch: tokens of the vocabulary that is trained",
        within=(257, 1_000_000), type=int)
    initializer_range: float = option(0.02, f"scratch: {INITIALIZER_HELP}", within=(0, 1),
                                      type=float)
    dropout: float | None = option(
        None, "dropout everywhere (default: the model's; scratch: 0.3, translate: 0.1)",
        within=(0, 0.99), type=float)
    pooling: str | None = option(
        None, "BERT: what its classifier reads, the first token through the pooler or the mean of "
        "the tokens, which transformers has no class for (default: as the model has it; first)",
        choices=("first", "mean"))
    train_layers: str = option(
        "all", "what is trained: all, head, last:K (the last K blocks and the head; the matrix "
        "that a language model shares with its token table is trained with all only), or bias (all "
        f"biases and the head); with {setting('adapter')}, all or last:K, the blocks that have one",
        metavar="WHICH")
    adapter: str | None = option(
        None, "lora: small matrices beside the linear maps are trained in their place, and the "
        "head; the run leaves adapter/ in PEFT's format and a merged model/", choices=("lora",))
    rank: int | None = option(
        None, f"{setting('adapter', 'lora')}: rows of each adapter's A (default: 8)",
        within=(1, 10_000), type=int)
    alpha: float | None = option(
        None, f"{setting('adapter', 'lora')}: an adapter's output is multiplied by alpha / rank "
        "(default: twice the rank)", within=(1e-6, 10**6), type=float)
    adapter_dropout: float | None = option(
        None, f"{setting('adapter', 'lora')}: dropout before A (default: 0)",
        within=(0, 0.99), type=float)
    adapter_targets: tuple[str, ...] = option(
        (), f"{setting('adapter', 'lora')}: ends of the names of the linear maps that have one, "
        "such as c_attn or query value (default: all linear maps of the blocks)",
        nargs="+", metavar="NAME")
    device: str = option(
        "cpu", "where the model computes", type=device_name, choices=DEVICES)
    precision: str = option(
        "float32", PRECISION_HELP, choices=PRECISIONS)


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    epochs: int | None = option(
        None, "passes over the training texts (default: 3, more where that is fewer than 120 "
        "steps, at most 20; scratch: 15, translate: 10)", within=(1, 100_000), type=int)
    adapt_epochs: int = option(
        0, "classify: passes of next-token training over the training texts before the classifier "
        "learns", within=(0, 100_000), type=int, only=CLASSIFY)
    batch_tokens: int | None = option(
        None, "maximum tokens of an optimizer step (default: 2048, or an eighth of the training "
        "texts if that is less)", within=(1, 10**12), type=int)
    micro_tokens: int = option(
        8192, "maximum tokens computed at once; a larger step is accumulated",
        within=(1, 10**12), type=int)
    gradient_checkpointing: bool = option(
        False, "keep only the input of each block and compute the block anew for the backward: "
        "less memory, a third more work", action="store_true")
    feature_memory: int = option(
        1024, "with frozen layers: MB of memory for what they make of the texts, computed once; "
        "more goes to a temporary file (0: compute it anew in every epoch)",
        within=(0, 10**9), type=int)
    lr: float | None = option(
        None, "highest learning rate (default: 5e-5 * (768 / width) ** 1.5, less for batches of "
        f"few texts; ten times that with {setting('adapter')} or {setting('train_layers', 'bias')}"
        f"; scratch, and {setting('train_layers', 'head')}: 1e-3; scratch, translate: 5e-3 * "
        "(128 / width) ** 0.5; sgd: a hundred times these)",
        within=(0, None), type=float)
    schedule: str = option("linear", "how the learning rate falls", choices=SCHEDULES)
    warmup_ratio: float = option(
        0.1, "part of all steps over which the learning rate rises", within=(0, 1), type=float)
    optimizer: str = option("adamw", "the optimizer", choices=tuple(OPTIMIZERS))
    momentum: float = option(
        0.9, "momentum of sgd", within=(0, 1), type=float, only=("optimizer", "sgd"))
    beta2: float = option(
        0.999, "adamw and adam: decay of the mean of squared gradients",
        within=(0, 0.999999), type=float)
    weight_decay: float = option(
        0.01, "decay of matrices and tables, not of biases and norms", within=(0, None), type=float)
    layer_decay: float = option(
        1.0, "factor of the learning rate from each layer to the one below",
        within=(0, 1), type=float)
    max_grad_norm: float = option(
        1.0, "largest norm of the gradient (0: any)", within=(0, None), type=float)
    class_weights: str = option(
        "none", "weights of the classes in the loss: none, balanced, or NAME=W,NAME=W,... "
        "(a name with a comma stands in quotes; or a JSON object)",
        metavar="WEIGHTS", only=CLASSIFY)
    label_smoothing: float | None = option(
        None, "classify, translate: part of the target spread over all classes or tokens (default: "
        "0; translate: 0.1)", within=(0, 1), type=float,
        only=("task", "classify", "translate"))
    token_dropout: float = option(
        0.0, "classify: part of its tokens that a training text loses, others in each step",
        within=(0, 0.9), type=float, only=CLASSIFY)
    token_swap: float = option(
        0.0, "classify: part of its tokens that change places with the next one, others in each "
        "step", within=(0, 0.9), type=float, only=CLASSIFY)
    average: float = option(
        0.0, "part of all steps, the last ones, over whose values the mean is taken, in place of "
        f"the values themselves; sure to count with {setting('select', 'last')} (0: none)",
        within=(0, 1), type=float)
    early_stopping: int = option(
        0, "stop after this many epochs without a better one (0: never)",
        within=(0, None), type=int)
    select: str = option(
        "accuracy", "which epoch counts: the best on the validation part, classify by this figure "
        "complete and translate by the loss, or the last",
        choices=("accuracy", "macro_f1", "loss", "last"))
    seed: int = option(
        0, "seed of initial values, order, dropout and split", within=(0, 2**32 - 1), type=int)


@dataclass(frozen=True)
class OutputConfig:
    """What is compared, written and shown."""

    seeds: int = option(
        1, f"how many seeds are trained with: {setting('seed')}, the next one, ..., each in a "
        f"folder of its own below {setting('out')}, with the mean and its interval beside them",
        within=(1, 1000), type=int)
    compare: str | None = option(
        None, "classify, tag, answer, translate: what is measured beside the model on the same "
        "texts: baselines (the most frequent class, naive Bayes and, where scikit-learn is "
        "installed, TF-IDF with logistic regression; each word's most frequent tag; a window of "
        "the question's words; a dictionary), random (classify: also the same architecture from "
        "random weights) or none (default: random with toy-news, otherwise baselines)",
        choices=("random", "baselines", "none"),
        only=("task", "classify", "tag", "answer", "translate"))
    max_new_tokens: int = option(
        128, "complete: maximum length of a completion when testing", within=(1, None), type=int,
        only=COMPLETE)
    beam_size: int = option(
        4, "translate: how many beginnings of a translation are kept while testing; 1 takes the "
        "most probable token each time", within=(1, 1000), type=int, only=TRANSLATE)
    length_penalty: float = option(
        1.0, "translate: power of the length by which the sum of log-probabilities of a "
        "translation is divided; more prefers longer ones", within=(0, 10), type=float,
        only=TRANSLATE)
    out: str | None = option(
        None, "run folder (default: the first free of runs/NAME, runs/NAME-2, ...)", metavar="DIR")
    overwrite: bool = option(
        False, f"replace what an earlier run left in {setting('out')}", action="store_true")
    save_every: str = option(
        "10m", SAVE_EVERY_HELP, metavar="N|Nm")
    keep_state: bool = option(
        False, "keep training_state/ of a run that has finished: values, best values and "
        "the optimizer's moments", action="store_true")
    quiet: bool = option(False, "no progress bar and no line for each epoch", action="store_true")


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """One fine-tuning run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    @property
    def tokens_at_once(self) -> int:
        """-> how many tokens are scored at once: as `evaluate` does, so that it finds the same."""
        return min(self.training.micro_tokens, BATCH_TOKENS[device_name(self.model.device)])


ADAPTER = ("rank", "alpha", "adapter_dropout", "adapter_targets")      # options of one
# What a pretrained model brings with it, and what it decides where its user does not.
SCRATCH = ("layers", "width", "heads", "context_length", "vocab_size")
OF_THE_MODEL = (*SCRATCH, "dropout", "max_length")
# Tags and answers are read from other files than tables, and in windows where a text is long.
NOT_OF_WORDS = {"skip_bad_rows": "tables", "no_header": "tables", "delimiter": "tables",
                "truncate": "texts that are cut", "parse_special": "texts"}


def require_sound(config: FinetuneConfig, new: bool = True) -> None:
    """Raises UserError naming the first option that cannot be, or that has no use in a `new` run:
    one that goes on had it already."""
    require_in_range(config)
    parse_save_every(config.output.save_every)
    data, model, training = config.data, config.model, config.training
    require_device(model.device, model.precision)
    if training.average and training.early_stopping:
        raise UserError(f"{setting('early_stopping')} may end the run before {setting('average')} "
                        "begins, expected one of them")
    if training.select == "last" and training.early_stopping:
        raise UserError(f"{setting('early_stopping')} waits for a better epoch, but "
                        f"{setting('select', 'last')} takes the last one whatever it is")
    if training.adapt_epochs and data.task == "complete":
        raise UserError(f"{setting('adapt_epochs')} is for {setting('task', 'classify')}: "
                        "completing is next-token training already")
    known = config.option_fields()
    for name in config.given() if new else ():
        only = known[name].metadata["only"] or ("",)
        # a run's own settings hold what `compare` was where nothing was said
        if only[0] == "task" and data.task not in only and name != "compare":
            raise UserError(f"{setting(name)} is for " + " or ".join(
                setting(only[0], value) for value in only[1:]))
    if config.output.compare == "random" and data.task != "classify":
        raise UserError(f"{setting('compare', 'random')} is for {setting('task', 'classify')}")
    if data.task == "translate":
        _require_translation(config)
    if data.task in ("tag", "answer"):
        if data.train is None:
            raise UserError(f"{setting('task', data.task)} needs {setting('train')}")
        if data.clean not in (None, "none"):
            raise UserError(f"{setting('clean')} is for texts, {setting('task', data.task)} takes "
                            "what it reads as it stands")
        for name, what in NOT_OF_WORDS.items() if new else ():
            if getattr(data, name) != getattr(DataConfig, name):
                raise UserError(f"{setting(name)} is for {what}, not for "
                                f"{setting('task', data.task)}")
    if model.pooling is not None and (model.model == "scratch" or data.task != "classify"):
        raise UserError(f"{setting('pooling')} is for a BERT that classifies: see "
                        f"{setting('model')}")
    if data.label_map and model.model == "scratch":
        raise UserError(f"{setting('label_map')} is for a model that has labels: see "
                        f"{setting('model')}")
    for name in (*SCRATCH, "initializer_range"):
        if model.model != "scratch" and getattr(model, name) != getattr(ModelConfig, name):
            raise UserError(f"{setting(name)} is for {setting('model', 'scratch')}, "
                            f"{model.model} has its own")
    _require_adapter(model, training)


def _require_translation(config):
    """Raises UserError naming the first option that a translation does not have, or needs."""
    data, model = config.data, config.model
    if data.train is None:
        raise UserError(f"{setting('task', data.task)} needs {setting('train')}")
    for name in ("train", "test", "valid"):
        target = f"{name}_target"
        if getattr(data, target) is not None and getattr(data, name) is None:
            raise UserError(f"{setting(target)} is the file of translations beside "
                            f"{setting(name)}, which is not given")
    if model.model == ModelConfig.model:
        raise UserError(f"{model.model} is no translator, expected {setting('model', 'scratch')} "
                        f"or the folder that a run of {setting('task', data.task)} left")
    if model.adapter is not None:
        raise UserError(f"{setting('adapter')} is for GPT-2 and BERT, expected none: a translator "
                        "is trained as a whole")
    if model.initializer_range != ModelConfig.initializer_range:
        raise UserError(f"{setting('initializer_range')} is for GPT-2: a translator's initial "
                        "values go by the widths of each matrix")
    if model.train_layers != "all":
        raise UserError(f"{setting('train_layers')} is {model.train_layers}, expected all: a "
                        "translator is trained as a whole")


def _require_adapter(model, training):
    """Raises UserError naming the first option that does not go with the adapter, or needs one."""
    if model.adapter is None:
        for name in ADAPTER:
            if getattr(model, name) != getattr(ModelConfig, name):
                raise UserError(f"{setting(name)} is for {setting('adapter', 'lora')}")
        return
    if model.model == "scratch":
        raise UserError(f"{setting('adapter')} is for a pretrained model, but "
                        f"{setting('model', 'scratch')} has learnt nothing yet")
    if model.train_layers in ("head", "bias"):
        raise UserError(f"{setting('train_layers', model.train_layers)} beside "
                        f"{setting('adapter')}: expected all, or last:K for adapters in the last "
                        "K blocks only")
    if training.adapt_epochs:
        raise UserError(f"{setting('adapt_epochs')} changes the base, which {setting('adapter')} "
                        "leaves as it is: expected one of them")


def require_device(device: str, precision: str) -> None:
    """Raises UserError unless the device is there and the precision of use on it."""
    if device == "cuda":
        require_gpu()
        if precision == "tf32" and not multiplies_bfloat16():
            raise UserError(f"{setting('precision', precision)}: the card has no tensor cores for "
                            "it, expected one of compute capability 8.0 (Ampere) or more, or "
                            "float32")
    elif emulated():
        return
    elif precision in ("float16", "tf32"):
        raise UserError(f"{setting('precision', precision)} is for {setting('device', 'cuda')}, "
                        "expected float32: a CPU would only be slower (MINISFT_CUDA=emulate runs "
                        "it all the same, to be checked)")
    elif precision == "bfloat16" and (reason := why_not_bfloat16()):
        raise UserError(f"{setting('precision', precision)}: {reason}; expected float32, or auto")
