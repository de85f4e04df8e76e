"""Fine-tuning from files to a run folder: the article's four steps in the order they happen."""

import dataclasses
from math import ceil
from pathlib import Path

from minisft.data.text import load_tokenizer, parse_steps, train_tokenizer
from minisft.errors import UserError
from minisft.evaluation import plots
from minisft.io import hub, run_folder
from minisft.io.files import write_json
from minisft.io.model_folder import Preprocessing, end_token, require_fit, write_folder
from minisft.jobs.adaptation import adapt
from minisft.jobs.classify import Classification
from minisft.jobs.complete import Completion
from minisft.models.gpt2 import GPT2Config
from minisft.training.config import Settings, kept_settings, require_sound
from minisft.training.defaults import fitting, with_defaults
from minisft.training.frozen_features import with_features
from minisft.training.loop import (
    Interrupted,
    State,
    begin,
    fit,
    fit_in,
    load_or_init_state,
    make_optimizer,
)

TASKS = {"classify": Classification, "complete": Completion}


def finetune(settings, resume=None, say=print, checked=lambda: None):
    """Settings of one seed -> results (dict), with all files of the run in its folder.

    `resume`: the folder of an interrupted run, whose own settings then count. Raises UserError for
    anything a user can mend, before a file is written, and train.Interrupted. `checked` is called
    in between: all that can be told beforehand is then known to be sound.
    """
    config = None if resume is None else run_folder.unfinished(resume)
    if config is not None:
        settings = kept_run(config, resume)
    if settings.seeds != 1:
        raise UserError(f"--seeds is {settings.seeds}: seeds.finetune trains several")
    settings = with_defaults(settings)
    require_sound(settings)
    if resume is None and settings.out is not None:
        run_folder.require_free(settings.out, settings.overwrite)

    # 1. Clean the texts, find the labels, hold out the validation part
    clean = parse_steps(settings.clean)
    task = TASKS[settings.task](settings, clean)
    files = fingerprints(settings, config, resume)

    # 2. Load the pretrained model and its tokenizer, turn the texts into tokens
    model, tokenizer = _build(task, settings, say)
    preprocessing = Preprocessing(clean, min(settings.max_length or model.trunk.config.n_positions,
                                     model.trunk.config.n_positions), settings.truncate,
                          settings.separator if settings.task == "complete" else None)
    task.encode(tokenizer, preprocessing)
    settings = fitting(settings, model, task.train_ids)
    _tell_data(task, preprocessing, say)

    # 3. Fine-tune; the validation part chooses the epoch
    folder = Path(resume or settings.out or run_folder.first_free("runs", run_name(settings)))
    checked()
    begin(folder, resume, {"settings": dataclasses.asdict(settings), "files": files}, model, say)
    try:
        adaptation = None
        if settings.adapt_epochs:
            adaptation = adapt(model, task.train_ids, task.valid_ids, end_token(tokenizer),
                               settings, folder, resume, say)
        optimizer = make_optimizer(model, settings)
        progress = load_or_init_state(folder, resume, model, optimizer, say)
        _keep_features(task, model, settings, say)
        history = fit_in(folder, model, task.train_ids, settings, task.validate, progress,
                         optimizer, loss_options=task.loss_options())
        # 4. Evaluate once, and write down everything
        write_folder(folder / "model", model, tokenizer, preprocessing)
        results = _finish(task, model, settings, progress, history, folder, adaptation, say)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(folder) from None
    _tell_choice(settings, progress, say)
    say(task.headline(results))
    say(f"trained {progress.tokens:,} tokens in {progress.seconds:.1f} s "
        f"({results['tokens_per_second']:,.0f} a second); everything is in {folder}")
    return results


