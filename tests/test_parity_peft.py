"""Adapters against PEFT, both ways: its folders here, ours there, the same logits and the same
gradients; logits to 1e-5, keys and bits through a round trip."""

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.data.special_tokens import SpecialTokens
from minisft.io import adapters, safetensors
from minisft.io.checkpoint import load, save
from minisft.models.adapters import LoraConfig, adapted, target_names
from minisft.models.bert import BertConfig
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import BertClassifier, Classifier, LanguageModel

pytestmark = pytest.mark.parity

GPT2 = GPT2Config(vocab_size=1234, n_positions=64, n_embd=80, n_layer=3, n_head=5, n_inner=200,
                  embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
BERT = BertConfig(vocab_size=1234, max_position_embeddings=64, hidden_size=80, num_hidden_layers=3,
                  num_attention_heads=5, intermediate_size=200, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0)
NAMES = "business", "sports", "technology", "world"
LENGTHS = 17, 64, 2, 40, 5
LABELS = [3, 0, 2, 1, 0]
LIMIT = 1e-5
WHOLE = {"gpt2": ["score"], "bert": ["classifier", "pooler"], "lm": None}
MAPS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "lm": ["c_attn", "c_proj", "c_fc"],
        "bert": ["query", "key", "value", "intermediate.dense", "output.dense"]}
# what else PEFT's config may say, and we have
VARIANTS = {
    "plain": {}, "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"c_proj": 2, "query": 3},
                 "alpha_pattern": {"c_fc": 32, "key": 5}},
    "upper blocks": {"layers_to_transform": [1, 2]}, "one block": {"layers_to_transform": 1},
    "expression": {"target_modules": r".*(h|layer)\.[02]\..*(c_fc|query|output\.dense)"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "all-linear": {"target_modules": "all-linear"}}


