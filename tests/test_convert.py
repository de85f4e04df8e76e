"""`minisft convert`: nanoGPT's ckpt.pt, and folders with pytorch_model.bin, become folders of ours.

The checkpoints are put together by `torch_writer`; the last tests compare with PyTorch.
"""

import pickle

import numpy as np
import pytest
from torch_writer import Raw, archive, opcodes, state_dict, tensor

from minisft.cli import main
from minisft.data.batch import pack
from minisft.data.text import load_tokenizer, train_tokenizer
from minisft.errors import UserError
from minisft.io.model_folder import Preprocessing, load, read_folder, save_tokenizer, write_folder
from minisft.io.nanogpt import character_tokenizer, read_nanogpt
from minisft.jobs.generate import generate_texts
from minisft.models.generate import Sampler
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier, LanguageModel

TEXTS = ["a film about a river", "the river of a film", "a long film"]
ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 320, "bias": True,
        "dropout": 0.1}
LINEAR = "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


@pytest.fixture
def tokenizer_folder(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer", 32)
    return tmp_path / "tokenizer"


def model_of(args=ARGS):
    """A model as nanoGPT has it, with random values; without biases where there are none."""
    config = GPT2Config(args["vocab_size"], args["block_size"], args["n_embd"], args["n_layer"],
                        args["n_head"], activation_function="gelu").with_dropout(args["dropout"])
    model = LanguageModel(config)
    model.store.values += 0.2 * np.random.default_rng(0).standard_normal(
        model.store.size).astype(np.float32)
    for p in model.store:
        if not args["bias"] and p.name.endswith(".bias"):
            p.value[...] = 0
    return model


def named(model, args=ARGS, prefix="_orig_mod.", **more):
    """-> the arrays of a model under nanoGPT's names."""
    arrays = {f"{prefix}transformer.{p.name}": p.value.T if p.name.endswith(LINEAR) else p.value
              for p in model.store if args["bias"] or not p.name.endswith(".bias")}
    return arrays | {f"{prefix}lm_head.weight": model.trunk.wte.w.value} | more


def nanogpt(path, args=ARGS, arrays=None, prefix="_orig_mod."):
    """Writes the ckpt.pt of `model_of`, or of other arrays."""
    def whole(tensors):
        return {"model": tensors, "optimizer": {"state": {0: {"step": tensor((), ())}}},
                "model_args": args, "iter_num": 3, "best_val_loss": tensor((), ()),
                "config": {"dataset": "openwebtext", "learning_rate": 6e-4}}
    return state_dict(path, named(model_of(args), args, prefix) if arrays is None else arrays,
                      whole)


def refused(capsys, arguments, *words):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("minisft: ") and err.count("\n") == 1, err
    for word in words:
        assert str(word) in err, err


@pytest.mark.parametrize("prefix", ["_orig_mod.", "", "module."])
@pytest.mark.parametrize("bias", [True, False])
def test_the_tensors_of_nanogpt(tmp_path, bias, prefix):
    args = ARGS | {"bias": bias}
    expected, found = model_of(args), read_nanogpt(
        nanogpt(tmp_path / "ckpt.pt", args, prefix=prefix))
    assert found.trunk.config == expected.trunk.config and found.lm_head is None
    for p in expected.store:
        np.testing.assert_array_equal(found.store[p.name].value, p.value, p.name)
    assert read_nanogpt(tmp_path / "ckpt.pt", "gelu_new").trunk.config.gelu_form == "tanh"


def test_masks_and_a_matrix_of_its_own(tmp_path):
    """Without flash attention a block has its causal mask; a changed model may be untied."""
    arrays = named(model_of(), **{f"_orig_mod.transformer.h.{i}.attn.bias": np.ones((1, 1, 32, 32))
                                  for i in range(2)})
    arrays["_orig_mod.lm_head.weight"] = arrays["_orig_mod.lm_head.weight"] + 1
    model = read_nanogpt(nanogpt(tmp_path / "ckpt.pt", arrays=arrays))
    np.testing.assert_array_equal(model.store["lm_head.weight"].value.T,
                                  arrays["_orig_mod.lm_head.weight"])
    assert not np.array_equal(model.trunk.wte.w.value, model.store["lm_head.weight"].value.T)


def test_convert_makes_a_folder(tmp_path, tokenizer_folder, capsys):
    """Its padding rows are kept and never chosen, though here they are the most probable."""
    arrays = named(model_of())
    table = arrays["_orig_mod.transformer.wte.weight"].copy()
    arrays |= dict.fromkeys(("_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"), table)
    table[280:300], table[300:] = 50 * table[279], -50 * table[279]
    path, out = nanogpt(tmp_path / "ckpt.pt", arrays=arrays), tmp_path / "out"
    assert main(["convert", str(path), str(out), "--tokenizer", str(tokenizer_folder)]) == 0
    shown = capsys.readouterr()
    assert str(out) in shown.out and "320 tokens" in shown.out and "--activation" in shown.err
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "generation_config.json", "minisft.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json"]
    model, read, preprocessing = read_folder(out)
    assert preprocessing == Preprocessing(clean=()) and model.trunk.config.vocab_size == 320
    np.testing.assert_array_equal(model.trunk.wte.w.value, table)
    assert read.encode("a film").ids == load_tokenizer(tokenizer_folder).encode("a film").ids
    assert model.forward(pack([read.encode("a film").ids]), last_only=True).argmax() >= 280
    assert main(["generate", "--model", str(out), "a film", "--max-new-tokens", "20"]) == 0
    (generated,) = generate_texts(model, read, preprocessing, ["a film"], 20, Sampler(1.0))
    assert len(generated.ids) > 3 and max(generated.ids) < 280