def _finish(task, model, settings, progress, history, folder, adaptation, say):
    """Scores the chosen epoch and writes what was found; -> results, whose file comes last."""
    results, examples = task.evaluate(model)
    best = progress.best["epoch"]
    results |= {"n_test": results["n"], "train_seconds": progress.seconds,
                "tokens_per_second": progress.tokens / progress.seconds,
                "epochs_run": progress.epoch, "best_epoch": best, "parameters": model.store.size}
    if adaptation:
        results["adaptation"] = adaptation
    if settings.compare == "random" and settings.task == "classify" and settings.model != "scratch":
        say("for comparison, the same architecture from random weights:")
        results["random_weights"] = _from_random_weights(task, model, settings)
    plots.curves(history, folder / "curves.png", best_step=progress.best["step"])
    task.write(folder, results, examples, dataclasses.asdict(settings), history)
    write_json(folder / "results.json", results)
    return results


def _keep_features(task, model, settings, say):
    """Frozen layers are computed once, where there is something to save."""
    if model.trunk.first_trainable_layer == 0:
        return
    say("the frozen layers are not changed, and dropout is off in them")
    if not settings.feature_memory or settings.epochs == 1:
        return
    for name in ("train_ids", "valid_ids"):
        kept = with_features(getattr(task, name), model, settings.micro_tokens,
                             settings.feature_memory * 2**20, not settings.quiet)
        setattr(task, name, kept)
        if kept.features is not None and kept.features.on_disk:
            say(f"their output, {kept.features.rows.nbytes / 2**20:,.0f} MB, lies in a temporary "
                "file")


def _from_random_weights(task, pretrained, settings):
    """The same architecture trained without its pretrained weights -> its figures.

    The recipe is the one for random weights, which need a larger rate and more epochs.
    """
    recipe = dataclasses.replace(settings, model="scratch", epochs=None, dropout=None, lr=None,
                                 train_layers="all", layer_decay=1.0)
    recipe = with_defaults(recipe)
    model = pretrained.from_random_weights(recipe.dropout, recipe.seed)
    model.to(recipe.device, recipe.precision)
    recipe = fitting(recipe, model, task.train_ids)
    # a peak is known for one when 150 steps, or an epoch of more, have brought nothing better
    patience = ceil(150 * recipe.batch_tokens / int(task.train_ids.lengths.sum()))
    select = Settings.select if recipe.select == "last" else recipe.select
    recipe = dataclasses.replace(recipe, early_stopping=patience, select=select,
                                 average=0.0)
    for name in ("train_ids", "valid_ids"):      # the frozen layers of another model
        setattr(task, name, dataclasses.replace(getattr(task, name), features=None))
    state = fit(model, task.train_ids, recipe, task.validate, State(),
                make_optimizer(model, recipe), loss_options=task.loss_options())
    return task.figures(model) | {"epochs": recipe.epochs, "epochs_run": state.epoch,
                                  "best_epoch": state.best["epoch"], "lr": recipe.lr,
                                  "dropout": recipe.dropout}


def _build(task, settings, say):
    """-> model and tokenizer, pretrained or from random weights, with the layers that train."""
    if settings.model == "scratch":
        tokenizer = (load_tokenizer(settings.tokenizer) if settings.tokenizer
                     else train_tokenizer(task.texts, settings.vocab_size))
        config = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(), n_positions=settings.context_length,
            n_embd=settings.width, n_layer=settings.layers, n_head=settings.heads)
        config = config.with_dropout(settings.dropout)
        config.require_sound("--width, --heads")
        model = task.scratch(config, settings.seed)
        say("the model starts from random weights, so it knows no words yet: fine-tuning a "
            "pretrained one (--model) needs far fewer texts")
    else:
        folder = hub.resolve(settings.model, settings.download)
        model = task.load(folder, settings.seed, settings.dropout)
        tokenizer = load_tokenizer(settings.tokenizer or folder)
        require_fit(tokenizer, model.trunk.config, settings.tokenizer or folder)
        if model.newly_initialized:
            say(f"a new head for the {len(model.label_names)} labels, from random weights; the "
                f"rest is as {settings.model} has it")
    try:
        model.train_layers(settings.train_layers)
    except ValueError as error:
        raise UserError(f"--train-layers: {error}") from None
    for block in model.trunk.blocks:
        block.gradient_checkpointing = settings.gradient_checkpointing
    model.to(settings.device, settings.precision)
    shape = model.trunk.config
    say(f"{shape.TITLE} of {shape.n_layer} layer{'s' * (shape.n_layer != 1)}, width "
        f"{shape.n_embd}, {shape.vocab_size:,} tokens of vocabulary: {model.store.size:,} "
        f"parameters, {model.store.values.size:,} trained")
    if pooling := getattr(model, "pooling", None):
        say("the classifier reads " + {
            "first": "the first token, through the pooler",
            "mean": "the mean of the tokens: transformers has no such class"}[pooling])
    return model, tokenizer


