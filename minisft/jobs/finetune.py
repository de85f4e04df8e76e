"""Fine-tuning: the article's four steps in the order they happen, in memory or with files.

`train_classifier` and `train_completion` take texts and give a model. `finetune` takes files and
leaves a run folder: `prepare` does all that can fail before anything is written, `run` the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from minisft.data.read import Examples, Prompts
from minisft.data.special_tokens import read_special_tokens
from minisft.data.table import bad_rows_csv
from minisft.data.text import load_tokenizer, parse_cleaning_steps, train_tokenizer
from minisft.data.tokenizer import decode, special_tokens_note, vocab_size_of
from minisft.errors import DivergedError, UserError, setting, short_repr, tell
from minisft.evaluation import plots, report
from minisft.evaluation.document import one_line
from minisft.evaluation.figures import Use, count, percent
from minisft.io import adapters, hub, provenance, run_folder
from minisft.io.files import write_text
from minisft.io.model_folder import (
    Columns,
    Preprocessing,
    notes_of,
    require_vocab_fits,
    special_tokens_of,
    write_folder,
)
from minisft.jobs.adaptation import adapt
from minisft.jobs.answer import Answering
from minisft.jobs.classify import Classification
from minisft.jobs.complete import Completion
from minisft.jobs.tag import Tagging
from minisft.jobs.translate import Translation
from minisft.models.adapters import LoraConfig, from_layer_on, target_names
from minisft.models.gpt2 import GPT2Config
from minisft.models.token_heads import AnyModel
from minisft.training import divergence
from minisft.training.changes import changes_of_run, with_changes
from minisft.training.config import (
    OF_THE_MODEL,
    SCRATCH,
    FinetuneConfig,
    TrainingConfig,
    require_sound,
)
from minisft.training.defaults import resolve_defaults, with_defaults
from minisft.training.frozen_features import with_features
from minisft.training.loop import (
    Interrupted,
    Log,
    begin,
    fit,
    fit_in,
    load_or_init_state,
    make_optimizer,
)
from minisft.training.options import config_of_run
from minisft.training.saving import parse_save_every
from minisft.training.state import State

Task = Classification | Completion | Tagging | Answering | Translation
TASKS = {"classify": Classification, "complete": Completion, "tag": Tagging,
         "answer": Answering, "translate": Translation}
Say = Callable[[str], Any]
# options that name a file of texts
FILES = ("train", "valid", "test", "train_target", "valid_target", "test_target")


@dataclass(frozen=True)
class FittedModel:
    """A trained model and what goes with it; `config` has every default resolved."""

    model: AnyModel
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    config: FinetuneConfig
    state: State
    history: dict[str, list[dict]]
    label_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Prepared:
    """All that training needs: its texts as token ids, the model as it begins."""

    task: Task
    config: FinetuneConfig
    model: AnyModel
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    encoded: Any
    loss_options: dict

    @property
    def settings(self) -> dict[str, Any]:
        """-> every option with the value that is used, those of a pretrained model its own."""
        config, shape = self.config.options(), self.model.trunk.config
        used = {"max_length": self.preprocessing.max_length}
        if config["model"] != "scratch":
            used |= {"layers": getattr(shape, "encoder_layers", shape.n_layer),
                     "width": shape.n_embd, "heads": shape.n_head,
                     "context_length": shape.n_positions, "vocab_size": shape.vocab_size}
            if len(rates := shape.dropout_rates) == 1:
                used["dropout"] = rates.pop()
        return config | used


@dataclass(frozen=True)
class PreparedRun:
    """A run of files whose checks have passed; nothing has been written yet."""

    prepared: Prepared
    given: dict[str, Any]     # the options that are not at their defaults
    folder: Path
    unnamed: bool     # then it is the first of folder, folder-2, ... that is not there
    resume: bool
    files: dict[str, str | None]     # checksums


def train_classifier(train: Examples, valid: Examples, config: FinetuneConfig, *, say: Say = tell,
                     callback: Log | None = None) -> FittedModel:
    """Trains on texts in memory, as `finetune` does on files; no file is written.

    The texts are taken as they are: reading, cleaning and what is held out come before. callback
    is called with each step and epoch. Raises UserError, and loop.Interrupted.
    """
    return _train(Classification, train, valid, config, say, callback)


def train_completion(train: Prompts, valid: Prompts, config: FinetuneConfig, *, say: Say = tell,
                     callback: Log | None = None) -> FittedModel:
    """As `train_classifier`, for prompts with completions."""
    return _train(Completion, train, valid, config, say, callback)


def _train(kind, train, valid, config, say, callback):
    config = with_defaults(config)
    require_sound(config)
    prepared = _prepare(kind(config, train, valid), say)
    prepared, _, state, history = _fit(prepared, None, False, say, callback)
    if prepared.model.adapter is not None:
        prepared.model.merge_adapter()
    return FittedModel(prepared.model, prepared.tokenizer, prepared.preprocessing, prepared.config,
                       state, history, getattr(prepared.model, "label_names", None))


def finetune(config: FinetuneConfig, resume: str | Path | None = None, say: Say = tell,
             changes: Mapping[str, Any] | None = None) -> dict:
    """Config of one seed -> results, with all files of the run in its folder.

    `resume`: the folder of an interrupted run, whose own config then counts, but for `changes`:
    the options that are others from here on. Raises UserError for anything a user can mend, before
    a file is written, loop.Interrupted, and DivergedError: the last good model is then in the
    folder.
    """
    ready = prepare(config, resume, say, changes)
    try:
        return run(ready, say)
    except DivergedError as error:
        raise divergence.with_way_on(error) from None


def prepare(config: FinetuneConfig, resume: str | Path | None = None, say: Say = tell,
            changes: Mapping[str, Any] | None = None) -> PreparedRun:
    """-> the run, with its files read and its model built; raises UserError."""
    kept = None if resume is None else run_folder.read_interrupted_run(resume)
    if kept is not None:
        config = with_changes(kept_config(kept, resume), changes)
    if config.output.seeds != 1:
        raise UserError(f"{setting('seeds')} is {config.output.seeds}: seeds.finetune trains "
                        "several")
    given = config.given() if kept is None else kept.get("given", {}) | dict(changes or {})
    config = with_defaults(config)
    require_sound(config, new=kept is None)
    config = with_commit(config)
    if resume is None and config.output.out is not None:
        run_folder.check_output_folder(config.output.out, config.output.overwrite,
                                       read_by(config))
    # 1. Clean the texts, find the labels, hold out the validation part
    task = read_task(config)
    files = fingerprints(config, kept, resume)
    if config.data.train is None:
        say("no training file: the texts are toy-news, short news made up by a grammar "
            "(minisft/data/toy_news.py)")
    prepared = _prepare(task, say, resume is not None)
    _say_data(prepared, say)
    out = resume or config.output.out
    return PreparedRun(prepared, given, Path(out or Path("runs") / run_name(config)),
                       out is None, resume is not None, files)


def with_commit(config: FinetuneConfig) -> FinetuneConfig:
    """-> the config whose revision is the commit that its model is now: all of a run begins with
    the same one, also where it is resumed. Raises UserError."""
    if config.model.model == "scratch":
        return config
    commit = hub.commit_of(_place(config.model))
    return config if commit is None else config.replace(revision=commit)


def _place(chosen):
    return hub.resolve(chosen.model, chosen.download, chosen.revision, chosen.allow_http)


def read_task(config: FinetuneConfig) -> Task:
    """-> the task with its texts, cleaned and split; raises UserError."""
    if config.data.valid_fraction == 0 and config.data.valid is None:
        raise UserError(f"{setting('valid_fraction')} is 0.0, expected more, or a file for "
                        f"{setting('valid')}: every epoch is scored on those texts")
    return TASKS[config.data.task].read(config, parse_cleaning_steps(config.data.clean))


def _prepare(task, say, resume=False):
    # 2. Load the pretrained model and its tokenizer, turn the texts into tokens
    config, loss_options = task.config, task.loss_options()
    model, tokenizer = _build(task, config, say, resume)
    positions, data = model.trunk.config.n_positions, config.data
    preprocessing = Preprocessing(parse_cleaning_steps(data.clean),
                                  min(data.max_length or positions, positions), data.truncate,
                                  data.separator if data.task == "complete" else None,
                                  data.parse_special, _columns(data), max_answer_length=(
                                      data.max_answer_length if data.task == "answer" else None))
    if data.skip_bad_rows:
        task = task.readable(tokenizer, preprocessing, model)
        loss_options = task.loss_options()      # of the texts that are left
    encoded = task.encode(tokenizer, preprocessing, model)
    if not data.parse_special and (note := special_tokens_note(
            tokenizer, getattr(task.train, "full_texts", task.texts))):
        say(f"{note} (of the training texts)")
    config = resolve_defaults(config, model, encoded.train)
    return Prepared(task, config, model, tokenizer, preprocessing, encoded, loss_options)


def _columns(data):
    """-> the columns of the training file, for the model's folder."""
    if data.train is None:
        return Columns()
    if data.task == "classify":
        return Columns(text_column=data.text_column, pair_column=data.pair_column,
                       label_column=data.label_column)
    if data.task in ("tag", "answer"):
        return Columns(word_column=data.word_column, tag_column=data.tag_column)
    if data.task == "translate":
        return Columns(source_column=data.source_column, target_column=data.target_column)
    return Columns(prompt_column=data.prompt_column, completion_column=data.completion_column)