def test_the_other_gelu(tmp_path, tokenizer_folder):
    order = ["convert", str(nanogpt(tmp_path / "ckpt.pt")), str(tmp_path / "out"),
             "--tokenizer", str(tokenizer_folder), "--activation", "gelu_new"]
    assert main(order) == 0
    assert load(tmp_path / "out")[0].trunk.config.activation_function == "gelu_new"


def test_characters(tmp_path, capsys):
    text = "First\nCitizen: ж!"
    chars = sorted(set(text))
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)),
            "stoi": {char: i for i, char in enumerate(chars)}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    args = ARGS | {"vocab_size": len(chars)}
    path, out = nanogpt(tmp_path / "ckpt.pt", args), tmp_path / "out"
    assert main(["convert", str(path), str(out), "--tokenizer", str(tmp_path / "meta.pkl")]) == 0
    _, tokenizer, _ = read_folder(out)
    ids = tokenizer.encode(text).ids
    assert ids == [meta["stoi"][char] for char in text] and tokenizer.decode(ids) == text
    capsys.readouterr()
    assert main(["generate", "--model", str(out), "First\nC", "--max-new-tokens", "5"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("First\nC") and len(shown) == len("First\nC") + 5 + 1


@pytest.mark.parametrize("meta", [
    {"itos": {0: "a"}}, {"stoi": {}}, {"stoi": ["a"]}, {"stoi": {"a": 1}}, {"stoi": {"ab": 0}},
    {"stoi": {"a": 0, "b": 0}}, {"stoi": {"a": "0"}}, {"stoi": {3: 0}}, [3]], ids=repr)
def test_other_pickles_are_no_characters(tmp_path, meta):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(UserError, match="meta.pkl: expected `stoi` with a number"):
        character_tokenizer(tmp_path / "meta.pkl")


def test_a_hostile_meta_runs_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",)

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": Attack()}))
    with pytest.raises(UserError, match="meta.pkl: its pickle asks for 'builtins.exec'"):
        character_tokenizer(tmp_path / "meta.pkl")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="none.pkl: cannot be read"):
        character_tokenizer(tmp_path / "none.pkl")


def without(values, *names):
    return {key: value for key, value in values.items() if key not in names}


@pytest.mark.parametrize(("args", "words"), [
    (without(ARGS, "n_head"), ["model_args lacks n_head"]),
    (ARGS | {"n_head": 3}, ["model_args", "n_embd 16 is no multiple of n_head 3"]),
    (ARGS | {"n_layer": 10**9}, ["n_layer is 1000000000", "tensors"]),
    (ARGS | {"n_layer": 3}, ["h.2.ln_1.weight is missing, model_args asks for it"]),
    (ARGS | {"n_layer": 1}, ["h.1.", "is unexpected"]),
    (ARGS | {"block_size": 33}, ["wpe.weight has shape (32, 16)", "asks for (33, 16)"]),
    (ARGS | {"vocab_size": None}, ["vocab_size is None"]),
    (ARGS | {"dropout": 2.0}, ["embd_pdrop is 2.0"]),
    (ARGS | {"bias": 1}, ["bias is 1, expected True or False"]),
    (ARGS | {"use_rmsnorm": True}, ["'use_rmsnorm'", "another model"]),
    ([1], ["model_args is a list"]),
])
def test_what_model_args_cannot_be(tmp_path, args, words, tokenizer_folder, capsys):
    path = nanogpt(tmp_path / "ckpt.pt", args, named(model_of()))
    refused(capsys, ["convert", str(path), str(tmp_path / "out"), "--tokenizer",
                     str(tokenizer_folder)], "ckpt.pt", *words)
    assert not (tmp_path / "out").exists()


def test_switches_of_others_that_are_off(tmp_path):
    nanogpt(tmp_path / "ckpt.pt", ARGS | {"use_rmsnorm": False, "window": None})
    read_nanogpt(tmp_path / "ckpt.pt")


def test_tensors_that_cannot_be(tmp_path):
    arrays = named(model_of())
    first = "_orig_mod.transformer.h.0."
    for changed, word in [
        (without(arrays, first + "ln_1.bias"), "h.0.ln_1.bias is missing"),
        (arrays | {first + "mlp.c_fc.weight": arrays[first + "mlp.c_fc.weight"].T},
         r"c_fc.weight has shape \(16, 64\), model_args asks for \(64, 16\)"),
        (arrays | {first + "ln_1.weight": np.full(16, np.nan)}, "not finite"),
        (arrays | {first + "rotary.weight": np.ones(2)}, "rotary.weight is unexpected"),
    ]:
        with pytest.raises(UserError, match=word):
            read_nanogpt(nanogpt(tmp_path / "ckpt.pt", arrays=changed))


def test_convert_refuses(tmp_path, tokenizer_folder, capsys):
    path, out = nanogpt(tmp_path / "ckpt.pt"), tmp_path / "out"
    order = ["convert", str(path), str(out)]
    refused(capsys, order, "ckpt.pt: nanoGPT saves no tokenizer", "--tokenizer")
    save_tokenizer(train_tokenizer([" ".join(map(str, range(999)))], 321), tmp_path / "large", 32)
    refused(capsys, [*order, "--tokenizer", str(tmp_path / "large")], "the tokenizer has 321 "
            "tokens, the model 320")
    refused(capsys, [*order, "--tokenizer", "nobody/none"], "nobody/none: no such folder")
    refused(capsys, ["predict", "--model", str(path), "x"], "is a file", "minisft convert")
    state_dict(tmp_path / "state.pt", named(model_of()))
    refused(capsys, ["convert", str(tmp_path / "state.pt"), str(out), "--tokenizer",
                     str(tokenizer_folder)], "state.pt: holds no model", "pytorch_model.bin")
    archive(tmp_path / "evil.pt", {"model": Raw(b"cos\nsystem\n(" + opcodes("exit") + b"tR")})
    refused(capsys, ["convert", str(tmp_path / "evil.pt"), str(out), "--tokenizer",
                     str(tokenizer_folder)], "evil.pt", "os.system")
    refused(capsys, ["convert", str(tmp_path / "none"), str(out)], "none: no such folder")
    assert not out.exists()
    for there in path, tokenizer_folder:
        before = sorted(tmp_path.rglob("*"))
        refused(capsys, ["convert", str(path), str(there), "--tokenizer", str(tokenizer_folder)],
                there, "there already, expected a new folder")
        assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_pytorch_model_bin(tmp_path, tokenizer):
    """A classifier stays one, with its head, its labels and what is done to its texts."""
    model = Classifier(model_of().trunk.config, ("neg", "pos"))
    kept = Preprocessing(("spaces",), 9, "tail")
    write_folder(tmp_path / "old", model, tokenizer, kept)
    names = {f"transformer.{p.name}": p.value for p in model.store if p.name != "score.weight"}
    (tmp_path / "old" / "model.safetensors").unlink()
    state_dict(tmp_path / "old" / "pytorch_model.bin",
               names | {"score.weight": model.store["score.weight"].value.T})
    (tmp_path / "new").mkdir()      # an empty one will do
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    found, _, preprocessing = read_folder(tmp_path / "new")
    assert found.label_names == ("neg", "pos") and preprocessing == kept
    np.testing.assert_array_equal(found.store.values, model.store.values)
    assert (tmp_path / "new" / "model.safetensors").is_file()
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()


def test_a_folder_without_a_tokenizer(tmp_path, tokenizer, tokenizer_folder, capsys):
    write_folder(tmp_path / "old", model_of(), tokenizer, Preprocessing(clean=()))
    for name in "tokenizer.json", "tokenizer_config.json":
        (tmp_path / "old" / name).unlink()
    refused(capsys, ["convert", str(tmp_path / "old"), str(tmp_path / "new")], "no tokenizer")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--tokenizer",
                 str(tokenizer_folder)]) == 0
    assert load(tmp_path / "new")[1].encode("a film").ids == tokenizer.encode("a film").ids


