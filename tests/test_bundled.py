"""The small GPT-2 that the package brings: its size, its card, its folder, what it knows."""

import numpy as np
import pytest

from minisft.data import toy_news
from minisft.data.batch import pack
from minisft.io import hub
from minisft.io.model_folder import read_folder
from minisft.jobs.finetune import finetune
from minisft.training.config import FinetuneConfig, ModelConfig

FOLDER = hub.BUNDLED / ModelConfig.model


def test_it_is_the_default_and_small():
    assert hub.resolve(ModelConfig.model) == FOLDER
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6


def test_the_card_says_where_it_comes_from():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for needed in ("WordNet", "Princeton", "public domain", "bits per byte", "xz",
                   "tokens seen", "minisft pretrain", "--seed" if "--seed" in card else "seed",
                   "What it cannot do", "curves.png"):
        assert needed in card
    assert card.startswith("---\nlicense: mit\n")
    assert (FOLDER / "curves.png").is_file() and (FOLDER / "LICENSE-WordNet.txt").is_file()


def test_it_knows_english():
    model, tokenizer, _ = read_folder(ModelConfig.model)

    def loss(text):
        ids = tokenizer.encode(text).ids
        batch = pack([ids], [[*ids[1:], -100]])
        found, n, _ = model.loss(batch)
        return found / n

    # of the same words, the sentence is likelier than any disorder of them
    words = "the capital of the country is a large city on the river".split()
    rng = np.random.default_rng(0)
    orders = [" ".join(rng.permutation(words)) for _ in range(20)]
    assert loss(" ".join(words)) < min(map(loss, orders))


@pytest.mark.parametrize("options", [
    {"train_layers": "last:1", "epochs": 6, "seed": 1},
    pytest.param({"epochs": 5}, marks=pytest.mark.slow)], ids=["last block", "all blocks"])
def test_pretraining_carries_over_to_words_that_training_lacks(tmp_path, options):
    """One seed, few epochs: the five-seed table of the documentation stands on the same."""
    config = FinetuneConfig.from_options(out=str(tmp_path / "run"), compare="baselines",
                                         quiet=True, **options)
    found = finetune(config, say=lambda line: None)
    assert found["n_test"] == toy_news.TEXTS_PER_PART
    assert found["accuracy"] > found["naive_bayes"]["accuracy"] + 0.1


@pytest.mark.parity
def test_transformers_gives_the_same_logits():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, tokenizer, _ = read_folder(ModelConfig.model)
    peer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER).float().eval()
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    text = "A goalkeeper is the soccer or hockey player assigned to protect the goal."
    ids = tokenizer.encode(text).ids
    assert peer_tokenizer(text)["input_ids"] == ids
    with torch.no_grad():
        theirs = peer(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(model.forward(pack([ids])), theirs, rtol=0, atol=2e-4)
