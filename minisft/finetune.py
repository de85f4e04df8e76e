"""Fine-tuning from files to a run folder: the article's four steps in the order they happen."""

import dataclasses
from pathlib import Path

from minisft import hub, plots, runs
from minisft.classify import Classification
from minisft.complete import Completion
from minisft.data.text import load_tokenizer, parse_steps, train_tokenizer
from minisft.errors import UserError
from minisft.files import write_json
from minisft.folder import Treatment, require_fit, write_folder
from minisft.models.gpt2 import GPT2Config
from minisft.settings import Settings, kept_settings, require_in_range, spelled
from minisft.train import Interrupted, begin, fit_in, make_optimizer

TASKS = {"classify": Classification, "complete": Completion}


def require_sound(settings):
    """Raises UserError naming the first option that cannot be."""
    require_in_range(settings)
    if settings.valid_fraction == 0 and settings.valid is None:
        raise UserError("--valid-fraction is 0.0, expected more, or --valid FILE: the best "
                        "epoch is chosen on those texts")
    for name in ("pair_column", "word_dropout", "word_swap"):
        if settings.task != "classify" and getattr(settings, name):
            raise UserError(f"{spelled(name)} is for --task classify")
    if settings.pooling is not None and (settings.model == "scratch" or
                                         settings.task != "classify"):
        raise UserError("--pooling is for a BERT that classifies: see --model")
    for name in Settings.SCRATCH:
        if settings.model != "scratch" and getattr(settings, name) != getattr(Settings, name):
            raise UserError(f"{spelled(name)} is for a model from random weights, "
                            f"{settings.model} has its own")


def finetune(settings, resume=None, say=print):
    """Settings -> results (dict), with all files of the run in its folder.

    `resume`: the folder of an interrupted run, whose own settings then count. Raises UserError for
    anything a user can mend, before a file is written, and train.Interrupted.
    """
    config = None if resume is None else runs.unfinished(resume)
    if config is not None:
        settings = _kept_settings(config, resume)
    settings = dataclasses.replace(settings, **_defaults(settings))
    require_sound(settings)
    if resume is None and settings.out is not None:
        runs.require_free(settings.out, settings.overwrite)

    # 1. Clean the texts, find the labels, hold out the validation part
    clean = parse_steps(settings.clean)
    task = TASKS[settings.task](settings, clean)
    files = _fingerprints(settings, config, resume)

    # 2. Load the pretrained model and its tokenizer, turn the texts into tokens
    model, tokenizer = _build(task, settings, say)
    if settings.lr is None:
        settings = dataclasses.replace(settings, lr=_default_lr(model, settings))
    treatment = Treatment(clean, min(settings.max_length or model.trunk.config.n_positions,
                                     model.trunk.config.n_positions), settings.truncate,
                          settings.separator if settings.task == "complete" else None)
    task.encode(tokenizer, treatment)
    _tell_data(task, treatment, say)

    # 3. Fine-tune; the validation part chooses the epoch
    folder = Path(resume or settings.out or runs.first_free("runs", _name(settings)))
    optimizer = make_optimizer(model, settings)
    progress = begin(folder, resume, {"settings": dataclasses.asdict(settings), "files": files},
                     model, optimizer, say)
    try:
        history = fit_in(folder, model, task.train_ids, settings, task.validate, progress,
                         optimizer, loss_options=task.loss_options())
        # 4. Evaluate once, and write down everything
        write_folder(folder / "model", model, tokenizer, treatment)
        results = _finish(task, model, settings, progress, history, folder)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(folder) from None
    say(f"the best epoch on the validation part was {progress.best['epoch']} of {progress.epoch}")
    say(task.headline(results))
    say(f"trained {progress.tokens:,} tokens in {progress.seconds:.1f} s "
        f"({results['tokens_per_second']:,.0f} a second); everything is in {folder}")
    return results


def _finish(task, model, settings, progress, history, folder):
    """Scores the chosen epoch and writes what was found; -> results, whose file comes last."""
    results, examples = task.evaluate(model)
    best = progress.best["epoch"]
    results |= {"n_test": results["n"], "train_seconds": progress.seconds,
                "tokens_per_second": progress.tokens / progress.seconds,
                "epochs_run": progress.epoch, "best_epoch": best, "parameters": model.store.size}
    plots.curves(history, folder / "curves.png", best_step=progress.best["step"])
    task.write(folder, results, examples, dataclasses.asdict(settings), history)
    write_json(folder / "results.json", results)
    return results