# Beside PyTorch.

def network(torch, args):
    """GPT-2 as nanoGPT has it: linear layers, an optional bias, the exact GELU, a tied matrix."""
    from torch import nn
    width, bias = args["n_embd"], args["bias"]

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = nn.Linear(width, 3 * width, bias=bias)
            self.c_proj = nn.Linear(width, width, bias=bias)

        def forward(self, x):
            heads = (each.unflatten(-1, (args["n_head"], -1)).transpose(1, 2)
                     for each in self.c_attn(x).split(width, dim=-1))
            y = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            return self.c_proj(y.transpose(1, 2).flatten(2))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
            self.attn = Attention()
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width, bias=bias),
                                      "c_proj": nn.Linear(4 * width, width, bias=bias)})

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            hidden = nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)))
            return x + self.mlp["c_proj"](hidden)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = nn.ModuleDict({
                "wte": nn.Embedding(args["vocab_size"], width),
                "wpe": nn.Embedding(args["block_size"], width),
                "h": nn.ModuleList(Block() for _ in range(args["n_layer"])),
                "ln_f": nn.LayerNorm(width, bias=bias)})
            self.lm_head = nn.Linear(width, args["vocab_size"], bias=False)
            self.transformer.wte.weight = self.lm_head.weight

        def forward(self, ids):
            x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
            for block in self.transformer.h:
                x = block(x)
            return self.lm_head(self.transformer.ln_f(x))

    torch.manual_seed(0)
    made = Network()
    with torch.no_grad():
        for p in made.parameters():
            p += 0.2 * torch.randn_like(p)
    return made


