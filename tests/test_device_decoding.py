"""Generation whose state lies on the card: the CPU's tokens, few launches, fewer transfers."""

import copy

import numpy as np
import pytest

from benchmarks import gpu_host
from minisft.backend import array
from minisft.backend.gpu import cublaslt, cuda, emulator, gemm
from minisft.backend.gpu.graph import Recorder
from minisft.data.batch import pack
from minisft.dispatch import only
from minisft.errors import UserError
from minisft.models import device_decoding
from minisft.models.adapters import LoraConfig
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel
from tests import standin_cublaslt, standin_cupy, standin_graphs

needs_compiler = pytest.mark.skipif(emulator.compiler() is None,
                                    reason="no C++ compiler to emulate CUDA kernels")
GREEDY, DRAWN = Sampler(temperature=0), Sampler(1.3, 9, 0.9, seed=5)
# the first prompt stops at the end of the model's positions
OPTIONS = {"max_new_tokens": 10, "end_token": 3, "unused_ids": [5, 96]}
PRECISIONS = "float32", "tf32", "bfloat16", "float16"


def model_of(rng, n_head=2, width=32, **options):
    config = GPT2Config(vocab_size=97, n_positions=24, n_embd=width, n_layer=2, n_head=n_head)
    model = LanguageModel(config, **options)
    model.store.values += 0.3 * rng.standard_normal(model.store.values.shape, dtype=np.float32)
    return model


@pytest.fixture
def prompts(rng):
    return [rng.integers(0, 97, n) for n in (20, 1, 7)]


def written(model, prompts, sampler):
    told = []
    found = generate(model, prompts, sampler=sampler, on_token=lambda i, token: told.append(
        (i, token)), **OPTIONS)
    assert [[token for j, token in told if j == i] for i in range(len(prompts))] == \
        [g.ids for g in found]
    return found


def step_logits(model, ids, n_steps):
    """Ids of sequences -> logits of their last `n_steps` tokens, put in one by one (n_steps,B,V).
    """
    xp, lengths = model.store.xp, [len(row) - n_steps for row in ids]
    state = xp.asarray(np.array([[0] * len(ids), lengths], dtype=np.int32))
    cache = device_decoding.DeviceCache(model, state[1], max(map(len, ids)) + 3)
    model.forward(pack([row[:-n_steps] for row in ids]), kv_cache=cache)
    cache.decodes, found = True, []
    batch = device_decoding.one_token_each(state[0], state[1])
    for t in range(n_steps):
        state[0] = xp.asarray(np.array([row[len(row) - n_steps + t] for row in ids], np.int32))
        found.append(array.to_cpu(model.forward(batch, kv_cache=cache)).copy())
        state[1] += 1
    return np.array(found)


def require_equal_logits(model, exact, ids):
    """The error of the logits of single tokens is at most twice that of the whole texts', whose
    products and attention are rounded as well; `exact` is the same model in float64."""
    def error(logits):
        return max(np.abs(found - exact.forward(pack([row]))[-4:]).max()
                   for found, row in zip(logits, ids, strict=True))

    whole = error([array.to_cpu(model.forward(pack([row])))[-4:] for row in ids])
    assert error(step_logits(model, ids, 4).swapaxes(0, 1)) <= 2 * whole + 1e-6 < 1


@needs_compiler
@pytest.mark.parametrize("n_head", [2, 4, 32])     # heads of 16, 8 channels and 1
@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_same_tokens_as_on_the_cpu(rng, monkeypatch, prompts, n_head, sampler):
    model = model_of(rng, n_head)
    expected = written(model, prompts, sampler)
    assert {g.finish_reason for g in expected} > {"length"}
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    assert device_decoding.decodes_on_device(model)
    assert written(model, prompts, sampler) == expected


@needs_compiler
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tied", "untied", "adapter", "adapter with dropout"])
def test_logits_of_a_step_are_those_of_the_whole_text(rng, precision, kind):
    model = model_of(rng, width=64, tied=kind != "untied")
    if "adapter" in kind:
        model.add_adapter(LoraConfig(r=2, lora_dropout=0.2 * ("dropout" in kind)))
        for p in model.store.trainable:
            p.value[...] = rng.standard_normal(p.shape) / 10
    exact = LanguageModel(model.trunk.config, tied=kind != "untied", dtype=np.float64)
    whole = copy.deepcopy(model)
    if "adapter" in kind:
        whole.merge_adapter()
    for p in whole.store:
        exact.store[p.name].value[...] = p.value
    ids = [rng.integers(0, 97, n) for n in (5, 20, 11)]
    with standin_cublaslt.card():
        require_equal_logits(model.to("cuda", precision), exact, ids)


