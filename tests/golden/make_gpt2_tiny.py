"""Writes tests/golden/gpt2_tiny/: a tiny random GPT-2 by `transformers`, and what it computes.

    python tests/golden/make_gpt2_tiny.py      needs the extra `parity`

`expected.npz` holds, from PyTorch in float64 for the float32 weights of model.safetensors: three
texts, the logits and mean loss of the language model with some of its gradients (`lm_...`), and
the same of a classifier on the same trunk whose head is `score` (`cls_...`).
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

FOLDER = Path(__file__).resolve().parent / "gpt2_tiny"
END, PAD = 0, 96
LENGTHS = 5, 1, 9
GRADIENTS = ("wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.attn.c_attn.weight",
             "h.0.attn.c_attn.bias", "h.1.attn.c_proj.weight", "h.1.mlp.c_fc.weight",
             "h.1.mlp.c_proj.bias", "ln_f.bias")


def padded(texts, value):
    """B texts -> (B,T), filled up on the right."""
    rows = [torch.tensor(text) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def main():
    torch.manual_seed(1704)
    config = GPT2Config(
        vocab_size=97, n_positions=16, n_embd=20, n_layer=2, n_head=5, n_inner=44,
        initializer_range=0.2, layer_norm_epsilon=1e-3, embd_pdrop=0.0, attn_pdrop=0.0,
        resid_pdrop=0.0, bos_token_id=END, eos_token_id=END, pad_token_id=PAD, num_labels=3)
    lm = GPT2LMHeadModel(config)
    for name, p in lm.named_parameters():      # biases and norms too: else a mistake in them hides
        is_gain = "ln_" in name and name.endswith("weight")
        torch.nn.init.normal_(p, 1.0 if is_gain else 0.0, 0.2)
    lm.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink()
    rng = np.random.default_rng(1704)
    texts = [rng.integers(1, PAD, n).tolist() for n in LENGTHS]
    labels = [2, 0, 1]

    lm = lm.double().eval()
    ids, mask = padded(texts, PAD), padded([[1] * n for n in LENGTHS], 0)
    targets = ids.masked_fill(mask == 0, -100)
    out = lm(ids, attention_mask=mask, labels=targets)
    out.loss.backward()
    saved = {"ids": np.concatenate(texts), "lengths": LENGTHS, "labels": labels,
             "lm_logits": out.logits[mask.bool()].detach().numpy().astype(np.float32),
             "lm_loss": out.loss.item()}
    for name in GRADIENTS:
        grad = lm.transformer.get_parameter(name).grad
        saved["lm_d " + name] = grad.numpy().astype(np.float32)

    classifier = GPT2ForSequenceClassification(config).double().eval()
    classifier.transformer.load_state_dict(lm.transformer.state_dict())
    score = torch.randn(3, config.n_embd).mul(0.2)      # float32, as the file would hold it
    classifier.score.weight.data = score.double()
    out = classifier(ids, attention_mask=mask, labels=torch.tensor(labels))
    out.loss.backward()
    saved |= {"score": score.numpy(), "cls_logits": out.logits.detach().numpy(),
              "cls_loss": out.loss.item(),
              "cls_d score.weight": classifier.score.weight.grad.numpy().astype(np.float32)}
    for name in GRADIENTS:
        grad = classifier.transformer.get_parameter(name).grad
        saved["cls_d " + name] = grad.numpy().astype(np.float32)
    np.savez_compressed(FOLDER / "expected.npz", **saved)


if __name__ == "__main__":
    main()
