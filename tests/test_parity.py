"""The same numbers as `transformers` and PyTorch, both ways: their folders here, ours there.

A small odd shape (5 heads of 16, an inner width of its own, a vocabulary that is no round number)
with random weights large enough that no row of logits is flat. Limits: logits 1e-4 absolute and
the same argmax, losses 1e-5, gradients 1e-4 of the largest value of each array.
"""

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.data.special_tokens import SpecialTokens
from minisft.io import safetensors
from minisft.io.checkpoint import load, save
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel
from minisft.ops.cross_entropy import IGNORE
from minisft.training.optim import AdamW

pytestmark = pytest.mark.parity

SHAPE = {"vocab_size": 1234, "n_positions": 64, "n_embd": 80, "n_layer": 3, "n_head": 5,
         "n_inner": 200}
RATES = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
END = 1233
LENGTHS = 17, 64, 1, 40, 5
LABELS = [3, 0, 2, 1, 0]
NAMES = "business", "sports", "technology", "world"
VARIANTS = [{}, {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
            {"activation_function": "gelu_pytorch_tanh", "n_inner": None}]


@pytest.fixture(scope="module")
def hf():
    """torch and transformers; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        torch = pytest.importorskip("torch")
        t = pytest.importorskip("transformers")
        kinds = {"lm": t.GPT2LMHeadModel, "cls": t.GPT2ForSequenceClassification}
        t.utils.logging.disable_progress_bar()
    return SimpleNamespace(torch=torch, kinds=kinds, Config=t.GPT2Config,
                           AutoLM=t.AutoModelForCausalLM,
                           AutoClassifier=t.AutoModelForSequenceClassification)


def theirs(hf, kind, **settings):
    """A model of `transformers` with random weights, biases and norms too, the same each time."""
    hf.torch.manual_seed(7)
    settings = SHAPE | RATES | {"initializer_range": 0.2, "bos_token_id": END, "num_labels": 4,
                                "eos_token_id": END, "pad_token_id": END} | settings
    model = hf.kinds[kind](hf.Config(**settings)).eval()
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    for name, p in model.named_parameters():
        is_gain = "ln_" in name and name.endswith("weight")
        hf.torch.nn.init.normal_(p, 1.0 if is_gain else 0.0, 0.2)
    return model


def texts(vocabulary=SHAPE["vocab_size"] - 1, lengths=LENGTHS):
    rng = np.random.default_rng(3)
    return [rng.integers(0, vocabulary, n) for n in lengths]


def our_batch(kind, sequences):
    if kind == "cls":
        return pack(sequences, LABELS[:len(sequences)])
    return pack(sequences, [np.append(ids[1:], IGNORE) for ids in sequences])


def their_batch(hf, kind, sequences):
    """The same texts padded on the right -> arguments of the model, and which tokens are real."""
    longest = max(map(len, sequences))
    ids = np.full((len(sequences), longest), END)
    for row, text in zip(ids, sequences, strict=True):
        row[:len(text)] = text
    ids = hf.torch.tensor(ids)
    real = hf.torch.tensor([[i < len(text) for i in range(longest)] for text in sequences])
    labels = hf.torch.tensor(LABELS[:len(sequences)]) if kind == "cls" else ids.masked_fill(
        ~real, IGNORE)
    return {"input_ids": ids, "attention_mask": real.long(), "labels": labels}, real


def their_logits(hf, kind, model, sequences):
    arguments, real = their_batch(hf, kind, sequences)
    with hf.torch.no_grad():
        logits = model(**arguments).logits
    return (logits if kind == "cls" else logits[real]).float().numpy()


def require_same_logits(ours, wanted):
    assert wanted.std(axis=-1).min() > 0.1      # flat rows would be met by any model
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ours.argmax(-1), wanted.argmax(-1))
    return np.abs(ours - wanted).max()


def gradient_errors(model, torch_model):
    """-> the error of each gradient, by our name: the largest difference over the largest value,
    or over a thousandth of the largest gradient of all."""
    wanted = {name.removeprefix("transformer."): p.grad.numpy()
              for name, p in torch_model.named_parameters()}
    least = 1e-3 * max(np.abs(dw).max() for dw in wanted.values())
    assert {p.name for p in model.store} == set(wanted)
    errors = {}
    for name, dw in wanted.items():
        ours = model.store[name].grad
        ours = ours.T if name in ("score.weight", "lm_head.weight") else ours
        errors[name] = np.abs(ours - dw).max() / max(np.abs(dw).max(), least)
    return errors


def require_parity(hf, kind, torch_model, folder):
    """Logits, loss and every gradient of a saved model."""
    torch_model.save_pretrained(folder)
    model, sequences = load(folder), texts()
    assert isinstance(model, Classifier if kind == "cls" else LanguageModel)
    batch = our_batch(kind, sequences)
    off = require_same_logits(model.forward(batch),
                              their_logits(hf, kind, torch_model, sequences))
    loss, denominator, _ = model.loss(batch)
    model.loss_backward()
    model.store.grads /= denominator
    out = torch_model(**their_batch(hf, kind, sequences)[0])
    out.loss.backward()
    assert loss / denominator == pytest.approx(out.loss.item(), rel=1e-5)
    errors = gradient_errors(model, torch_model)
    worst = max(errors, key=errors.get)
    print(f"logits {off:.1e}, loss {loss / denominator:.6f} and {out.loss.item():.6f}, "
          f"gradient of {worst} {errors[worst]:.1e}")
    assert errors[worst] < 1e-4, errors


# Their folders here

@pytest.mark.parametrize("kind", ["lm", "cls"])
@pytest.mark.parametrize("settings", VARIANTS, ids=["gelu_new", "gelu", "four_times"])
def test_logits_loss_and_gradients(hf, tmp_path, kind, settings):
    require_parity(hf, kind, theirs(hf, kind, **settings), tmp_path)


def test_separate_output_matrix(hf, tmp_path):
    torch_model = theirs(hf, "lm", tie_word_embeddings=False)
    require_parity(hf, "lm", torch_model, tmp_path)
    assert load(tmp_path).lm_head is not None


def test_two_matrices_under_a_config_that_ties(hf, tmp_path):
    torch_model = theirs(hf, "lm", tie_word_embeddings=False)
    torch_model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    reread = hf.kinds["lm"].from_pretrained(tmp_path).eval()
    if reread.lm_head.weight is reread.transformer.wte.weight:
        pytest.skip("transformers before version 5 ties them")
    require_same_logits(load(tmp_path).forward(our_batch("lm", texts())),
                        their_logits(hf, "lm", reread, texts()))


@pytest.mark.parametrize("key, value", [("layer_norm_epsilon", 1e-3), ("n_head", 10),
                                        ("activation_function", "gelu")])
def test_every_setting_counts(hf, tmp_path, key, value):
    # No tensor's shape depends on these: passed by, they would change the logits and nothing else.
    theirs(hf, "cls").save_pretrained(tmp_path)
    before = load(tmp_path).forward(our_batch("cls", texts()))
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {key: value}))
    after = load(tmp_path).forward(our_batch("cls", texts()))
    assert np.abs(after - before).max() > 3e-4
    require_same_logits(after, their_logits(
        hf, "cls", hf.kinds["cls"].from_pretrained(tmp_path).eval(), texts()))


def test_half_precision_and_shards(hf, tmp_path):
    for dtype in "float16", "bfloat16":
        torch_model = theirs(hf, "lm").to(getattr(hf.torch, dtype))
        torch_model.save_pretrained(tmp_path / dtype)
        torch_model.save_pretrained(tmp_path / (dtype + "_shards"), max_shard_size="100KB")
        assert len(list((tmp_path / (dtype + "_shards")).glob("model-*.safetensors"))) > 3
        for model in load(tmp_path / dtype), load(tmp_path / (dtype + "_shards")):
            for name, p in torch_model.transformer.named_parameters():
                np.testing.assert_array_equal(model.store[name].value, p.detach().float().numpy())
        require_same_logits(model.forward(our_batch("lm", texts())),
                            their_logits(hf, "lm", torch_model.float(), texts()))


# Training

@pytest.mark.parametrize("kind", ["lm", "cls"])
def test_twenty_steps_of_adamw(hf, tmp_path, kind):
    """In float64: over 20 steps of training the rounding of float32 grows to some 1e-4 of a loss,
    and how far depends on the processor."""
    torch_model = theirs(hf, kind, attn_implementation="eager")   # older sdpa refuses float64
    torch_model.save_pretrained(tmp_path)
    torch_model.double()
    model, sequences, lr = load(tmp_path, np.float64), texts(), 3e-4
    batch, (arguments, _) = our_batch(kind, sequences), their_batch(hf, kind, sequences)
    ours = AdamW(model.store, weight_decay=0.1)
    groups = [{"params": [p for p in torch_model.parameters() if (p.ndim > 1) == matrices],
               "weight_decay": 0.1 if matrices else 0.0} for matrices in (True, False)]
    other = hf.torch.optim.AdamW(groups, lr=lr)
    losses, wanted = [], []
    for _ in range(20):
        model.store.zero_grad()
        loss, denominator, _ = model.loss(batch)
        model.loss_backward()
        ours.step(lr, 1 / denominator)
        losses.append(loss / denominator)

        other.zero_grad()
        loss = torch_model(**arguments).loss
        loss.backward()
        other.step()
        wanted.append(loss.item())
    print(f"losses {losses[0]:.6f} to {losses[-1]:.6f}, theirs {wanted[-1]:.6f}, apart "
          f"{np.abs(np.divide(losses, wanted) - 1).max():.1e}")
    assert wanted[-1] < 0.8 * wanted[0]
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)


# Our folders there

def our_model(kind, tied=True):
    config = GPT2Config(**SHAPE, **RATES)
    model = Classifier(config, NAMES, seed=1) if kind == "cls" else LanguageModel(
        config, tied, seed=1)
    rng = np.random.default_rng(5)
    for p in model.store:
        p.value[...] = rng.normal(p.fill, 0.2, p.shape)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind, tied", [("lm", True), ("lm", False), ("cls", True)])
def test_transformers_opens_what_we_save(hf, tmp_path, kind, tied, dtype):
    model = our_model(kind, tied)
    save(model, tmp_path / "ours", dtype, SpecialTokens(END, (END,), END))
    model = load(tmp_path / "ours")      # rounded, for float16
    auto = hf.AutoClassifier if kind == "cls" else hf.AutoLM
    torch_model, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(torch_model) is hf.kinds[kind]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch_model = torch_model.float().eval()
    require_same_logits(model.forward(our_batch(kind, texts())),
                        their_logits(hf, kind, torch_model, texts()))
    if kind == "cls":
        assert torch_model.config.id2label == dict(enumerate(NAMES))
        assert torch_model.config.label2id["world"] == 3
        assert torch_model.config.problem_type == "single_label_classification"
    else:
        assert (torch_model.lm_head.weight is torch_model.transformer.wte.weight) == tied

    torch_model.save_pretrained(tmp_path / "again")     # and back: no checksums, same values
    metadata = safetensors.read_header(tmp_path / "again" / "model.safetensors")[1]
    assert safetensors.CHECKSUMS not in metadata
    again = load(tmp_path / "again")
    np.testing.assert_array_equal(again.store.values, model.store.values)
    assert getattr(again, "names", None) == getattr(model, "names", None)
    assert again.trunk.config == model.trunk.config


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lm", "cls"])
def test_shape_of_the_published_model(hf, tmp_path, kind):
    published = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
                 "n_head": 12, "n_inner": None, "initializer_range": 0.02}
    torch_model = theirs(hf, kind, **published)
    with hf.torch.no_grad():
        for p in torch_model.parameters():
            if p.ndim > 1:
                p /= 10
    torch_model.save_pretrained(tmp_path)
    model, sequences = load(tmp_path), texts(lengths=(40, 7))
    assert model.trunk.config == GPT2Config(**RATES)
    wanted = their_logits(hf, kind, torch_model, sequences)
    ours = model.forward(our_batch(kind, sequences))
    print(f"logits {np.abs(ours - wanted).max():.1e}")
    require_same_logits(ours, wanted)
