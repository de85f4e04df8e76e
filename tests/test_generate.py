"""Generation with the cache against generation that computes everything anew."""

import numpy as np
import pytest

from minisft.data.batch import pack
from minisft.errors import UserError
from minisft.models.finite import require_finite
from minisft.models.generate import Sampler, generate
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import LanguageModel

GREEDY = Sampler(temperature=0)


@pytest.fixture
def model(rng):
    config = GPT2Config(vocab_size=31, n_positions=24, n_embd=20, n_layer=2, n_head=5)
    model = LanguageModel(config, dtype=np.float64)
    model.store.values += 0.3 * rng.standard_normal(model.store.values.shape)
    return model


def slowly(model, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model.forward(pack([np.array(ids)]))[-1].argmax()))
    return ids[len(prompt):]


def test_cache_changes_nothing(model, rng):
    prompts = [rng.integers(0, 31, n) for n in (1, 7, 3)]
    for prompt, found in zip(prompts, generate(model, prompts, 15, GREEDY), strict=True):
        assert found.ids == slowly(model, prompt, 15)
        assert found.finish_reason == "length"


def test_logits_with_the_cache_equal_those_without(model, rng):
    from minisft.models.generate import KVCache
    ids = rng.integers(0, 31, 9)
    past = KVCache(model.trunk.config, 1, 9, model.store.values)
    whole = model.forward(pack([ids]))
    first = model.forward(pack([ids[:5]]), kv_cache=past)
    np.testing.assert_allclose(first, whole[:5], atol=1e-12)
    # four queries at once against a cache of five keys
    rest = pack([ids[5:]])
    object.__setattr__(rest, "positions", np.arange(5, 9))
    np.testing.assert_allclose(model.forward(rest, kv_cache=past), whole[5:], atol=1e-12)


def test_stops_at_the_models_length_and_says_so(model):
    (found,) = generate(model, [np.arange(20)], 50, GREEDY)
    assert len(found.ids) == 24 - 20 + 1 and found.finish_reason == "context"
    (found,) = generate(model, [np.arange(24)], 50, GREEDY)
    assert len(found.ids) == 1 and found.finish_reason == "context"
    with pytest.raises(ValueError, match="25 tokens, but the model has 24"):
        generate(model, [np.arange(25)], 1, GREEDY)


def test_stops_at_the_end_token(model):
    whole = generate(model, [np.array([3])], 12, GREEDY)[0].ids
    end = whole[4]
    (found,) = generate(model, [np.array([3])], 12, GREEDY, end_token=end)
    assert found.ids == whole[:whole.index(end)] and found.finish_reason == "stop"


@pytest.mark.parametrize("sampler", [GREEDY, Sampler(1.0, seed=2), Sampler(2.0, 5, 0.9, seed=2)])
def test_an_id_that_no_token_has_is_never_chosen(model, sampler):
    padding = np.arange(20, 31)
    model.trunk.wte.w.value[padding] *= 50      # without the rule they would always win
    free = generate(model, [np.array([3])], 20, sampler)[0].ids
    assert set(free) & set(padding)
    (found,) = generate(model, [np.array([3])], 20, sampler, unused_ids=padding)
    assert len(found.ids) == 20 and max(found.ids) < 20


def test_company_changes_no_sample(model, rng):
    sampler = Sampler(temperature=1.3, top_k=9, top_p=0.9, seed=5)
    prompts = [rng.integers(0, 31, n) for n in (2, 5, 4)]
    together = generate(model, prompts, 10, sampler)
    assert together[0] == generate(model, prompts[:1], 10, sampler)[0]
    assert together != generate(model, prompts, 10, Sampler(1.3, 9, 0.9, seed=6))


def test_sampler_keeps_what_it_should():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))[:, [2, 0, 3, 1]]     # order shuffled
    rank = {1: 0.5, 3: 0.3, 0: 0.15, 2: 0.05}

    def drawn(**options):
        texts, positions = np.arange(4000), np.zeros(4000, dtype=np.int64)
        ids = Sampler(seed=1, **options).next_token(np.repeat(logits, 4000, axis=0), texts,
                                                    positions)
        return {int(t): float((ids == t).mean()) for t in np.unique(ids)}

    everything = drawn()
    assert everything.keys() == rank.keys()
    assert all(abs(everything[t] - rank[t]) < 0.03 for t in rank)
    assert drawn(top_k=2).keys() == {1, 3}
    assert drawn(top_p=0.79).keys() == {1, 3}
    assert drawn(top_p=0.81).keys() == {1, 3, 0}
    assert drawn(top_p=1e-6).keys() == {1}
    assert drawn(temperature=0).keys() == {1}
    assert drawn(temperature=0.5)[1] > 0.6
    with pytest.raises(ValueError, match="top-p 0"):
        Sampler(top_p=0)


@pytest.mark.parity
def test_greedy_equals_transformers_in_float64(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from minisft.io.checkpoint import load
    config = transformers.GPT2Config(
        vocab_size=1234, n_positions=128, n_embd=80, n_layer=3, n_head=5, n_inner=200,
        initializer_range=0.2, bos_token_id=1233, eos_token_id=1233, pad_token_id=1233)
    torch.manual_seed(3)
    peer = transformers.GPT2LMHeadModel(config).eval()
    peer.save_pretrained(tmp_path)
    prompt = np.array([5, 77, 1000])
    expected = peer.double().generate(
        torch.tensor(prompt[None]), attention_mask=torch.ones(1, 3, dtype=torch.long),
        max_new_tokens=100, do_sample=False, eos_token_id=None)[0, 3:].tolist()
    model = load(tmp_path, dtype=np.float64)
    assert generate(model, [prompt], 100, GREEDY)[0].ids == expected


@pytest.mark.parametrize("sampler", [GREEDY, Sampler(seed=1)])
def test_values_that_are_no_numbers_are_told(model, sampler):
    """Of a run that diverged: it wrote `!!!!`, the token of index 0."""
    model.store.values[...] = 1e200      # finite, as a folder's weights must be
    with pytest.raises(UserError, match="values that are not finite"):
        generate(model, [np.array([3])], 4, sampler)
    for sums in (float("nan"), np.array([0, np.inf])):
        with pytest.raises(UserError, match="values that are not finite"):
            require_finite(sums)
