"""A Transformer framework to learn from and to keep using.

The public names are imported when they are first asked for, so that `import minisft` costs nothing.
"""

import os as _os
from typing import TYPE_CHECKING, Any

# An idle thread of OpenBLAS spins for 2^26 ticks, some 30 ms, on the core where other threads would
# work between two products: a step of a small model takes a tenth longer. It reads this, where
# nobody has set it, when NumPy is imported.
_os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

if TYPE_CHECKING:     # what type checkers and editors read; test_public_api.py compares it
    from minisft.data.batch import Batch as Batch
    from minisft.data.batch import pack as pack
    from minisft.data.dataset import TokenizedDataset as TokenizedDataset
    from minisft.errors import DivergedError as DivergedError
    from minisft.errors import NotFittedError as NotFittedError
    from minisft.errors import UserError as UserError
    from minisft.estimators import CompletionModel as CompletionModel
    from minisft.estimators import TextClassifier as TextClassifier
    from minisft.io.model_folder import load as load
    from minisft.jobs.train import train as train
    from minisft.models.bert import BertConfig as BertConfig
    from minisft.models.generate import Sampler as Sampler
    from minisft.models.generate import generate as generate
    from minisft.models.gpt2 import GPT2Config as GPT2Config
    from minisft.models.heads import BertClassifier as BertClassifier
    from minisft.models.heads import Classifier as Classifier
    from minisft.models.heads import LanguageModel as LanguageModel
    from minisft.training.config import TrainingConfig as TrainingConfig
    from minisft.training.optim import AdamW as AdamW
    from minisft.verify import gradcheck as gradcheck

__version__ = "0.1.0"

# public name -> the module that it is taken from
_MODULES = {
    "AdamW": "minisft.training.optim",
    "Batch": "minisft.data.batch",
    "BertClassifier": "minisft.models.heads",
    "BertConfig": "minisft.models.bert",
    "Classifier": "minisft.models.heads",
    "CompletionModel": "minisft.estimators",
    "DivergedError": "minisft.errors",
    "GPT2Config": "minisft.models.gpt2",
    "LanguageModel": "minisft.models.heads",
    "NotFittedError": "minisft.errors",
    "Sampler": "minisft.models.generate",
    "TextClassifier": "minisft.estimators",
    "TokenizedDataset": "minisft.data.dataset",
    "TrainingConfig": "minisft.training.config",
    "UserError": "minisft.errors",
    "generate": "minisft.models.generate",
    "gradcheck": "minisft.verify",
    "load": "minisft.io.model_folder",
    "pack": "minisft.data.batch",
    "train": "minisft.jobs.train",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # with a `fromlist` this is `from module import name`, which finds a module's modules too
    value = getattr(__import__(_MODULES[name], fromlist=[name]), name)
    globals()[name] = value     # from now on it is found without asking here
    return value


def __dir__() -> list[str]:
    return sorted((globals().keys() | _MODULES.keys()) - {"Any", "TYPE_CHECKING"})