@pytest.fixture(scope="module")
def hf():
    """torch, transformers and peft; imported here, so that collecting the tests stays quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        torch = pytest.importorskip("torch")
        t = pytest.importorskip("transformers")
        peft = pytest.importorskip("peft")
        t.utils.logging.disable_progress_bar()
    torch.manual_seed(7)
    return SimpleNamespace(torch=torch, peft=peft, kinds={
        "gpt2": t.GPT2ForSequenceClassification, "bert": t.BertForSequenceClassification,
        "lm": t.GPT2LMHeadModel})


@pytest.fixture(autouse=True)
def their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # fan_in_fan_out, deprecations
        yield


@pytest.fixture(params=["gpt2", "bert", "lm"])
def kind(request):
    return request.param


@pytest.fixture
def base(kind, tmp_path):
    """A folder with a model of wide random values."""
    model = {"gpt2": lambda: Classifier(GPT2, NAMES), "bert": lambda: BertClassifier(BERT, NAMES),
             "lm": lambda: LanguageModel(GPT2)}[kind]()
    # at GPT-2's 0.02 attention is nearly uniform and an adapter of it does nothing
    model.store.values += 0.1 * np.random.default_rng(1).standard_normal(
        model.store.size).astype("f4")
    save(model, tmp_path / "base", special_tokens=SpecialTokens(1233, (1233,), 1233))
    return tmp_path / "base"


def texts():
    rng = np.random.default_rng(5)
    return [rng.integers(0, 1233, n) for n in LENGTHS]


def ours(model, kind, ids):
    logits = model.forward(pack(ids))
    return np.split(logits, np.cumsum([len(x) for x in ids])[:-1]) if kind == "lm" else logits


def require_same_logits(hf, model, their_model, kind):
    found = ours(model, kind, texts())
    for row, ids in zip(found, texts(), strict=True):
        with hf.torch.no_grad():
            expected = their_model(hf.torch.tensor(ids[None])).logits[0].numpy()
        np.testing.assert_allclose(row, expected, rtol=0,
                                   atol=LIMIT * max(1, np.abs(expected).max()))
        assert np.abs(row).max() > 0.1


def draw(model, seed=3):
    """Values for all adapters and the head, none of them zeros."""
    rng = np.random.default_rng(seed)
    for p in model.store.trainable:
        p.value[...] = 0.1 * rng.standard_normal(p.shape)


def theirs(hf, folder, kind):
    return hf.kinds[kind].from_pretrained(folder).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_we_open_theirs_and_keep_keys_and_bits(hf, kind, base, tmp_path, variant):
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": MAPS[kind],
                "modules_to_save": WHOLE[kind],
                "task_type": "CAUSAL_LM" if kind == "lm" else "SEQ_CLS"} | VARIANTS[variant]
    their_model = hf.peft.get_peft_model(theirs(hf, base, kind), hf.peft.LoraConfig(**settings))
    with hf.torch.no_grad():
        for p in their_model.parameters():
            if p.requires_grad:
                p += 0.1 * hf.torch.randn_like(p)
    their_model.eval().save_pretrained(tmp_path / "theirs")
    require_same_logits(hf, load(tmp_path / "theirs"), their_model, kind)       # merged

    apart = load(base)
    adapters.attach(apart, tmp_path / "theirs")
    require_same_logits(hf, apart, their_model, kind)
    adapters.write(tmp_path / "again", apart, str(base))
    before, after = (safetensors.read_header(tmp_path / name / adapters.WEIGHTS)[0]
                     for name in ("theirs", "again"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in before)
    again = hf.peft.PeftModel.from_pretrained(theirs(hf, base, kind), tmp_path / "again").eval()
    require_same_logits(hf, apart, again, kind)
    require_same_logits(hf, load(tmp_path / "again"), again, kind)


@pytest.mark.parametrize("options", [
    {}, {"target_modules": ("c_attn", "query")}, {"layers_to_transform": (2,)},
    {"use_rslora": True, "rank_pattern": {"mlp.c_fc": 3, "output.dense": 7}}])
def test_they_open_ours_and_keep_keys_and_bits(hf, kind, base, tmp_path, options):
    model = load(base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6,
                           "target_modules": target_names(model)} | options)
    model.add_adapter(config)
    draw(model)
    adapters.write(tmp_path / "ours", model, str(base))
    with warnings.catch_warnings():
        # a key that is missing, a Conv1D taken for a Linear
        warnings.simplefilter("error", UserWarning)
        their_model = hf.peft.PeftModel.from_pretrained(
            theirs(hf, base, kind), tmp_path / "ours").eval()
    require_same_logits(hf, model, their_model, kind)
    require_same_logits(hf, load(tmp_path / "ours"), their_model, kind)
    their_model.save_pretrained(tmp_path / "again")
    before, after = (safetensors.read_header(tmp_path / name / adapters.WEIGHTS)[0]
                     for name in ("ours", "again"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in before)
    # their config has both heads, whatever the model has: a set
    again = adapters.read_config(tmp_path / "again")
    assert set(again.modules_to_save) >= set(WHOLE[kind] or ())
    require_same_logits(hf, load(tmp_path / "again"), their_model, kind)


def test_gradients_are_theirs(hf, kind, base, tmp_path):
    model = load(base)
    model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=target_names(model)))
    draw(model)
    adapters.write(tmp_path / "ours", model, str(base))
    their_model = hf.peft.PeftModel.from_pretrained(theirs(hf, base, kind), tmp_path / "ours",
                                                    is_trainable=True).eval()
    labels = [np.append(x[1:], -100) for x in texts()] if kind == "lm" else LABELS
    model.loss(pack(texts(), labels=labels))
    model.loss_backward()
    loss = 0
    for ids, label in zip(texts(), labels, strict=True):
        logits = their_model(hf.torch.tensor(ids[None])).logits
        logits, label = (logits[0], label) if kind == "lm" else (logits, [label])
        loss = loss + hf.torch.nn.functional.cross_entropy(
            logits, hf.torch.tensor(label), reduction="sum")
    loss.backward()
    found = {name.replace(".default", "").replace(".modules_to_save", "").removeprefix(
        "base_model.model."): p.grad.numpy() for name, p in their_model.named_parameters()
        if p.requires_grad}
    family = adapters.family_of_model(model)
    assert len(found) == len(model.store.trainable) > 10
    for p in model.store.trainable:
        expected = found[family.to_hf(p.name)]
        ours_ = p.grad if adapters.LORA.fullmatch(p.name) else family.convert_layout(p.name, p.grad)
        np.testing.assert_allclose(ours_, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_two_adapters_on_one_base(hf, kind, base, tmp_path):
    """In one process, one after the other: each gives what it gives alone, and as theirs."""
    their_base, plain = theirs(hf, base, kind), ours(load(base), kind, texts())
    for seed in (3, 4):
        model = load(base)
        model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=target_names(model)))
        draw(model, seed)
        adapters.write(tmp_path / str(seed), model, str(base))
    alone = {seed: ours(load(tmp_path / str(seed)), kind, texts()) for seed in (3, 4)}
    their_model = hf.peft.PeftModel.from_pretrained(their_base, tmp_path / "3", "3").eval()
    their_model.load_adapter(tmp_path / "4", "4")
    for seed in (3, 4, 3):
        model = load(tmp_path / str(seed))
        their_model.set_adapter(str(seed))
        require_same_logits(hf, model, their_model, kind)
        assert all(np.array_equal(a, b) for a, b in zip(
            ours(model, kind, texts()), alone[seed], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(
        ours(load(base), kind, texts()), plain, strict=True))
    assert not np.allclose(alone[3][0], alone[4][0], atol=1e-2)


def test_the_config_has_what_their_loader_reads(hf, kind, base, tmp_path):
    model = load(base)
    model.add_adapter(LoraConfig(target_modules=target_names(model)))
    adapters.write(tmp_path / "ours", model, str(base))
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    theirs_ = hf.peft.PeftConfig.from_pretrained(tmp_path / "ours").to_dict()
    for key, value in written.items():
        got = theirs_[key]
        assert (sorted(got) if isinstance(got, set | list) else got) == (
            sorted(value) if isinstance(value, list) else value), key
    assert len(adapted(model)) == (18 if kind == "bert" else 12)