@pytest.mark.parity
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_of_a_checkpoint_equal_pytorchs(tmp_path, tokenizer_folder, bias, compiled):
    """Saved as nanoGPT does, with the optimizer, perhaps under the names that torch.compile gives;
    the folder opens in transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    args = ARGS | {"bias": bias}
    model = network(torch, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.tensor([[1, 5, 279, 3, 3, 70, 319]])
    loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    loss.backward()
    optimizer.step()
    prefix = "_orig_mod." if compiled else ""
    path, out = tmp_path / "ckpt.pt", tmp_path / "out"
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"model": state, "optimizer": optimizer.state_dict(),
                "model_args": args, "iter_num": 1, "best_val_loss": loss.detach(),
                "config": {"dataset": "x", "learning_rate": 1e-3, "compile": compiled}}, path)
    with torch.no_grad():
        expected = model(ids)[0].numpy()
    assert main(["convert", str(path), str(out), "--tokenizer", str(tokenizer_folder)]) == 0
    found = read_folder(out)[0].forward(pack([ids[0].numpy()]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 1
    their = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        np.testing.assert_allclose(their(ids).logits[0].numpy(), expected, atol=1e-5)


@pytest.mark.parity
def test_characters_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = "First\nCitizen: ж!  "
    stoi = {char: i for i, char in enumerate(sorted(set(text)))}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": stoi}))
    path, out = nanogpt(tmp_path / "ckpt.pt", ARGS | {"vocab_size": len(stoi)}), tmp_path / "out"
    assert main(["convert", str(path), str(out), "--tokenizer", str(tmp_path / "meta.pkl")]) == 0
    fast = transformers.AutoTokenizer.from_pretrained(out)
    ids = fast(text)["input_ids"]
    assert ids == [stoi[char] for char in text] and fast.decode(ids) == text
