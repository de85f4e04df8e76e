"""The runs of this folder's tests, and the process that lets them die."""

import json

import numpy as np
import pytest
from runs import Runner

SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--batch-tokens", "256"]
SCRATCH = ["--model", "scratch", "--vocab-size", "300", *SMALL, "--compare", "none", "--quiet"]


@pytest.fixture(scope="module")
def die():
    """die(argv, folder, event=N, ...) -> {"code", "events", "output", ...}, as deaths.py says."""
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def commands(toy_file, tmp_path_factory):
    """Kind of run -> its arguments, all but --out."""
    texts = toy_file(60)
    rng = np.random.default_rng(0)
    words = "the cat sat on a mat and the dog ran to its house by the river".split()
    documents = tmp_path_factory.mktemp("text") / "text.txt"
    documents.write_text("\n<|endoftext|>\n".join(
        " ".join(rng.choice(words, rng.integers(2, 30))) for _ in range(80)))
    prompts = documents.with_name("prompts.jsonl")
    prompts.write_text("\n".join(json.dumps({"prompt": f"say {i}", "completion": str(i + 1)})
                                 for i in range(30)))
    classify = ["finetune", "--train", texts, *SCRATCH]
    return {
        "classify": [*classify, "--epochs", "2"],
        "adaptation": [*classify, "--epochs", "2", "--adapt-epochs", "2"],
        "complete": ["finetune", "--task", "complete", "--train", prompts, *SCRATCH,
                     "--epochs", "2", "--max-new-tokens", "4"],
        "frozen": [*classify, "--epochs", "2", "--train-layers", "head"],
        "seeds": [*classify, "--epochs", "1", "--seeds", "2"],
        "curve": ["curve", "--train", texts, "--test", texts, "--sizes", "20,40", *SCRATCH,
                  "--epochs", "1"],
        "pretrain": ["pretrain", "--text", documents, "--context-length", "16", "--vocab-size",
                     "280", "--validate-every", "3", "--epochs", "2", "--quiet", *SMALL]}
