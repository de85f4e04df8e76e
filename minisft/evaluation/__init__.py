"""Metrics of a trained model, baselines, and the reports, plots and model cards of a run."""

import logging

# What Matplotlib says at its import where there is no home, as in containers: where its cache is.
_NO_HOME = "temporary cache directory", "is not a writable directory", "mkdir -p failed"
logging.getLogger("matplotlib").addFilter(
    lambda record: not any(words in str(record.msg) for words in _NO_HOME))