def run(ready: PreparedRun, say: Say = tell, of_several: bool = False) -> dict:
    """Trains, scores and writes all files of the run -> results; raises loop.Interrupted.

    `of_several`: the end is told by the verdict alone.
    """
    with run_folder.FolderLock(ready.folder, say, ready.unnamed) as folder:
        return _run(ready, folder, say, of_several)


def _run(ready, folder, say, of_several):
    prepared = ready.prepared
    begin(folder, ready.resume, {"given": ready.given, "settings": prepared.settings,
                                 "files": ready.files}, prepared.model, say)
    _write_bad_rows(prepared.task, folder)
    try:
        prepared, adaptation, state, history = _fit(prepared, folder, ready.resume, say)
        prepared = _finished(prepared)
        # 4. Evaluate once, and write down everything
        _write_model(folder, prepared)
        results = _finish(ready.given, prepared, state, history, folder, adaptation, say)
        if not prepared.config.output.keep_state:
            run_folder.remove_state(folder)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(folder) from None
    config, headlines = prepared.config, prepared.task.headlines(results)
    for line in headlines[:1] if of_several else headlines:
        say(line)
    if not of_several:
        _say_choice(config.training, state, say)
        say(f"trained {state.tokens:,} tokens in {state.seconds:.1f} s "
            f"({results['tokens_per_second']:,.0f} a second)")
        say(f"everything is in {folder}; open {folder / 'report.html'} first")
        say(Use(folder / "model", config.data.task, config.data.pair_column is not None))
    return results