@needs_compiler
@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_card_replays_its_steps(rng, monkeypatch, prompts, precision, sampler):
    model = model_of(rng)
    expected = written(model, prompts, sampler)
    with standin_cublaslt.card():
        model.to("cuda", precision)
        found = {}
        for graphs in ("", "off"):
            monkeypatch.setenv("MINISFT_CUDA_GRAPHS", graphs)
            with standin_cupy.counted() as counts:
                found[graphs] = written(model, prompts, sampler)
            # reading the prompts and one step, which is then recorded
            assert counts["graph"] == (0 if graphs else 8)
            fetched = counts["to CPU"]
    assert found[""] == found["off"]
    assert precision != "float32" or found[""] == expected
    # of a token its ids, or what the sampler reads: whether all is finite, logits and their order
    assert fetched == (10 if sampler is GREEDY else 30)


@needs_compiler
def test_the_cpu_reads_a_token_when_the_next_is_on_its_way(rng, monkeypatch, prompts):
    seen = []
    run, wait = Recorder.run, standin_graphs.Event.synchronize
    monkeypatch.setattr(Recorder, "run", lambda *args: (seen.append("step"), run(*args)))
    monkeypatch.setattr(standin_graphs.Event, "synchronize", lambda event: (
        seen.append("read"), wait(event)))
    model = model_of(rng)
    with standin_cublaslt.card():
        generate(model.to("cuda"), prompts[1:], 4, GREEDY)
    assert seen == ["step", "read"] * 3 + ["read"]


@needs_compiler
@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_values_that_are_no_numbers_are_told(rng, monkeypatch, prompts, sampler):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    model = model_of(rng)
    model.store["ln_f.weight"].value[3] = np.inf
    with pytest.raises(UserError, match="values that are not finite"):
        generate(model, prompts, 4, sampler)


@needs_compiler
def test_without_fused_kernels_the_cpu_leads(rng, monkeypatch):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    model = model_of(rng)
    assert not device_decoding.decodes_on_device(
        LanguageModel(model.trunk.config, dtype=np.float64))
    for version in ("naive", "off"):
        with cuda.kernels(version):
            assert not device_decoding.decodes_on_device(model)
    with only("formula"):
        assert not device_decoding.decodes_on_device(model)
    monkeypatch.delenv("MINISFT_CUDA")
    assert not device_decoding.decodes_on_device(model)


@pytest.mark.parametrize("precision, most", [("bfloat16", 103), ("float32", 102), ("tf32", 102)])
def test_a_token_takes_few_launches(monkeypatch, precision, most):
    for module, name in ((array, "cupy"), (cublaslt, "library"), (gemm, "planned")):
        monkeypatch.setattr(module, name, getattr(module, name))     # these are replaced
    monkeypatch.setenv("MINISFT_CUDA_GRAPHS", "off")
    array.cupy = cupy = gpu_host.standin()
    gpu_host.stub_products(cupy)
    model = LanguageModel(GPT2Config(97, 1024, 64, 12, 4)).to("cuda", precision)
    total = []
    for n in (2, 3):
        with cupy.counted() as counts:
            generate(model, [np.arange(1000) % 97] * 8, n, GREEDY)
        total.append(counts)
    token = total[1] - total[0]
    assert token.pop("to CPU") == 1 and "to card" not in token
    assert token.total() == most, token


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_card_decodes_as_the_whole_text(rng, prompts, precision):
    if not array.gpu_available():
        pytest.skip("no CUDA card")
    model, exact = model_of(rng, width=64), LanguageModel(
        GPT2Config(vocab_size=97, n_positions=24, n_embd=64, n_layer=2, n_head=2),
        dtype=np.float64)
    for p in model.store:
        exact.store[p.name].value[...] = p.value
    expected = written(model, prompts, GREEDY), written(model, prompts, DRAWN)
    model.to("cuda", precision)
    require_equal_logits(model, exact, [rng.integers(0, 97, n) for n in (5, 20, 11)])
    for sampler, plain in zip((GREEDY, DRAWN), expected, strict=True):
        found = written(model, prompts, sampler)
        assert precision != "float32" or found == plain
        assert found == written(model, prompts, sampler)
