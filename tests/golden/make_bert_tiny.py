"""Writes tests/golden/bert_tiny/: a tiny random BERT by `transformers`, and what it computes.

    python tests/golden/make_bert_tiny.py      needs the extra `parity`

`expected.npz` holds, from PyTorch in float64 for the float32 weights of model.safetensors: three
sequences, one of them of two texts, and the logits, mean loss and some gradients (`d ...`) of
BertForSequenceClassification.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

FOLDER = Path(__file__).resolve().parent / "bert_tiny"
LENGTHS = 5, 2, 9
GRADIENTS = ("bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
             "bert.embeddings.token_type_embeddings.weight", "bert.embeddings.LayerNorm.weight",
             "bert.encoder.layer.0.attention.self.query.weight",
             "bert.encoder.layer.0.attention.self.key.weight",
             "bert.encoder.layer.0.attention.output.LayerNorm.bias",
             "bert.encoder.layer.1.attention.self.value.bias",
             "bert.encoder.layer.1.intermediate.dense.weight",
             "bert.encoder.layer.1.output.dense.bias", "bert.pooler.dense.weight",
             "classifier.weight", "classifier.bias")


def padded(texts):
    """B texts -> (B,T), filled up with 0 on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts],
                                           batch_first=True)


def main():
    torch.manual_seed(1810)
    config = BertConfig(
        vocab_size=97, max_position_embeddings=16, hidden_size=20, num_hidden_layers=2,
        num_attention_heads=5, intermediate_size=44, layer_norm_eps=1e-3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=3)
    model = BertForSequenceClassification(config)
    for name, p in model.named_parameters():      # biases and norms too: else a mistake hides
        is_gain = "LayerNorm" in name and name.endswith("weight")
        torch.nn.init.normal_(p, 1.0 if is_gain else 0.0, 0.6 if name.startswith("cl") else 0.2)
    model.save_pretrained(FOLDER)
    rng = np.random.default_rng(1810)
    texts = [rng.integers(1, 97, n).tolist() for n in LENGTHS]
    types = [[0] * n for n in LENGTHS]
    types[2][4:] = [1] * 5
    labels = [2, 0, 1]

    model = model.double().eval()
    out = model(padded(texts), attention_mask=padded([[1] * n for n in LENGTHS]),
                token_type_ids=padded(types), labels=torch.tensor(labels))
    out.loss.backward()
    saved = {"ids": np.concatenate(texts), "types": np.concatenate(types), "lengths": LENGTHS,
             "labels": labels, "logits": out.logits.detach().numpy(), "loss": out.loss.item()}
    for name in GRADIENTS:
        grad = model.get_parameter(name).grad
        saved["d " + name.removeprefix("bert.")] = grad.numpy().astype(np.float32)
    np.savez_compressed(FOLDER / "expected.npz", **saved)


if __name__ == "__main__":
    main()