def _finished(prepared):
    return replace(prepared, preprocessing=prepared.task.finished(
        prepared.model, prepared.encoded, prepared.preprocessing))


def _write_model(folder, prepared):
    if prepared.model.adapter is not None:
        adapters.write(folder / run_folder.ADAPTER, prepared.model,
                       hub.portable_name(prepared.config.model.model),
                       {"preprocessing": asdict(prepared.preprocessing)})
        prepared.model.merge_adapter()     # what is scored is what model/ holds
    write_folder(folder / "model", prepared.model, prepared.tokenizer, prepared.preprocessing)


def _fit(prepared, folder, resume, say, callback=None):
    """-> Prepared with what the frozen layers make of its texts, figures of the adaptation or
    None, State, history."""
    # 3. Fine-tune; the validation part chooses the epoch
    task, config, model = prepared.task, prepared.config, prepared.model
    adaptation, show_progress = None, not config.output.quiet

    def name_text(n):
        return (f"{task.train.place(n)}, "
                f"{short_repr(decode(prepared.tokenizer, prepared.encoded.train.ids[n]))}")

    if config.training.adapt_epochs:
        try:
            adaptation = adapt(model, prepared.encoded.train, prepared.encoded.valid,
                               special_tokens_of(model, prepared.tokenizer).end, config, folder,
                               resume, say, name_text)
        except DivergedError as error:
            raise error.and_also("this was the adaptation", folder) from None
    optimizer = make_optimizer(model, config.training)
    state = load_or_init_state(folder, resume, model, optimizer, say)
    prepared = replace(prepared, encoded=_with_frozen_features(prepared, say))

    def validate(model):
        return task.validate(model, prepared.encoded.valid)

    try:
        history = fit_in(folder, model, prepared.encoded.train, config.training, validate, state,
                         optimizer, log=callback, loss_options=prepared.loss_options,
                         save_every=parse_save_every(config.output.save_every),
                         name_text=name_text, show_progress=show_progress)
    except DivergedError as error:
        raise divergence.keep_last_good(
            error, model, state, folder,
            lambda: _write_model(folder, _finished(prepared))) from None
    return prepared, adaptation, state, history


