"""BERT against `transformers` and PyTorch, both ways; shapes and limits as in test_parity.py."""

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.data.special_tokens import SpecialTokens
from minisft.io.checkpoint import load, save
from minisft.models.bert import BertConfig
from minisft.models.heads import BertClassifier
from minisft.training.optim import AdamW

pytestmark = pytest.mark.parity

SHAPE = {"vocab_size": 1234, "max_position_embeddings": 64, "hidden_size": 80,
         "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 200}
RATES = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LENGTHS = 17, 64, 2, 40, 5
LABELS = [3, 0, 2, 1, 0]
NAMES = "business", "sports", "technology", "world"
VARIANTS = [{}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}]


@pytest.fixture(scope="module")
def hf():
    """torch and transformers; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        torch = pytest.importorskip("torch")
        t = pytest.importorskip("transformers")
        kinds = {"Config": t.BertConfig, "Classifier": t.BertForSequenceClassification,
                 "Pretraining": t.BertForPreTraining, "Bare": t.BertModel,
                 "AutoClassifier": t.AutoModelForSequenceClassification}
        t.utils.logging.disable_progress_bar()
    return SimpleNamespace(torch=torch, **kinds)


def theirs(hf, kind="Classifier", **settings):
    """A model of `transformers` with random weights, biases and norms too, the same each time."""
    hf.torch.manual_seed(7)
    settings = SHAPE | RATES | {"num_labels": 4} | settings
    model = getattr(hf, kind)(hf.Config(**settings)).eval()
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    with hf.torch.no_grad():
        for name, p in model.named_parameters():
            is_gain = "LayerNorm" in name and name.endswith("weight")
            hf.torch.nn.init.normal_(p, 1.0 if is_gain else 0.0, 0.2)
            if name == "classifier.weight":
                p *= 3      # a pooler's tanh leaves less to tell the classes by
    return model


def texts():
    """-> ids and types of each text; every second one is a pair. No pad token: theirs has no
    gradient for it."""
    rng = np.random.default_rng(3)
    ids = [rng.integers(1, SHAPE["vocab_size"], n) for n in LENGTHS]
    types = [(np.arange(n) >= (n // 2 if i % 2 else n)).astype(int)
             for i, n in enumerate(LENGTHS)]
    return ids, types


def our_batch():
    ids, types = texts()
    return pack(ids, LABELS, types=types)


def their_batch(hf):
    """The same texts padded on the right -> arguments of the model."""
    ids, types = texts()
    padded = {name: np.zeros((len(ids), max(LENGTHS)), int)
              for name in ("input_ids", "token_type_ids", "attention_mask")}
    for i, (row, kinds) in enumerate(zip(ids, types, strict=True)):
        for name, values in zip(padded, (row, kinds, 1), strict=True):
            padded[name][i, :len(row)] = values
    return {name: hf.torch.tensor(a) for name, a in padded.items()}


def their_logits(hf, model):
    with hf.torch.no_grad():
        return model(**their_batch(hf)).logits.float().numpy()


def require_same_logits(ours, wanted):
    assert wanted.std(axis=-1).min() > 0.1      # flat rows would be met by any model
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ours.argmax(-1), wanted.argmax(-1))
    print(f"logits {np.abs(ours - wanted).max():.1e}")


def gradient_errors(model, torch_model):
    """-> the error of each gradient, as in test_parity.py; Linear is (out,in) there."""
    wanted = {name.removeprefix("bert."): p.grad.numpy()
              for name, p in torch_model.named_parameters()}
    largest = max(np.abs(dw).max() for dw in wanted.values())
    assert {p.name for p in model.store} == set(wanted)
    errors = {}
    for name, dw in wanted.items():
        ours = model.store[name].grad
        if ours.ndim == 2 and "embeddings" not in name:
            ours = ours.T
        if name.endswith("self.key.bias"):      # a softmax does not see it: both are rounding
            assert max(np.abs(ours).max(), np.abs(dw).max()) < 1e-6 * largest
            continue
        errors[name] = np.abs(ours - dw).max() / max(np.abs(dw).max(), 1e-3 * largest)
    return errors


@pytest.mark.parametrize("settings", VARIANTS, ids=["gelu", "gelu_new"])
def test_logits_loss_and_gradients(hf, tmp_path, settings):
    torch_model = theirs(hf, **settings)
    torch_model.save_pretrained(tmp_path)
    model, batch = load(tmp_path), our_batch()
    assert isinstance(model, BertClassifier) and model.label_names == NAMES
    require_same_logits(model.forward(batch), their_logits(hf, torch_model))
    loss, denominator, _ = model.loss(batch)
    model.loss_backward()
    model.store.grads /= denominator
    out = torch_model(**their_batch(hf), labels=hf.torch.tensor(LABELS))
    out.loss.backward()
    assert loss / denominator == pytest.approx(out.loss.item(), rel=1e-5)
    errors = gradient_errors(model, torch_model)
    worst = max(errors, key=errors.get)
    print(f"loss {loss / denominator:.6f}, gradient of {worst} {errors[worst]:.1e}")
    assert errors[worst] < 1e-4, errors


@pytest.mark.parametrize("key, value", [("layer_norm_eps", 0.1), ("num_attention_heads", 10),
                                        ("hidden_act", "gelu_new")])
def test_every_setting_counts(hf, tmp_path, key, value):
    # No tensor's shape depends on these: passed by, they would change the logits and nothing else.
    theirs(hf).save_pretrained(tmp_path)
    before = load(tmp_path).forward(our_batch())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {key: value}))
    after = load(tmp_path).forward(our_batch())
    assert np.abs(after - before).max() > 3e-4
    require_same_logits(after, their_logits(
        hf, hf.Classifier.from_pretrained(tmp_path).eval()))


@pytest.mark.parametrize("kind", ["Pretraining", "Bare"])
def test_trunk_of_other_models(hf, tmp_path, kind):
    torch_model = theirs(hf, kind)
    torch_model.save_pretrained(tmp_path)
    model = load(tmp_path, label_names=NAMES)
    assert model.newly_initialized == ("classifier.weight", "classifier.bias")
    trunk = getattr(torch_model, "bert", torch_model)
    with hf.torch.no_grad():
        out = trunk(**their_batch(hf))
    hidden = model.trunk.forward(our_batch())
    real = their_batch(hf)["attention_mask"].bool()
    np.testing.assert_allclose(hidden, out.last_hidden_state[real].numpy(), rtol=0, atol=1e-4)
    pooled = model.pooler.forward(hidden[our_batch().first], None)
    np.testing.assert_allclose(pooled, out.pooler_output.numpy(), rtol=0, atol=1e-4)


def test_twenty_steps_of_adamw(hf, tmp_path):
    """In float64: over 20 steps of training the rounding of float32 grows to some 1e-4 of a loss,
    and how far depends on the processor."""
    torch_model = theirs(hf)
    torch_model.save_pretrained(tmp_path)
    torch_model.double()
    model, batch, lr = load(tmp_path, np.float64), our_batch(), 3e-4
    arguments = their_batch(hf) | {"labels": hf.torch.tensor(LABELS)}
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


def our_model(pooling="first"):
    model = BertClassifier(BertConfig(**SHAPE, **RATES), NAMES, seed=1, pooling=pooling)
    rng = np.random.default_rng(5)
    for p in model.store:
        p.value[...] = rng.normal(p.fill, 0.6 if p.name == "classifier.weight" else 0.2, p.shape)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_transformers_opens_what_we_save(hf, tmp_path, dtype):
    save(our_model(), tmp_path / "ours", dtype, SpecialTokens(pad=0))
    model = load(tmp_path / "ours")      # rounded, for float16
    torch_model, report = hf.AutoClassifier.from_pretrained(tmp_path / "ours",
                                                            output_loading_info=True)
    assert type(torch_model) is hf.Classifier
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch_model = torch_model.float().eval()
    require_same_logits(model.forward(our_batch()), their_logits(hf, torch_model))
    assert torch_model.config.id2label == dict(enumerate(NAMES))
    assert torch_model.config.label2id["world"] == 3

    torch_model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    np.testing.assert_array_equal(again.store.values, model.store.values)
    assert again.label_names == model.label_names and again.trunk.config == model.trunk.config


def test_transformers_refuses_a_mean(hf, tmp_path):
    save(our_model("mean"), tmp_path)
    with pytest.raises(ValueError, match="minisft_bert_mean"):
        hf.AutoClassifier.from_pretrained(tmp_path)


@pytest.mark.slow
def test_shape_of_the_published_model(hf, tmp_path):
    published = {"vocab_size": 30522, "max_position_embeddings": 512, "hidden_size": 768,
                 "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    torch_model = theirs(hf, **published)
    with hf.torch.no_grad():
        for name, p in torch_model.named_parameters():
            if p.ndim > 1 and name != "classifier.weight":
                p /= 10
    torch_model.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.trunk.config == BertConfig(**RATES)
    require_same_logits(model.forward(our_batch()), their_logits(hf, torch_model))
