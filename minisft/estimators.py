"""Estimators as scikit-learn has them: texts in, labels or completions out.

Each parameter is the option of `minisft finetune` with that name, meaning and default, as its
help explains them, and with the same settings the result has the same bits. scikit-learn is not
needed; where it is installed, its model selection and pipelines take these estimators.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from minisft.backend.array import device_name
from minisft.data import in_memory
from minisft.data.batch import BATCH_TOKENS
from minisft.data.in_memory import Texts
from minisft.data.read import sorted_label_names, train_valid_split
from minisft.data.sequences import encode_sequences, require_readable
from minisft.data.text import parse_cleaning_steps
from minisft.data.tokenizer import decode
from minisft.errors import NotFittedError, UserError, tell
from minisft.evaluation.evaluate import completion_loss, log_probabilities
from minisft.io import hub
from minisft.io.files import read_json, write_json
from minisft.io.model_folder import Preprocessing, read_folder, write_folder
from minisft.jobs import complete
from minisft.jobs.finetune import FittedModel, train_classifier, train_completion
from minisft.jobs.generate import generate_texts
from minisft.models.generate import Sampler
from minisft.models.heads import Classifier, LanguageModel
from minisft.training.config import FinetuneConfig
from minisft.training.defaults import with_defaults
from minisft.training.loop import Interrupted

PARAMETERS = "estimator.json"     # beside the model; other readers of the folder pass it by

Callback = Callable[[Mapping[str, Any]], Any]


class Estimator:
    """What both have in common: parameters, folders, and what scikit-learn asks for."""

    task: ClassVar[str]
    # of the parameters, those that both have and that are read here
    device: str
    precision: str
    micro_tokens: int
    quiet: bool
    # after `fit`
    model_: Any
    tokenizer_: Tokenizer
    preprocessing_: Preprocessing
    history_: dict[str, list[dict]]

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def _set(self, given: Mapping[str, Any]) -> None:
        # as scikit-learn wants it: `__init__` keeps what it is given and checks nothing
        vars(self).update((name, value) for name, value in given.items()
                          if name not in ("self", "__class__"))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """-> every parameter by its name."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Sets some parameters -> self; raises UserError for a name that is none."""
        names = self._parameter_names()
        for name, value in params.items():
            if name not in names:
                raise UserError(f"Invalid parameter {name!r} for {type(self).__name__}, expected "
                                f"one of {', '.join(names)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{name}={value!r}" for name, value in self.get_params().items()
                   if value is not defaults[name].default and value != defaults[name].default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        # only scikit-learn calls this, so that it is imported already
        from sklearn.utils import InputTags, Tags, TargetTags
        return Tags(estimator_type=None, target_tags=TargetTags(required=True),
                    input_tags=InputTags(one_d_array=True, two_d_array=False, string=True))

    def _require_fitted(self) -> None:
        """Raises NotFittedError; where scikit-learn is in use, it is scikit-learn's as well."""
        if not self.__sklearn_is_fitted__():
            kind: Any = NotFittedError
            exceptions = sys.modules.get("sklearn.exceptions")
            if exceptions is not None:
                kind = type(kind.__name__, (kind, exceptions.NotFittedError), {})
            raise kind(f"this {type(self).__name__} is not fitted yet: call fit before, or load "
                       "a folder")

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.__sklearn_is_fitted__():     # a model is pickled as it is on the CPU
            self.model_.to(self.device, self.precision)

    def _config(self) -> tuple[FinetuneConfig, tuple[str, ...]]:
        """-> the config that a command would have, and its cleaning steps."""
        # by attributes: a subclass may have fewer parameters
        config = with_defaults(FinetuneConfig.from_options(**{
            name: _plain(getattr(self, name)) for name in FinetuneConfig.option_fields()
            if hasattr(self, name)}))
        return config, parse_cleaning_steps(config.data.clean or "none")

    def _say(self) -> Callable[[str], None]:
        return (lambda line: None) if self.quiet else tell

    def _fit(self, train: Callable[..., FittedModel], *parts: Any, **options: Any) -> Self:
        try:
            fitted = train(*parts, say=self._say(), **options)
        except Interrupted:
            raise KeyboardInterrupt from None
        self.model_, self.tokenizer_ = fitted.model, fitted.tokenizer
        self.preprocessing_ = fitted.preprocessing
        self.history_ = fitted.history
        return self

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes a folder that `load`, the commands and `transformers` open.

        Raises UserError where something is there already, unless `overwrite` is true.
        """
        self._require_fitted()
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, expected a folder or nothing")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise UserError(f"{folder} is not empty, expected a new folder, or overwrite=True")
        write_folder(folder, self.model_, self.tokenizer_, self.preprocessing_)
        params = {name: _plain(value) for name, value in self.get_params().items()}
        write_json(folder / PARAMETERS, {"estimator": type(self).__name__, "params": params}
                   | self._extra())

    def _extra(self) -> dict[str, Any]:
        return {}

    @classmethod
    def load(cls, folder: str | Path, *, download: bool = False, device: str = "cpu",
             precision: str = "float32") -> Self:
        """A folder that `save`, a command or `transformers` wrote, or a model's name -> estimator.

        Raises UserError.
        """
        place = hub.resolve(str(folder), download)
        model, tokenizer, preprocessing = read_folder(place, download, device, task=cls.task)
        path = place / PARAMETERS
        saved = read_json(path) if path.is_file() else {"params": {"model": str(folder)}}
        try:
            params = {name: tuple(value) if isinstance(value, list) else value
                      for name, value in saved["params"].items()}      # JSON knows no tuples
            estimator = cls(**params | {"device": device, "precision": precision})
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{path}: not what save of this version writes") from None
        model.to(device, precision)
        estimator.model_, estimator.tokenizer_ = model, tokenizer
        estimator.preprocessing_ = preprocessing
        estimator._restore(saved)
        return estimator

    def _restore(self, saved: Mapping[str, Any]) -> None:
        pass


class TextClassifier(Estimator):
    """A classifier of texts: a pretrained GPT-2 or BERT, fine-tuned on labelled texts.

    After `fit`: `classes_` (sorted, of the labels' own type), `model_`, `tokenizer_`,
    `preprocessing_` and `history_`, a dict of `steps` and `epochs`.
    """

    task = "classify"
    model_: Classifier
    classes_: np.ndarray
    _estimator_type = "classifier"     # scikit-learn before 1.6

    def __init__(
            self, model: str | Path = "minisft-gpt2", *, epochs: int | None = None,
            lr: float | None = None, batch_tokens: int | None = None,
            # texts
            max_length: int | None = None, truncate: str = "head", clean: str | None = None,
            parse_special: bool = False, valid_fraction: float = 0.1,
            # model
            train_layers: str = "all", adapter: str | None = None, rank: int | None = None,
            alpha: float | None = None, adapter_dropout: float | None = None,
            adapter_targets: tuple[str, ...] = (),
            pooling: str | None = None, dropout: float | None = None,
            download: bool = False, revision: str | None = None, allow_http: bool = False,
            tokenizer: str | Path | None = None, layers: int = 2,
            width: int = 128, heads: int = 4, context_length: int = 512, vocab_size: int = 4096,
            initializer_range: float = 0.02, device: str = "cpu", precision: str = "float32",
            # training
            adapt_epochs: int = 0, micro_tokens: int = 8192, gradient_checkpointing: bool = False,
            feature_memory: int = 1024, schedule: str = "linear", warmup_ratio: float = 0.1,
            optimizer: str = "adamw", momentum: float = 0.9, beta2: float = 0.999,
            weight_decay: float = 0.01, layer_decay: float = 1.0, max_grad_norm: float = 1.0,
            class_weights: str = "none", label_smoothing: float | None = None,
            token_dropout: float = 0.0, token_swap: float = 0.0, average: float = 0.0,
            early_stopping: int = 0, select: str = "accuracy", seed: int = 0,
            quiet: bool = False) -> None:
        self._set(locals())

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags
        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        return tags

    def fit(self, texts: Texts, labels: Iterable[Any], *,
            validation: tuple[Texts, Iterable[Any]] | None = None,
            callback: Callback | None = None) -> Self:
        """Texts and the label of each -> self, fitted.

        A text is a str, or a pair of them for a BERT. Labels are str, int, bool or whole floats.
        `validation`: texts and labels on which each epoch is scored; without it a part of the texts
        (`valid_fraction`) is held out. `callback(dict)` hears of each step and epoch. Raises
        UserError.
        """
        config, steps = self._config()
        values = in_memory.as_labels(labels)
        classes = np.unique(values)
        label_names = sorted_label_names("labels", map(str, classes.tolist()))
        train = in_memory.examples(texts, values, label_names, steps)
        if validation is None:
            kept, held_out = train_valid_split(train.labels, train.texts,
                                               config.data.valid_fraction, config.training.seed)
            train, valid = in_memory.subset(train, kept), in_memory.subset(train, held_out)
        else:
            valid = in_memory.examples(
                validation[0], in_memory.as_labels(validation[1], "validation labels"),
                label_names, steps, "validation ")
        self._fit(train_classifier, train, valid, config, callback=callback)
        self._set_classes(classes)
        return self

    def _set_classes(self, classes: np.ndarray) -> None:
        self.classes_ = classes
        # the model's order may be another: by number where all names are numbers
        column = {name: i for i, name in enumerate(self.model_.label_names)}
        self._columns = [column[str(value)] for value in classes.tolist()]

    def predict(self, texts: Texts) -> np.ndarray:
        """Texts -> the label of each (n,), of the type of those that `fit` was given."""
        self._require_fitted()
        return self.classes_[self.predict_proba(texts).argmax(axis=1)]

    def predict_proba(self, texts: Texts) -> np.ndarray:
        """Texts -> probabilities (n, n_classes), columns as in `classes_`."""
        self._require_fitted()
        firsts, seconds, _ = in_memory.clean_texts(texts, self.preprocessing_.clean)
        room = self.model_.trunk.config.n_positions
        ids, types, _ = encode_sequences(
            self.tokenizer_, firsts, min(self.preprocessing_.max_length or room, room),
            self.preprocessing_.truncate, seconds, self.preprocessing_.parse_special)
        require_readable(ids, self.tokenizer_, self.model_.trunk.config, "texts[{}]".format, types)
        at_once = min(self.micro_tokens, BATCH_TOKENS[device_name(self.device)])
        logp = log_probabilities(self.model_, ids, at_once, types=types)
        return np.exp(logp)[:, self._columns]

    def score(self, texts: Texts, labels: Iterable[Any],
              sample_weight: Sequence[float] | None = None) -> float:
        """Texts and their labels -> accuracy."""
        answers, truth = self.predict(texts), in_memory.as_labels(labels)
        if len(answers) != len(truth):
            raise UserError(f"{len(answers)} texts but {len(truth)} labels")
        return float(np.average(answers == truth, weights=sample_weight))

    def _extra(self) -> dict[str, Any]:
        return {"label_dtype": self.classes_.dtype.name}

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._set_classes(_typed(self.model_.label_names, saved.get("label_dtype", "str")))


class CompletionModel(Estimator):
    """A language model that completes prompts: a pretrained GPT-2, fine-tuned on pairs of texts.

    After `fit`: `model_`, `tokenizer_`, `preprocessing_` and `history_`, a dict of `steps` and
    `epochs`.
    """

    task = "complete"
    model_: LanguageModel

    def __init__(
            self, model: str | Path = "minisft-gpt2", *, epochs: int | None = None,
            lr: float | None = None, batch_tokens: int | None = None,
            # texts
            separator: str = "\n\n", parse_special: bool = False,
            max_length: int | None = None, truncate: str = "head",
            clean: str | None = None, valid_fraction: float = 0.1,
            # model
            train_layers: str = "all", adapter: str | None = None, rank: int | None = None,
            alpha: float | None = None, adapter_dropout: float | None = None,
            adapter_targets: tuple[str, ...] = (),
            dropout: float | None = None, download: bool = False,
            revision: str | None = None, allow_http: bool = False,
            tokenizer: str | Path | None = None, layers: int = 2, width: int = 128,
            heads: int = 4, context_length: int = 512, vocab_size: int = 4096,
            initializer_range: float = 0.02, device: str = "cpu", precision: str = "float32",
            # training
            micro_tokens: int = 8192, gradient_checkpointing: bool = False,
            feature_memory: int = 1024, schedule: str = "linear", warmup_ratio: float = 0.1,
            optimizer: str = "adamw", momentum: float = 0.9, beta2: float = 0.999,
            weight_decay: float = 0.01, layer_decay: float = 1.0, max_grad_norm: float = 1.0,
            average: float = 0.0, early_stopping: int = 0, select: str = "accuracy",
            seed: int = 0, quiet: bool = False) -> None:
        self._set(locals())

    def fit(self, prompts: Iterable[str], completions: Iterable[str], *,
            validation: tuple[Iterable[str], Iterable[str]] | None = None,
            callback: Callback | None = None) -> Self:
        """Prompts and the completion of each -> self, fitted.

        `validation`: prompts and completions on which each epoch is scored; without it a part of
        the prompts (`valid_fraction`) is held out. `callback(dict)` hears of each step and epoch.
        Raises UserError.
        """
        config, steps = self._config()
        train = in_memory.prompts(prompts, completions, steps)
        if validation is None:
            kept, held_out = train_valid_split(None, train.prompts, config.data.valid_fraction,
                                               config.training.seed)
            train, valid = in_memory.subset(train, kept), in_memory.subset(train, held_out)
        else:
            valid = in_memory.prompts(*validation, steps, "validation ")
        return self._fit(train_completion, train, valid, config, callback=callback)

    def generate(self, prompts: str | Iterable[str], *, max_new_tokens: int = 128,
                 temperature: float = 0.8, top_k: int = 0, top_p: float = 1.0,
                 seed: int = 0) -> Any:
        """One prompt -> its completion as a str; several -> a list of them.

        Temperature 0 takes the most probable token; `top_k` keeps so many tokens (0: all), `top_p`
        the fewest that reach this probability together. Raises UserError.
        """
        self._require_fitted()
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        sampler = Sampler(temperature, top_k, top_p, seed)
        several = [prompts] if isinstance(prompts, str) else in_memory.as_list(prompts, "prompts")
        with tqdm(unit="token", desc="generating", leave=False, dynamic_ncols=True,
                  disable=self.quiet or None) as bar:     # none where stderr is a file
            results = generate_texts(self.model_, self.tokenizer_, self.preprocessing_, several,
                                     max_new_tokens, sampler, bar.update, self._say())
        texts = [decode(self.tokenizer_, result.ids) for result in results]
        return texts[0] if isinstance(prompts, str) else texts

    def perplexity(self, prompts: Iterable[str], completions: Iterable[str]) -> float:
        """Prompts and their completions -> perplexity of the completions' tokens."""
        return self._loss(prompts, completions)["perplexity"]

    def score(self, prompts: Iterable[str], completions: Iterable[str]) -> float:
        """Prompts and their completions -> minus the mean loss of a completion's token."""
        return -self._loss(prompts, completions)["loss"]

    def _loss(self, prompts: Iterable[str], completions: Iterable[str]) -> dict[str, Any]:
        self._require_fitted()
        rows = in_memory.prompts(prompts, completions, self.preprocessing_.clean)
        room = self.model_.trunk.config.n_positions
        preprocessing = replace(self.preprocessing_, max_length=min(
            self.preprocessing_.max_length or room, room))
        ids, _, _ = complete.encode(self.tokenizer_, rows, preprocessing, self.model_)
        return completion_loss(self.model_, ids, self.micro_tokens)


def _plain(value: Any) -> Any:
    """NumPy's numbers, as a grid of parameters holds them, and paths -> what JSON has for them."""
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def _typed(label_names: Sequence[str], dtype: str) -> np.ndarray:
    """Names of labels -> the labels, sorted; str where the names are none of the type (now)."""
    names = np.array(label_names)
    try:
        labels = names == "True" if dtype == "bool" else names.astype(dtype)
    except (TypeError, ValueError):
        labels = names
    same = labels.astype(str).tolist() == list(label_names)
    return np.unique(labels if same else names)