def _finish(given, prepared, state, history, folder, adaptation, say):
    """Scores the chosen epoch and writes the figures; -> results, whose file comes last."""
    task, config, model = prepared.task, prepared.config, prepared.model
    results, examples, answers = task.evaluate(model, prepared.tokenizer, prepared.encoded)
    results |= {"n_test": results["n"], "train_seconds": state.seconds,
                "tokens_per_second": state.tokens / state.seconds,
                "epochs_run": state.epoch, "best_epoch": state.best["epoch"],
                "parameters": model.store.size}
    if adaptation:
        results["adaptation"] = adaptation
    if config.output.compare == "random" and config.data.task == "classify" and \
            config.model.model != "scratch":
        say("for comparison, the same architecture from random weights:")
        results["random_weights"] = _from_random_weights(prepared, answers)
    plots.curves(history, folder / "curves.png", best_step=state.best["step"])
    description = {"model": f"{config.model.model}: {_shape(model)}",
                   "valid_path": config.data.valid} | task.describe(prepared.encoded) | {
        "bad_rows": len(_bad_rows(task)) or None, "changes": changes_of_run(folder)}
    task.write(folder, results, examples, description, report.Settings(
        config.that_count(prepared.settings), given, type(config)().options()), history)
    run_folder.require_present(folder)
    run_folder.write_results(folder, results)
    return results


def _with_frozen_features(prepared, say):
    """-> the texts with the output of the frozen layers, where there is something to save."""
    config, model, encoded = prepared.config, prepared.model, prepared.encoded
    if model.trunk.first_trainable_layer == 0:
        return encoded
    say("the frozen layers are not changed, and dropout is off in them")
    memory = config.training.feature_memory
    if not memory or config.training.epochs == 1:
        return encoded
    parts = {}
    for name in ("train", "valid"):
        part = with_features(getattr(encoded, name), model, config.training.micro_tokens,
                             memory * 2**20, not config.output.quiet)
        if part.features is not None and part.features.on_disk:
            say(f"their output, {part.features.rows.nbytes / 2**20:,.0f} MB, lies in a temporary "
                "file")
        parts[name] = part
    return replace(encoded, **parts)


def _from_random_weights(prepared, answers):
    """The same architecture trained without its pretrained weights -> its figures.

    The recipe is the one for random weights, which need a larger rate and more epochs.
    """
    task, encoded = prepared.task, replace(prepared.encoded, **{      # of another model's layers
        name: replace(getattr(prepared.encoded, name), features=None)
        for name in ("train", "valid")})
    config = with_defaults(prepared.config.replace(
        model="scratch", epochs=None, dropout=None, lr=None, train_layers="all", layer_decay=1.0,
        adapter=None))
    model = prepared.model.from_random_weights(config.model.dropout, config.training.seed)
    model.to(config.model.device, config.model.precision)
    training = resolve_defaults(config, model, encoded.train).training
    # a peak is known for one when 150 steps, or an epoch of more, have brought nothing better
    patience = ceil(150 * training.batch_tokens / int(encoded.train.lengths.sum()))
    select = TrainingConfig.select if training.select == "last" else training.select
    training = replace(training, early_stopping=patience, select=select, average=0.0)
    state = fit(model, encoded.train, training,
                lambda model: task.validate(model, encoded.valid), State(),
                make_optimizer(model, training), loss_options=prepared.loss_options,
                show_progress=not config.output.quiet)
    return task.compare(model, encoded, answers) | {
        "epochs": training.epochs, "epochs_run": state.epoch, "best_epoch": state.best["epoch"],
        "lr": training.lr, "dropout": config.model.dropout}