def _build(task, settings, say):
    """-> model and tokenizer, pretrained or from random weights, with the layers that train."""
    if settings.model == "scratch":
        tokenizer = (load_tokenizer(settings.tokenizer) if settings.tokenizer
                     else train_tokenizer(task.texts, settings.vocab_size))
        config = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(), n_positions=settings.positions,
            n_embd=settings.width, n_layer=settings.layers, n_head=settings.heads,
            embd_pdrop=settings.dropout, attn_pdrop=settings.dropout, resid_pdrop=settings.dropout)
        config.require_sound("--width, --heads")
        model = task.scratch(config, settings.seed)
        say("the model starts from random weights, so it knows no words yet: fine-tuning a "
            "pretrained one (--model) needs far fewer texts")
    else:
        folder = hub.resolve(settings.model, settings.download)
        model = task.load(folder, settings.seed, settings.dropout)
        tokenizer = load_tokenizer(settings.tokenizer or folder)
        require_fit(tokenizer, model.trunk.config, settings.tokenizer or folder)
        if model.fresh:
            say(f"a new head for the {len(model.names)} labels, from random weights; the rest is "
                f"as {settings.model} has it")
    try:
        model.train_layers(settings.train_layers)
    except ValueError as error:
        raise UserError(f"--train-layers: {error}") from None
    shape = model.trunk.config
    say(f"{shape.TITLE} of {shape.n_layer} layer{'s' * (shape.n_layer != 1)}, width "
        f"{shape.n_embd}, {shape.vocab_size:,} tokens of vocabulary: {model.store.size:,} "
        f"parameters, {model.store.values.size:,} trained")
    if pooling := getattr(model, "pooling", None):
        say("the classifier reads " + {
            "first": "the first token, through the pooler",
            "mean": "the mean of the tokens: transformers has no such class"}[pooling])
    return model, tokenizer


def _default_lr(model, settings):
    # 5e-5 is the field's choice at GPT-2's width 768; narrower models want more, and a head that
    # starts from random weights on a frozen model most.
    adam = 1e-3 if settings.model == "scratch" or settings.train_layers == "head" else (
        5e-5 * 768 / model.trunk.config.n_embd)
    return 100 * adam if settings.optimizer == "sgd" else adam     # its steps know no scale


def _tell_data(task, treatment, say):
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
            say(f"cut {cut:,} {part} text{'s' * (cut != 1)} to {treatment.max_length} token"
                f"{'s' * (treatment.max_length != 1)}")
    if data["shared_with_training"]:
        say(f"note: {data['shared_with_training']:,} test texts also stand in the training file, "
            "which makes the test easier than new texts would be")
    if data["n_test"] is None:
        say("note: without --test the figures at the end are of the validation part, on which the "
            "best epoch is chosen too: expect less on new texts")
    for line in task.sample():
        say(line)


def _name(settings):
    data = Path(settings.train).name.split(".")[0] if settings.train else "toy-news"
    model = Path(settings.model).resolve()
    # a folder that a run left is called `model`: the run's own name says more
    return f"{data}-{model.parent.name if model.name == 'model' else model.name}"


def _fingerprints(settings, config, resume):
    """-> checksums of the data files; raises UserError when a resumed run began with others."""
    files = {name: runs.fingerprint(getattr(settings, name)) for name in ("train", "valid", "test")}
    for name, found in files.items():
        if config is not None and config["files"].get(name) != found:
            raise UserError(f"{getattr(settings, name)}: has changed since the run {resume} began, "
                            f"expected the same --{name} file")
    return files


def _kept_settings(config, folder):
    settings = kept_settings(Settings, config, folder)
    for name in ("train", "valid", "test"):
        path = getattr(settings, name)
        if path is not None and not Path(path).exists():
            raise UserError(f"{path}: no such file, expected the --{name} file of the run "
                            f"{folder}; resume in the folder where the run began")
    return settings


def _defaults(settings):
    """-> the settings whose default depends on others."""
    scratch = settings.model == "scratch"
    values = {"epochs": 15 if scratch else 3,
              "clean": "none" if settings.task == "complete" else "all",
              "dropout": 0.3 if scratch else None}
    return {name: value for name, value in values.items() if getattr(settings, name) is None}
