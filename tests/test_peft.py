"""PEFT and sentence-transformers on our folders, as docs/how-to/transformers.md has it."""

import os
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from minisft.data.batch import pack
from minisft.data.sequences import encode_sequences
from minisft.data.text import train_tokenizer
from minisft.io.model_folder import Preprocessing, read_folder, write_folder
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel

pytestmark = [pytest.mark.parity,
              # between these libraries, and that GPT-2's matrices are (in, out)
              pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out is set")]

TEXTS = ["a film about a river", "the river of the film", "a long long film", "the river"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "about", "river", "the",
         "long"]
LENGTH = 6


@pytest.fixture(scope="module")
def peers():
    """The libraries; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.disable_progress_bar()
    return transformers


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(
        {word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def build(kind):
    """-> a small model with random weights wide enough that logits differ, its tokenizer."""
    if kind.startswith("bert"):
        tokenizer = word_piece()
        config = BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16)
        model = BertClassifier(config, ("neg", "pos"), pooling=kind.removeprefix("bert "))
    else:
        tokenizer = train_tokenizer(TEXTS, 280)
        config = GPT2Config(vocab_size=280, n_positions=32, n_embd=16, n_layer=2, n_head=2)
        model = LanguageModel(config) if kind == "language model" else Classifier(
            config, ("neg", "pos"))
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(
        model.store.size).astype(np.float32)
    return model, tokenizer


@pytest.mark.parametrize("kind", ["gpt2", "bert first", "language model"])
def test_an_adapter_trained_and_merged(peers, tmp_path, kind):
    """LoRA on our folder, an epoch of Trainer, merged: it comes back with the same logits."""
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
    model, tokenizer = build(kind)
    kept = Preprocessing(clean=("spaces",), max_length=LENGTH)
    write_folder(tmp_path / "ours", model, tokenizer, kept)
    auto, task = (peers.AutoModelForCausalLM, "CAUSAL_LM") if kind == "language model" else (
        peers.AutoModelForSequenceClassification, "SEQ_CLS")
    base = auto.from_pretrained(tmp_path / "ours")
    fast = peers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type=task, r=2))
    rows = [dict(fast(text, truncation=True)) for text in TEXTS]
    collator = peers.DataCollatorForLanguageModeling(fast, mlm=False)
    if task == "SEQ_CLS":
        rows = [row | {"labels": i % 2} for i, row in enumerate(rows)]
        collator = peers.DataCollatorWithPadding(fast)
    peers.Trainer(adapted, peers.TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=3, report_to="none", use_cpu=True,
        disable_tqdm=True, learning_rate=0.1, label_names=["labels"]),
        train_dataset=rows, data_collator=collator).train()
    merged = adapted.merge_and_unload().eval()
    merged.save_pretrained(tmp_path / "merged")
    fast.save_pretrained(tmp_path / "merged")

    task = "complete" if kind == "language model" else None
    before, _, _ = read_folder(tmp_path / "ours", task=task)
    again, tokenizer, preprocessing = read_folder(tmp_path / "merged", task=task)
    assert preprocessing == kept
    assert task or again.label_names == ("neg", "pos")
    ids, _, _ = encode_sequences(tokenizer, TEXTS, LENGTH)
    inputs = fast(TEXTS, padding=True, truncation=True, return_tensors="pt")
    expected = merged(**inputs).logits.detach().numpy()
    if task:
        expected = expected[inputs["attention_mask"].numpy() == 1]
    found = again.forward(pack(ids))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - before.forward(pack(ids))).max() > 0.01


def test_sentences_of_a_mean_pooled_bert(peers, tmp_path):
    """sentence-transformers gives what our pooler gives, for texts that are cut too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
    model, tokenizer = build("bert mean")
    write_folder(tmp_path / "ours", model, tokenizer, Preprocessing(max_length=LENGTH))
    peers.BertModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).save_pretrained(
        tmp_path / "sentences")
    peers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "sentences")
    encoder = library.SentenceTransformer(str(tmp_path / "sentences"), device="cpu")
    texts = [*TEXTS, "A LONG film about the river and a film"]
    ids, _, cut = encode_sequences(tokenizer, texts, LENGTH)
    assert cut == 3 and encoder.max_seq_length == LENGTH
    batch = pack(ids)
    expected = model.pooler.forward(model.trunk.forward(batch, None, False), batch)
    assert np.ptp(expected, axis=0).min() > 0.01
    np.testing.assert_allclose(encoder.encode(texts, show_progress_bar=False), expected, rtol=0,
                               atol=1e-5)
