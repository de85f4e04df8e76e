"""Greedy and beam search: the cache of keys, the best by brute force, and where a search ends."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from minisft.data.batch import pack_pairs
from minisft.models.config import Seq2SeqConfig
from minisft.models.finite import NotFiniteError
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.translate import DecodingState, beam_search, greedy

CONFIG = Seq2SeqConfig(
    vocab_size=5, d_model=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=6, decoder_ffn_dim=6, max_position_embeddings=9)
START, END = CONFIG.decoder_start_token_id, CONFIG.eos_token_id
SOURCES = [[3, 4, 4, 3, 2], [4, 2], [3]]


def model_of(seed, config=CONFIG, dtype=np.float64):
    model = EncoderDecoder(config, dtype, seed=1)
    noise = np.random.default_rng(seed).standard_normal(model.store.size)
    model.store.values += (0.5 * noise).astype(dtype)
    return model


def log_probabilities(model, source, targets):
    """B targets as arrays that hold all their tokens, the end too -> (B,) sums."""
    batch = pack_pairs([source] * len(targets), [t[:-1] for t in targets], START, END)
    logits = model.forward(batch)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = logp[np.arange(len(logp)), np.concatenate(targets)]
    return np.add.reduceat(chosen, batch.cu_seqlens[:-1])


def all_targets(longest):
    """-> every target that ends, or has reached the longest length."""
    others = [token for token in range(CONFIG.vocab_size) if token != END]
    ended = [[*words, END] for n in range(longest)
             for words in itertools.product(others, repeat=n)]
    return ended + list(map(list, itertools.product(others, repeat=longest)))


def test_the_cache_changes_no_logit():
    model, target = model_of(0), [3, 4, 3, 0]
    batch = pack_pairs(SOURCES, [target] * 3, START, END)
    whole = model.forward(batch).reshape(3, 5, -1)
    state = DecodingState(model, SOURCES, 5)
    # rows in another order, one twice, one never: they share the source's keys
    for i, token in enumerate([START, *target]):
        rows = np.array([1, 0, 1] if i > 2 else [0, 1, 2])
        if i == 3:
            state.select(rows)
        np.testing.assert_allclose(state.logits(np.full(3, token)), whole[rows, i], rtol=1e-9,
                                   atol=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best(seed, penalty):
    model, longest = model_of(seed), 3
    targets = all_targets(longest)
    found = beam_search(model, SOURCES, CONFIG.vocab_size ** longest, penalty, longest)
    for source, hypothesis in zip(SOURCES, found, strict=True):
        scores = log_probabilities(model, source, targets) / \
            np.array([len(t) for t in targets]) ** penalty
        best = targets[scores.argmax()]
        ended = best[-1] == END
        assert hypothesis.ids == best[:len(best) - ended]
        assert hypothesis.finish_reason == ("stop" if ended else "length")
        assert hypothesis.score == pytest.approx(scores.max())


def test_the_penalty_chooses_the_length():
    """What the brute force above would miss if all of its answers were alike."""
    lengths = {penalty: [len(h.ids) for seed in range(4) for h in beam_search(
        model_of(seed), SOURCES, 125, penalty, 3)] for penalty in (-1.0, 2.5)}
    assert min(lengths[-1.0]) < 3 and sum(lengths[-1.0]) < sum(lengths[2.5])


class Table(EncoderDecoder):
    """The probabilities of the next token by how many tokens there are and the last of them."""

    rows: dict = {}

    def next_logits(self, batch, state):
        chances = [self.rows.get((int(p), int(t)), [0.2] * 5) for p, t in
                   zip(batch.positions, batch.ids, strict=True)]
        with np.errstate(divide="ignore"):
            return np.maximum(np.log(np.array(chances)), -1e9)


def test_a_long_one_overtakes_a_short_one_that_ended_first():
    model = Table(CONFIG)
    # of pad, start, end and two words: to end at once costs 0.7 nats, the long one 1.2
    model.rows = {(0, START): [0, 0, 0.5, 0.3, 0.2], (1, 3): [0, 0, 0, 1, 0],
                  (2, 3): [0, 0, 0, 1, 0], (3, 3): [0, 0, 1, 0, 0]}
    short, long = np.log(0.5), np.log(0.3)
    for beam_size in (1, 2, 4):
        (found,) = beam_search(model, [[3]], beam_size, 0.0, 6)
        assert (found.ids, found.score) == ([], pytest.approx(short))
        (found,) = beam_search(model, [[3]], beam_size, 1.0, 6)
        assert (found.ids, found.score) == ([3, 3, 3], pytest.approx(long / 4))


def test_where_short_ones_gain_the_next_length_bounds_the_score():
    model = Table(CONFIG)
    model.rows = {(0, START): [0, 0, 0.3, 0.7, 0], (1, 3): [0, 0, 1, 0, 0]}
    (found,) = beam_search(model, [[3]], 2, -1.0, 6)
    assert (found.ids, found.score) == ([3], pytest.approx(2 * np.log(0.7)))


def test_a_search_ends_when_nothing_can_overtake():
    model, steps = Table(CONFIG), []
    model.rows = {(0, START): [0, 0, 0.9, 0.1, 0],
                  **{(n, 3): [0, 0, 0, 1, 0] for n in range(1, 9)}}

    def watched(batch, state, forward=model.next_logits):
        steps.append(len(batch.ids))
        return forward(batch, state)

    model.next_logits = watched
    assert beam_search(model, [[3]], 2, 0.0, 9)[0].ids == []
    assert len(steps) == 1


@pytest.mark.parametrize("search", [greedy, lambda *a: beam_search(*a[:2], 3, 1.0, a[2])])
def test_company_changes_nothing(search):
    model = model_of(3)
    together = search(model, SOURCES, 6)
    assert [search(model, [source], 6)[0].ids for source in SOURCES] == [t.ids for t in together]


def test_greedy_takes_the_most_probable():
    model = model_of(2)
    for source, found in zip(SOURCES, greedy(model, SOURCES, 8), strict=True):
        target: list = []
        while len(target) < 8:
            token = int(model.forward(pack_pairs([source], [target], START, END))[-1].argmax())
            if token == END:
                break
            target.append(token)
        assert found.ids == target
        assert found.finish_reason == ("stop" if len(target) < 8 else "length")


def test_the_models_positions_are_the_limit():
    model = model_of(2)
    model.trunk.decoder.layer_norm.b.value[...] = 9 * model.trunk.shared.w.value[3]
    for found in (*greedy(model, SOURCES, 50), *beam_search(model, SOURCES, 2, 1.0, 50)):
        assert found.ids == [3] * 9 and found.finish_reason == "context"


def test_what_cannot_be_is_refused():
    model = model_of(0)
    for call, message in ((lambda: greedy(model, SOURCES, 0), "max_new_tokens is 0"),
                          (lambda: beam_search(model, SOURCES, 0), "beam_size is 0"),
                          (lambda: beam_search(model, SOURCES, 2, np.nan), "penalty is nan"),
                          (lambda: beam_search(model, SOURCES, 2, 1e308), "from -10 to 10"),
                          (lambda: greedy(model, [[]], 3), "one token or more"),
                          (lambda: greedy(model, [[3] * 10], 3), "a text of 10 tokens")):
        with pytest.raises(ValueError, match=message):
            call()
    model.store.values[...] = np.nan
    with pytest.raises(NotFiniteError):
        greedy(model, SOURCES, 3)


def test_float32(rng):
    config = replace(CONFIG, vocab_size=40, d_model=16)
    ours, theirs = (beam_search(model_of(1, config, dtype), SOURCES, 4, 1.0, 6)
                    for dtype in (np.float32, np.float64))
    assert [h.ids for h in ours] == [h.ids for h in theirs]