def _build(task, config, say, resume):
    """-> model and tokenizer, pretrained or from random weights, with the layers that train."""
    chosen = config.model
    if chosen.model == "scratch":
        tokenizer = (load_tokenizer(chosen.tokenizer, say) if chosen.tokenizer
                     else train_tokenizer(task.texts, chosen.vocab_size,
                                          getattr(task, "pad_token", None)))
        shape = GPT2Config(
            vocab_size=vocab_size_of(tokenizer), n_positions=chosen.context_length,
            n_embd=chosen.width, n_layer=chosen.layers, n_head=chosen.heads,
            initializer_range=chosen.initializer_range)
        shape = shape.with_dropout(chosen.dropout)
        shape.require_sound(f"{setting('width')}, {setting('heads')}")
        model = task.scratch(shape, tokenizer)
        if chosen.tokenizer and model.special_tokens is None:
            model.special_tokens = read_special_tokens(chosen.tokenizer, tokenizer)
        say("the model starts from random weights, so it knows no words yet: fine-tuning a "
            "pretrained one needs far fewer texts")
    else:
        folder = _place(chosen)
        if commit := hub.commit_of(folder):
            say(f"{chosen.model} is commit {commit}")
        if chosen.adapter is not None and hub.is_adapter(folder):
            raise UserError(f"{folder}: holds an adapter, expected the model that "
                            f"{setting('adapter')} is to adapt: minisft merge makes one of it")
        model = task.load(folder)
        beside = chosen.tokenizer or hub.base_of(folder)
        tokenizer = load_tokenizer(beside, say)
        require_vocab_fits(tokenizer, model.trunk.config, beside)
        model.special_tokens = read_special_tokens(beside, tokenizer)
        for note in notes_of(model):
            say(f"note: {note}")
        if model.newly_initialized and not resume:      # then the head is that of the run
            names = getattr(model, "label_names", None)
            what = f"the {len(names)} labels" if names else "the beginning and end of answers"
            say(f"a new head for {what}, from random weights ({model.new_head_reason}); the rest "
                f"is as {chosen.model} has it")
    try:
        model.train_layers(chosen.train_layers)
    except ValueError as error:
        raise UserError(f"{setting('train_layers')}: {error}") from None
    if chosen.adapter is not None:
        adapter = LoraConfig(chosen.rank, chosen.alpha, chosen.adapter_dropout,
                             target_names(model, chosen.adapter_targets))
        model.add_adapter(from_layer_on(adapter, model.trunk.first_trainable_layer,
                                        model.trunk.config), config.training.seed)
    for block in model.trunk.blocks:
        block.gradient_checkpointing = config.training.gradient_checkpointing
    model.to(chosen.device, chosen.precision)
    say(_shape(model))
    if pooling := getattr(model, "pooling", None):
        say("the classifier reads " + {
            "first": "the first token, through the pooler",
            "mean": "the mean of the tokens: transformers has no such class"}[pooling])
    return model, tokenizer


def _shape(model):
    """-> what is built, in a line."""
    shape = model.trunk.config
    trained = sum(p.size for p in model.store.trainable)
    return (f"{shape.TITLE} of {count(shape.n_layer, 'layer')}, width {shape.n_embd}, "
            f"{model.store.size:,} parameters, {trained:,} of them trained")


def _parts(task):
    return [part for part in (task.train, task.valid, task.test) if part is not None]


def _bad_rows(task):
    """-> those of all files in their order; parts of one file share what it has."""
    rows = dict.fromkeys(row for part in _parts(task) for row in part.bad_rows)
    files = list(dict.fromkeys(row.path for row in rows))
    return sorted(rows, key=lambda row: (files.index(row.path), row.line))


def _write_bad_rows(task, folder):
    if bad_rows := _bad_rows(task):
        write_text(folder / run_folder.BAD_ROWS, bad_rows_csv(bad_rows))