def _tell_data(task, preprocessing, say):
    data = task.data()
    if task.settings.train is None:
        say("no --train file: the texts are toy-news, short news made up by a grammar "
            "(minisft/data/toy_news.py)")
    for step, count in task.cleaned.items():
        say(f"cleaned {step} in {count:,} training texts")
    test = "no" if data["n_test"] is None else f"{data['n_test']:,}"
    say(f"{data['n_train']:,} training, {data['n_valid']:,} validation and {test} test texts")
    if data.get("labels"):
        say(f"{len(data['labels'])} classes: {', '.join(data['labels'][:10])}"
            f"{', ...' if len(data['labels']) > 10 else ''}; the largest is "
            f"{data['majority']:.1%} of the training texts")
    for part, cut in (("training and validation", data["cut_train"]), ("test", data["cut_test"])):
        if cut:
            say(f"cut {cut:,} {part} text{'s' * (cut != 1)} to {preprocessing.max_length} token"
                f"{'s' * (preprocessing.max_length != 1)}")
    if data["shared_with_training"]:
        say(f"note: {data['shared_with_training']:,} test texts also stand in the training file, "
            "which makes the test easier than new texts would be")
    if data["n_test"] is None:
        say("note: without --test the figures at the end are of the validation part" + (
            "" if task.settings.select == "last" else
            ", on which the best epoch is chosen too: expect less on new texts"))
    for line in task.sample():
        say(line)


def _tell_choice(settings, progress, say):
    if settings.select != "last":
        say(f"the best epoch on the validation part was {progress.best['epoch']} of "
            f"{progress.epoch}")
    if settings.average:
        averaged = progress.best.get("averaged")
        say(f"the model is the mean of its values after each of {averaged:,} steps" if averaged else
            "note: the best epoch ended before --average began, so its own values are the model; "
            "--select last takes the mean")


def run_name(settings):
    """-> what a run's folder is called where --out does not say it."""
    data = Path(settings.train).name.split(".")[0] if settings.train else "toy-news"
    model = Path(settings.model).resolve()
    # a folder that a run left is called `model`: the run's own name says more
    return f"{data}-{model.parent.name if model.name == 'model' else model.name}"


def fingerprints(settings, config, resume):
    """-> checksums of the data files; raises UserError when a resumed run began with others."""
    files = {name: run_folder.fingerprint(getattr(settings, name))
             for name in ("train", "valid", "test")}
    for name, found in files.items():
        if config is not None and config["files"].get(name) != found:
            raise UserError(f"{getattr(settings, name)}: has changed since the run {resume} began, "
                            f"expected the same --{name} file")
    return files


def kept_run(config, folder, kind=Settings):
    """config.json of a run -> its settings; raises UserError where its files are not there."""
    settings = kept_settings(kind, config, folder)
    for name in ("train", "valid", "test"):
        path = getattr(settings, name)
        if path is not None and not Path(path).exists():
            raise UserError(f"{path}: no such file, expected the --{name} file of the run "
                            f"{folder}; resume in the folder where the run began")
    return settings