def _say_data(prepared, say):
    task, length = prepared.task, prepared.preprocessing.max_length
    for note in dict.fromkeys(note for part in _parts(task) for note in part.notes):
        say(f"note: {note}")
    data = task.describe(prepared.encoded)
    say(f"cleaning of all texts: {', '.join(prepared.preprocessing.clean) or 'none'}")
    for step, n in data["cleaned"].items():
        say(f"cleaned {step} in {count(n, 'training text')}")
    test = "no test texts" if data["n_test"] is None else count(data["n_test"], "test text")
    say(f"{data['n_train']:,} training, {data['n_valid']:,} validation and {test}")
    if data.get("labels"):
        names = ", ".join(one_line(name, 40) for name in data["labels"][:10])
        say(f"{len(data['labels'])} classes: {names}"
            f"{', ...' if len(data['labels']) > 10 else ''}; the largest is "
            f"{percent(data['majority'])} of the training texts")
    for part, cut in (("training and validation", data["cut_train"]), ("test", data["cut_test"])):
        if cut:
            say(f"cut {count(cut, f'{part} text')} to {count(length, 'token')}")
    if data["shared_with_training"]:
        shared = data["shared_with_training"]
        say(f"note: {count(shared, 'test text')} also stand{'s' * (shared == 1)} in the training "
            "file, which makes the test easier than new texts would be")
    if data["n_test"] is None:
        say("note: without a test file the figures at the end are of the validation part" + (
            "" if prepared.config.training.select == "last" else
            ", on which the best epoch is chosen too: expect less on new texts"))
    for line in task.sample(prepared.tokenizer, prepared.encoded):
        say(line)


def _say_choice(training, state, say):
    if training.select != "last":
        say(f"the best epoch on the validation part was {state.best['epoch']} of {state.epoch}")
    if training.average:
        averaged = state.best.get("averaged")
        say(f"the model is the mean of its values after each of {count(averaged, 'step')}"
            if averaged else
            "note: the best epoch ended before averaging began, so its own values are the model; "
            "choosing the last epoch takes the mean")


def run_name(config: FinetuneConfig) -> str:
    """-> what a run's folder is called where `out` does not say it."""
    train = config.data.train
    data = Path(train).name.split(".")[0] if train else "toy-news"
    model = Path(config.model.model).resolve()
    # a folder that a run left is called `model`: the run's own name says more
    return f"{data}-{model.parent.name if model.name == 'model' else model.name}"


def read_by(config: FinetuneConfig) -> list[tuple[str, str | Path | None]]:
    """-> the options that name what a run reads, and the files or folders that it reads."""
    chosen = config.model
    places = [] if chosen.model == "scratch" else [_place(chosen), hub.base_of(_place(chosen))]
    return [*((name, getattr(config.data, name)) for name in FILES),
            *(("model", place) for place in places), ("tokenizer", chosen.tokenizer)]


def fingerprints(config: FinetuneConfig, kept: dict | None,
                 resume: str | Path | None) -> dict[str, str | None]:
    """-> checksums of the data files, the model and the tokenizer; raises UserError when a resumed
    run began with others."""
    files = {name: provenance.file_sha256(getattr(config.data, name)) for name in FILES}
    chosen = config.model
    files["model"] = (None if chosen.model == "scratch" else
                      provenance.model_sha256(_place(chosen)))
    files["tokenizer"] = (None if chosen.tokenizer is None or not Path(chosen.tokenizer).exists()
                          else provenance.model_sha256(chosen.tokenizer))
    for name, checksum in files.items():
        if kept is not None and kept["files"].get(name) != checksum:
            raise UserError(f"{config.options()[name]}: has changed since the run {resume} began, "
                            f"expected the same for {setting(name)}")
    return files


def record(config: FinetuneConfig) -> dict[str, dict]:
    """The config of several runs -> what config.json keeps of it: given, and all settings, where
    what a pretrained model decides is None."""
    unset = {} if config.model.model == "scratch" else dict.fromkeys(SCRATCH)
    return {"given": config.given(), "settings": config.options() | unset}


def kept_config(kept: dict, folder: str | Path,
                kind: type[FinetuneConfig] = FinetuneConfig) -> FinetuneConfig:
    """config.json of a run -> its config; raises UserError where its files are not there."""
    given, used = kept.get("given"), kept.get("settings")
    if isinstance(given, dict) and isinstance(used, dict) and used.get("model") != "scratch":
        known = kind.option_fields()
        kept = kept | {"settings": used | {name: known[name].default for name in OF_THE_MODEL
                                           if name in used and name not in given}}
    config = config_of_run(kind, kept, folder)
    for name in FILES:
        path = getattr(config.data, name)
        if path is not None and not Path(path).exists():
            raise UserError(f"{path}: no such file, expected the file for {setting(name)} of the "
                            f"run {folder}; resume in the folder where the run began")
    return config
